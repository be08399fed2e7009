// Package quarantine remembers, for a while and in memory only, the machines that
// dialed and that no site lists.
//
// It is what an operator looks at before adopting a box, and nothing more: no disk,
// no rights, no way to ask for anything. Whoever floods it from one network can
// fill that network's share and no other's. Those who are connected keep their
// place until their time is over; those who left are forgotten first.
package quarantine

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Refusals.
var (
	// ErrFull is returned by Enter when every place is taken by a connected machine.
	ErrFull = errors.New("quarantine is full")
	// ErrNetworkFull is returned by Enter when the network's share is taken.
	ErrNetworkFull = errors.New("quarantine is full for this network")
)

// Config bounds a Ward. Zero fields take the defaults.
type Config struct {
	Total      int           // machines in all (256)
	PerNetwork int           // machines of one /24 or /64 (16)
	Remember   time.Duration // after a machine left (15 min)
}

// Entry is one machine in quarantine.
type Entry struct {
	Machine     fleet.MachineID
	Address     netip.Addr
	First, Last time.Time
	Connected   bool
	Words
}

// Words are what a machine says of itself, verified and bounded by the caller.
type Words struct {
	Introduction          []byte // as signed
	Version, Architecture string
}

// Ward holds the entries. Its zero value is not ready; use New.
type Ward struct {
	cfg Config

	mu      sync.Mutex
	beds    map[fleet.MachineID]*bed
	network map[netip.Prefix]int
	refused uint64
}

type bed struct {
	Entry
	visits int // sessions that are open now
}

// New makes an empty ward.
func New(cfg Config) *Ward {
	if cfg.Total == 0 {
		cfg.Total = 256
	}
	if cfg.PerNetwork == 0 {
		cfg.PerNetwork = 16
	}
	if cfg.Remember == 0 {
		cfg.Remember = 15 * time.Minute
	}
	return &Ward{cfg: cfg, beds: map[fleet.MachineID]*bed{}, network: map[netip.Prefix]int{}}
}

// Network is the part of an address that shares a bound: /24 or /64.
func Network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the zero Addr has the zero Prefix: a network of its own
	return p
}

// Enter admits a machine that just connected, or says why not. The caller calls
// Leave when the session ends.
func (w *Ward) Enter(id fleet.MachineID, from netip.Addr, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(now)
	b := w.beds[id]
	if b != nil && Network(b.Address) != Network(from) {
		// Same key from elsewhere: its place moves along, if there is room.
		if b.visits > 0 {
			w.refused++
			return ErrNetworkFull
		}
		w.remove(b)
		b = nil
	}
	if b == nil {
		if err := w.makeRoom(Network(from)); err != nil {
			w.refused++
			return err
		}
		b = &bed{Entry: Entry{Machine: id, Address: from, First: now}}
		w.beds[id] = b
		w.network[Network(from)]++
	}
	b.Address, b.Last, b.Connected = from, now, true
	b.visits++
	return nil
}

// Introduce notes what a machine said of itself, and tells whether an introduction
// is known; words without one keep the one from before.
func (w *Ward) Introduce(id fleet.MachineID, words Words, now time.Time) (introduced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.beds[id]
	if b == nil {
		return false
	}
	if words.Introduction == nil {
		words.Introduction = b.Introduction
	}
	b.Words, b.Last = words, now
	return b.Introduction != nil
}

// Leave notes that a session ended.
func (w *Ward) Leave(id fleet.MachineID, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := w.beds[id]; b != nil {
		b.visits--
		b.Connected, b.Last = b.visits > 0, now
	}
}

// Release forgets machines that a site lists now.
func (w *Ward) Release(listed func(fleet.MachineID) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, b := range w.beds {
		if listed(id) {
			w.remove(b)
		}
	}
}

// List returns the entries, newest first.
func (w *Ward) List(now time.Time) []Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(now)
	all := make([]Entry, 0, len(w.beds))
	for _, b := range w.beds {
		all = append(all, b.Entry)
	}
	slices.SortFunc(all, func(a, b Entry) int {
		return cmp.Or(b.First.Compare(a.First), cmp.Compare(a.Machine, b.Machine))
	})
	return all
}

// Count returns the number of entries, and how many machines found no room so far.
func (w *Ward) Count() (entries int, refused uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.beds), w.refused
}

func (w *Ward) makeRoom(n netip.Prefix) error {
	if w.network[n] >= w.cfg.PerNetwork && !w.evict(func(b *bed) bool { return Network(b.Address) == n }) {
		return ErrNetworkFull
	}
	if len(w.beds) >= w.cfg.Total && !w.evict(func(*bed) bool { return true }) {
		return ErrFull
	}
	return nil
}

// evict removes the one that left longest ago.
func (w *Ward) evict(among func(*bed) bool) bool {
	var oldest *bed
	for _, b := range w.beds {
		if !b.Connected && among(b) && (oldest == nil || b.Last.Before(oldest.Last)) {
			oldest = b
		}
	}
	if oldest != nil {
		w.remove(oldest)
	}
	return oldest != nil
}

func (w *Ward) forget(now time.Time) {
	for _, b := range w.beds {
		if !b.Connected && now.Sub(b.Last) > w.cfg.Remember {
			w.remove(b)
		}
	}
}

func (w *Ward) remove(b *bed) {
	delete(w.beds, b.Machine)
	n := Network(b.Address)
	if w.network[n]--; w.network[n] <= 0 {
		delete(w.network, n)
	}
}
