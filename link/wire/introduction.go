package wire

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Introduction is what a machine says of itself and signs with its identity key.
// `adopt` copies the signed bytes into the site's file, so that a hub cannot
// put a recipient of its own into a fleet.
type Introduction struct {
	Fleet      fleet.ID
	Machine    fleet.MachineID
	SPKI       []byte // identity key; Machine is its ID
	Recipient  string // age recipient that outlives the disk; may be empty
	Protection string // tpm or none

	// For people, to tell boxes apart; nothing is decided by them.
	Hostname string
	Serial   string
}

// The signed text is one line per field, in this order, each once, and nothing
// else: one spelling per introduction.
//
//	holdfast introduction 1
//	Fleet: …
//	Machine: …
//	Key: base64 of the SubjectPublicKeyInfo
//	Recipient: …
//	Protection: …
//	Hostname: …
//	Serial: …
//	Signature: base64, over SHA-256 of the lines above (P-256) or the lines (Ed25519)
const (
	introductionHead = "holdfast introduction 1\n"
	maxIntroduction  = 4 << 10
)

var introductionFields = []string{"Fleet", "Machine", "Key", "Recipient", "Protection", "Hostname", "Serial"}

// ErrIntroduction wraps every refusal of ParseIntroduction.
var ErrIntroduction = errors.New("introduction refused")

func (in Introduction) statement() ([]byte, error) {
	values := []string{
		string(in.Fleet), string(in.Machine), base64.StdEncoding.EncodeToString(in.SPKI),
		in.Recipient, in.Protection, in.Hostname, in.Serial,
	}
	out := []byte(introductionHead)
	for i, field := range introductionFields {
		if err := name(field, values[i]); err != nil {
			return nil, err
		}
		out = fmt.Appendf(out, "%s: %s\n", field, values[i])
	}
	return out, in.validate()
}

func (in Introduction) validate() error {
	if _, err := fleet.ParseID(string(in.Fleet)); err != nil {
		return err
	}
	if in.Machine != fleet.MachineIDOf(in.SPKI) {
		return fmt.Errorf("machine %.60q is not the id of the key", in.Machine)
	}
	if in.Protection != "tpm" && in.Protection != "none" {
		return fmt.Errorf("protection %.20q: want tpm or none", in.Protection)
	}
	return nil
}

// SignIntroduction fills in Machine and SPKI from the identity key and returns
// the signed bytes.
func SignIntroduction(in Introduction, identity crypto.Signer) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(identity.Public())
	if err != nil {
		return nil, fmt.Errorf("sign introduction: %w", err)
	}
	in.SPKI, in.Machine = spki, fleet.MachineIDOf(spki)
	in.Hostname, in.Serial = firstBytes(Clean(in.Hostname)), firstBytes(Clean(in.Serial))
	statement, err := in.statement()
	if err != nil {
		return nil, fmt.Errorf("sign introduction: %w", err)
	}
	signature, err := signStatement(identity, statement)
	if err != nil {
		return nil, fmt.Errorf("sign introduction: %w", err)
	}
	return fmt.Appendf(statement, "Signature: %s\n", base64.StdEncoding.EncodeToString(signature)), nil
}

func firstBytes(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxName)], "")
}

// ParseIntroduction reads an introduction and verifies it: the grammar, that
// Machine is the ID of the key, and the signature. Whether that machine is the
// one that a person means is the code's business (link.MatchCode).
func ParseIntroduction(data []byte) (*Introduction, error) {
	in, err := parseIntroduction(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIntroduction, err)
	}
	return in, nil
}

var errGrammar = errors.New("not its one spelling")

// spelled reads a signed text: its head, then each field and the signature, one
// line each. The values come in the order of the fields, the signature last.
func spelled(text []byte, limit int, head string, fields []string) ([]string, error) {
	if len(text) > limit {
		return nil, ErrOversized
	}
	rest, ok := bytes.CutPrefix(text, []byte(head))
	if !ok {
		return nil, errGrammar
	}
	lines := strings.Split(string(rest), "\n")
	names := append(fields[:len(fields):len(fields)], "Signature")
	if len(lines) != len(names)+1 || lines[len(names)] != "" {
		return nil, errGrammar
	}
	values := make([]string, len(names))
	for i, name := range names {
		if values[i], ok = strings.CutPrefix(lines[i], name+": "); !ok {
			return nil, errGrammar
		}
	}
	return values, nil
}

func parseIntroduction(data []byte) (*Introduction, error) {
	values, err := spelled(data, maxIntroduction, introductionHead, introductionFields)
	if err != nil {
		return nil, err
	}
	spki, err := base64.StdEncoding.Strict().DecodeString(values[2])
	if err != nil {
		return nil, errGrammar
	}
	signature, err := base64.StdEncoding.Strict().DecodeString(values[len(introductionFields)])
	if err != nil {
		return nil, errGrammar
	}
	in := &Introduction{
		Fleet: fleet.ID(values[0]), Machine: fleet.MachineID(values[1]), SPKI: spki,
		Recipient: values[3], Protection: values[4], Hostname: values[5], Serial: values[6],
	}
	statement, err := in.statement()
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(data, statement) {
		return nil, errGrammar
	}
	return in, verify(spki, statement, signature)
}

func verify(spki, statement, signature []byte) error {
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	good := false
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(statement)
		good = ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		good = ed25519.Verify(k, statement, signature)
	default:
		return fmt.Errorf("key: %T", key)
	}
	if !good {
		return errors.New("the signature is not the identity key's")
	}
	return nil
}
