package update

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	stdslices "slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/osimage"
)

// kind is how an OS behaves.
type kind string

const (
	good        kind = "good"
	slow        kind = "good, after minutes"
	panics      kind = "panics"
	hangs       kind = "hangs"
	noKubelet   kind = "breaks the kubelet"
	noNetwork   kind = "loses the network"
	secondBoot  kind = "is bad in its second boot"
	secondPanic kind = "panics in its second boot"
	afterMinute kind = "is bad after the first healthy minute"
	locked      kind = "cannot open STATE"
	crashLoop   kind = "reboots after half a minute"
	refused     kind = "is refused by the firmware"
	damaged     kind = "is refused by the firmware from its second boot on"
)

var kinds = []kind{good, slow, panics, hangs, noKubelet, noNetwork, secondBoot, secondPanic, afterMinute, locked, crashLoop, refused, damaged}

func (k kind) good() bool { return k == good || k == slow }

// world is a machine with a boot loader, whose power goes.
type world struct {
	r      *rand.Rand
	log    []string
	broken []string // promises that were broken

	systems map[string]*system // by version
	entries map[slots.Slot]*entry
	staged  map[slots.Slot]string // version
	files   map[string][]byte
	notes   map[string][]byte
	data    string // minor that the data was written in
	applied string // slice

	wanted, effect string
	begun, after   int // updates begun, and those after the effect was refused

	cutIn   int // operations until the power goes; -1: never
	off     bool
	uptime  time.Duration
	running slots.Slot
	asked   bool // a reboot was asked for
}

type system struct {
	kind  kind
	minor string
	boots int
}

type entry struct {
	version string
	count   slots.Count
}

var errOff = errors.New("the power went")

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

func (w *world) breaks(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
	w.note("BROKEN: "+format, args...)
}

// op is one durable operation: made, or cut off before it or right after it.
func (w *world) op(what string, do func()) error {
	if w.off {
		return errOff
	}
	if w.cutIn == 0 {
		w.off = true
		if w.r.IntN(2) == 0 {
			what = "after " + what
			do()
		} else {
			what = "before " + what
		}
		w.note("power cut %s", what)
		return errOff
	}
	if w.cutIn > 0 {
		w.cutIn--
	}
	do()
	w.check()
	return nil
}

// check looks at what must hold at each instant.
func (w *world) check() {
	for slot, e := range w.entries {
		if e != nil && !e.count.Counted && !w.systems[e.version].kind.good() {
			w.breaks("slot %s is blessed with OS %s, which %s", slot, e.version, w.systems[e.version].kind)
		}
	}
}

func verityOf(version string) (v osimage.Verity) {
	copy(v.RootHash[:], version)
	return v
}

func rootOf(version string) string {
	v := verityOf(version)
	return hex.EncodeToString(v.RootHash[:])
}

// The slots, as machine/slots promises them.

func (w *world) Idle() slots.Slot        { return w.running.Other() }
func (w *world) Path(file string) string { return "/efi/" + file }
func (w *world) Clean(keep slots.Slot) error {
	return w.op("clean", func() {
		for s := range w.staged {
			if s != keep {
				delete(w.staged, s)
			}
		}
	})
}

func (w *world) Entry(s slots.Slot) (slots.Entry, bool, error) {
	if w.off {
		return slots.Entry{}, false, errOff
	}
	e := w.entries[s]
	if e == nil {
		return slots.Entry{}, false, nil
	}
	return slots.Entry{Slot: s, Count: e.count, Version: e.version, Verity: verityOf(e.version), File: string(s)}, true, nil
}

func (w *world) Staged(s slots.Slot) (slots.Entry, bool) {
	v, ok := w.staged[s]
	return slots.Entry{Slot: s, Version: v, Verity: verityOf(v), File: string(s) + ".new"}, ok && !w.off
}

func (w *world) Arm(s slots.Slot) error {
	self := w.entries[w.running]
	if slots.CompareVersions(w.staged[s], self.version) <= 0 {
		if err := w.op("put the running slot last", func() { self.count = slots.Count{Counted: true} }); err != nil {
			return err
		}
	}
	return w.op("arm", func() {
		w.entries[s] = &entry{w.staged[s], slots.Count{Counted: true, Left: slots.Tries}}
		delete(w.staged, s)
	})
}

func (w *world) Rearm() error {
	return w.op("rearm", func() { w.entries[w.running].count = slots.Count{Counted: true, Left: slots.Tries} })
}
func (w *world) Bless() error {
	return w.op("bless", func() { w.entries[w.running].count = slots.Count{} })
}
func (w *world) Condemn(s slots.Slot) error {
	return w.op("condemn", func() { w.entries[s].count = slots.Count{Counted: true} })
}
func (w *world) Mirror(context.Context) error {
	self, idle := w.entries[w.running], w.running.Other()
	if other := w.entries[idle]; self == nil || other != nil && other.version == self.version {
		return w.op("mend the idle slot", func() {})
	}
	if err := w.op("discard the idle slot", func() { delete(w.entries, idle) }); err != nil {
		return err
	}
	return w.op("mirror", func() { w.entries[idle] = &entry{self.version, slots.Count{Counted: true}} })
}

