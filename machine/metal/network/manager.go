package network

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// Options are what a Manager is given.
type Options struct {
	Public   string        // folder that outlives STATE: network-last.json and network.yaml lie there; "" keeps nothing
	Hints    []string      // further folders where a network.yaml may lie, sticks; they come before Public
	Resolv   string        // resolv.conf to write; "" writes none
	Deadline time.Duration // in which a new configuration must reach the hub; 0: 3 minutes
	Faults   *faults.List
	Switched func() // another configuration is in place, or another address or gateway: dial anew (link.Keeper.Redial); must not block
	Log      *slog.Logger

	Namespace *os.File               // network namespace to work in; nil: the process's own
	Physical  func(name string) bool // which ports are the machine's; nil: those with a device behind them
}

// Manager keeps the machine's network as its configuration says.
type Manager struct {
	options Options
	log     *slog.Logger
	kernel  kernel
	events  chan func(now time.Time) orders
	wakeup  chan struct{} // a DHCP client has news

	mu     sync.Mutex // guards what follows
	status []Interface
	config Config
	ntp    []string
	dns    []netip.Addr

	// Run's goroutine only.
	core     *core
	wake     time.Time
	clients  map[string]*client // by port
	carriers map[string]bool
	resolv   []byte
	unsaved  *last
	switched bool // since Switched was called
	way      []string
	stopped  sync.WaitGroup
}

// Interface is the state of a port or VLAN.
type Interface struct {
	Name      string // in the configuration
	Port      string // the kernel's name
	MAC       string
	Carrier   bool
	DHCP      bool
	Addresses []netip.Prefix
	Gateway   netip.Addr
	Source    string // of the configuration: last, network.yaml, dhcp, release
	Trial     bool   // it still has to prove itself
	Err       string // why there is no lease
}

// client is a DHCP client of a port.
type client struct {
	stop context.CancelFunc
	kick chan struct{}

	mu    sync.Mutex // guards what follows
	lease *lease
	err   error
	since time.Time // of err, or of the start
}

func (c *client) tell(l *lease, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l != nil || c.lease != nil {
		c.since = time.Now()
	}
	c.lease, c.err = l, err
}

func (c *client) now() (*lease, error, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lease, c.err, c.since
}

// New makes a Manager; Run does the work. It fails when netlink does.
func New(o Options) (*Manager, error) {
	k, err := newLinux(o.Namespace, o.Physical)
	if err != nil {
		return nil, err
	}
	return newManager(o, k), nil
}

func newManager(o Options, k kernel) *Manager {
	o.Deadline = cmp.Or(o.Deadline, defaultDeadline)
	log := o.Log
	if log == nil {
		log = slog.Default()
	}
	return &Manager{options: o, log: log, kernel: k, events: make(chan func(time.Time) orders, 64), wakeup: make(chan struct{}, 1),
		clients: map[string]*client{}, carriers: map[string]bool{}}
}

// Apply is what a release says (FromRelease); what it leaves out stays as it is.
// The same again changes nothing, and what lost the hub before is not tried again.
func (m *Manager) Apply(c Config) {
	m.events <- func(now time.Time) orders { return m.core.apply(now, c) }
}

// Contact tells whether there is a session with the hub, each time that changes.
func (m *Manager) Contact(connected bool) {
	m.events <- func(now time.Time) orders { return m.core.contact(now, connected) }
}

// Status lists the ports in their order.
func (m *Manager) Status() []Interface {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.status)
}

// Config is the present configuration: its Hubs and Proxy say how to dial.
func (m *Manager) Config() Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.config
}

// NTP are the time servers: those of the configuration, else those that DHCP names.
func (m *Manager) NTP() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ntp)
}

// DNS are the name servers: those of the configuration, else those that DHCP
// names. While there are none it is the last ones, as in resolv.conf.
func (m *Manager) DNS() []netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.dns)
}

