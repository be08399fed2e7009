package release

import (
	"fmt"

	"github.com/holdfast-edge/holdfast/fleet"
)

// VerifyRelease is the judgement of people and hubs, over the whole tree: the form, the fleet's trust as it stands, the release before (nil if there
// is none, or it is not known), and that everything reachable is in src. If the release changes trust.yaml, it must be a valid step from trust,
// and the caller believes NewTrustStep(...) from then on. further are signatures beside the tag.
func VerifyRelease(src Source, raw []byte, trust *fleet.Trust, prev *Tag, further ...[]byte) (*Tag, error) {
	t, err := ParseTag(raw)
	if err != nil {
		return nil, err
	}
	if err := verifyRelease(src, t, trust, prev, further); err != nil {
		return nil, fmt.Errorf("verify %s: %w", TagName(t.Payload.N), err)
	}
	return t, nil
}

func verifyRelease(src Source, t *Tag, trust *fleet.Trust, prev *Tag, further [][]byte) error {
	b := believed{trust: trust}
	if prev != nil {
		b.n, b.at, b.floor = prev.Payload.N, prev.Payload.Time, prev.Payload.Time
		if err := follows(t, prev); err != nil {
			return err
		}
	}
	if t.Payload.TrustVersion < trust.Version {
		return fmt.Errorf("%w: its trust is version %d, and %d is in force", ErrOld, t.Payload.TrustVersion, trust.Version)
	}
	// Who signed comes before what was signed: strangers cause no work.
	if _, err := t.Verify(trust, b.floor, further...); err != nil {
		return err
	}
	if err := verifyTrust(src, t, &b, prev, further); err != nil {
		return err
	}
	seen := map[ObjectID]bool{}
	return Walk(src, t.Payload.TreeSHA256, func(path string, e Entry) error {
		if seen[e.ID] {
			if e.Mode == ModeFolder {
				return SkipTree
			}
			return nil
		}
		seen[e.ID] = true
		if e.Mode == ModeFolder {
			return nil // Walk reads it
		}
		if _, err := fetch(src, e.ID, KindBlob); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
}

func follows(t, prev *Tag) error {
	p, q := t.Payload, prev.Payload
	switch {
	case p.FleetID != q.FleetID:
		return fmt.Errorf("%w: of %s, and this is %s", ErrFleet, p.FleetID, q.FleetID)
	case p.N < q.N:
		return fmt.Errorf("%w: %d is the last", ErrOld, q.N)
	case p.N == q.N && t.Digest() != prev.Digest():
		return fmt.Errorf("%w: %s here, %s before", ErrFork, t.Digest(), prev.Digest())
	case p.N == q.N+1 && p.Previous != prev.Digest():
		return fmt.Errorf("%w: it names as its predecessor %s, and %s is %s", ErrFork, p.Previous, TagName(q.N), prev.Digest())
	case p.Time.Before(q.Time):
		return fmt.Errorf("%w: %s, and %s before", ErrTime, p.Time, q.Time)
	}
	return nil
}

func verifyTrust(src Source, t *Tag, b *believed, prev *Tag, further [][]byte) error {
	p := t.Payload
	tree, err := fetch(src, p.TreeSHA256, KindTree)
	if err != nil {
		return err
	}
	e, err := trustEntry(tree)
	if err != nil {
		return err
	}
	data, err := fetch(src, e.ID, KindBlob)
	if err != nil {
		return err
	}
	own, err := openTrust(t, data)
	if err != nil {
		return err
	}
	if p.TrustVersion == b.trust.Version {
		if prev != nil && prev.Payload.TrustVersion == p.TrustVersion && prev.Payload.TrustDigest != p.TrustDigest {
			return fmt.Errorf("%w: %s changed, so its version must rise to %d", ErrTrustStep, trustFile, p.TrustVersion+1)
		}
		return nil
	}
	return b.step(t, own, further)
}
