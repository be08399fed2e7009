package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Tag is a signed release: the payload, and one signature armor that ends the object.
type Tag struct {
	Payload      Payload
	PayloadBytes []byte
	Signature    []byte // the armor
	Raw          []byte // the Git tag object: PayloadBytes and Signature
}

var (
	armorBegin = []byte("-----BEGIN SSH SIGNATURE-----\n")
	armorEnd   = []byte("-----END SSH SIGNATURE-----\n")
)

// ParseTag takes a tag object apart. It judges no signature, but that there is exactly one, in its one spelling, at the very end.
func ParseTag(raw []byte) (*Tag, error) {
	if limit := DefaultLimits().Tag; len(raw) > limit {
		return nil, fmt.Errorf("read release: %w: %d bytes, at most %d", ErrOversized, len(raw), limit)
	}
	at := bytes.Index(raw, append([]byte("\n"), armorBegin...)) + 1
	if at == 0 {
		return nil, fmt.Errorf("read release: %w: no signature of an SSH key ends it", ErrUnsigned)
	}
	armor := raw[at:]
	end := bytes.Index(armor, append([]byte("\n"), armorEnd...)) + 1
	if end == 0 {
		return nil, fmt.Errorf("read release: %w: the signature has no end", ErrTruncated)
	}
	if tail := armor[end+len(armorEnd):]; len(tail) > 0 {
		return nil, fmt.Errorf("read release: %w: %d bytes follow the signature, which Git would show as part of the message", ErrUnsigned, len(tail))
	}
	if _, err := parseSignature(armor); err != nil {
		return nil, fmt.Errorf("read release: %w", err)
	}
	p, err := ParsePayload(raw[:at])
	if err != nil {
		return nil, err
	}
	return &Tag{Payload: *p, PayloadBytes: bytes.Clone(raw[:at]), Signature: bytes.Clone(armor), Raw: bytes.Clone(raw)}, nil
}

// Digest is that of the payload: what Previous and anchors name. Who signed is not in it.
func (t *Tag) Digest() Digest { return sha256.Sum256(t.PayloadBytes) }

// SignTag makes the tag object of a release, ready for git.
func SignTag(p Payload, s ssh.Signer) (raw []byte, err error) {
	payload := p.Encode()
	got, err := ParsePayload(payload)
	if err == nil && !got.equal(p) {
		err = fmt.Errorf("%w: it would not be read as it was meant", ErrGrammar)
	}
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", TagName(p.N), err)
	}
	armor, err := SignPayload(payload, s)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", TagName(p.N), err)
	}
	return append(payload, armor...), nil
}

// VerifySignature judges the tag alone: the keys of t, the release's own Time, and floor, the latest signed time that was seen.
// It returns who signed. With a threshold above one, further signatures are needed: see Verify.
func (t *Tag) VerifySignature(trust *fleet.Trust, floor time.Time) (fleet.Signer, error) {
	signers, err := t.Verify(trust, floor)
	if err != nil {
		return fleet.Signer{}, err
	}
	return signers[0], nil
}

// Verify judges the tag with further signatures over the same payload. It returns who counts, one key for each person, never none.
// A signature that does not count is passed over: a slice is the same for machines with an older and a newer trust.
func (t *Tag) Verify(trust *fleet.Trust, floor time.Time, further ...[]byte) ([]fleet.Signer, error) {
	what := TagName(t.Payload.N)
	if limit := DefaultLimits().Signatures; len(further) > limit {
		return nil, fmt.Errorf("verify %s: %w: %d signatures, at most %d", what, ErrOversized, len(further), limit)
	}
	var (
		count []fleet.Signer
		first error // why the first signature that fails does
	)
	people := map[string]bool{}
	for _, armor := range append([][]byte{t.Signature}, further...) {
		s, err := judge(t.PayloadBytes, armor, trust, t.Payload.Time, floor)
		switch {
		case err != nil && first == nil:
			first = err
		case err == nil && !people[person(s)]:
			people[person(s)] = true
			count = append(count, s)
		}
	}
	switch need := max(trust.Threshold, 1); {
	case len(count) == 0:
		return nil, fmt.Errorf("verify %s: %w", what, first)
	case len(count) < need:
		err := fmt.Errorf("verify %s: %w: %d of the %d that trust version %d wants", what, ErrThreshold, len(count), need, trust.Version)
		if first != nil {
			err = fmt.Errorf("%w (another: %w)", err, first)
		}
		return nil, err
	}
	return count, nil
}

func person(s fleet.Signer) string {
	if s.Person != "" {
		return "person " + s.Person
	}
	return "name " + s.Name
}
