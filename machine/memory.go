package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/release"
)

// memory is what the machine remembers of releases. Three places hold it:
//
//	box            anchor.json: what outlives the disks (TRUST section 4;
//	               the TPM, or a folder that stands in for it)
//	               applied.json: which slice's content runs here
//	public folder  trust-DIGEST.yaml: the one that the anchor names; no secret,
//	               and readable while STATE is locked
//	state folder   accepted.slice: the newest slice that was verified
//	               applied-DIGEST.slice: the one whose content runs here
//
// A machine whose STATE is locked, or that has no disk, has no state folder: it
// remembers whom to trust, and takes nothing new.
//
// The order of writing is: verify, write the state, write the anchor, act. A
// crash between the two leaves a state that is ahead of the anchor, which is
// verified again like any other arrival. What a note names by its digest is
// written under a name of its own before the note, and its forerunner is removed
// after it: so each note finds what it names, whenever the power goes.
type memory struct {
	notes  notes
	public string
	state  string // "": there is none
	self   fleet.MachineID
	disk   rim

	mu       sync.Mutex // guards what follows
	anchor   release.Anchor
	trust    *fleet.Trust
	accepted *taken // nil before the first release
	applied  *taken
}

// notes is what memory needs of a box.Box.
type notes interface {
	ReadNote(name string) ([]byte, error)
	WriteNote(name string, data []byte) error
	RemoveNote(name string) error
}

// Names of memory's notes.
const (
	noteAnchor  = "anchor.json"
	noteApplied = "applied.json"
)

// rim is how memory writes files; tests put one in between that fails.
type rim struct {
	write  func(path string, data []byte, perm fs.FileMode) error
	remove func(path string) error
}

var onDisk = rim{durable.WriteFile, durable.Remove}

// taken is a verified slice with the bytes that it came in.
type taken struct {
	*release.Accepted
	Encoded []byte
	Digest  release.Digest // of Encoded: what the hub may use as dictionary
}

// site is the name of the site: its last folder.
func (t *taken) site() string { return path.Base(t.SiteDir) }

// inScope says whether a selector of trust.yaml chooses the site.
func (t *taken) inScope(selector string) bool {
	if t.Fleet == nil {
		return false
	}
	site, ok := t.Fleet.Site(t.site())
	return ok && site.Matches(selector)
}

// Refusals of memory itself; those of slices are package release's.
var (
	// ErrForeignFleet: the box remembers another fleet than the seed names.
	ErrForeignFleet = errors.New("this machine belongs to another fleet")
	// errUnsaved: what was judged good could not be written, so it does not count yet.
	errUnsaved = errors.New("judged good and not remembered")
	// errEvicted: a release put this machine out, so nothing runs here.
	errEvicted = errors.New("this machine is evicted")
	// errKept: a kept slice is no file of ours.
	errKept = errors.New("not what this machine wrote")
	// errLocked: without STATE nothing can be kept, so nothing is taken.
	errLocked = errors.New("this machine is locked and takes no release until it is opened")
)

// recall opens the memory, or begins it from the seed of a machine that never
// had a release. An empty name for state is a machine without one.
func recall(n notes, public, state string, seed release.Seed, self fleet.MachineID) (*memory, error) {
	return recallOn(onDisk, n, public, state, seed, self)
}

func recallOn(disk rim, n notes, public, state string, seed release.Seed, self fleet.MachineID) (*memory, error) {
	m := &memory{notes: n, public: public, state: state, self: self, disk: disk}
	for _, dir := range []string{public, state} {
		if dir == "" {
			continue
		}
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := durable.Clean(dir); err != nil {
			return nil, err
		}
	}
	if err := m.readAnchor(seed); err != nil || state == "" {
		return m, err
	}
	if err := m.readKept("accepted.slice", "accepted.slice", m.reopenAccepted); err != nil {
		return nil, err
	}
	return m, m.readApplied()
}

func (m *memory) readAnchor(seed release.Seed) error {
	err := m.readNote(noteAnchor, &m.anchor)
	if errors.Is(err, fs.ErrNotExist) {
		m.anchor, m.trust, err = seed.Anchor()
		return err
	}
	if err != nil {
		return err
	}
	if m.anchor.FleetID != seed.FleetID {
		return fmt.Errorf("%w: it remembers %s, the seed names %s", ErrForeignFleet, m.anchor.FleetID, seed.FleetID)
	}
	trust, err := readPublic(m.trustFile(m.anchor.TrustDigest))
	if errors.Is(err, fs.ErrNotExist) {
		trust, err = seed.Trust, nil // nothing but the seed was ever written
	}
	if err != nil {
		return fmt.Errorf("read the remembered trust: %w", err)
	}
	if m.trust, err = m.anchor.Trust(trust); err != nil {
		m.trust = nil // lost or damaged: a slice has to bring what the anchor names
	}
	return nil
}

