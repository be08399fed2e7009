package slots

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	image "github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// osVersion is an OS image as package osimage makes it, small: a root with its
// hash tree, and a signed UKI that names it.
type osVersion struct {
	v    osimage.Verity
	root []byte
	uki  string
}

func (o osVersion) stick() Stick {
	return Stick{o.v, bytes.NewReader(o.root), []byte(o.uki), []byte(o.uki)}
}

// stubPE is a PE32+ file of the shape of systemd's stub.
func stubPE() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	for at, v := range map[int]uint16{0x84: 0x8664, 0x86: 1, 0x94: 240, 0x96: 0x22, 0x98: 0x20b, 0x98 + 68: 10} {
		le.PutUint16(b[at:], v)
	}
	for at, v := range map[int]uint32{0x98 + 16: 0x1000, 0x98 + 32: 0x1000, 0x98 + 36: 0x200, 0x98 + 56: 0x2000, 0x98 + 60: 0x400, 0x98 + 108: 16} {
		le.PutUint32(b[at:], v)
	}
	row := b[0x98+240:]
	copy(row, ".text")
	for i, v := range []uint32{0x10, 0x1000, 0x200, 0x400} {
		le.PutUint32(row[8+4*i:], v)
	}
	le.PutUint32(row[36:], 0x60000020)
	return append(b, bytes.Repeat([]byte{0xc3}, 0x200)...)
}

func signer(t *testing.T) (crypto.Signer, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func makeOS(t *testing.T, key crypto.Signer, cert *x509.Certificate, version string) osVersion {
	t.Helper()
	data := bytes.Repeat([]byte("root of "+version+"; "), 3<<20/16)
	data = data[:len(data)/osimage.VerityBlock*osimage.VerityBlock]
	tree, v, err := verity.Make(bytes.NewReader(data), int64(len(data)), [32]byte{byte(len(version)), version[len(version)-1]})
	if err != nil {
		t.Fatal(err)
	}
	made, err := image.Build(stubPE(), []image.Section{
		{Name: ".osrel", Data: []byte("ID=holdfast\nIMAGE_ID=holdfast\nIMAGE_VERSION=" + version + "\n")},
		{Name: ".cmdline", Data: []byte("quiet " + v.Argument())},
		{Name: ".linux", Data: bytes.Repeat([]byte("linux "+version), 100)},
	})
	if err == nil {
		made, err = image.Sign(made, key, cert)
	}
	if err != nil {
		t.Fatal(err)
	}
	return osVersion{v, append(data, tree...), string(made)}
}

// flip changes one byte in the midst.
func flip(s string) string {
	b := []byte(s)
	b[len(b)/2] ^= 1
	return string(b)
}

// memory is a root partition that loses power with the ESP.
type memory struct {
	data []byte
	d    *fat
}

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	if m.d.dead {
		return 0, errPower
	}
	return bytes.NewReader(m.data).ReadAt(p, at)
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	cut, err := m.d.op()
	if err != nil {
		return 0, err
	}
	if cut {
		return copy(m.data[at:], p[:len(p)/2]), errPower
	}
	return copy(m.data[at:], p), nil
}

func (m *memory) Sync() error {
	if cut, err := m.d.op(); cut || err != nil {
		return errPower
	}
	return nil
}
func (m *memory) Close() error { return nil }

