package metal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"io"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// TestEscrowOpens: what is kept on the boot partition is the whole of it, and
// each of the people, and nobody else, finds the key in it.
func TestEscrowOpens(t *testing.T) {
	identity, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	person := func() *age.X25519Identity {
		t.Helper()
		p, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, two, other := person(), person(), person()
	const of = fleet.ID("00112233445566778899aabbccddeeff")
	key := bytes.Repeat([]byte{7}, 32)
	sealed, err := sealEscrow(key, of, []string{one.Recipient().String(), two.Recipient().String()}, identity)
	if err != nil {
		t.Fatal(err)
	}
	if len(sealed) > wire.MaxEscrow || bytes.Contains(sealed, key) {
		t.Errorf("the escrow has %d bytes", len(sealed))
	}
	for _, p := range []*age.X25519Identity{one, two} {
		r, err := age.Decrypt(bytes.NewReader(sealed), p)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("the escrow is not whole: %v", err)
		}
		e, err := wire.ParseEscrow(text)
		if err != nil {
			t.Fatal(err)
		}
		if e.Fleet != of || !bytes.Equal(e.Key, key) {
			t.Errorf("the escrow names fleet %s and key %x", e.Fleet, e.Key)
		}
	}
	if _, err := age.Decrypt(bytes.NewReader(sealed), other); err == nil {
		t.Error("a stranger opens the escrow")
	}
}

func TestEscrowNeedsPeople(t *testing.T) {
	if sealed, err := sealEscrow([]byte("key"), "", nil, nil); sealed != nil || err != nil {
		t.Errorf("without recipients: %v, %v; want nothing", sealed, err)
	}
	if _, err := sealEscrow([]byte("key"), "", []string{"age1nobody"}, nil); err == nil {
		t.Error("a recipient that is none is taken")
	}
}
