package hub

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/hub/sites"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

const (
	watchTime = 55 * time.Second       // a watch is answered by then, changed or not
	watchRest = 200 * time.Millisecond // changes that come together are told together
)

// epoch tells cursors of this run from those of another.
var epoch = func() string {
	var b [4]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}()

// getStatus answers at once, or with watch=CURSOR when something has changed since.
func (h *Hub) getStatus(w http.ResponseWriter, r *http.Request) {
	grant, _ := operator.From(r.Context())
	if cursor := r.URL.Query().Get("watch"); cursor != "" && !h.waitChange(r, cursor) {
		return // the operator's session, the client or the hub ended
	}
	reply(w, r, http.StatusOK, h.status(grant))
}

func (h *Hub) waitChange(r *http.Request, cursor string) bool {
	limit := time.NewTimer(watchTime)
	defer limit.Stop()
	for {
		version, changed := h.roster.watch()
		if cursor != cursorOf(version) {
			return true
		}
		select {
		case <-changed:
		case <-limit.C:
			return true
		case <-r.Context().Done():
			return false
		}
		select {
		case <-time.After(watchRest):
		case <-r.Context().Done():
			return false
		}
	}
}

func cursorOf(version uint64) string { return fmt.Sprintf("%s-%d", epoch, version) }

// status is the view of one operator: sites that a scoped key does not reach are left out.
func (h *Hub) status(grant *operator.Grant) *wire.Status {
	version, _ := h.roster.watch() // before reading: what changes meanwhile is told again
	now := h.head()
	s := &wire.Status{Fleet: h.cfg.Seed.FleetID, Name: h.cfg.Seed.Fleet, Time: time.Now().UTC(), Cursor: cursorOf(version), Sites: []wire.SiteStatus{}}
	if now.tag != nil {
		s.Head = *headOf(now.tag)
	}
	s.Quarantine, _ = h.ward.Count()
	for _, site := range now.index.Sites() {
		if grant == nil || grant.Allows(operator.Read, folderSelector(site.Dir)) {
			s.Sites = append(s.Sites, h.siteStatus(now, site))
		}
	}
	return s
}

// folderSelector judges selectors of trust.yaml that name folders. Those by label
// choose nothing here: the hub does not read site.yaml.
func folderSelector(dir string) func(selector string) bool {
	return func(selector string) bool {
		return strings.HasPrefix(dir+"/", "sites/"+strings.TrimSuffix(selector, "/")+"/")
	}
}

func (h *Hub) siteStatus(now *head, site *sites.Site) wire.SiteStatus {
	s := wire.SiteStatus{Name: site.Name, Dir: site.Dir, Machines: []wire.MachineStatus{}}
	var phases []wire.Phase
	for i, member := range site.Members {
		m := h.machineStatus(now, member)
		s.Machines = append(s.Machines, m)
		phases = append(phases, m.State)
		if i == 0 || m.N < s.N {
			s.N = m.N
		}
		if s.Detail == "" && m.State != wire.OK {
			s.Detail = m.Detail
		}
	}
	s.State = wire.Worst(phases...)
	if len(site.Members) == 0 {
		s.State, s.Detail = wire.Waiting, "no machine was adopted yet"
	}
	return s
}

func (h *Hub) machineStatus(now *head, member sites.Member) wire.MachineStatus {
	s := wire.MachineStatus{ID: member.ID, Name: member.Name, Protection: member.Protection, Unverified: member.Unverified}
	m := h.roster.find(member.ID)
	if m == nil {
		s.State, s.Detail = wire.Offline, "it has never dialed this hub"
		return s
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Online, s.Since, s.Version = m.isConnected(), m.since.UTC(), m.version
	if m.address.IsValid() {
		s.Address = m.address.String()
	}
	s.BytesSent, s.BytesReceived = m.countBytes()
	if m.report != nil {
		s.State, s.Detail, s.N, s.Effect = m.report.Phase, m.report.Detail, m.report.N, m.report.Effect
		s.OS, s.Slot, s.Trial = m.report.OS, m.report.Slot, m.report.Trial
		s.Apps, s.Conditions, s.Reported = m.report.Apps, m.report.Conditions, m.reported.UTC()
	}
	switch {
	case !s.Online:
		s.State = wire.Offline
	case m.refused.n == now.N && now.N > 0:
		s.State, s.Detail = wire.Refused, m.refused.reason
	case m.report == nil:
		s.State, s.Detail = wire.Waiting, "it has not reported yet"
	case s.N < now.N && s.State == wire.OK:
		s.State, s.Detail = wire.Staging, fmt.Sprintf("release %d is on its way", now.N)
	}
	return s
}

func (h *Hub) getQuarantine(w http.ResponseWriter, r *http.Request) {
	q := &wire.Quarantine{Guests: []wire.Guest{}}
	for _, e := range h.ward.List(time.Now()) {
		g := wire.Guest{ID: e.Machine, Introduction: e.Introduction, Since: e.First.UTC(), Online: e.Connected, Version: e.Version, Architecture: e.Architecture}
		if e.Address.IsValid() {
			g.Address = e.Address.String()
		}
		q.Guests = append(q.Guests, g)
	}
	reply(w, r, http.StatusOK, q)
}

// counts are for metrics.
func (h *Hub) counts() (listed, online int, sessions [3]int) {
	now := h.head()
	for _, s := range now.index.Sites() {
		listed += len(s.Members)
	}
	for _, m := range h.roster.all() {
		m.mu.Lock()
		if m.isConnected() {
			online++
		}
		for i, s := range m.sessions {
			if s != nil {
				sessions[i]++
			}
		}
		m.mu.Unlock()
	}
	return listed, online, sessions
}
