package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/release"
)

// kit is the places of a machine's memory, and the machine that they are of.
type kit struct {
	t       testing.TB
	w       *world
	anchors string // the box's notes
	public  string
	state   string
	self    fleet.MachineID
	seed    release.Seed
}

func newKit(t testing.TB, w *world) *kit {
	dir := t.TempDir()
	return &kit{t, w, filepath.Join(dir, "tpm"), filepath.Join(dir, "esp"), filepath.Join(dir, "state"), fleetgen.MachineID(1, 0), w.seed}
}

// unsynced is a disk that nobody waits for.
var unsynced = rim{
	write: os.WriteFile,
	remove: func(path string) error {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	},
}

// open recalls what the box remembers.
func (b *kit) open() *memory {
	b.t.Helper()
	m, err := b.openOn(unsynced)
	if err != nil {
		b.t.Fatal(err)
	}
	return m
}

func (b *kit) openOn(disk rim) (*memory, error) {
	b.must(os.MkdirAll(b.anchors, 0o700))
	return recallOn(disk, notesOn{b.anchors, disk}, b.public, b.state, b.seed, b.self)
}

// notesOn is a box that nobody waits for, and that is as small as a TPM. It
// writes by the same rim as the disk, so that one power cut stops both.
type notesOn struct {
	dir  string
	disk rim
}

func (n notesOn) ReadNote(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(n.dir, name))
}

func (n notesOn) WriteNote(name string, data []byte) error {
	const others = 300 // of other programs: state.json, os.json
	if len(data) > (box.MaxNotes-others)/2 {
		return box.ErrFull
	}
	return n.disk.write(filepath.Join(n.dir, name), data, 0o600)
}

func (n notesOn) RemoveNote(name string) error { return n.disk.remove(filepath.Join(n.dir, name)) }

// take hands the box the last release, which it must take.
func (b *kit) take(m *memory) *taken {
	b.t.Helper()
	t, err := m.take(b.w.slice(1).Encode())
	if err != nil {
		b.t.Fatalf("a valid release was refused: %v", err)
	}
	return t
}

// next releases and takes.
func (b *kit) next(m *memory) *taken {
	b.t.Helper()
	b.w.city(1, fmt.Sprintf("City of %s", b.w.clock.Format("15:04")))
	b.w.release()
	return b.take(m)
}

func (b *kit) apply(m *memory, t *taken) {
	b.t.Helper()
	if err := m.setApplied(t); err != nil {
		b.t.Fatal(err)
	}
}

// is checks the numbers of what is accepted and applied; 0 is none.
func (b *kit) is(m *memory, accepted, applied uint64) {
	b.t.Helper()
	a, p := m.now()
	if number(a) != accepted || number(p) != applied {
		b.t.Fatalf("accepted %d, applied %d; want %d and %d", number(a), number(p), accepted, applied)
	}
}

func number(t *taken) uint64 {
	if t == nil {
		return 0
	}
	return t.Tag.Payload.N
}

// clone copies the folders: the disk as it stands at this instant.
func (b *kit) clone() *kit {
	b.t.Helper()
	c := newKit(b.t, b.w)
	c.self, c.seed = b.self, b.seed
	for from, to := range map[string]string{b.anchors: c.anchors, b.public: c.public, b.state: c.state} {
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			b.t.Fatal(err)
		}
	}
	return c
}

func (b *kit) files() []string {
	var list []string
	for _, dir := range []string{b.anchors, b.public, b.state} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
	}
	return list
}

// only returns the one file that matches.
func (b *kit) only(dir, pattern string) string {
	b.t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) != 1 {
		b.t.Fatalf("%s: got %v, want one", pattern, files)
	}
	return files[0]
}

var errPower = errors.New("the power is gone")

// fuse is a disk whose power goes at write k: that write did not happen, or did
// and nobody heard of it; no later one happens. That a write is whole or not at
// all is package durable's promise, and tested there.
type fuse struct {
	left      int
	persisted bool
	writes    int
}

func (f *fuse) rim() rim {
	blow := func(do func() error) error {
		f.writes++
		switch f.left--; {
		case f.left > 0:
			return do()
		case f.left == 0 && f.persisted:
			if err := do(); err != nil {
				return err
			}
		}
		return errPower
	}
	return rim{
		write: func(path string, data []byte, perm fs.FileMode) error {
			return blow(func() error { return unsynced.write(path, data, perm) })
		},
		remove: func(path string) error { return blow(func() error { return unsynced.remove(path) }) },
	}
}

