// Package box is the machine apart from its disks: the key that it is known by,
// the recipient of its secrets, and a few small notes, such as the anchor. In a
// TPM all of that outlives the disks and does not leave the box; where there is
// none a folder stands in, which protects nothing and is called that.
package box

import (
	"crypto"

	"filippo.io/age"
)

// Kinds of protection, as in machines.yaml.
const (
	ProtectionTPM  = "tpm"
	ProtectionNone = "none"
)

// Box is a TPM, or the folder that stands in for one.
type Box interface {
	// Signer is the identity key, P-256. The same at each call.
	Signer() crypto.Signer
	// Recipient decrypts what is encrypted to the machine.
	Recipient() *age.X25519Identity
	// Protection is ProtectionTPM or ProtectionNone.
	Protection() string
	// ReadNote reads a note; fs.ErrNotExist when there is none.
	ReadNote(name string) ([]byte, error)
	// WriteNote replaces a note whole and durably: after a power cut there is the
	// old one or the new. All notes together have at most MaxNotes bytes.
	WriteNote(name string, data []byte) error
	// RemoveNote removes a note; none is no error.
	RemoveNote(name string) error
}

// MaxNotes bounds the notes of a box, names included, in bytes.
const MaxNotes = 1500
