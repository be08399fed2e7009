// Package pki makes and renews the keys and certificates of a site's Kubernetes:
// three certificate authorities that have nothing to do with one another, the key
// that signs service account tokens, the key that encrypts Secrets at rest, and
// the leaf certificates that a plan of package kube asks for.
//
// What it promises:
//
//   - Crash-safe: every file is whole at every instant, and a run that was cut is
//     finished by the next. A leaf is renewed under its key, so its two files
//     never disagree; where they do, after damage, the certificate is made anew.
//   - The site's PKI is disposable, but never disposed of by itself: an authority
//     whose key is gone is an error, not a reason to make another, since every
//     machine, token and kubeconfig would die with the old one.
//   - Leaves live thirty days and are renewed after a third, so a site without its
//     control planes has twenty days. They are valid from thirty days before they
//     were made, so a clock that was wrong by less forbids nothing. Authorities
//     end by being re-made, not by date.
//   - A request from another machine carries a key and nothing else: what the
//     certificate says is the signer's decision.
//
// It leaves out when to run (the machine does: at start, at Result.Next, at a step
// of the clock), how requests travel, and rotating authorities.
package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/kube"
)

// ErrIncomplete is returned when an authority's certificate is there and its key
// is not.
var ErrIncomplete = errors.New("authority without its key")

// ErrNoAuthority is returned when something is to be signed here and the
// authority is on other machines only.
var ErrNoAuthority = errors.New("no such authority on this machine")

const (
	defaultLife = 30 * 24 * time.Hour
	backdate    = 30 * 24 * time.Hour
)

// An authority is valid from always until forever (RFC 5280's "no well-defined
// expiration date"): it ends by being re-made, and no clock may forbid it.
var (
	always  = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// Store is a folder of keys and certificates.
type Store struct {
	dir  string
	opts Options
}

// Options of a Store. The zero value is for real sites.
type Options struct {
	// Now is the clock; time.Now when nil.
	Now func() time.Time
	// Floor is the time before which it cannot be. A certificate is valid from then
	// at the latest, however wrong the clock is now.
	Floor time.Time
	// Life of a leaf; 30 days by default. Shorter in drills.
	Life time.Duration
}

// Open opens, and makes, the folder.
func Open(dir string, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Life == 0 {
		o.Life = defaultLife
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open PKI folder: %w", err)
	}
	return &Store{dir: dir, opts: o}, nil
}

// Signer turns a request into a certificate. A Store with authorities is one; on
// a worker it is a call to a control plane.
type Signer interface {
	// Sign answers a PKCS #10 request, of which only the key counts, with a PEM
	// chain that says what c does.
	Sign(ctx context.Context, request []byte, c kube.Certificate) ([]byte, error)
}

// Result is what Ensure did.
type Result struct {
	Made []string  // names of the certificates made anew
	Next time.Time // when the first falls due
}

// Ensure makes every wanted certificate that is missing, due, damaged, or says
// something else than it should; the others are not touched. What could be made
// is made, whatever else fails.
func (s *Store) Ensure(ctx context.Context, wanted []kube.Certificate, signer Signer) (Result, error) {
	var r Result
	var errs []error
	for _, c := range wanted {
		due, err := s.due(c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !due.After(s.opts.Now()) {
			if due, err = s.renew(ctx, c, signer); err != nil {
				errs = append(errs, err)
				continue
			}
			r.Made = append(r.Made, c.Name)
		}
		if r.Next.IsZero() || due.Before(r.Next) {
			r.Next = due
		}
	}
	return r, errors.Join(errs...)
}

// due is when a certificate must be made anew; the zero time is now.
func (s *Store) due(c kube.Certificate) (time.Time, error) {
	cert, err := s.readCertificate(c.Name + ".crt")
	if err != nil {
		return time.Time{}, ignoreDamage(err)
	}
	key, err := s.readKey(c.Name + ".key")
	if err != nil {
		return time.Time{}, ignoreDamage(err)
	}
	pool, err := s.pool(c.CA)
	if err != nil {
		return time.Time{}, err
	}
	if !says(cert, c) || !sameKey(cert.PublicKey, key.Public()) || s.opts.Now().Before(cert.NotBefore) {
		return time.Time{}, nil
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: cert.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return time.Time{}, nil
	}
	// Two thirds of what it had left when it was made are kept as reserve.
	return cert.NotAfter.Add(-s.opts.Life * 2 / 3), nil
}

// errDamaged marks files that are there but hold no key or certificate.
var errDamaged = errors.New("damaged")

func ignoreDamage(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
		return nil
	}
	return err
}

// renew keeps the key where there is a good one.
func (s *Store) renew(ctx context.Context, c kube.Certificate, signer Signer) (time.Time, error) {
	fail := func(err error) (time.Time, error) {
		return time.Time{}, fmt.Errorf("make certificate %s: %w", c.Name, err)
	}
	key, err := s.readKey(c.Name + ".key")
	if err != nil {
		if err := ignoreDamage(err); err != nil {
			return fail(err)
		}
		if key, err = s.newKey(c.Name + ".key"); err != nil {
			return fail(err)
		}
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fail(err)
	}
	chain, err := signer.Sign(ctx, request, c)
	if err != nil {
		return fail(err)
	}
	cert, err := parseCertificate(chain)
	if err != nil {
		return fail(err)
	}
	if !says(cert, c) || !sameKey(cert.PublicKey, key.Public()) {
		return fail(errors.New("the signer's answer is for another key or says something else"))
	}
	if err := s.write(c.Name+".crt", chain, 0o644); err != nil {
		return fail(err)
	}
	return cert.NotAfter.Add(-s.opts.Life * 2 / 3), nil
}

// Sign implements Signer with the authorities of this machine.
func (s *Store) Sign(_ context.Context, request []byte, c kube.Certificate) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return s.sign(csr.PublicKey, c, s.opts.Life)
}