// The power goes at every write of a life in which signers change, content is
// applied, and the machine is put out. Whenever that is, the machine comes back
// with something that was verified, never below what it had acknowledged, and
// goes on to the newest release.
func TestPowerGoesAtEveryWrite(t *testing.T) {
	w := newWorld(t, 12)
	w.release()
	first := w.slice(1).Encode()
	w.trust(2, []string{"ops"}, "spare")
	w.releaseWith(nil, "ci", "spare")
	second := w.slice(1).Encode()
	w.trust(3, []string{"ops"}, "third")
	w.releaseWith(nil, "spare", "third")
	third := w.slice(1).Encode()
	w.bury(1, fleetgen.MachineID(1, 0))
	w.releaseWith(nil, "third")
	last := w.slice(1).Encode()

	// live is the life; told is called with what the machine has acknowledged.
	t.Parallel()
	live := func(m *memory, told func(accepted, applied uint64)) error {
		for _, s := range [][]byte{first, second, third} {
			got, err := m.take(s)
			if err != nil {
				return err
			}
			_, applied := m.now()
			told(number(got), number(applied))
			if err := m.setApplied(got); err != nil {
				return err
			}
			told(number(got), number(got))
			if err := m.setGood(number(got)); err != nil {
				return err
			}
		}
		got, err := m.take(last)
		if err == nil {
			told(number(got), 0)
		}
		return err
	}
	whole := &fuse{left: 1 << 30}
	m, err := newKit(t, w).openOn(whole.rim())
	if err != nil {
		t.Fatal(err)
	}
	if err := live(m, func(uint64, uint64) {}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d writes", whole.writes)
	if whole.writes < 20 {
		t.Fatalf("only %d writes seen: the rim leaks", whole.writes)
	}
	for k := 1; k <= whole.writes; k++ {
		for _, persisted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d persisted=%v", k, persisted), func(t *testing.T) {
				b := newKit(t, w)
				m, err := b.openOn((&fuse{left: k, persisted: persisted}).rim())
				if err != nil {
					t.Fatal(err)
				}
				var accepted, applied uint64
				err = live(m, func(a, p uint64) { accepted, applied = a, p })
				if err != nil && !errors.Is(err, errPower) {
					t.Fatal(err)
				}
				b.check(accepted, applied)
				// The power goes again while it comes back.
				for again := 1; again <= 2; again++ {
					c := b.clone()
					c.openOn((&fuse{left: again, persisted: persisted}).rim())
					c.check(accepted, applied)
				}
				m = b.open()
				if got, err := m.take(last); err != nil || !got.Evicted {
					t.Fatalf("after the crash the newest release was refused: %v", err)
				}
				b.is(b.open(), 4, 0)
			})
		}
	}
}

// check reads the box and compares it with what it acknowledged before the power
// went; it may be one step ahead.
func (b *kit) check(accepted, applied uint64) {
	b.t.Helper()
	c := b.clone() // recalling writes
	m := c.open()
	a, p := m.now()
	if n := number(a); n < accepted || n > accepted+1 || m.anchor.N != n {
		b.t.Fatalf("accepted %d, anchor at %d; before the crash %d: %v", n, m.anchor.N, accepted, c.files())
	}
	evicted := a != nil && a.Evicted
	if n := number(p); !evicted && n != applied && n != number(a) || evicted && n != 0 {
		b.t.Fatalf("applied %d (evicted %v); before the crash %d: %v", n, evicted, applied, c.files())
	}
	if m.trust == nil && m.anchor.N > 0 {
		b.t.Fatalf("the trust that the anchor names is lost: %v", c.files())
	}
	if m.trust != nil && m.trust.Version != m.anchor.TrustVersion {
		b.t.Fatalf("trust %d under an anchor of %d", m.trust.Version, m.anchor.TrustVersion)
	}
}