// readPublic reads a file that anybody may have put there. One that is not plain,
// or too large, holds nothing that the anchor names, and makes room for what does.
func readPublic(path string) ([]byte, error) {
	data, err := readKeptFile(path)
	if errors.Is(err, errKept) || errors.Is(err, release.ErrOversized) {
		return nil, os.RemoveAll(path)
	}
	return data, err
}

// readNote decodes a note. A key that is not known, or anything after the value,
// is damage or a newer program.
func (m *memory) readNote(name string, v any) error {
	data, err := m.notes.ReadNote(name)
	if err != nil {
		return fmt.Errorf("read what the machine remembers: %w", err)
	}
	if err := durable.DecodeJSON(data, v); err != nil {
		return fmt.Errorf("read what the machine remembers: note %s: %w", name, err)
	}
	return nil
}

func (m *memory) trustFile(d release.Digest) string {
	return filepath.Join(m.public, "trust-"+short(d.String())+".yaml")
}

func appliedName(d release.Digest) string { return "applied-" + short(d.String()) + ".slice" }

// appliedNote stands beside the anchor and proves the applied slice, so that a
// disk that was swapped in cannot bring content of its own.
type appliedNote struct {
	N      uint64         `json:"n"`
	Digest release.Digest `json:"digest"` // of the encoded slice
}

// readKept reads a slice of the state folder. One that does not verify is moved
// aside as NAME.refused, and comes again by the link: its bytes prove nothing.
func (m *memory) readKept(file, name string, reopen func([]byte) (*taken, error)) error {
	path := filepath.Join(m.state, file)
	encoded, err := readKeptFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = reopen(encoded)
	}
	if err == nil || errors.Is(err, errUnsaved) {
		return nil // unsaved: it stays where it is and does not count
	}
	aside := filepath.Join(m.state, name+".refused")
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("make room for a damaged slice: %w", err)
	}
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("move a damaged slice aside: %w", err)
	}
	return nil
}

// readKeptFile reads a bounded plain file: the disk may be somebody else's.
func readKeptFile(path string) ([]byte, error) {
	if st, err := os.Lstat(path); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s", errKept, st.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(f, release.DefaultLimits().Slice)
}

func (m *memory) reopenAccepted(encoded []byte) (*taken, error) {
	t, err := m.judge(encoded)
	if err != nil {
		return nil, err
	}
	return t, m.enter(t)
}

// readApplied reads the content that ran here, as far as the note beside the anchor proves it.
func (m *memory) readApplied() error {
	var note appliedNote
	switch err := m.readNote(noteApplied, &note); {
	case err != nil, note.N > m.anchor.N: // damaged, or left by an anchor that is gone: it proves nothing
		note = appliedNote{}
	}
	if err := m.readKept(appliedName(note.Digest), "applied.slice", func(encoded []byte) (t *taken, err error) {
		t, err = m.reopenApplied(encoded, note)
		m.applied = t
		return t, err
	}); err != nil {
		return err
	}
	m.removeBut(filepath.Join(m.state, "applied-*.slice"), appliedName(note.Digest))
	return nil
}

// reopenApplied takes the content that ran here. It was accepted once, so it
// is not judged by what was accepted since: a later revocation of its signer
// must not stop a site from running its last good content.
func (m *memory) reopenApplied(encoded []byte, note appliedNote) (*taken, error) {
	slice, err := release.DecodeSlice(encoded)
	if err != nil {
		return nil, err
	}
	if got := slice.Digest(); got != note.Digest {
		return nil, fmt.Errorf("%w: the applied slice is %s, the machine remembers %s", release.ErrAltered, got, note.Digest)
	}
	tag, err := release.ParseTag(slice.Tag)
	if err != nil {
		return nil, err
	}
	p := tag.Payload
	then := release.Anchor{FleetID: m.anchor.FleetID, N: p.N, Payload: tag.Digest(), Time: p.Time,
		TrustVersion: p.TrustVersion, TrustDigest: p.TrustDigest, Floor: p.Time}
	a, err := release.Accept(slice, then, nil, m.self)
	if err != nil {
		return nil, err
	}
	return &taken{Accepted: a, Encoded: encoded, Digest: note.Digest}, nil
}

