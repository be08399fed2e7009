package link

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Pin names a public key: SHA-256 of its SubjectPublicKeyInfo.
type Pin [sha256.Size]byte

const pinPrefix = "sha256:"

// PinOf returns the pin of a SubjectPublicKeyInfo.
func PinOf(spki []byte) Pin { return sha256.Sum256(spki) }

// ParsePin reads the one spelling that String writes.
func ParsePin(s string) (Pin, error) {
	var p Pin
	digits, ok := strings.CutPrefix(s, pinPrefix)
	if !ok || len(digits) != 2*len(p) || strings.ToLower(digits) != digits {
		return Pin{}, fmt.Errorf("parse pin %.80q: want sha256: and 64 lower-case hex digits", s)
	}
	if _, err := hex.Decode(p[:], []byte(digits)); err != nil {
		return Pin{}, fmt.Errorf("parse pin %.80q: %w", s, err)
	}
	return p, nil
}

func (p Pin) String() string { return pinPrefix + hex.EncodeToString(p[:]) }

// MarshalText implements encoding.TextMarshaler.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Pin) UnmarshalText(text []byte) error {
	parsed, err := ParsePin(string(text))
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}