// The rest of the platform.

func (w *world) ReadNote(name string) ([]byte, error) {
	if data, ok := w.notes[name]; ok {
		return data, nil
	}
	return nil, fs.ErrNotExist
}
func (w *world) WriteNote(name string, data []byte) error {
	return w.op("note", func() { w.notes[name] = stdslices.Clone(data) })
}

func (w *world) rim() rim {
	return rim{
		read: func(path string) ([]byte, error) {
			if data, ok := w.files[path]; ok {
				return data, nil
			}
			return nil, fs.ErrNotExist
		},
		write: func(path string, data []byte, _ fs.FileMode) error {
			return w.op("write "+path, func() { w.files[path] = stdslices.Clone(data) })
		},
		remove: func(path string) error { return w.op("remove "+path, func() { delete(w.files, path) }) },
	}
}

func (w *world) platform() Platform {
	version := w.entries[w.running].version
	return Platform{
		Running: System{Version: version, Kubernetes: w.systems[version].minor, Slot: w.running, Root: rootOf(version)},
		Slots:   w, Notes: w,
		Install: func(_ context.Context, idle slots.Slot, t Target) (System, error) {
			if err := w.op("discard", func() { w.entries[idle] = nil; delete(w.staged, idle) }); err != nil {
				return System{}, err
			}
			if err := w.op("write root", func() {}); err != nil {
				return System{}, err
			}
			if err := w.op("write UKI", func() { w.staged[idle] = t.Version }); err != nil {
				return System{}, err
			}
			return System{Version: t.Version, Slot: idle, Root: rootOf(t.Version)}, nil
		},
		Seal:   func(context.Context, slots.Slot, string) error { return w.op("seal", func() {}) },
		Reboot: func(_ context.Context, why string) error { w.note("reboot %s", why); w.asked = true; return nil },
		Adopt:  func(slice string) error { return w.op("adopt", func() { w.applied = slice }) },
		Uptime: func() time.Duration { return w.uptime },
		Log:    slog.New(logTo{w}),
	}
}

type logTo struct{ w *world }

func (l logTo) Enabled(context.Context, slog.Level) bool { return true }
func (l logTo) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	l.w.note("%s", text)
	return nil
}
func (l logTo) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l logTo) WithGroup(string) slog.Handler      { return l }

// boot is one life of the machine, from the boot loader to the next reset.
func (w *world) boot(limit time.Duration) {
	w.off, w.uptime, w.asked = false, 0, false
	w.load()
	e := w.entries[w.running]
	s := w.systems[e.version]
	s.boots++
	w.note("boot slot %s: OS %s, which is %s; tries %+v", w.running, e.version, s.kind, e.count)
	switch {
	case s.kind == panics, s.kind == hangs, s.kind == secondPanic && s.boots > 1:
		return
	case s.kind == locked:
		w.note("locked; on trial, so reboot")
		return
	}
	if w.data != "" && minorNumber(w.data) > minorNumber(s.minor) {
		w.breaks("OS %s of Kubernetes %s runs on data of %s", e.version, s.minor, w.data)
	}
	if err := CheckFloor(w, e.version); err != nil {
		w.breaks("%v", err)
	}
	u, err := open("state", w.platform(), w.rim())
	if err != nil {
		w.breaks("open: %v", err)
		return
	}
	if done := w.said(u.Start(context.Background())); done {
		return
	}
	w.live(u, s, e.version, limit)
}

func minorNumber(s string) int { n, _ := minorOf(s); return n }

// said sorts what the updater returned: true ends this life.
func (w *world) said(err error) bool {
	switch {
	case w.off, errors.Is(err, ErrRebooting):
		return true
	case err != nil:
		w.breaks("the updater failed: %v", err)
		return true
	}
	return false
}

