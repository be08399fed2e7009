package machine

import (
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

// memory is what the machine remembers of releases. Two places hold it:
//
//	anchor folder  anchor.json, trust.yaml: what outlives the disks (TRUST
//	               section 4; hosted: a folder beside them, later the TPM)
//	state folder   accepted.slice: the newest slice that was verified
//	               applied.slice: the one whose content runs here
//
// The order of writing is: verify, write the state, write the anchor, act. A
// crash between the two leaves a state that is ahead of the anchor, which is
// verified again like any other arrival.
type memory struct {
	anchors, state string
	self           fleet.MachineID

	mu       sync.Mutex // guards what follows
	anchor   release.Anchor
	trust    *fleet.Trust
	accepted *taken // nil before the first release
	applied  *taken
}

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

// ErrForeignFleet: the box remembers another fleet than the seed names.
var ErrForeignFleet = errors.New("this machine belongs to another fleet")

// recall opens the memory, or begins it from the seed of a machine that never had a release.
func recall(anchors, state string, seed release.Seed, self fleet.MachineID) (*memory, error) {
	m := &memory{anchors: anchors, state: state, self: self}
	for _, dir := range []string{anchors, state} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		if err := durable.Clean(dir); err != nil {
			return nil, err
		}
	}
	if err := m.readAnchor(seed); err != nil {
		return nil, err
	}
	if err := m.readSlices(); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *memory) readAnchor(seed release.Seed) error {
	err := durable.ReadJSON(m.anchorFile(), &m.anchor)
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
	trust, err := os.ReadFile(m.trustFile())
	if errors.Is(err, fs.ErrNotExist) {
		trust, err = seed.Trust, nil // nothing but the seed was ever written
	}
	if err != nil {
		return fmt.Errorf("read the remembered trust: %w", err)
	}
	if m.trust, err = m.anchor.Trust(trust); err != nil {
		m.trust = nil // written ahead of the anchor, or damaged: a slice has to bring what the anchor names
	}
	return nil
}

func (m *memory) anchorFile() string  { return filepath.Join(m.anchors, "anchor.json") }
func (m *memory) trustFile() string   { return filepath.Join(m.anchors, "trust.yaml") }
func (m *memory) appliedFile() string { return filepath.Join(m.anchors, "applied.json") }

// appliedNote stands beside the anchor and proves applied.slice, so that a
// disk that was swapped in cannot bring content of its own.
type appliedNote struct {
	N      uint64         `json:"n"`
	Digest release.Digest `json:"digest"` // of the encoded slice
}

// readSlices reads what was accepted and applied. A slice that no longer
// verifies is moved aside, and comes again by the link: its bytes prove nothing.
func (m *memory) readSlices() error {
	for _, s := range []struct {
		name   string
		reopen func([]byte) (*taken, error)
		into   **taken
	}{
		{"accepted.slice", m.takeLocked, &m.accepted},
		{"applied.slice", m.reopenApplied, &m.applied},
	} {
		file := filepath.Join(m.state, s.name)
		encoded, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read a kept slice: %w", err)
		}
		t, err := s.reopen(encoded)
		if err != nil {
			if err := os.Rename(file, file+".refused"); err != nil {
				return fmt.Errorf("move a damaged slice aside: %w", err)
			}
			continue
		}
		*s.into = t
	}
	return nil
}

// reopenApplied takes the content that ran here. It was accepted once, so it
// is not judged by what was accepted since: a later revocation of its signer
// must not stop a site from running its last good content.
func (m *memory) reopenApplied(encoded []byte) (*taken, error) {
	var note appliedNote
	if err := durable.ReadJSON(m.appliedFile(), &note); err != nil {
		return nil, err
	}
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
// Same whether it was known already.
func (m *memory) take(encoded []byte) (*taken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.takeLocked(encoded)
}

func (m *memory) takeLocked(encoded []byte) (*taken, error) {
	slice, err := release.DecodeSlice(encoded)
	if err != nil {
		return nil, err
	}
	a, err := release.Accept(slice, m.anchor, m.trust, m.self)
	if err != nil {
		return nil, err
	}
	t := &taken{Accepted: a, Encoded: encoded, Digest: slice.Digest()}
	if a.Same && m.accepted != nil && m.accepted.Digest == t.Digest {
		return t, nil
	}
	if err := durable.WriteFile(filepath.Join(m.state, "accepted.slice"), encoded, 0o600); err != nil {
		return nil, err
	}
	if err := m.writeAnchor(a.Anchor, a.TrustYAML); err != nil {
		return nil, err
	}
	m.anchor, m.trust, m.accepted = a.Anchor, a.Trust, t
	return t, nil
}

// writeAnchor writes the trust before the anchor that names it: a crash
// between them leaves newer trust under the old anchor, which is then not
// believed, and the slice on disk brings it again.
func (m *memory) writeAnchor(a release.Anchor, trust []byte) error {
	if err := durable.WriteFile(m.trustFile(), trust, 0o600); err != nil {
		return err
	}
	return durable.WriteJSON(m.anchorFile(), a, 0o600)
}

// setApplied remembers that t's content runs here: the slice, then the note
// that proves it. A crash between the two loses the old content's slice, not
// the new one's: accepted.slice still has it.
func (m *memory) setApplied(t *taken) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.applied != nil && m.applied.Digest == t.Digest {
		return nil
	}
	if err := durable.WriteFile(filepath.Join(m.state, "applied.slice"), t.Encoded, 0o600); err != nil {
		return err
	}
	if err := durable.WriteJSON(m.appliedFile(), appliedNote{N: t.Tag.Payload.N, Digest: t.Digest}, 0o600); err != nil {
		return err
	}
	m.applied = t
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
	if err := durable.WriteJSON(m.anchorFile(), a, 0o600); err != nil {
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

// floor is the latest signed time: what dates of keys are judged by.
func (m *memory) floor() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.anchor.Floor
}