// The states that a stick finds, each also with the power going at every write:
// the next boot from the stick ends where this one would have.
func TestRepair(t *testing.T) {
	key, cert := signer(t)
	one, two := makeOS(t, key, cert, "1.1"), makeOS(t, key, cert, "1.2")
	broken := func(root []byte) []byte { return []byte(flip(string(root))) }
	const room = 4 << 20
	for _, c := range []struct {
		name   string
		esp    map[string]string
		a, b   []byte
		want   map[string]string
		wantA  []byte // nil: as it was
		wantB  []byte
		silent bool
		cuts   int
	}{
		{name: "all is well", esp: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki}, a: one.root, b: two.root,
			want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki}, silent: true},
		{name: "the root of the stick's OS", esp: map[string]string{"holdfast-a.efi": one.uki}, a: broken(one.root),
			want: map[string]string{"holdfast-a.efi": one.uki}, wantA: one.root, cuts: 2},
		{name: "its hash tree, on trial in b", esp: map[string]string{"holdfast-a.efi": two.uki, "holdfast-b+2-1.efi": one.uki}, a: two.root, b: append(slices.Clone(one.root[:len(one.root)-5000]), make([]byte, 5000)...),
			want: map[string]string{"holdfast-a.efi": two.uki, "holdfast-b+2-1.efi": one.uki}, wantB: one.root, cuts: 2},
		{name: "the UKI of the stick's OS", esp: map[string]string{"holdfast-a.efi": flip(one.uki), "holdfast-b.efi": two.uki}, a: one.root, b: two.root,
			want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki}, cuts: 4},
		{name: "both", esp: map[string]string{"holdfast-a.efi": flip(one.uki)}, a: broken(one.root),
			want: map[string]string{"holdfast-a.efi": one.uki}, wantA: one.root, cuts: 6},
		{name: "another OS's root, and one to go on with", esp: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki}, a: one.root, b: broken(two.root),
			want: map[string]string{"holdfast-a.efi": one.uki}, cuts: 2},
		{name: "another OS's UKI", esp: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": flip(two.uki)}, a: one.root, b: two.root,
			want: map[string]string{"holdfast-a.efi": one.uki}, cuts: 2},
		{name: "the only OS is another and broken", esp: map[string]string{"holdfast-b.efi": two.uki}, a: nil, b: broken(two.root),
			want: map[string]string{"holdfast-a.efi": one.uki}, wantA: one.root, cuts: 8},
		{name: "garbage", esp: map[string]string{"holdfast-a.efi": "MZ", "holdfast-b+3.efi": "", "stranger.efi": "MZ"}, a: broken(one.root), b: broken(two.root),
			want: map[string]string{"holdfast-a.efi": one.uki, "stranger.efi": "MZ"}, wantA: one.root, cuts: 8},
		{name: "no UKI at all", esp: map[string]string{}, a: one.root, want: map[string]string{"holdfast-a.efi": one.uki}, cuts: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			sized := func(root []byte) []byte { return append(slices.Clone(root), make([]byte, room-len(root))...) }
			cuts, done := 0, false
			for left := 0; ; left++ {
				masks := 1
				for mask := 0; mask < masks; mask++ {
					d := newFAT(c.esp)
					d.left = left
					roots := map[Slot]*memory{A: {sized(c.a), d}, B: {sized(c.b), d}}
					repairs := func() ([]string, error) {
						r := &repair{Slots: &Slots{Config: Config{ESP: "/efi"}, disk: d, inspect: inspect}, from: one.stick(),
							open: func(s Slot) (device, error) { return roots[s], nil }}
						err := r.run(context.Background())
						return r.said, err
					}
					said, err := repairs()
					cut := err != nil
					if cut {
						if !errors.Is(err, errPower) {
							t.Fatalf("cut at %d: %v", left, err)
						}
						cuts++
						masks = 1 << len(d.pending)
						d.reboot(mask)
						if _, err = repairs(); err != nil {
							t.Fatalf("after a cut at %d, arrived %b: %v", left, mask, err)
						}
					} else if c.silent != (len(said) == 0) {
						t.Errorf("said %q", said)
					}
					what := fmt.Sprintf("cut at %d, arrived %b", left, mask)
					got := map[string]string{}
					for _, name := range slices.Sorted(maps.Keys(d.now)) {
						if !unfinished(name) { // Clean, at the next boot from the disk
							got[name] = string(d.now[name].data)
						}
					}
					if !maps.Equal(got, c.want) {
						t.Errorf("%s: the ESP has %q, want %q", what, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(c.want)))
					}
					for slot, want := range map[Slot][2][]byte{A: {c.wantA, c.a}, B: {c.wantB, c.b}} {
						root := want[0]
						if root == nil {
							root = want[1]
						}
						if !bytes.Equal(roots[slot].data, sized(root)) {
							t.Errorf("%s: the root of slot %s is another", what, slot)
						}
					}
					if again, err := repairs(); err != nil || len(again) > 0 {
						t.Errorf("%s: a second time: %q, %v", what, again, err)
					}
					if !cut {
						done = true
					}
				}
				if done {
					break
				}
			}
			if cuts < c.cuts {
				t.Errorf("only %d cuts were tried", cuts)
			}
		})
	}
}