// live runs the machine until it goes down; a healthy one that has nothing to do
// is cut off at the limit.
func (w *world) live(u *Updater, s *system, version string, limit time.Duration) {
	first := time.Duration(-1) // healthy since
	ready := time.Duration(10+w.r.IntN(60)) * time.Second
	if s.kind == slow {
		ready = time.Duration(120+w.r.IntN(360)) * time.Second
	}
	breaksAt := 61*time.Second + time.Duration(w.r.IntN(50))*time.Second
	for w.uptime < limit {
		w.uptime += time.Duration(2+w.r.IntN(12)) * time.Second
		if w.cutIn >= 0 && w.r.IntN(100) == 0 {
			w.note("power cut at %s", w.uptime)
			w.cutIn, w.off = -1, true
			return
		}
		slice := w.applied
		if t, ok := u.Trial(); ok {
			slice = t.Slice
			if string(t.Encoded) != "bytes of "+t.Slice {
				w.breaks("the trial's slice is %q", t.Encoded)
			}
		}
		w.together(version, slice)
		if hold := u.Hold(); hold == "" {
			w.data = s.minor
		} else if w.data != "" && minorNumber(w.data) > minorNumber(hold) {
			w.breaks("held at %s, and the data is of %s", hold, w.data)
		}
		var faults []string
		switch {
		case w.uptime < ready:
			faults = []string{"starting"}
		case s.kind == noKubelet, s.kind == secondBoot && s.boots > 1:
			faults = []string{"kubelet: not ready"}
		case s.kind == noNetwork:
			faults = []string{"network: no address"}
		case s.kind == crashLoop && w.uptime > 30*time.Second:
			w.note("crash")
			return
		}
		if faults == nil && first < 0 {
			first = w.uptime
		}
		if s.kind == afterMinute && first >= 0 && w.uptime > first+breaksAt {
			faults = []string{"API: gone"}
		}
		if w.said(u.Observe(context.Background(), faults)) {
			return
		}
		if left, ok := u.Left(); ok && (left <= 0 || faults != nil) {
			w.breaks("%s left until it is judged, with faults %q", left, faults)
		}
		if u.OnTrial() || w.uptime < ready {
			continue
		}
		if w.r.IntN(4) == 0 {
			if _, err := u.Mirror(context.Background(), false); w.said(err) {
				return
			}
		}
		if w.begin(u, version) || w.uptime > ready+4*time.Minute {
			return
		}
	}
}

// together: OS and configuration are those that belong together.
func (w *world) together(version, slice string) {
	if want := "slice of " + version; slice != want {
		w.breaks("OS %s runs with the %s", version, slice)
	}
}

func (w *world) begin(u *Updater, version string) bool {
	all := map[string]fleet.OSSpec{}
	for v, s := range w.systems {
		all[v] = fleet.OSSpec{Kubernetes: s.minor, Images: map[string]fleet.OSImage{"amd64": {Digest: "sha256:" + v, Size: 1}}}
	}
	t, ok, err := u.Wanted(w.wanted, w.effect, "amd64", all)
	if err != nil || !ok {
		return false
	}
	w.begun++
	if u.Status().Refused != nil {
		w.after++
	}
	w.note("begin OS %s", t.Version)
	slice := "slice of " + w.wanted
	return w.said(u.Begin(context.Background(), Plan{Target: t, Slice: slice, Encoded: []byte("bytes of " + slice), Effect: w.effect}))
}

// load is the firmware: it starts the boot loader; where that comes back, since the
// firmware refuses what it chose, its copy; and then the entries that were told to it
// as ways into the machine.
func (w *world) load() {
	for range 2 {
		if w.choose(); !w.refuses(w.running) {
			return
		}
		w.note("refused: slot %s", w.running)
	}
	for _, s := range []slots.Slot{slots.A, slots.B} {
		if e := w.entries[s]; e != nil && (!e.count.Counted || e.count.Left == 0) && !w.refuses(s) {
			w.running = s
			return
		}
	}
	w.breaks("there is no way into the machine")
}

func (w *world) refuses(s slots.Slot) bool {
	os := w.systems[w.entries[s].version]
	return os.kind == refused || os.kind == damaged && os.boots > 0
}

// choose is the boot loader.
func (w *world) choose() {
	var best slots.Slot
	for _, s := range []slots.Slot{slots.A, slots.B} {
		e := w.entries[s]
		if e == nil {
			continue
		}
		if best == "" || before(e, w.entries[best]) {
			best = s
		}
	}
	w.running = best
	if c := &w.entries[best].count; c.Counted {
		c.Left, c.Done = max(c.Left-1, 0), c.Done+1
	}
}

func before(a, b *entry) bool {
	spentA, spentB := a.count.Counted && a.count.Left == 0, b.count.Counted && b.count.Left == 0
	if spentA != spentB {
		return spentB
	}
	return slots.CompareVersions(a.version, b.version) > 0
}

func (w *world) String() string {
	return strings.Join(w.log, "\n")
}

func newWorld(seed uint64, k kind, from, to system, older bool) *world {
	w := &world{r: rand.New(rand.NewPCG(seed, 0)), systems: map[string]*system{}, entries: map[slots.Slot]*entry{}, staged: map[slots.Slot]string{},
		files: map[string][]byte{}, notes: map[string][]byte{}, cutIn: -1, effect: "effect"}
	old, version := "1.5.0", "1.6.0"
	if older {
		version = "1.4.0"
	}
	from.kind, to.kind = good, k
	w.systems[old], w.systems[version] = &from, &to
	w.wanted, w.applied = version, "slice of "+old
	w.entries[slots.A] = &entry{version: old}
	return w
}
