package wire

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Escrow is the recovery key of a machine's disk with the name of the machine,
// signed by its identity key. What lies on the boot partition and goes to people
// is that text, encrypted to the fleet's recovery recipients: encryption alone
// has no sender, and whoever opens one must see that it is the escrow of the
// machine to which he is about to send the key.
type Escrow struct {
	Fleet   fleet.ID
	Machine fleet.MachineID
	SPKI    []byte // identity key; Machine is its ID
	Key     []byte // opens STATE
}

// The signed text, one spelling per escrow:
//
//	holdfast escrow 1
//	Fleet: …
//	Machine: …
//	Identity: base64 of the SubjectPublicKeyInfo
//	Key: base64
//	Signature: base64, over SHA-256 of the lines above (P-256) or the lines (Ed25519)
const escrowHead = "holdfast escrow 1\n"

// MaxEscrow bounds an escrow, encrypted or not.
const MaxEscrow = 32 << 10

var escrowFields = []string{"Fleet", "Machine", "Identity", "Key"}

// ErrEscrow wraps every refusal of ParseEscrow.
var ErrEscrow = errors.New("escrow refused")

func (e Escrow) statement() ([]byte, error) {
	if _, err := fleet.ParseID(string(e.Fleet)); err != nil {
		return nil, err
	}
	if e.Machine != fleet.MachineIDOf(e.SPKI) {
		return nil, fmt.Errorf("machine %.60q is not the id of the key", e.Machine)
	}
	if len(e.Key) < 16 || len(e.Key) > 256 {
		return nil, fmt.Errorf("a key of %d bytes", len(e.Key))
	}
	b64 := base64.StdEncoding.EncodeToString
	out := []byte(escrowHead)
	for i, value := range []string{string(e.Fleet), string(e.Machine), b64(e.SPKI), b64(e.Key)} {
		out = fmt.Appendf(out, "%s: %s\n", escrowFields[i], value)
	}
	return out, nil
}

// SignEscrow fills in Machine and SPKI from the identity key and returns the
// signed text, which is then to be encrypted.
func SignEscrow(e Escrow, identity crypto.Signer) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(identity.Public())
	if err != nil {
		return nil, fmt.Errorf("sign escrow: %w", err)
	}
	e.SPKI, e.Machine = spki, fleet.MachineIDOf(spki)
	statement, err := e.statement()
	if err != nil {
		return nil, fmt.Errorf("sign escrow: %w", err)
	}
	signature, err := signStatement(identity, statement)
	if err != nil {
		return nil, fmt.Errorf("sign escrow: %w", err)
	}
	return fmt.Appendf(statement, "Signature: %s\n", base64.StdEncoding.EncodeToString(signature)), nil
}

// signStatement signs a text whose first line says what it is. It gives the key
// the text and not a digest: the key of a TPM signs only what it has hashed.
func signStatement(identity crypto.Signer, statement []byte) ([]byte, error) {
	hash := crypto.SHA256
	if _, edwards := identity.Public().(ed25519.PublicKey); edwards {
		hash = 0
	}
	return crypto.SignMessage(identity, rand.Reader, statement, hash)
}

// ParseEscrow reads an escrow that was decrypted and verifies it: the grammar,
// that Machine is the ID of the key, and the signature. Whether it is the
// machine that is meant is the caller's to see.
func ParseEscrow(text []byte) (*Escrow, error) {
	e, err := parseEscrow(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEscrow, err)
	}
	return e, nil
}

func parseEscrow(text []byte) (*Escrow, error) {
	values, err := spelled(text, MaxEscrow, escrowHead, escrowFields)
	if err != nil {
		return nil, err
	}
	raw := make([][]byte, len(values))
	for i := 2; i < len(values); i++ {
		if raw[i], err = base64.StdEncoding.Strict().DecodeString(values[i]); err != nil {
			return nil, errGrammar
		}
	}
	e := &Escrow{Fleet: fleet.ID(values[0]), Machine: fleet.MachineID(values[1]), SPKI: raw[2], Key: raw[3]}
	statement, err := e.statement()
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(text, statement) {
		return nil, errGrammar
	}
	return e, verify(e.SPKI, statement, raw[4])
}

// Escrowed is what a locked machine answers to GET /v1/escrow.
type Escrowed struct {
	Age []byte `json:"age"` // the escrow, encrypted to the recovery recipients
}

// Validate checks what a machine sent.
func (e *Escrowed) Validate() error {
	if len(e.Age) == 0 || len(e.Age) > MaxEscrow {
		return fmt.Errorf("an escrow of %d bytes", len(e.Age))
	}
	return nil
}

// Unlock asks a locked machine to open its disk (POST /v1/unlock).
type Unlock struct {
	Key []byte `json:"key"`
}

// Validate checks what an operator sent.
func (u *Unlock) Validate() error {
	if len(u.Key) == 0 || len(u.Key) > 256 {
		return fmt.Errorf("a key of %d bytes", len(u.Key))
	}
	return nil
}
