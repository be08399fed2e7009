package fleet

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
)

// ID is a Fleet-ID: 128 random bits as 32 lower-case hex digits.
type ID string

// NewID makes the Fleet-ID of a new fleet.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never fails, by its documentation
	return ID(hex.EncodeToString(b[:]))
}

// ParseID reads a Fleet-ID; it has one spelling.
func ParseID(s string) (ID, error) {
	if b, err := hex.DecodeString(s); err != nil || len(b) != 16 || hex.EncodeToString(b) != s {
		return "", fmt.Errorf("parse fleet id %q: want 32 lower-case hex digits", s)
	}
	return ID(s), nil
}

// MachineID names a machine by its identity key: 52 characters of lower-case
// base32 (RFC 4648, no padding) of SHA-256 over the key's SubjectPublicKeyInfo.
// (A hex digest would not fit into a DNS label.)
type MachineID string

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// MachineIDOf is the id of the machine whose identity key has this SubjectPublicKeyInfo.
func MachineIDOf(spki []byte) MachineID {
	sum := sha256.Sum256(spki)
	return MachineID(idEncoding.EncodeToString(sum[:]))
}

// ParseMachineID reads a machine id; it has one spelling.
func ParseMachineID(s string) (MachineID, error) {
	if len(s) == 52 {
		if b, err := idEncoding.DecodeString(s); err == nil && len(b) == sha256.Size && idEncoding.EncodeToString(b) == s {
			return MachineID(s), nil
		}
	}
	return "", fmt.Errorf("parse machine id %q: want 52 characters of lower-case base32", s)
}
