package hub

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// roster knows every machine that a site ever listed and that was ever seen.
type roster struct {
	mu       sync.Mutex // guards all below
	machines map[fleet.MachineID]*machine
	version  uint64        // rises with each change that people see
	changed  chan struct{} // closed and replaced then
}

func newRoster() *roster {
	return &roster{machines: map[fleet.MachineID]*machine{}, changed: make(chan struct{})}
}

// saved is how a report lies in the store.
type saved struct {
	Report  wire.Report
	Version string
}

// load takes up what is stored, at start.
func (r *roster) load(ctx context.Context, s *store.Store) error {
	seen, err := s.Machines(ctx)
	if err != nil {
		return err
	}
	for id, x := range seen {
		m := r.need(fleet.MachineID(id))
		m.since = x.LastSeen
		m.sent, m.received = x.Sent, x.Received
		m.savedSent, m.savedReceived = x.Sent, x.Received
	}
	return s.LatestReports(ctx, func(x store.Report) error {
		var body saved
		if err := json.Unmarshal(x.Body, &body); err != nil {
			return fmt.Errorf("report of %s: %w", x.Machine, err)
		}
		m := r.need(fleet.MachineID(x.Machine))
		m.report, m.reported, m.version = &body.Report, x.Received, body.Version
		return nil
	})
}

// need returns the machine, which is made when it was never seen.
func (r *roster) need(id fleet.MachineID) *machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.machines[id]
	if m == nil {
		m = &machine{id: id, changed: make(chan struct{})}
		r.machines[id] = m
	}
	return m
}

// find returns the machine, or nil.
func (r *roster) find(id fleet.MachineID) *machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.machines[id]
}

func (r *roster) all() []*machine {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Values(r.machines))
}

// online returns the machines with any session.
func (r *roster) online() []*machine {
	return slices.DeleteFunc(r.all(), func(m *machine) bool { return !m.connected() })
}

// touch tells those who watch that something changed.
func (r *roster) touch() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.version++
	close(r.changed)
	r.changed = make(chan struct{})
}

// watch returns the version and what is closed when it rises.
func (r *roster) watch() (version uint64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version, r.changed
}

// machine is one that a site lists, or listed.
type machine struct {
	id fleet.MachineID

	mu       sync.Mutex // guards all below
	sessions [3]link.Session
	changed  chan struct{} // closed and replaced when sessions change
	client   *http.Client  // on control
	since    time.Time     // of being online or offline
	address  netip.Addr
	version  string // of machined
	locked   bool   // by its greeting: it can keep no slice

	report   *wire.Report // nil before the first
	reported time.Time

	held    held
	refused refusal

	sent, received           uint64 // of sessions that ended
	savedSent, savedReceived uint64 // of what is in the store
}

// held names the slice that a machine holds, and what it takes to cut it again. It is
// not stored: every greeting says it anew.
type held struct {
	slice release.Digest // zero: unknown, or none
	n     uint64
	dir   string
}

// refusal is a slice that the machine did not want.
type refusal struct {
	slice  release.Digest
	n      uint64
	reason string
}

var classes = []link.Class{link.Control, link.Bulk, link.Relay}

func slot(c link.Class) int { return slices.Index(classes, c) }

// enter takes a session in; an older one of its class ends, since a machine that
// dials again has lost it.
func (m *machine) enter(s link.Session, from netip.Addr) {
	m.mu.Lock()
	i := slot(s.Class())
	old := m.sessions[i]
	if !m.isConnected() {
		m.since = time.Now()
	}
	m.sessions[i], m.address = s, from
	if s.Class() == link.Control {
		m.client = link.Client(s.Open, 0)
	}
	m.signal()
	m.mu.Unlock()
	if old != nil {
		old.Close() // its own goroutine counts its bytes
	}
}

// leave lets a session go and counts its bytes.
func (m *machine) leave(s link.Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sent, received := s.Bytes()
	m.sent, m.received = m.sent+sent, m.received+received
	if i := slot(s.Class()); m.sessions[i] == s {
		m.sessions[i] = nil
		if s.Class() == link.Control {
			m.client = nil
		}
	}
	if !m.isConnected() {
		m.since = time.Now()
	}
	m.signal()
}

func (m *machine) signal() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *machine) isConnected() bool { return m.sessions[slot(link.Control)] != nil }

func (m *machine) connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isConnected()
}

// session returns the session of a class, or nil.
func (m *machine) session(c link.Class) link.Session {
	s, _ := m.watch(c)
	return s
}

// watch also returns what is closed when sessions change.
func (m *machine) watch(c link.Class) (link.Session, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[slot(c)], m.changed
}

// cut ends all sessions.
func (m *machine) cut() {
	m.mu.Lock()
	open := m.sessions
	m.mu.Unlock()
	for _, s := range open {
		if s != nil {
			go s.Close()
		}
	}
}

// call calls the machine on its control session.
func (m *machine) call(req *http.Request) (*http.Response, error) {
	m.mu.Lock()
	client := m.client
	m.mu.Unlock()
	if client == nil {
		return nil, errOffline
	}
	return client.Do(req)
}

// bytes are those on the wire, of all sessions and all time.
func (m *machine) bytes() (sent, received uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.countBytes()
}

func (m *machine) countBytes() (sent, received uint64) {
	sent, received = m.sent, m.received
	for _, s := range m.sessions {
		if s != nil {
			a, b := s.Bytes()
			sent, received = sent+a, received+b
		}
	}
	return sent, received
}

// sighting is what the store does not know yet; ok is false when that is nothing.
func (m *machine) sighting(now time.Time) (s store.Sighting, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sent, received := m.countBytes()
	if !m.isConnected() {
		now = m.since
	}
	s = store.Sighting{ID: string(m.id), At: now, Sent: sent - m.savedSent, Received: received - m.savedReceived}
	ok = m.isConnected() || s.Sent+s.Received > 0
	m.savedSent, m.savedReceived = sent, received
	return s, ok
}

// sightingsEvery bounds what a crash forgets of "last seen" and byte counts.
const sightingsEvery = time.Minute

func (h *Hub) keepSightings(ctx context.Context) {
	tick := time.NewTicker(sightingsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h.saveSightings()
		}
	}
}

func (h *Hub) saveSightings() {
	var seen []store.Sighting
	now := time.Now()
	for _, m := range h.roster.all() {
		if s, ok := m.sighting(now); ok {
			seen = append(seen, s)
		}
	}
	if err := h.store.Saw(context.Background(), seen...); err != nil {
		h.log.Error("note which machines were seen", "err", err)
	}
}
