package metal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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

// header is a disk's, as far as it holds the recovery key: what is written is
// there whole or not at all, which package disks sees to.
type header struct {
	escrow     []byte
	recipients string
	key        []byte
	power      func() bool
}

var errNoPower = errors.New("no power")

func (h *header) Escrow() []byte     { return h.escrow }
func (h *header) Recipients() string { return h.recipients }
func (h *header) Recoverable() bool  { return h.key != nil }

func (h *header) Rekey(recipients string, escrow func([]byte) ([]byte, error)) ([]byte, error) {
	key := make([]byte, 32)
	rand.Read(key)
	sealed, err := escrow(key)
	if err != nil {
		return nil, err
	}
	if !h.power() {
		return nil, errNoPower
	}
	if h.escrow, h.recipients = sealed, ""; sealed == nil {
		h.key = nil
		return nil, nil
	}
	h.key = key
	if !h.power() {
		return nil, errNoPower
	}
	h.recipients = recipients
	return sealed, nil
}

// TestFollowTrust: the recovery key goes to whom the trust names now, once; an
// escrow of which nobody noted for whom it is, such as one that was cut off, is
// made anew. Whenever the power goes, the header's escrow opens the disk, and so
// does one of those on the boot partition.
func TestFollowTrust(t *testing.T) {
	plain := func(key []byte) ([]byte, error) { return append([]byte("escrow "), key...), nil }
	opens := func(h *header, escrow []byte) bool { return bytes.Equal(escrow, append([]byte("escrow "), h.key...)) }
	on := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		return b
	}
	for name, old := range map[string]header{
		"others":      {escrow: []byte("escrow old"), key: []byte("old"), recipients: recipients([]string{"a", "b"})},
		"not noted":   {escrow: []byte("escrow old"), key: []byte("old")},
		"none so far": {},
	} {
		for cut := 0; ; cut++ {
			h, left, dir := old, cut, t.TempDir()
			h.power = func() bool { left--; return left >= 0 }
			if err := keepEscrow(dir, h.escrow); err != nil {
				t.Fatal(err)
			}
			made, err := followTrust(&h, dir, []string{"b", "c"}, plain)
			if err != nil && !errors.Is(err, errNoPower) {
				t.Fatal(err)
			}
			if h.key != nil && (!opens(&h, h.escrow) || !opens(&h, on(dir, escrowName)) && !opens(&h, on(dir, escrowNext))) {
				t.Errorf("%s, cut %d: no escrow opens: header %q, kept %q, next %q", name, cut, h.escrow, on(dir, escrowName), on(dir, escrowNext))
			}
			done := err == nil
			left = 9 // the next boot
			if err := keepEscrow(dir, h.escrow); err != nil {
				t.Fatal(err)
			}
			again, err := followTrust(&h, dir, []string{"c", "b", "c"}, plain)
			if err != nil || done && again || made == again {
				t.Errorf("%s, cut %d: made %t, and at the next boot %t, %v", name, cut, made, again, err)
			}
			if !opens(&h, h.escrow) || !opens(&h, on(dir, escrowName)) || on(dir, escrowNext) != nil || h.recipients != recipients([]string{"b", "c"}) {
				t.Errorf("%s, cut %d: at the end header %q, kept %q, next %q", name, cut, h.escrow, on(dir, escrowName), on(dir, escrowNext))
			}
			if done {
				if cut != 2 {
					t.Errorf("%s: %d cuts", name, cut)
				}
				break
			}
		}
	}
	h, dir := header{escrow: []byte("escrow old"), key: []byte("old"), recipients: "x", power: func() bool { return true }}, t.TempDir()
	nobody := func([]byte) ([]byte, error) { return nil, nil }
	if err := keepEscrow(dir, h.escrow); err != nil {
		t.Fatal(err)
	}
	if made, err := followTrust(&h, dir, nil, nobody); !made || err != nil || h.key != nil || on(dir, escrowName) != nil {
		t.Errorf("nobody: made %t, %v", made, err)
	}
	if made, err := followTrust(&h, dir, nil, nobody); made || err != nil {
		t.Errorf("nobody, again: made %t, %v", made, err)
	}
	// The boot partition is gone: the old key ends all the same.
	if made, err := followTrust(&h, filepath.Join(dir, "gone"), []string{"a"}, plain); !made || err == nil || !opens(&h, h.escrow) {
		t.Errorf("without a boot partition: made %t, %v", made, err)
	}
}
