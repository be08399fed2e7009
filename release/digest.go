package release

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Digest is a SHA-256. It is written as 64 lower-case hex digits, and in no other way.
type Digest [sha256.Size]byte

// ObjectID is the SHA-256 id of a Git object: the digest of its kind, its length and its bytes.
type ObjectID = Digest

func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero tells whether d is no digest at all.
func (d Digest) IsZero() bool { return d == Digest{} }

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (d Digest, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) || hex.EncodeToString(b) != s {
		return Digest{}, fmt.Errorf("parse digest %q: want 64 lower-case hex digits", s)
	}
	return Digest(b), nil
}

// MarshalText is encoding.TextMarshaler; no digest is "".
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText is encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*d = Digest{}
		return nil
	}
	*d, err = ParseDigest(string(b))
	return err
}
