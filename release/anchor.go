package release

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Anchor is what a machine (and the command line, for each fleet) remembers, whatever happens to its disk. It only ever rises.
// Whoever keeps it: verify, write the state, flush it, write the anchor, and only then act.
type Anchor struct {
	FleetID      fleet.ID  `json:"fleet"`
	N            uint64    `json:"n"`                 // last accepted release; 0 with none, lowest-1 after a seed
	Payload      Digest    `json:"payload,omitzero"`  // of N; none as long as nothing was accepted
	Time         time.Time `json:"time,omitzero"`     // of N
	TrustVersion uint64    `json:"trustVersion"`      // R, never 0
	TrustDigest  Digest    `json:"trustDigest"`       // of the bytes of trust.yaml
	LastGood     uint64    `json:"lastGood,omitzero"` // last release whose content was kept
	Floor        time.Time `json:"floor,omitzero"`    // latest signed time seen: of releases and heartbeats, never of a clock
}

// Trust reads a trust.yaml from the disk, if it is the one that the anchor names; ErrAltered otherwise.
func (a Anchor) Trust(data []byte) (*fleet.Trust, error) {
	if Digest(sha256.Sum256(data)) != a.TrustDigest {
		return nil, fmt.Errorf("read %s: %w: the anchor names another", trustFile, ErrAltered)
	}
	t, err := fleet.ParseTrust(trustFile, data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", trustFile, ErrContent, err)
	}
	return t, nil
}

// Seed is what an OS image (or the file that a hosted machine is started with) knows of its fleet. It counts as long as there is no anchor.
type Seed struct {
	FleetID fleet.ID `json:"fleetID"`
	Fleet   string   `json:"fleet"`  // name
	Trust   []byte   `json:"trust"`  // trust.yaml
	Hubs    []string `json:"hubs"`   // URLs
	Lowest  uint64   `json:"lowest"` // no release below this
}

// Anchor is what a machine that remembers nothing starts from, with the trust it begins with.
func (s Seed) Anchor() (Anchor, *fleet.Trust, error) {
	trust, err := fleet.ParseTrust("trust.yaml of the fleet seed", s.Trust)
	if err != nil {
		return Anchor{}, nil, fmt.Errorf("read fleet seed of %s: %w", s.Fleet, err)
	}
	if _, err := fleet.ParseID(string(s.FleetID)); err != nil {
		return Anchor{}, nil, fmt.Errorf("read fleet seed of %s: %w", s.Fleet, err)
	}
	a := Anchor{FleetID: s.FleetID, TrustVersion: trust.Version, TrustDigest: sha256.Sum256(s.Trust)}
	if s.Lowest > 0 {
		a.N = s.Lowest - 1
	}
	return a, trust, nil
}

// judge is the rule of numbers for a release whose signature was found good: greater, or the very same.
func (a Anchor) judge(t *Tag) (same bool, err error) {
	p := t.Payload
	switch {
	case p.N < a.N || (p.N == a.N && a.Payload.IsZero()):
		return false, fmt.Errorf("%w: %s, and %d was accepted or is the seed's least", ErrOld, TagName(p.N), a.N)
	case p.N == a.N && t.Digest() != a.Payload:
		return false, fmt.Errorf("%w: %s is %s here and was accepted as %s; somebody signed two", ErrFork, TagName(p.N), t.Digest(), a.Payload)
	case p.N > a.N && p.Time.Before(a.Time):
		return false, fmt.Errorf("%w: %s is of %s, and %s of %s", ErrTime, TagName(p.N), p.Time.Format(time.RFC3339), TagName(a.N), a.Time.Format(time.RFC3339))
	}
	return p.N == a.N, nil
}

// next is the anchor after t was accepted.
func (a Anchor) next(t *Tag) Anchor {
	p := t.Payload
	a.N, a.Payload, a.Time, a.TrustVersion, a.TrustDigest = p.N, t.Digest(), p.Time, p.TrustVersion, p.TrustDigest
	if p.Time.After(a.Floor) {
		a.Floor = p.Time
	}
	return a
}