// A crash between writing new trust and the anchor that names it must not cost
// the trust that the old anchor names: a slice need not carry it.
func TestTrustOutlivesACrashBeforeItsAnchor(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	b.next(b.open())
	w.trust(2, nil, "spare")
	w.releaseWith(nil, "ci", "spare")
	w.steps = nil // a hub that never knew version 1
	m, err := b.openOn((&fuse{left: 3}).rim())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, errPower) {
		t.Fatalf("got %v, want the power to go", err)
	}
	if err := os.Remove(filepath.Join(b.state, "accepted.slice")); err != nil { // and the disk with it
		t.Fatal(err)
	}
	m = b.open()
	b.take(m)
	b.is(m, 2, 0)
}

func TestBlankDiskRefills(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.apply(m, b.next(m))
	old := w.clone() // where ci may still sign
	w.trust(2, []string{"ops"}, "spare")
	w.releaseWith(nil, "ci", "spare")
	b.take(m)

	for name, prepare := range map[string]func(*kit){
		"state":                    func(*kit) {},
		"state and the kept trust": func(b *kit) { b.remove(b.only(b.public, "trust-*.yaml")) },
		"state, and the kept trust is damaged": func(b *kit) {
			b.write(b.only(b.public, "trust-*.yaml"), b.seed.Trust)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := b.clone()
			b.t = t
			b.wipeState()
			prepare(b)
			m := b.open()
			b.is(m, 0, 0)
			if m.anchor.N != 2 || m.anchor.TrustVersion != 2 {
				t.Fatalf("anchor %+v, want release 2 with trust 2", m.anchor)
			}
			// The seed still names ci, who was revoked.
			bad := old.clone()
			bad.release()
			bad.release()
			if _, err := m.take(bad.slice(1).Encode()); !errors.Is(err, release.ErrOld) && !errors.Is(err, release.ErrSigner) && !errors.Is(err, release.ErrTrustStep) {
				t.Errorf("a revoked signer on a blank disk: got %v", err)
			}
			got := b.take(m)
			if !got.Same {
				t.Error("the same release is not seen as the same")
			}
			b.is(b.open(), 2, 0)
			if m := b.open(); m.trust == nil || m.trust.Version != 2 {
				t.Error("the trust was not kept")
			}
			if _, err := m.take(bad.slice(1).Encode()); err == nil {
				t.Error("the revoked signer was believed")
			}
		})
	}
}

// Locked, or without a disk, a machine knows whom to trust, by the anchor and not
// by what lies in the public folder; it takes nothing and writes nothing.
func TestMemoryWithoutState(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.apply(m, b.next(m))
	w.trust(2, []string{"ops"}, "spare")
	w.releaseWith(nil, "ci", "spare")
	b.take(m)
	thief := w.clone()
	thief.trust(2, []string{"thief"}, "thief")
	forged := thief.files["trust.yaml"]
	for name, c := range map[string]struct {
		put     func(b *kit, file string)
		trusted bool
	}{
		"as it was":           {func(*kit, string) {}, true},
		"forged trust":        {func(b *kit, file string) { b.write(file, forged) }, false},
		"damaged":             {func(b *kit, file string) { b.flip(file) }, false},
		"the seed's":          {func(b *kit, file string) { b.write(file, b.seed.Trust) }, false},
		"gone":                {func(b *kit, file string) { b.remove(file) }, false},
		"folder":              {func(b *kit, file string) { b.remove(file); b.mkdir(file) }, false},
		"link to somewhere":   {func(b *kit, file string) { b.remove(file); b.symlink("/dev/zero", file) }, false},
		"oversized":           {func(b *kit, file string) { b.truncate(file, 1<<40) }, false},
		"forged beside it":    {func(b *kit, file string) { b.write(filepath.Join(b.public, "trust-000000000000.yaml"), forged) }, true},
		"public folder wiped": {func(b *kit, _ string) { b.remove(b.public) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := b.clone()
			b.t = t
			c.put(b, b.only(b.public, "trust-*.yaml"))
			state := b.state
			b.state = ""
			f := &fuse{left: 1 << 30}
			m, err := b.openOn(f.rim())
			if err != nil {
				t.Fatal(err)
			}
			if (m.trust != nil) != c.trusted || m.anchor.N != 2 || m.anchor.TrustVersion != 2 {
				t.Errorf("anchor %+v, trust %+v", m.anchor, m.trust)
			}
			if m.trust != nil && (len(m.trust.Operators) != 1 || m.trust.Operators[0].Name != "ops") {
				t.Errorf("operators %+v", m.trust.Operators)
			}
			if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, errLocked) {
				t.Errorf("a slice: got %v, want errLocked", err)
			}
			if f.writes != 0 {
				t.Errorf("%d writes", f.writes)
			}
			b.state = state // opened again
			b.take(b.open())
			b.is(b.open(), 2, 1)
		})
	}
	t.Run("never had a release", func(t *testing.T) {
		b := newKit(t, w)
		b.state = ""
		m := b.open()
		if m.trust == nil || m.number() != 0 {
			t.Errorf("trust %v, release %d; want the seed's", m.trust, m.number())
		}
	})
}

