package link

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Pin names a public key: SHA-256 of its SubjectPublicKeyInfo.
type Pin [sha256.Size]byte

const pinPrefix = "sha256:"

// PinOf returns the pin of a SubjectPublicKeyInfo.
func PinOf(spki []byte) Pin { return sha256.Sum256(spki) }

// MachinePin is the pin that a machine ID stands for: both are the same digest
// of the identity key, spelled differently.
func MachinePin(id fleet.MachineID) (Pin, error) {
	if _, err := fleet.ParseMachineID(string(id)); err != nil {
		return Pin{}, err
	}
	var p Pin
	if _, err := base32.StdEncoding.WithPadding(base32.NoPadding).Decode(p[:], []byte(strings.ToUpper(string(id)))); err != nil {
		return Pin{}, fmt.Errorf("read machine ID %.60q: %w", id, err)
	}
	return p, nil
}

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