// Run configures the ports until ctx ends, and leaves them as they are then: the
// machine's processes stop after the network does. Faults on the way are told by
// the list of faults; Run returns only with ctx.
func (m *Manager) Run(ctx context.Context) error {
	defer m.stopped.Wait()
	good, hints := m.read()
	var first orders
	m.core, first = newCore(time.Now(), m.options.Deadline, good, hints)
	m.follow(ctx, time.Now(), first)
	changes := m.watch(ctx)
	for {
		now := time.Now()
		m.reconcile(ctx, now)
		timer := time.NewTimer(m.pause(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case event := <-m.events:
			m.follow(ctx, time.Now(), event(time.Now()))
		case _, ok := <-changes:
			if !ok {
				changes = m.watch(ctx)
			}
		case <-m.wakeup:
		case <-timer.C:
			m.follow(ctx, time.Now(), m.core.tick(time.Now()))
		}
		timer.Stop()
	}
}

// round is how often ports are looked at although nobody said that something changed.
const round = 30 * time.Second

func (m *Manager) pause(now time.Time) time.Duration {
	if m.wake.IsZero() {
		return round
	}
	return min(round, max(0, m.wake.Sub(now)))
}

// read gets the sources. A damaged one is told and left out.
func (m *Manager) read() (*last, *Config) {
	var good *last
	if m.options.Public != "" {
		var err error
		if good, err = readLast(m.options.Public); err != nil {
			m.options.Faults.Set(faults.New(faults.BadHints, lastFile, err))
		}
	}
	dirs := slices.Clone(m.options.Hints)
	if m.options.Public != "" {
		dirs = append(dirs, m.options.Public)
	}
	hints, file, err := readHints(dirs)
	if err != nil {
		m.options.Faults.Set(faults.New(faults.BadHints, file, err))
	}
	return good, hints
}

func (m *Manager) watch(ctx context.Context) <-chan struct{} {
	changes, err := m.kernel.changes(ctx)
	if err != nil {
		m.log.Error("network: changes of ports are seen late", "err", err)
	}
	return changes // nil: the rounds see them
}

// follow does what the core decided.
func (m *Manager) follow(ctx context.Context, now time.Time, o orders) {
	m.wake = o.Wake
	if o.Undone != "" {
		m.log.Error("network: the new settings lost the hub and are undone", "why", o.Undone)
		m.options.Faults.Set(faults.New(faults.NetworkUndone, o.Undone))
	}
	if o.Save != nil {
		m.unsaved = o.Save
	}
	if m.unsaved != nil && m.options.Public != "" {
		if err := writeLast(m.options.Public, *m.unsaved); err != nil {
			m.log.Error("network: what works could not be written down; tried again", "err", err)
		} else {
			m.unsaved = nil
			m.options.Faults.Clear(faults.BadHints, lastFile)
		}
	}
	if o.Use == nil {
		return
	}
	m.log.Info("network: configure", "source", m.core.source, "interfaces", len(o.Use.Interfaces), "trial", m.core.trial != nil)
	if m.core.source == fromRelease && o.Undone == "" {
		m.options.Faults.Clear(faults.NetworkUndone)
	}
	m.mu.Lock()
	m.config = *o.Use
	m.mu.Unlock()
	m.switched = true
	m.reconcile(ctx, now)
}

// tell tells who dials that the way to the hub is another one. A way that is gone
// is nothing to dial by.
func (m *Manager) tell(status []Interface) {
	var way []string
	for _, x := range status {
		if x.Carrier && len(x.Addresses) > 0 {
			way = append(way, fmt.Sprint(x.Port, x.Addresses, x.Gateway))
		}
	}
	if len(way) > 0 && !slices.Equal(way, m.way) {
		m.switched = true
	}
	m.way = way
	if m.switched && m.options.Switched != nil {
		m.options.Switched()
	}
	m.switched = false
}

// reconcile compares what is wanted with what is, and does the difference.
func (m *Manager) reconcile(ctx context.Context, now time.Time) {
	links, err := m.kernel.links()
	if err != nil {
		m.log.Error("network: the ports could not be listed; tried again", "err", err)
		return
	}
	byName := map[string]link{}
	for _, l := range links {
		byName[l.Name] = l
	}
	wants := plan(m.core.current, links)
	m.dhcp(ctx, wants, byName)
	status := make([]Interface, len(wants))
	addressed := false
	var dns []netip.Addr
	ntp := slices.Clone(m.core.current.NTP)
	for i, w := range wants {
		l := byName[w.Link]
		x := Interface{Name: w.Interface, Port: w.Link, MAC: l.MAC, Carrier: l.Carrier, DHCP: w.DHCP, Source: m.core.source, Trial: m.core.trial != nil}
		if c := m.clients[w.Link]; c != nil {
			granted, err, _ := c.now()
			w = w.with(granted)
			if granted != nil {
				dns = append(dns, granted.DNS...)
				if len(m.core.current.NTP) == 0 {
					ntp = append(ntp, granted.NTP...)
				}
			} else if err != nil {
				x.Err = err.Error()
			}
		}
		if !l.Carrier { // the way is not there; the address stays, for the cable comes back
			w.Gateway, w.Routes = netip.Addr{}, nil
		}
		wants[i] = w
		x.Addresses, x.Gateway = w.Addresses, w.Gateway
		status[i] = x
		addressed = addressed || l.Carrier && len(w.Addresses) > 0
	}
	if err := m.kernel.configure(wants); err != nil {
		m.log.Error("network: not all is as it should be; tried again", "err", err)
	}
	if len(m.core.current.DNS) > 0 {
		dns = m.core.current.DNS
	}
	m.writeResolv(dns)
	m.blame(now, status, wants)
	if o := m.core.address(now, addressed); o.Use == nil {
		m.wake = o.Wake
	}
	m.mu.Lock()
	m.status, m.ntp = status, compact(ntp)
	if len(dns) > 0 {
		m.dns = compact(dns)
	}
	m.mu.Unlock()
	m.tell(status)
}

// compact removes what was there before, and keeps the order.
func compact[T comparable](in []T) []T {
	var out []T
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// dhcp starts and stops clients, and kicks those whose cable was plugged in.
func (m *Manager) dhcp(ctx context.Context, wants []want, links map[string]link) {
	wanted := map[string]bool{}
	for _, w := range wants {
		l, there := links[w.Link]
		plugged := l.Carrier && !m.carriers[w.Link]
		m.carriers[w.Link] = l.Carrier
		if !w.DHCP {
			continue
		}
		wanted[w.Link] = true
		c := m.clients[w.Link]
		switch {
		case c == nil && there && l.Carrier:
			m.clients[w.Link] = m.startClient(ctx, w.Link)
		case c != nil && plugged:
			select {
			case c.kick <- struct{}{}:
			default:
			}
		}
	}
	for name, c := range m.clients {
		if !wanted[name] {
			c.stop()
			delete(m.clients, name)
		}
	}
}

func (m *Manager) startClient(ctx context.Context, port string) *client {
	ctx, stop := context.WithCancel(ctx)
	c := &client{stop: stop, kick: make(chan struct{}, 1), since: time.Now()}
	x := m.kernel.exchange(port)
	m.stopped.Go(func() {
		keepLease(ctx, x, c.kick, func(l *lease, err error) {
			c.tell(l, err)
			if l != nil {
				m.log.Info("network: lease", "port", port, "address", l.Address, "for", l.Length)
			}
			select {
			case m.wakeup <- struct{}{}:
			default:
			}
		})
	})
	return c
}

// addressPatience is how long DHCP may take before it is a fault.
const addressPatience = 20 * time.Second

// blame sets the faults of ports. A port that nobody named may be empty.
func (m *Manager) blame(now time.Time, status []Interface, wants []want) {
	list := m.options.Faults
	carrier := slices.ContainsFunc(status, func(i Interface) bool { return i.Carrier })
	var dark, bare []string
	for i, x := range status {
		switch {
		case !x.Carrier && wants[i].VLAN == 0 && (wants[i].Named || !carrier):
			dark = append(dark, x.Port)
		case x.Carrier && x.DHCP && len(x.Addresses) == 0:
			if c := m.clients[x.Port]; c != nil {
				if _, _, since := c.now(); now.Sub(since) >= addressPatience {
					bare = append(bare, x.Port)
				}
			}
		}
	}
	turn(list, faults.NoCarrier, dark)
	turn(list, faults.NoAddress, bare)
}

// turn sets the fault for these subjects, and clears it for all others.
func turn(list *faults.List, code faults.Code, subjects []string) {
	now, _ := list.Now()
	for _, f := range now {
		if f.Code == code && !slices.Contains(subjects, f.Subject) {
			list.Clear(code, f.Subject)
		}
	}
	for _, s := range subjects {
		list.Set(faults.New(code, s))
	}
}

// writeResolv writes the name servers when they changed. None keeps the old: better than nothing while a lease is away.
func (m *Manager) writeResolv(servers []netip.Addr) {
	if m.options.Resolv == "" || len(servers) == 0 && m.resolv != nil {
		return
	}
	var b strings.Builder
	for i, a := range compact(servers) {
		if i < 3 { // more are not read
			fmt.Fprintf(&b, "nameserver %v\n", a)
		}
	}
	text := []byte(b.String())
	if m.resolv != nil && bytes.Equal(text, m.resolv) {
		return
	}
	if err := durable.WriteFile(m.options.Resolv, text, 0o644); err != nil {
		m.log.Error("network: name servers could not be written", "err", err)
		return
	}
	m.resolv = append([]byte{}, text...)
}
