package release

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
)

// namespace is the one that Git signs in.
const namespace = "git"

// allowedKeys: small, and the same for people's files, agents and hardware. RSA and certificates are refused.
var allowedKeys = []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256}

func checkKey(k ssh.PublicKey) error {
	if !slices.Contains(allowedKeys, k.Type()) {
		return fmt.Errorf("%w: a key of the type %s; use ed25519, ecdsa-p256, or an sk- form of one", ErrSigner, k.Type())
	}
	return nil
}

// SignPayload makes one armored signature over the payload of a release; beside the one in the tag, further people sign with it.
func SignPayload(payload []byte, s ssh.Signer) (armor []byte, err error) {
	if err := checkKey(s.PublicKey()); err != nil {
		return nil, err
	}
	sig, err := sshsig.Sign(bytes.NewReader(payload), s, sshsig.HashSHA512, namespace)
	if err != nil {
		return nil, fmt.Errorf("sign with %s: %w", ssh.FingerprintSHA256(s.PublicKey()), err)
	}
	armor = encodeArmor(sig.Marshal())
	// An agent may answer with anything, for instance without a touch: better to hear it now than from every machine.
	if err := verifyArmor(payload, armor, s.PublicKey()); err != nil {
		return nil, fmt.Errorf("sign with %s: what came back does not verify: %w", ssh.FingerprintSHA256(s.PublicKey()), err)
	}
	return armor, nil
}

// encodeArmor writes an armor as ssh-keygen does: lines of 70 characters.
func encodeArmor(blob []byte) []byte {
	const width = 70
	text := base64.StdEncoding.EncodeToString(blob)
	out := bytes.Clone(armorBegin)
	for len(text) > width {
		out = append(append(out, text[:width]...), '\n')
		text = text[width:]
	}
	return append(append(append(out, text...), '\n'), armorEnd...)
}

// parseSignature reads an armor in its one spelling.
func parseSignature(armor []byte) (*sshsig.Signature, error) {
	if limit := DefaultLimits().Signature; len(armor) > limit {
		return nil, fmt.Errorf("%w: a signature of %d bytes, at most %d", ErrOversized, len(armor), limit)
	}
	sig, err := sshsig.Unarmor(armor)
	if err != nil {
		return nil, fmt.Errorf("%w: signature: %w", ErrGrammar, err)
	}
	if sig.Version != 1 || !bytes.Equal(encodeArmor(sig.Marshal()), armor) {
		return nil, fmt.Errorf("%w: the signature is not spelled as ssh-keygen does", ErrGrammar)
	}
	if sig.Namespace != namespace {
		return nil, fmt.Errorf("%w: it was made for %q and not for %q", ErrSigner, sig.Namespace, namespace)
	}
	return sig, checkKey(sig.PublicKey)
}

// verifyArmor judges the mathematics: is this a signature by key over payload?
func verifyArmor(payload, armor []byte, key ssh.PublicKey) error {
	sig, err := parseSignature(armor)
	if err != nil {
		return err
	}
	// Both hashes that the library knows are allowed. For sk- keys it demands the user presence flag.
	if err := sshsig.Verify(bytes.NewReader(payload), sig, key, sig.HashAlgorithm, namespace); err != nil {
		return fmt.Errorf("%w: %w", ErrSigner, err)
	}
	return nil
}

// judge finds who of the trust made a signature, and whether that key counts for a release of this time.
func judge(payload, armor []byte, trust *fleet.Trust, at, floor time.Time) (fleet.Signer, error) {
	sig, err := parseSignature(armor)
	if err != nil {
		return fleet.Signer{}, err
	}
	s, err := findSigner(trust.Signers, sig.PublicKey)
	if err != nil {
		return fleet.Signer{}, fmt.Errorf("%w in trust version %d", err, trust.Version)
	}
	if !slices.Contains(s.Roles, "release") {
		return fleet.Signer{}, fmt.Errorf("%w: %s has not the role release in trust version %d", ErrSigner, s.Name, trust.Version)
	}
	if err := verifyArmor(payload, armor, sig.PublicKey); err != nil {
		return fleet.Signer{}, fmt.Errorf("signature of %s: %w", s.Name, err)
	}
	return s, checkDates(s, at, floor)
}

func findSigner(signers []fleet.Signer, key ssh.PublicKey) (fleet.Signer, error) {
	for _, s := range signers {
		known, err := signerKey(s)
		if err == nil && bytes.Equal(known.Marshal(), key.Marshal()) {
			return s, nil
		}
	}
	return fleet.Signer{}, fmt.Errorf("%w: the key %s is not among the signers", ErrSigner, ssh.FingerprintSHA256(key))
}

func signerKey(s fleet.Signer) (ssh.PublicKey, error) {
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(s.Key))
	if err == nil && len(options) > 0 {
		err = errors.New("options are not allowed")
	}
	if err != nil {
		return nil, fmt.Errorf("key of signer %s: %w", s.Name, err)
	}
	return key, nil
}

// checkDates goes by the release's Time, never by a clock. A key whose end lies before floor is dead, whatever Time a release signed by it bears.
func checkDates(s fleet.Signer, at, floor time.Time) error {
	const day = "2006-01-02 15:04 MST"
	switch {
	case s.From != nil && at.Before(*s.From):
		return fmt.Errorf("%w: the key of %s counts from %s, the release is of %s", ErrExpired, s.Name, s.From.UTC().Format(day), at.Format(day))
	case s.Until != nil && at.After(*s.Until):
		return fmt.Errorf("%w: the key of %s counted until %s, the release is of %s", ErrExpired, s.Name, s.Until.UTC().Format(day), at.Format(day))
	case s.Until != nil && floor.After(*s.Until):
		return fmt.Errorf("%w: the key of %s counted until %s, and something signed at %s was seen already", ErrExpired, s.Name, s.Until.UTC().Format(day), floor.UTC().Format(day))
	}
	return nil
}