// The notes of a machine at release 2^64-1, with every field, leave room for those of others.
func TestNotesAreSmall(t *testing.T) {
	b := newKit(t, newWorld(t, 1))
	m := b.open()
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	var d release.Digest
	for i := range d {
		d[i] = 0xff
	}
	const most = 1<<64 - 1
	b.must(m.saveAnchor(release.Anchor{FleetID: fleetID, N: most, Payload: d, Time: far, TrustVersion: most, TrustDigest: d, LastGood: most, Floor: far}))
	b.must(m.writeNote(noteApplied, appliedNote{N: most, Digest: d}))
	size := 0
	for _, name := range []string{noteAnchor, noteApplied} {
		data, err := m.notes.ReadNote(name)
		b.must(err)
		size += len(name) + len(data)
	}
	t.Logf("%d bytes", size)
	if size > 700 {
		t.Errorf("%d bytes of notes; a box has %d for all", size, box.MaxNotes)
	}
}

// Somebody puts another STATE into the box.
func TestSwappedState(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.apply(m, b.next(m))
	older := w.slice(1).Encode()
	b.apply(m, b.next(m))
	applied := filepath.Base(b.only(b.state, "applied-*.slice"))

	thief := w.clone()
	thief.trust(2, nil, "thief")
	thief.releaseWith(nil, "thief")
	forged := thief.slice(1).Encode()
	other := w.clone()
	other.release()

	for name, c := range map[string]struct {
		file string
		put  func(b *kit, path string)
	}{
		"forged trust":                   {"accepted.slice", func(b *kit, path string) { b.write(path, forged) }},
		"older slice":                    {"accepted.slice", func(b *kit, path string) { b.write(path, older) }},
		"another site's slice":           {"accepted.slice", func(b *kit, path string) { b.write(path, other.slice(2).Encode()) }},
		"damaged":                        {"accepted.slice", func(b *kit, path string) { b.flip(path) }},
		"empty":                          {"accepted.slice", func(b *kit, path string) { b.write(path, nil) }},
		"folder":                         {"accepted.slice", func(b *kit, path string) { b.remove(path); b.mkdir(path) }},
		"symlink":                        {"accepted.slice", func(b *kit, path string) { b.remove(path); b.symlink("/dev/zero", path) }},
		"oversized":                      {"accepted.slice", func(b *kit, path string) { b.truncate(path, 1<<40) }},
		"applied: forged trust":          {applied, func(b *kit, path string) { b.write(path, forged) }},
		"applied: older slice":           {applied, func(b *kit, path string) { b.write(path, older) }},
		"applied: good slice of another": {applied, func(b *kit, path string) { b.write(path, other.slice(1).Encode()) }},
		"applied: damaged":               {applied, func(b *kit, path string) { b.flip(path) }},
		"applied: folder":                {applied, func(b *kit, path string) { b.remove(path); b.mkdir(path) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := b.clone()
			b.t = t
			c.put(b, filepath.Join(b.state, c.file))
			m := b.open()
			if c.file == applied {
				b.is(m, 2, 0)
			} else {
				b.is(m, 0, 2)
			}
			name := "accepted.slice.refused"
			if c.file == applied {
				name = "applied.slice.refused"
			}
			if _, err := os.Lstat(filepath.Join(b.state, name)); err != nil {
				t.Errorf("it was not moved aside: %v", b.files())
			}
			if m.anchor.N != 2 || m.trust.Version != 1 {
				t.Errorf("anchor %+v, trust %d", m.anchor, m.trust.Version)
			}
			b.apply(m, b.take(m))
			b.is(b.open(), 2, 2)
		})
	}
}

