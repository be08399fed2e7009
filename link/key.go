package link

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

const (
	keyBlock   = "PRIVATE KEY" // PKCS#8
	keyMaxSize = 16 << 10
)

// LoadOrCreateKey reads the P-256 key in a PKCS#8 PEM file, or makes one there
// with mode 0600. A crash while it is made leaves no file or a whole one. A
// file that is there and wrong is an error and never replaced: it may be the
// only copy of somebody's name. One process at a time.
func LoadOrCreateKey(path string) (crypto.Signer, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	fresh, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(fresh)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", path, err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der})
	if err := durable.WriteFile(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("write key: %w", err)
	}
	return loadKey(path) // what counts is what the disk holds
}

func loadKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("key %s can be read by others (mode %04o): chmod 600 it", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, keyMaxSize))
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != keyBlock {
		return nil, fmt.Errorf("no PEM block %q", keyBlock)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errKeyKind
	}
	if _, err := publicKeyInfo(signer.Public()); err != nil {
		return nil, err
	}
	return signer, nil
}
