package operator

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
)

// Namespace of the SSH signature that opens a session.
const Namespace = "session@holdfast.dev"

// exporterLabel of the TLS secret that ties a signature to one connection.
const exporterLabel = "EXPORTER-holdfast-session"

// statement is what an operator signs, one spelling per value:
//
//	holdfast session 1
//	Fleet: …
//	Target: pin of the hub's or machine's identity key
//	Client: pin of the TLS key that the session is for
//	Roles: sorted, with single spaces
//	Connection: 32 bytes of TLS exporter, in hex
type statement struct {
	fleet          fleet.ID
	target, client link.Pin
	roles          []string
	exporter       []byte
}

func (s statement) encode() []byte {
	return fmt.Appendf(nil, "holdfast session 1\nFleet: %s\nTarget: %s\nClient: %s\nRoles: %s\nConnection: %x\n",
		s.fleet, s.target, s.client, strings.Join(s.roles, " "), s.exporter)
}

func exporter(cs tls.ConnectionState) ([]byte, error) {
	return cs.ExportKeyingMaterial(exporterLabel, nil, 32)
}

const maxRoles = 8

// canonical sorts roles and refuses what would not be one word each.
func canonical(roles []string) ([]string, error) {
	roles = slices.Compact(slices.Sorted(slices.Values(roles)))
	if len(roles) == 0 || len(roles) > maxRoles {
		return nil, fmt.Errorf("%d roles: want 1 to %d", len(roles), maxRoles)
	}
	for _, r := range roles {
		if r == "" || len(r) > 32 || strings.Trim(r, "abcdefghijklmnopqrstuvwxyz") != "" {
			return nil, fmt.Errorf("role %.40q: want a word", r)
		}
	}
	return roles, nil
}

// sign makes the signature, in SSH wire format.
func (s statement) sign(signer ssh.Signer) ([]byte, error) {
	if !allowed(signer.PublicKey()) {
		return nil, fmt.Errorf("sign session: %w: %s", ErrKeyKind, signer.PublicKey().Type())
	}
	sig, err := sshsig.Sign(bytes.NewReader(s.encode()), signer, sshsig.HashSHA512, Namespace)
	if err != nil {
		return nil, fmt.Errorf("sign session: %w", err)
	}
	return sig.Marshal(), nil
}

// allowed are the kinds of key that a fleet trusts; RSA and certificates are not.
func allowed(key ssh.PublicKey) bool {
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		return true
	}
	return false
}

var errForeign = errors.New("signature does not fit this fleet, target, client, roles and connection")

// verify checks everything but whether the key may: namespace, kind, user
// presence of hardware keys, and that it signed exactly this statement.
func (s statement) verify(sig *sshsig.Signature) error {
	if err := sshsig.Verify(bytes.NewReader(s.encode()), sig, sig.PublicKey, sig.HashAlgorithm, Namespace); err != nil {
		return fmt.Errorf("%w: %v", errForeign, err)
	}
	switch sig.PublicKey.Type() {
	case ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
		const userPresent = 1
		if rest := sig.Signature.Rest; len(rest) == 0 || rest[0]&userPresent == 0 {
			return errors.New("the hardware key was not touched")
		}
	}
	return nil
}
