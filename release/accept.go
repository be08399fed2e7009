package release

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Accepted is a slice that passed. It has two halves. The trust half (Trust, Anchor, Evicted, Member) takes effect now, and nothing undoes it.
// The content half (Tree below SiteDir's closure) is paced, staged and judged by others, and may be undone; where this program cannot read
// it, ContentErr says why, and the trust half stands all the same.
type Accepted struct {
	Tag     *Tag
	Signer  fleet.Signer   // the first who counts
	Signers []fleet.Signer // all who count, one key for each person

	// The trust half.
	Trust     *fleet.Trust
	TrustYAML []byte             // the bytes of Trust, to be written beside the anchor
	Anchor    Anchor             // to be written before anything is done
	Same      bool               // it is the release that the anchor names already
	Machines  fleet.MachinesSpec // of the site
	Member    fleet.Machine      // this machine, unless Evicted
	Evicted   bool               // this machine has a tombstone
	Tombstone fleet.Tombstone    // if Evicted

	// The content half.
	SiteDir    string
	Tree       fs.FS        // the slice, verified
	Fleet      *fleet.Fleet // as LoadSite read it; with ContentErr, as far as it could
	ContentErr error        // fleet.Faults, or ErrContent where fleet.yaml is of another fleet
}

// Accept is the judgement of a machine. trust is what the anchor names (Anchor.Trust), or older, as a seed's on a blank disk, or nil: then
// the slice has to bring it, and the anchor proves it. The order is: form, fleet, the walk of trust with signatures, number and time,
// objects, membership. It changes nothing and reads no clock.
func Accept(s *Slice, a Anchor, trust *fleet.Trust, self fleet.MachineID) (*Accepted, error) {
	t, err := ParseTag(s.Tag)
	if err != nil {
		return nil, err
	}
	out, err := accept(s, t, a, trust, self)
	if errors.Is(err, ErrObjectMissing) {
		if id, found := s.stranger(t.Payload.TreeSHA256); found {
			err = fmt.Errorf("%w: %w, and %s stands there, which nothing in the release names", ErrAltered, err, id)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("judge %s for %s: %w", TagName(t.Payload.N), s.SiteDir, err)
	}
	return out, nil
}

func accept(s *Slice, t *Tag, a Anchor, trust *fleet.Trust, self fleet.MachineID) (*Accepted, error) {
	p := t.Payload
	if p.FleetID != a.FleetID {
		return nil, fmt.Errorf("%w: of %s, and this machine is of %s", ErrFleet, p.FleetID, a.FleetID)
	}
	if p.N < a.N { // an old release is refused before any work; a fork only when its signature is good, since it is an alarm
		return nil, fmt.Errorf("%w: %d was accepted", ErrOld, a.N)
	}
	out := &Accepted{Tag: t, SiteDir: s.SiteDir, Anchor: a.next(t), Tree: TreeFS(s.Objects, p.TreeSHA256)}
	var err error
	if out.Trust, out.TrustYAML, out.Signers, err = s.judgeTrust(t, a, trust); err != nil {
		return nil, err
	}
	out.Signer = out.Signers[0]
	if out.Same, err = a.judge(t); err != nil {
		return nil, err
	}
	if err := s.judgeObjects(p.TreeSHA256); err != nil {
		return nil, err
	}
	return out, out.findSelf(self)
}

// judgeTrust walks from the trust that is held to that of t, and judges t by it.
func (s *Slice) judgeTrust(t *Tag, a Anchor, held *fleet.Trust) (*fleet.Trust, []byte, []fleet.Signer, error) {
	fail := func(err error) (*fleet.Trust, []byte, []fleet.Signer, error) { return nil, nil, nil, err }
	p := t.Payload
	switch {
	case a.TrustVersion == 0:
		return fail(fmt.Errorf("%w: the anchor names no trust to begin with", ErrTrustStep))
	case p.TrustVersion < a.TrustVersion:
		return fail(fmt.Errorf("%w: its trust is version %d, and %d was accepted", ErrOld, p.TrustVersion, a.TrustVersion))
	case p.TrustVersion == a.TrustVersion && p.TrustDigest != a.TrustDigest:
		return fail(fmt.Errorf("%w: another %s with the version %d", ErrTrustStep, trustFile, a.TrustVersion))
	}
	b := believed{trust: held, digest: a.TrustDigest, n: a.N, at: a.Time, floor: a.Floor}
	if held == nil || held.Version != a.TrustVersion {
		b.trust = nil
	}
	yaml := func() ([]byte, error) { return s.ownTrust(p.TreeSHA256) }
	if b.trust == nil && p.TrustVersion == a.TrustVersion { // a blank disk: the anchor names these very bytes
		var err error
		if b.trust, err = trustOf(t, yaml); err != nil {
			return fail(err)
		}
	}
	if err := s.walk(&b, t, a); err != nil {
		return fail(err)
	}
	walked, floor := b.n > a.N, b.floor
	if p.N == a.N && t.Digest() == a.Payload {
		floor = time.Time{} // accepted once already: what was seen since does not unmake it, and a blank disk must refill
	}
	if p.TrustVersion == b.trust.Version+1 { // t is itself the step; the old signers come first, before anything new is believed
		if _, err := t.Verify(b.trust, b.floor, s.Signatures...); err != nil {
			return fail(fmt.Errorf("%w: version %d, by the old signers: %w", ErrTrustStep, p.TrustVersion, err))
		}
		next, err := trustOf(t, yaml)
		if err != nil {
			return fail(err)
		}
		if err := b.step(t, next, s.Signatures); err != nil {
			return fail(err)
		}
	}
	switch {
	case p.TrustVersion != b.trust.Version:
		return fail(fmt.Errorf("%w: the slice leads to version %d, the release is of version %d", ErrTrustStep, b.trust.Version, p.TrustVersion))
	case p.TrustDigest != b.digest:
		return fail(fmt.Errorf("%w: another %s with the version %d", ErrTrustStep, trustFile, p.TrustVersion))
	case walked && (p.N < b.n || p.Time.Before(b.at)):
		return fail(fmt.Errorf("%w: the step to its trust is the younger release %d", ErrTrustStep, b.n))
	}
	signers, err := t.Verify(b.trust, floor, s.Signatures...)
	if err != nil {
		return fail(err)
	}
	data, err := yaml()
	if err == nil {
		_, err = openTrust(t, data)
	}
	return b.trust, data, signers, err
}

// walk takes the steps that the slice carries. A step up to the anchor's version is history, which the slice has for a neighbour that is further
// behind: it must be whole, and only the anchor's own may serve, as the place to begin.
func (s *Slice) walk(b *believed, head *Tag, a Anchor) error {
	for _, step := range s.Steps {
		t, trust, err := step.open()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTrustStep, err)
		}
		p := t.Payload
		switch {
		case p.FleetID != a.FleetID:
			return fmt.Errorf("%w: a step to version %d is of %s", ErrFleet, p.TrustVersion, p.FleetID)
		case p.TrustVersion == a.TrustVersion && p.TrustDigest != a.TrustDigest:
			return fmt.Errorf("%w: another %s with the version %d", ErrTrustStep, trustFile, p.TrustVersion)
		case p.TrustVersion <= a.TrustVersion:
			if _, err := t.Verify(trust, time.Time{}, step.Signatures...); err != nil {
				return fmt.Errorf("%w: version %d: %w", ErrTrustStep, p.TrustVersion, err)
			}
			if p.TrustVersion == a.TrustVersion && b.trust == nil {
				b.trust = trust
			}
		case b.trust == nil:
			return lostStep(a)
		case p.TrustVersion > head.Payload.TrustVersion || p.N <= a.N || p.N > head.Payload.N:
			return fmt.Errorf("%w: release %d with version %d does not lie on the way from %d to %d", ErrTrustStep, p.N, p.TrustVersion, a.N, head.Payload.N)
		default:
			if err := b.step(t, trust, step.Signatures); err != nil {
				return err
			}
		}
	}
	if b.trust == nil {
		return lostStep(a)
	}
	return nil
}

