package hub

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/holdfast-edge/holdfast/link"
)

// metrics are what GET /metrics shows. None has a machine or a site as a label: ten
// thousand of them are what GET /v1/status is for.
type metrics struct {
	registry *prometheus.Registry

	refused    *prometheus.CounterVec // connections, by reason
	slices     *prometheus.CounterVec // deliveries, by result
	sliceBytes prometheus.Counter
	reports    *prometheus.CounterVec // by result
	releases   *prometheus.CounterVec // by origin and result
	gitPolls   *prometheus.CounterVec // by result
	relayed    *prometheus.CounterVec // bytes, by direction

	mu    sync.Mutex
	gates []*link.Gate // guarded by mu
}

func newMetrics(h *Hub) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "holdfast", Subsystem: "hub", Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	m.refused = counter("connections_refused_total", "Connections that were not served, by reason.", "reason")
	m.slices = counter("slices_total", "Slices offered to machines, by result.", "result")
	m.sliceBytes = counter("slice_bytes_total", "Bytes of slices sent to machines, packed.").WithLabelValues()
	m.reports = counter("reports_total", "Reports of machines, by result.", "result")
	m.releases = counter("releases_total", "Releases that were brought, by origin and result.", "origin", "result")
	m.gitPolls = counter("git_polls_total", "Looks at the Git remote, by result.", "result")
	m.relayed = counter("relayed_bytes_total", "Bytes passed on unread, by direction.", "direction")

	gauge := func(name, help string, labels prometheus.Labels, f func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "holdfast", Subsystem: "hub", Name: name, Help: help, ConstLabels: labels}, f))
	}
	gauge("release", "Number of the newest release.", nil, func() float64 { return float64(h.head().N) })
	gauge("trust_version", "Version of trust.yaml in force.", nil, func() float64 { return float64(h.head().trust.Version) })
	gauge("sites", "Sites in the newest release.", nil, func() float64 { return float64(len(h.head().index.Sites())) })
	gauge("machines_listed", "Machines in the newest release.", nil, func() float64 { n, _, _ := h.counts(); return float64(n) })
	gauge("machines_online", "Listed machines that are connected.", nil, func() float64 { _, n, _ := h.counts(); return float64(n) })
	for i, c := range []string{"control", "bulk", "relay"} {
		gauge("sessions", "Sessions of listed machines, by class.", prometheus.Labels{"class": c}, func() float64 { _, _, s := h.counts(); return float64(s[i]) })
	}
	gauge("deliveries_pending", "Machines that are due a slice.", nil, func() float64 { return float64(h.deliverer.size()) })
	gauge("quarantine_machines", "Machines that no site lists.", nil, func() float64 { n, _ := h.ward.Count(); return float64(n) })
	gauge("relays", "Connections that are passed on.", nil, func() float64 { return float64(h.relays.size()) })
	gauge("guests", "Connections of the HTTP service.", nil, func() float64 { return float64(h.guests.size()) })
	gauge("handshakes_pending", "Connections that have not authenticated.", nil, func() float64 { return m.sumGates((*link.Gate).Pending) })
	gauge("image_bytes", "Bytes of app images.", nil, func() float64 { used, _ := h.images.Usage(); return float64(used) })
	gauge("image_quota_bytes", "Bytes that app images may take.", nil, func() float64 { _, quota := h.images.Usage(); return float64(quota) })
	m.registry.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "holdfast", Subsystem: "hub", Name: "gate_refused_total", Help: "Connections for which there was no room before the handshake."},
			func() float64 { return m.sumGates(func(g *link.Gate) int { return int(g.Refused()) }) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "holdfast", Subsystem: "hub", Name: "info", Help: "Always 1; the version is a label.", ConstLabels: prometheus.Labels{"version": h.cfg.Version}}, func() float64 { return 1 }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func (m *metrics) watchGate(g *link.Gate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gates = append(m.gates, g)
}

func (m *metrics) sumGates(f func(*link.Gate) int) float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, g := range m.gates {
		n += f(g)
	}
	return float64(n)
}
