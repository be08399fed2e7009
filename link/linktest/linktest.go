// Package linktest makes identities for tests of what is linked. It leaves out
// machines and hubs, which have worlds of their own.
package linktest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/holdfast-edge/holdfast/link"
)

// NewIdentity is that of a machine that nobody has met.
func NewIdentity(t testing.TB) *link.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := link.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
