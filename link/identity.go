package link

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Identity is a key that names its holder: a machine, a hub, or an operator's
// client. It holds the self-signed certificate that carries the key through
// TLS; nothing in that certificate but the key is ever read.
//
// An Identity is safe for concurrent use if its signer is.
type Identity struct {
	signer crypto.Signer // makes statements (Sign): always the identity key itself
	spki   []byte
	cert   tls.Certificate // makes handshakes: the identity key, or a boot key that it certified
}

// bootKeyName marks a certificate by which an identity key lends its name to a
// TLS key until the next boot.
const bootKeyName = "holdfast boot key 1"

// NewIdentity wraps a P-256 or Ed25519 key.
func NewIdentity(signer crypto.Signer) (*Identity, error) {
	spki, err := publicKeyInfo(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("make identity: %w", err)
	}
	template := certificate("")
	der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("make identity: sign its certificate: %w", err)
	}
	return &Identity{
		signer: signer,
		spki:   spki,
		cert:   tls.Certificate{Certificate: [][]byte{der}, PrivateKey: signer},
	}, nil
}

// Delegate returns the same identity with handshakes made by a fresh key in
// memory, certified once by the identity key. Whoever serves strangers uses it,
// so that a flood of handshakes cannot block a TPM. It is accepted from servers
// only: who dials proves the identity key itself, so that a key read from the
// memory of a stolen machine opens no link.
func (id *Identity) Delegate() (*Identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make boot key: %w", err)
	}
	parent, err := x509.ParseCertificate(id.cert.Certificate[len(id.cert.Certificate)-1])
	if err != nil {
		return nil, fmt.Errorf("make boot key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(bootKeyName), parent, key.Public(), id.signer)
	if err != nil {
		return nil, fmt.Errorf("make boot key: certify it: %w", err)
	}
	return &Identity{
		signer: id.signer,
		spki:   id.spki,
		cert:   tls.Certificate{Certificate: [][]byte{der, parent.Raw}, PrivateKey: key},
	}, nil
}

// certificate is a template in which nothing means anything but the name of a
// boot key. Its dates span what X.509 can say: machines have no clock to trust.
func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
}

// ID is the machine ID that this key would have.
func (id *Identity) ID() fleet.MachineID { return fleet.MachineIDOf(id.spki) }

// Pin is the pin of the identity key.
func (id *Identity) Pin() Pin { return PinOf(id.spki) }

// SPKI is the SubjectPublicKeyInfo of the identity key.
func (id *Identity) SPKI() []byte { return append([]byte(nil), id.spki...) }

// Public implements crypto.Signer.
func (id *Identity) Public() crypto.PublicKey { return id.signer.Public() }

// Sign implements crypto.Signer with the identity key. Callers sign messages
// that begin with a context of their own.
func (id *Identity) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return id.signer.Sign(random, digest, opts)
}

// SignMessage implements crypto.MessageSigner. The key of a TPM is restricted: it
// signs messages that it has hashed itself, and no digest that it is given.
func (id *Identity) SignMessage(random io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return crypto.SignMessage(id.signer, random, message, opts)
}

var errKeyKind = errors.New("want a P-256 or Ed25519 key")

// publicKeyInfo encodes the kinds of key that links accept.
func publicKeyInfo(key crypto.PublicKey) ([]byte, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("curve %s: %w", k.Curve.Params().Name, errKeyKind)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("%T: %w", key, errKeyKind)
	}
	return x509.MarshalPKIXPublicKey(key)
}

// identityOf reads the identity key out of a peer's certificates: the key of
// the only one, or, where a boot key is allowed, the key that certified it.
func identityOf(chain []*x509.Certificate, bootKey bool) ([]byte, error) {
	switch {
	case len(chain) == 0:
		return nil, ErrNoKey
	case len(chain) == 1:
	case len(chain) == 2 && bootKey:
		leaf, parent := chain[0], chain[1]
		if leaf.Subject.CommonName != bootKeyName {
			return nil, fmt.Errorf("%w: a second certificate that is no boot key's", ErrPeerKey)
		}
		if err := parent.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
			return nil, fmt.Errorf("%w: boot key not certified by the identity key: %v", ErrPeerKey, err)
		}
		if _, err := publicKeyInfo(leaf.PublicKey); err != nil {
			return nil, fmt.Errorf("%w: boot key: %v", ErrPeerKey, err)
		}
		chain = chain[1:]
	default:
		return nil, fmt.Errorf("%w: %d certificates", ErrPeerKey, len(chain))
	}
	spki, err := publicKeyInfo(chain[0].PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrPeerKey, err)
	}
	return spki, nil
}