// A slice under a name that no note gives is not believed, and does not stay.
func TestUnprovedContentIsRemoved(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.apply(m, b.next(m))
	name := filepath.Base(b.only(b.state, "applied-*.slice"))
	for what, note := range map[string]string{
		"no note":                     "",
		"damaged note":                "{",
		"note of a release to come":   `{"n": 9, "digest": "` + strings.Repeat("ab", 32) + `"}`,
		"note with a key of tomorrow": `{"n": 1, "tomorrow": true}`,
	} {
		t.Run(what, func(t *testing.T) {
			b := b.clone()
			b.t = t
			b.remove(filepath.Join(b.anchors, "applied.json"))
			if note != "" {
				b.write(filepath.Join(b.anchors, "applied.json"), []byte(note))
			}
			b.is(b.open(), 1, 0)
			if _, err := os.Stat(filepath.Join(b.state, name)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("still there: %v", b.files())
			}
		})
	}
}

// Without its anchor a machine is blank: it knows its seed, and what lies on the
// disk counts no more than what comes by the link.
func TestAnchorDeleted(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.apply(m, b.next(m))
	w.trust(2, nil, "spare")
	w.releaseWith(nil, "ci", "spare")
	b.apply(m, b.take(m))
	b.remove(filepath.Join(b.anchors, "anchor.json"))
	t.Run("disk and all", func(t *testing.T) {
		b := b.clone()
		b.t = t
		b.wipeState()
		m := b.open()
		b.is(m, 0, 0)
		if m.anchor.N != 0 || m.trust.Version != 1 {
			t.Errorf("anchor %+v, trust %d; want the seed's", m.anchor, m.trust.Version)
		}
		b.take(m)
	})
	t.Run("alone", func(t *testing.T) {
		m := b.open() // the slice proves itself from the seed on
		b.is(m, 2, 2)
		if m.anchor.TrustVersion != 2 {
			t.Errorf("anchor %+v", m.anchor)
		}
	})
}

func TestErrForeignFleet(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	b.next(b.open())
	b.seed.FleetID = fleet.ID(strings.Repeat("ab", 16))
	before := b.files()
	if _, err := b.openOn(unsynced); !errors.Is(err, ErrForeignFleet) {
		t.Fatalf("got %v, want ErrForeignFleet", err)
	}
	if diff := cmp.Diff(before, b.files()); diff != "" {
		t.Errorf("something was written (-before +after):\n%s", diff)
	}
	b.seed = w.seed
	b.is(b.open(), 1, 0)
}

func TestErrDamagedAnchor(t *testing.T) {
	b := newKit(t, newWorld(t, 12))
	b.next(b.open())
	b.write(filepath.Join(b.anchors, "anchor.json"), []byte("{}garbage"))
	if _, err := b.openOn(unsynced); err == nil {
		t.Error("a damaged anchor was taken for none")
	}
}

// Revoked since, its content still stands a site up; what takes its place does not.
func TestAppliedContentOfARevokedSigner(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	w.releaseWith(nil, "spare")
	b.apply(m, b.take(m))
	bad := w.clone()
	w.trust(2, nil, "ci")
	w.release()
	b.take(m)
	m = b.open()
	b.is(m, 2, 1)
	if _, applied := m.now(); applied.Signer.Name != "spare" || applied.Fleet == nil || applied.ContentErr != nil {
		t.Errorf("applied by %s, content %v", applied.Signer.Name, applied.ContentErr)
	}
	bad.city(1, "Elsewhere")
	bad.releaseWith(nil, "spare")
	if _, err := m.take(bad.slice(1).Encode()); err == nil {
		t.Error("the revoked signer was believed")
	}
	b.write(b.only(b.state, "applied-*.slice"), bad.slice(1).Encode())
	b.is(b.open(), 2, 0)
}