// SignOperator makes a client certificate for a person's session key, known by
// the fingerprint of the key in trust.yaml. It carries a user and no group, so
// what it may do stands in the release and ends with it. The caller has verified
// the session.
func (s *Store) SignOperator(session crypto.PublicKey, fingerprint string, life time.Duration) ([]byte, error) {
	c := kube.Certificate{Name: "operator", CA: kube.CACluster, CommonName: kube.OperatorUser(fingerprint), Client: true}
	return s.sign(session, c, life)
}

func (s *Store) sign(public crypto.PublicKey, c kube.Certificate, life time.Duration) ([]byte, error) {
	if err := strong(public); err != nil {
		return nil, err
	}
	ca, key, err := s.authority(c.CA)
	if err != nil {
		return nil, err
	}
	if !c.Server && !c.Client {
		return nil, fmt.Errorf("certificate %s is for neither server nor client", c.Name)
	}
	t, err := s.template(life)
	if err != nil {
		return nil, err
	}
	t.Subject = pkix.Name{CommonName: c.CommonName, Organization: c.Organizations}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.DNSNames = c.DNSNames
	for _, a := range c.Addresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
	}
	if c.Server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if c.Client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, public, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %s: %w", c.Name, err)
	}
	return encode("CERTIFICATE", der), nil
}

func (s *Store) template(life time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	now := s.opts.Now()
	from := now.Add(-backdate)
	if f := s.opts.Floor; !f.IsZero() && f.Before(from) {
		from = f
	}
	until := forever
	if life > 0 {
		until = now.Add(life)
	}
	return &x509.Certificate{SerialNumber: serial, NotBefore: from.UTC(), NotAfter: until.UTC(), BasicConstraintsValid: true}, nil
}

// strong refuses keys that nothing of ours makes.
func strong(public crypto.PublicKey) error {
	switch k := public.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	}
	return fmt.Errorf("key of type %T is neither P-256 nor ed25519", public)
}

// says tells whether a certificate says what is wanted, no more and no less.
func says(cert *x509.Certificate, c kube.Certificate) bool {
	var usages []x509.ExtKeyUsage
	if c.Server {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	if c.Client {
		usages = append(usages, x509.ExtKeyUsageClientAuth)
	}
	var addresses []netip.Addr
	for _, ip := range cert.IPAddresses {
		a, _ := netip.AddrFromSlice(ip)
		addresses = append(addresses, a.Unmap())
	}
	return cert.Subject.CommonName == c.CommonName &&
		slices.Equal(cert.Subject.Organization, c.Organizations) &&
		slices.Equal(cert.DNSNames, c.DNSNames) &&
		slices.Equal(addresses, c.Addresses) &&
		slices.Equal(cert.ExtKeyUsage, usages) &&
		!cert.IsCA
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// --- files ---

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

func (s *Store) write(name string, data []byte, perm fs.FileMode) error {
	return durable.WriteFile(s.path(name), data, perm)
}

func (s *Store) readCertificate(name string) (*x509.Certificate, error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, errDamaged, err)
	}
	return cert, nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func (s *Store) readKey(name string) (crypto.Signer, error) {
	data, err := os.ReadFile(s.path(name))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: %w: no PEM key", name, errDamaged)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, errDamaged, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: %w: a %T signs nothing", name, errDamaged, key)
	}
	return signer, nil
}

func (s *Store) newKey(name string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, s.write(name, encode("PRIVATE KEY", der), 0o600)
}

func encode(kind string, der []byte) []byte {
	var b bytes.Buffer
	if err := pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}); err != nil {
		panic("pki: PEM into memory: " + err.Error())
	}
	return b.Bytes()
}