func lostStep(a Anchor) error {
	return fmt.Errorf("%w: nothing in the slice shows version %d, where this machine stands", ErrTrustStep, a.TrustVersion)
}

// ownTrust is the trust.yaml of the slice's own tree.
func (s *Slice) ownTrust(root ObjectID) ([]byte, error) {
	return fs.ReadFile(TreeFS(s.Objects, root), trustFile)
}

func trustOf(t *Tag, yaml func() ([]byte, error)) (*fleet.Trust, error) {
	data, err := yaml()
	if err != nil {
		return nil, err
	}
	return openTrust(t, data)
}

// findSelf looks for this machine in the site's machines.yaml, which alone decides; what is wrong elsewhere in the content waits.
func (out *Accepted) findSelf(self fleet.MachineID) error {
	name := path.Join(out.SiteDir, "machines.yaml")
	data, err := fs.ReadFile(out.Tree, name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s has no machines", ErrNotMine, out.SiteDir)
	}
	if err != nil {
		return err
	}
	m, err := fleet.ParseMachines(name, data)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	out.Machines = *m
	for _, x := range m.Tombstones {
		if x.ID == self {
			out.Evicted, out.Tombstone = true, x
		}
	}
	found := out.Evicted
	for _, x := range m.Members {
		if x.ID == self && !out.Evicted { // a tombstone is never undone
			out.Member, found = x, true
		}
	}
	if !found {
		return fmt.Errorf("%w: %s does not name %s", ErrNotMine, name, self)
	}
	out.Fleet, out.ContentErr = fleet.LoadSite(out.Tree, out.SiteDir)
	if id := out.Tag.Payload.FleetID; out.ContentErr == nil && out.Fleet.ID != id {
		out.ContentErr = fmt.Errorf("%w: fleet.yaml is of the fleet %s, the tag of %s", ErrContent, out.Fleet.ID, id)
	}
	return nil
}
