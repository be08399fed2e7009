package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
)

// trustFile is where a fleet says who may sign; it stands in the fleet's top folder.
const trustFile = "trust.yaml"

// TrustStep proves one version of trust.yaml: the release that first had it, the listing of that release's top folder, and the file.
// Walking from step to step, a machine that slept a year learns whom to believe now without believing whoever wakes it.
type TrustStep struct {
	Tag        []byte
	Signatures [][]byte // further ones over the tag's payload
	Tree       []byte
	Trust      []byte
}

// NewTrustStep makes the step of a release; a hub keeps one for each version R, of the release that first had it, from R = 1.
func NewTrustStep(src Source, tag []byte, further ...[]byte) (TrustStep, error) {
	t, err := ParseTag(tag)
	if err != nil {
		return TrustStep{}, err
	}
	s := TrustStep{Tag: t.Raw, Signatures: further}
	if s.Tree, err = fetch(src, t.Payload.TreeSHA256, KindTree); err != nil {
		return TrustStep{}, fmt.Errorf("make the trust step of %s: %w", TagName(t.Payload.N), err)
	}
	e, err := trustEntry(s.Tree)
	if err == nil {
		s.Trust, err = fetch(src, e.ID, KindBlob)
	}
	var trust *fleet.Trust
	if err == nil {
		_, trust, err = s.open()
	}
	if err == nil {
		_, err = t.Verify(trust, time.Time{}, further...) // whoever held it before is judged where it is known, in VerifyRelease and Accept
	}
	if err != nil {
		return TrustStep{}, fmt.Errorf("make the trust step of %s: %w", TagName(t.Payload.N), err)
	}
	return s, nil
}

// version is R, or 0 for a step that cannot be read.
func (s TrustStep) version() uint64 {
	t, err := ParseTag(s.Tag)
	if err != nil {
		return 0
	}
	return t.Payload.TrustVersion
}

// open ties the parts of a step to its tag. The tag's signature is not judged here.
func (s TrustStep) open() (*Tag, *fleet.Trust, error) {
	t, err := ParseTag(s.Tag)
	if err != nil {
		return nil, nil, err
	}
	if HashObject(KindTree, s.Tree) != t.Payload.TreeSHA256 {
		return nil, nil, fmt.Errorf("%w: the top folder", ErrAltered)
	}
	e, err := trustEntry(s.Tree)
	if err != nil {
		return nil, nil, err
	}
	if HashObject(KindBlob, s.Trust) != e.ID {
		return nil, nil, fmt.Errorf("%w: %s", ErrAltered, trustFile)
	}
	trust, err := openTrust(t, s.Trust)
	return t, trust, err
}

func trustEntry(tree []byte) (Entry, error) {
	entries, err := ParseTree(tree)
	if err != nil {
		return Entry{}, err
	}
	e, ok := lookup(entries, trustFile)
	if !ok || e.Mode == ModeFolder {
		return Entry{}, fmt.Errorf("%w: there is no file %s", ErrContent, trustFile)
	}
	return e, nil
}

// openTrust reads a trust.yaml as the one that a tag names.
func openTrust(t *Tag, data []byte) (*fleet.Trust, error) {
	if Digest(sha256.Sum256(data)) != t.Payload.TrustDigest {
		return nil, fmt.Errorf("%w: %s is not the one that %s names", ErrAltered, trustFile, TagName(t.Payload.N))
	}
	if len(data) > DefaultLimits().Trust {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrOversized, trustFile, len(data))
	}
	trust, err := fleet.ParseTrust(trustFile, data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	if trust.Version != t.Payload.TrustVersion {
		return nil, fmt.Errorf("%w: %s says version %d, the release says %d", ErrContent, trustFile, trust.Version, t.Payload.TrustVersion)
	}
	return trust, nil
}

// believed is whom one believes at one point of the walk.
type believed struct {
	trust  *fleet.Trust
	digest Digest
	n      uint64    // the release that was walked to
	at     time.Time // its Time
	floor  time.Time // latest signed time seen
}

// step goes from one version of trust to the next by the release t, which bears trust next.
func (b *believed) step(t *Tag, next *fleet.Trust, further [][]byte) error {
	p := t.Payload
	if p.TrustVersion != b.trust.Version+1 {
		return fmt.Errorf("%w: from version %d to version %d", ErrTrustStep, b.trust.Version, p.TrustVersion)
	}
	if p.Time.Before(b.at) {
		return fmt.Errorf("%w: %s is of %s, and what came before of %s", ErrTime, TagName(p.N), p.Time, b.at)
	}
	if _, err := t.Verify(b.trust, b.floor, further...); err != nil {
		return fmt.Errorf("%w: version %d, by the old signers: %w", ErrTrustStep, p.TrustVersion, err)
	}
	if _, err := t.Verify(next, b.floor, further...); err != nil {
		return fmt.Errorf("%w: version %d, by the new signers: %w", ErrTrustStep, p.TrustVersion, err)
	}
	if err := newcomersSigned(t, b.trust, next, further); err != nil {
		return fmt.Errorf("%w: version %d: %w", ErrTrustStep, p.TrustVersion, err)
	}
	b.trust, b.digest, b.n, b.at = next, p.TrustDigest, p.N, p.Time
	if p.Time.After(b.floor) {
		b.floor = p.Time
	}
	return nil
}

// newcomersSigned: each key that was not there before has signed too, so that no slip of the pen locks a fleet out.
func newcomersSigned(t *Tag, old, next *fleet.Trust, further [][]byte) error {
	for _, s := range next.Signers {
		key, err := signerKey(s)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrContent, err)
		}
		if _, err := findSigner(old.Signers, key); err == nil {
			continue
		}
		if !signedBy(t, key, further) {
			return fmt.Errorf("%w: the new key of %s has not signed", ErrThreshold, s.Name)
		}
	}
	return nil
}

func signedBy(t *Tag, key ssh.PublicKey, further [][]byte) bool {
	for _, armor := range append([][]byte{t.Signature}, further...) {
		if sig, err := parseSignature(armor); err == nil && bytes.Equal(sig.PublicKey.Marshal(), key.Marshal()) && verifyArmor(t.PayloadBytes, armor, key) == nil {
			return true
		}
	}
	return false
}
