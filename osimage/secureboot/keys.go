// Package secureboot makes the keys with which a fleet signs what its machines
// boot, and brings them into firmware: as files that systemd-boot enrols in
// setup mode, and written straight into the variable store of a virtual
// machine's firmware.
//
// It promises the same bytes for the same keys. PK owns the machine, KEK may
// change db, db signs boot loader and unified kernel images. It leaves out dbx
// and Microsoft's keys: a machine of the fleet boots what the fleet signed.
package secureboot

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Pair is a key with its self-signed certificate.
type Pair struct {
	Key  crypto.Signer
	Cert *x509.Certificate
}

// Keys are the three pairs of Secure Boot.
type Keys struct{ PK, KEK, DB Pair }

// valid is the span of all certificates: firmware looks at no clock, other
// verifiers may. It begins at a fixed day, which dates the signed variables too.
var valid = [2]time.Time{time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2124, 1, 1, 0, 0, 0, 0, time.UTC)}

// Generate makes new keys, RSA-2048 each: the only kind that all firmware reads.
// The name goes into the certificates, such as that of the fleet.
func Generate(name string) (Keys, error) {
	var k Keys
	for _, p := range k.pairs() {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return Keys{}, fmt.Errorf("make key %s: %w", p.name, err)
		}
		serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		if err != nil {
			return Keys{}, fmt.Errorf("make key %s: %w", p.name, err)
		}
		template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name + " Secure Boot " + p.name},
			NotBefore: valid[0], NotAfter: valid[1], SignatureAlgorithm: x509.SHA256WithRSA,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
		raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return Keys{}, fmt.Errorf("make certificate %s: %w", p.name, err)
		}
		cert, err := x509.ParseCertificate(raw)
		if err != nil {
			return Keys{}, fmt.Errorf("make certificate %s: %w", p.name, err)
		}
		*p.pair = Pair{key, cert}
	}
	return k, nil
}

type named struct {
	name string
	pair *Pair
}

func (k *Keys) pairs() []named { return []named{{"PK", &k.PK}, {"KEK", &k.KEK}, {"db", &k.DB}} }

// ErrThere is what Save wraps for keys that are there.
var ErrThere = errors.New("is there already: use it, or take another folder")

// Save writes NAME.key and NAME.pem of each pair into the folder, which it makes
// when it is not there. Keys that are there are never replaced: machines that
// have enrolled them would boot nothing new.
func (k Keys) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save Secure Boot keys: %w", err)
	}
	for _, p := range k.pairs() {
		for _, suffix := range []string{".key", ".pem"} {
			if _, err := os.Lstat(filepath.Join(dir, p.name+suffix)); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("save Secure Boot keys: %s %w", filepath.Join(dir, p.name+suffix), ErrThere)
			}
		}
	}
	for _, p := range k.pairs() {
		key, err := x509.MarshalPKCS8PrivateKey(p.pair.Key)
		if err != nil {
			return fmt.Errorf("save key %s: %w", p.name, err)
		}
		for _, f := range []struct{ suffix, kind, content string }{{".key", "PRIVATE KEY", string(key)}, {".pem", "CERTIFICATE", string(p.pair.Cert.Raw)}} {
			text := pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: []byte(f.content)})
			if err := durable.WriteFile(filepath.Join(dir, p.name+f.suffix), text, 0o600); err != nil {
				return fmt.Errorf("save Secure Boot keys: %w", err)
			}
		}
	}
	return nil
}

// Load reads what Save wrote. A file NAME.key may be missing: that pair has a
// nil Key, and only signing with it fails.
func Load(dir string) (Keys, error) {
	var k Keys
	for _, p := range k.pairs() {
		der, err := readPEM(filepath.Join(dir, p.name+".pem"), "CERTIFICATE")
		if err != nil {
			return Keys{}, err
		}
		if p.pair.Cert, err = x509.ParseCertificate(der); err != nil {
			return Keys{}, fmt.Errorf("%s: %w", filepath.Join(dir, p.name+".pem"), err)
		}
		file := filepath.Join(dir, p.name+".key")
		if der, err = readPEM(file, "PRIVATE KEY"); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return Keys{}, err
		}
		key, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return Keys{}, fmt.Errorf("%s: %w", file, err)
		}
		private, ok := key.(*rsa.PrivateKey)
		if !ok || !private.PublicKey.Equal(p.pair.Cert.PublicKey) {
			return Keys{}, fmt.Errorf("%s: not the RSA key of the certificate beside it", file)
		}
		p.pair.Key = private
	}
	return k, nil
}

func readPEM(file, kind string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read Secure Boot keys: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: want PEM of a %s", file, kind)
	}
	return block.Bytes, nil
}
