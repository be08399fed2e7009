package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/holdfast-edge/holdfast/kube"
)

// authorities of a site. Each has a certificate at NAME-ca.crt, on every machine,
// and a key at NAME-ca.key, on control planes.
var authorities = []kube.CA{kube.CACluster, kube.CAEtcd, kube.CAFrontProxy}

// Files of the other two secrets of a cluster.
const (
	serviceAccountKey    = "service-account.key"
	serviceAccountPublic = "service-account.pub"
	encryptionFile       = "encryption.json"
)

// MakeAuthorities makes what of a new cluster's secrets is missing. It is called
// once it is settled that this machine starts a cluster, and again until it
// succeeded; for a cluster that exists they come from another control plane.
func (s *Store) MakeAuthorities(cluster string) error {
	for _, ca := range authorities {
		if err := s.makeAuthority(ca, cluster); err != nil {
			return fmt.Errorf("make authority %s: %w", ca, err)
		}
	}
	if err := s.makeServiceAccountKey(); err != nil {
		return fmt.Errorf("make service account key: %w", err)
	}
	if err := s.makeEncryption(); err != nil {
		return fmt.Errorf("make key for Secrets at rest: %w", err)
	}
	return nil
}

// HasAuthorities tells whether MakeAuthorities once ran to its end: the last thing
// that it makes is there.
func (s *Store) HasAuthorities() bool {
	_, err := os.Stat(s.path(encryptionFile))
	return err == nil
}

// makeAuthority writes the key first: a key without its certificate is a run that
// was cut, a certificate without its key is a loss.
func (s *Store) makeAuthority(ca kube.CA, cluster string) error {
	name := string(ca) + "-ca"
	_, certErr := s.readCertificate(name + ".crt")
	key, err := s.readKey(name + ".key")
	switch {
	case err == nil && certErr == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist) && certErr == nil:
		return fmt.Errorf("%s: %w", s.path(name+".key"), ErrIncomplete)
	case errors.Is(err, fs.ErrNotExist):
		if key, err = s.newKey(name + ".key"); err != nil {
			return err
		}
	case err != nil:
		return err // damaged: not ours to replace
	}
	t, err := s.template(0)
	if err != nil {
		return err
	}
	t.NotBefore = always
	t.Subject = pkix.Name{CommonName: "holdfast " + string(ca) + " " + cluster}
	t.IsCA, t.MaxPathLenZero = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	return s.write(name+".crt", encode("CERTIFICATE", der), 0o644)
}

func (s *Store) makeServiceAccountKey() error {
	key, err := s.readKey(serviceAccountKey)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = s.newKey(serviceAccountKey)
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.path(serviceAccountPublic)); err == nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return s.write(serviceAccountPublic, encode("PUBLIC KEY", der), 0o644)
}

// makeEncryption writes the API server's configuration for Secrets at rest. It
// matters because snapshots of etcd travel, and this key does not travel with
// them but sealed.
func (s *Store) makeEncryption() error {
	if _, err := os.Stat(s.path(encryptionFile)); err == nil {
		return nil
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	type m = map[string]any
	data, err := json.MarshalIndent(m{
		"apiVersion": "apiserver.config.k8s.io/v1",
		"kind":       "EncryptionConfiguration",
		"resources": []m{{
			"resources": []string{"secrets"},
			"providers": []m{
				{"secretbox": m{"keys": []m{{"name": "1", "secret": base64.StdEncoding.EncodeToString(key)}}}},
				{"identity": m{}},
			},
		}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return s.write(encryptionFile, append(data, '\n'), 0o600)
}

// Authority is an authority's certificates in PEM.
func (s *Store) Authority(ca kube.CA) ([]byte, error) {
	data, err := os.ReadFile(s.path(string(ca) + "-ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read authority %s: %w", ca, err)
	}
	return data, nil
}

// SetAuthority writes an authority's certificates as another machine told them
// over a channel that proved who it is.
func (s *Store) SetAuthority(ca kube.CA, certificates []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(certificates) {
		return fmt.Errorf("authority %s: no PEM certificate", ca)
	}
	if err := s.write(string(ca)+"-ca.crt", certificates, 0o644); err != nil {
		return fmt.Errorf("write authority %s: %w", ca, err)
	}
	return nil
}

func (s *Store) pool(ca kube.CA) (*x509.CertPool, error) {
	data, err := s.Authority(ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("authority %s: no PEM certificate in %s", ca, s.path(string(ca)+"-ca.crt"))
	}
	return pool, nil
}

func (s *Store) authority(ca kube.CA) (*x509.Certificate, crypto.Signer, error) {
	name := string(ca) + "-ca"
	key, err := s.readKey(name + ".key")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: %w", ca, ErrNoAuthority)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("authority %s: %w", ca, err)
	}
	cert, err := s.readCertificate(name + ".crt")
	if err != nil {
		return nil, nil, fmt.Errorf("authority %s: %w", ca, err)
	}
	if !sameKey(cert.PublicKey, key.Public()) {
		return nil, nil, fmt.Errorf("authority %s: certificate and key do not belong together", ca)
	}
	return cert, key, nil
}