// Evicted by a release whose content then cannot be read, the machine stays
// evicted: after a restart, and when the disk that says so is wiped.
func TestEvictionSticks(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	first := b.next(m)
	b.apply(m, first)
	before := w.clone()
	w.bury(1, b.self)
	w.files[fleetgen.SiteDir(1)+"/site.yaml"] = append(w.files[fleetgen.SiteDir(1)+"/site.yaml"], "  fieldOfTheFuture: 1\n"...)
	w.release()
	got := b.take(m)
	if !got.Evicted || got.ContentErr == nil {
		t.Fatalf("evicted %v, content %v", got.Evicted, got.ContentErr)
	}
	evicted := func(m *memory) {
		t.Helper()
		b.is(m, 2, 0)
		if a, _ := m.now(); !a.Evicted {
			t.Error("a member again")
		}
		if err := m.setApplied(first); !errors.Is(err, errEvicted) {
			t.Errorf("content that ends up applied meanwhile: got %v, want errEvicted", err)
		}
	}
	evicted(m)
	evicted(b.open())
	if _, err := m.take(before.slice(1).Encode()); !errors.Is(err, release.ErrOld) {
		t.Errorf("the release before: got %v, want ErrOld", err)
	}
	wiped := b.clone()
	wiped.wipeState()
	wiped.is(wiped.open(), 0, 0)
	bad := before.clone()
	bad.release()
	if _, err := wiped.open().take(bad.slice(1).Encode()); !errors.Is(err, release.ErrFork) {
		t.Errorf("another release 2 that keeps it: got %v, want ErrFork", err)
	}
	b.next(m) // goes on, still buried
	if a, _ := b.open().now(); !a.Evicted || number(a) != 3 {
		t.Errorf("release %d, evicted %v", number(a), a.Evicted)
	}
}

// A full disk refuses nothing for ever: what was good stays unsaved and is taken later.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	b.next(m)
	full := rim{func(string, []byte, fs.FileMode) error { return errors.New("no space left on device") }, unsynced.remove}
	m.disk, m.notes = full, notesOn{b.anchors, full}
	w.release()
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, errUnsaved) {
		t.Fatalf("got %v, want errUnsaved", err)
	}
	b.is(m, 1, 0)
	m, err := b.openOn(full) // comes up without a byte to write
	if err != nil {
		t.Fatal(err)
	}
	b.is(m, 1, 0)
	m.disk, m.notes = unsynced, notesOn{b.anchors, unsynced}
	b.take(m)
	b.is(b.open(), 2, 0)

	// The state was written, the anchor's folder is full.
	w.release()
	two := (&fuse{left: 2}).rim()
	m.disk, m.notes = two, notesOn{b.anchors, two}
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, errUnsaved) {
		t.Fatalf("got %v, want errUnsaved", err)
	}
	if m, err = b.openOn(full); err != nil {
		t.Fatal(err)
	}
	if m.anchor.N != 2 || m.accepted != nil {
		t.Errorf("anchor at %d, accepted %v: acted upon what the anchor does not name", m.anchor.N, m.accepted)
	}
	b.is(b.open(), 3, 0)
}

// Coming up again writes nothing.
func TestRecallWritesNothing(t *testing.T) {
	b := newKit(t, newWorld(t, 12))
	m := b.open()
	b.apply(m, b.next(m))
	f := &fuse{left: 1 << 30}
	if _, err := b.openOn(f.rim()); err != nil {
		t.Fatal(err)
	}
	if f.writes != 0 {
		t.Errorf("%d writes", f.writes)
	}
}

// What is kept does not pile up.
func TestKeepsOneOfEach(t *testing.T) {
	w := newWorld(t, 12)
	b := newKit(t, w)
	m := b.open()
	for version := 2; version < 5; version++ {
		b.apply(m, b.next(m))
		w.trust(version, nil, "ci")
	}
	if files := b.files(); len(files) != 5 {
		t.Errorf("got %v, want an anchor, its trust, a note and two slices", files)
	}
}

func (b *kit) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *kit) write(path string, data []byte)   { b.t.Helper(); b.must(os.WriteFile(path, data, 0o600)) }
func (b *kit) remove(path string)               { b.t.Helper(); b.must(os.RemoveAll(path)) }
func (b *kit) mkdir(path string)                { b.t.Helper(); b.must(os.Mkdir(path, 0o700)) }
func (b *kit) symlink(to, path string)          { b.t.Helper(); b.must(os.Symlink(to, path)) }
func (b *kit) truncate(path string, size int64) { b.t.Helper(); b.must(os.Truncate(path, size)) }
func (b *kit) wipeState()                       { b.t.Helper(); b.remove(b.state) }
func (b *kit) flip(path string) {
	b.t.Helper()
	data, err := os.ReadFile(path)
	b.must(err)
	data[len(data)/2] ^= 1
	b.write(path, data)
}