// On a real folder and real files, and what is refused.
func TestRepairFiles(t *testing.T) {
	key, cert := signer(t)
	one, two := makeOS(t, key, cert, "1.1"), makeOS(t, key, cert, "1.2")
	dir := t.TempDir()
	esp := filepath.Join(dir, "efi")
	put := func(name string, data []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	room := make([]byte, 64<<10)
	roots := map[Slot]string{A: put("root-a", append(slices.Clone(one.root), room...)), B: put("root-b", append([]byte(flip(string(two.root))), room...))}
	put("efi/EFI/Linux/holdfast-a.efi", []byte(flip(one.uki)))
	put("efi/EFI/Linux/holdfast-b.efi", []byte(two.uki))
	loader := put("efi/"+bootLoader, []byte(flip(two.uki)))
	copied := put("efi/"+bootLoaderCopy, []byte("MZ"))
	said, err := Repair(t.Context(), esp, roots, one.stick())
	for _, name := range []string{loader, copied} {
		if text, err := os.ReadFile(name); err != nil || string(text) != one.uki {
			t.Errorf("%s is not the stick's boot loader: %d bytes, %v", name, len(text), err)
		}
	}
	if err != nil || len(said) != 4 || !strings.Contains(said[0]+said[1], "slot b is not booted any more: its root is not what its UKI names") {
		t.Errorf("%q, %v", said, err)
	}
	s, err := New(Config{ESP: esp, Roots: roots, Slot: B})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := s.Entries()
	if err != nil || len(entries) != 1 || entries[0].File != "holdfast-a.efi" || entries[0].Verity != one.v {
		t.Errorf("entries %+v, %v", entries, err)
	}
	if ok, err := s.HoldsRoot(A, one.v); !ok {
		t.Errorf("root a: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(esp, "EFI")); err != nil { // its name was damaged
		t.Fatal(err)
	}
	if said, err := Repair(t.Context(), esp, roots, one.stick()); err != nil || len(said) != 3 {
		t.Errorf("nothing is left on the boot partition: %q, %v", said, err)
	}
	for _, name := range []string{loader, copied, filepath.Join(esp, Folder, FirstUKI)} {
		if text, err := os.ReadFile(name); err != nil || string(text) != one.uki {
			t.Errorf("%s is not the stick's: %d bytes, %v", name, len(text), err)
		}
	}
	mixed := one.stick()
	mixed.UKI = []byte(two.uki)
	if _, err := Repair(t.Context(), esp, roots, mixed); err == nil {
		t.Error("a UKI for another root was taken")
	}
	short := one.stick()
	short.Root = io.NewSectionReader(bytes.NewReader(one.root), 0, 1<<20)
	put("root-a", make([]byte, len(one.root)))
	if _, err := Repair(t.Context(), esp, roots, short); err == nil {
		t.Error("a stick that cannot be read repaired a disk")
	}
	bad := one.stick()
	bad.Root = bytes.NewReader([]byte(flip(string(one.root))))
	if _, err := Repair(t.Context(), esp, roots, bad); !errors.Is(err, ErrContent) {
		t.Errorf("a stick with a broken root: %v", err)
	}
}