// take verifies a slice that arrived and remembers it. The result tells by
// Same whether it was known already. With errUnsaved it was good, and the disk
// did not take it.
func (m *memory) take(encoded []byte) (*taken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == "" {
		return nil, errLocked
	}
	t, err := m.judge(encoded)
	if err != nil {
		return nil, err
	}
	if t.Same && m.accepted != nil && m.accepted.Digest == t.Digest {
		return t, nil
	}
	if err := m.disk.write(filepath.Join(m.state, "accepted.slice"), encoded, 0o600); err != nil {
		return nil, fmt.Errorf("%w: %w", errUnsaved, err)
	}
	if err := m.enter(t); err != nil {
		return nil, err
	}
	return t, nil
}

// look verifies a slice as take does, and keeps nothing: for a machine without
// STATE, which may act on it and asks again after its next boot.
func (m *memory) look(encoded []byte) (*taken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.judge(encoded)
}

// judge verifies a slice against the anchor. It changes nothing.
func (m *memory) judge(encoded []byte) (*taken, error) {
	slice, err := release.DecodeSlice(encoded)
	if err != nil {
		return nil, err
	}
	a, err := release.Accept(slice, m.anchor, m.trust, m.self)
	if err != nil {
		return nil, err
	}
	return &taken{Accepted: a, Encoded: encoded, Digest: slice.Digest()}, nil
}

// enter writes the anchor for t, whose slice is on the disk, and from then on t
// is what the machine goes by. What an evicted machine ran is forgotten at once,
// so that no damage to the newest slice can bring it back.
func (m *memory) enter(t *taken) error {
	if !t.Same || m.trust == nil {
		if err := m.writeAnchor(t.Anchor, t.TrustYAML); err != nil {
			return fmt.Errorf("%w: %w", errUnsaved, err)
		}
	}
	m.anchor, m.trust, m.accepted = t.Anchor, t.Trust, t
	if t.Evicted {
		if err := m.notes.RemoveNote(noteApplied); err != nil {
			return fmt.Errorf("%w: %w", errUnsaved, err)
		}
		m.applied = nil
		m.removeBut(filepath.Join(m.state, "applied-*.slice"), "")
	}
	return nil
}

// writeAnchor writes the trust that the anchor names, then the anchor.
// The trust file has a name of its own, so nothing is ever written over, which a
// FAT file system could not do at once.
func (m *memory) writeAnchor(a release.Anchor, trust []byte) error {
	file := m.trustFile(a.TrustDigest)
	if err := m.disk.write(file, trust, 0o600); err != nil {
		return err
	}
	if err := m.saveAnchor(a); err != nil {
		return err
	}
	m.removeBut(filepath.Join(m.public, "trust-*.yaml"), filepath.Base(file))
	return nil
}

func (m *memory) saveAnchor(a release.Anchor) error { return m.writeNote(noteAnchor, a) }

// writeNote writes compactly: a box is small.
func (m *memory) writeNote(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write note %s: %w", name, err)
	}
	return m.notes.WriteNote(name, data)
}

// removeBut removes what no note names any more. What stays after a fault is
// harmless, and removed next time.
func (m *memory) removeBut(pattern, name string) {
	files, _ := filepath.Glob(pattern) // the one error is a bad pattern
	for _, f := range files {
		if filepath.Base(f) != name {
			_ = m.disk.remove(f)
		}
	}
}

// setApplied remembers that t's content runs here: the slice, then the note that proves it.
func (m *memory) setApplied(t *taken) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.accepted != nil && m.accepted.Evicted {
		return fmt.Errorf("remember release %d as applied: %w", t.Tag.Payload.N, errEvicted)
	}
	if m.applied != nil && m.applied.Digest == t.Digest {
		return nil
	}
	name := appliedName(t.Digest)
	if err := m.disk.write(filepath.Join(m.state, name), t.Encoded, 0o600); err != nil {
		return err
	}
	if err := m.writeNote(noteApplied, appliedNote{N: t.Tag.Payload.N, Digest: t.Digest}); err != nil {
		return err
	}
	m.applied = t
	m.removeBut(filepath.Join(m.state, "applied-*.slice"), name)
	return nil
}

// setGood raises the last good release to n.
func (m *memory) setGood(n uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= m.anchor.LastGood {
		return nil
	}
	a := m.anchor
	a.LastGood = n
	if err := m.saveAnchor(a); err != nil {
		return err
	}
	m.anchor = a
	return nil
}

// now returns what is accepted and what is applied; either may be nil.
func (m *memory) now() (accepted, applied *taken) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accepted, m.applied
}

// currentTrust is the trust half in force, from the moment of verification.
func (m *memory) currentTrust() *fleet.Trust {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trust
}

// number is the newest release that was accepted, by the anchor: on a machine
// that has lost its STATE too.
func (m *memory) number() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.anchor.N
}

// floor is the latest signed time: what dates of keys are judged by.
func (m *memory) floor() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.anchor.Floor
}
