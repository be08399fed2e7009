package verity

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage"
)

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// partition is data, filled to a block, with its tree.
func partition(t testing.TB, data []byte, salt [32]byte) ([]byte, osimage.Verity) {
	t.Helper()
	tree, v, err := Make(bytes.NewReader(data), int64(len(data)), salt)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := int64(len(tree)), TreeSize(int64(len(data))); got != want {
		t.Errorf("%d bytes: a tree of %d bytes, TreeSize says %d", len(data), got, want)
	}
	whole := make([]byte, padded(int64(len(data))))
	copy(whole, data)
	return append(whole, tree...), v
}

// sizes has one, two and many blocks, part blocks, and each number of levels up to three.
var sizes = []int{1, block, block + 1, 2 * block, 128 * block, 129 * block, 1000*block - 5, (128*128 + 1) * block}

func TestVeritysetupVerifiesWhatMakeMakes(t *testing.T) {
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			whole, v := partition(t, random(size), [32]byte{0xaa, 31: 0xbb})
			file := filepath.Join(t.TempDir(), "root")
			if err := os.WriteFile(file, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			verify := func(root [32]byte) (string, error) {
				out, err := exec.Command("veritysetup", "verify", file, file, hex.EncodeToString(root[:]),
					fmt.Sprintf("--hash-offset=%d", v.DataBlocks*block)).CombinedOutput()
				return string(out), err
			}
			if out, err := verify(v.RootHash); err != nil {
				t.Fatalf("veritysetup verify: %v\n%s", err, out)
			}
			if out, err := verify([32]byte{1}); err == nil {
				t.Errorf("veritysetup took another root hash: the cross-check checks nothing\n%s", out)
			}
			out, err := exec.Command("veritysetup", "dump", file, fmt.Sprintf("--hash-offset=%d", v.DataBlocks*block)).CombinedOutput()
			if err != nil || !strings.Contains(string(out), fmt.Sprintf("Data blocks:     \t%d\n", v.DataBlocks)) {
				t.Errorf("veritysetup dump: %v\n%s", err, out)
			}
		})
	}
}

func TestCheckOK(t *testing.T) {
	for _, size := range sizes {
		whole, v := partition(t, random(size), [32]byte{7})
		whole = append(whole, random(block)...) // a partition is larger than what it holds
		if ok, err := Matches(bytes.NewReader(whole), v); !ok || err != nil {
			t.Errorf("%d bytes: Matches: %v, %v", size, ok, err)
		}
		if err := Check(bytes.NewReader(whole), v); err != nil {
			t.Errorf("%d bytes: Check: %v", size, err)
		}
	}
}

func TestCheckRefusesEveryFlippedBlock(t *testing.T) {
	whole, v := partition(t, random(130*block), [32]byte{7})
	for at := 100; at < len(whole); at += block {
		whole[at] ^= 1
		if err := Check(bytes.NewReader(whole), v); !errors.Is(err, ErrCorrupt) && at/block != 130 {
			t.Errorf("byte %d flipped: %v", at, err)
		}
		whole[at] ^= 1
	}
	// Byte 100 of the superblock is in its salt; its UUID, which nothing relies on, may differ.
	whole[130*block+100] ^= 1
	if err := Check(bytes.NewReader(whole), v); !errors.Is(err, ErrCorrupt) {
		t.Errorf("salt of the superblock flipped: %v", err)
	}
}

func TestMatchesRefuses(t *testing.T) {
	whole, v := partition(t, random(300*block), [32]byte{7})
	other, _ := partition(t, random(299*block), [32]byte{7})
	wrongSalt, wrongRoot, wrongSize, absurd := v, v, v, v
	wrongSalt.Salt[0]++
	wrongRoot.RootHash[0]++
	wrongSize.DataBlocks--
	absurd.DataBlocks = 1 << 60
	for _, c := range []struct {
		name string
		r    []byte
		v    osimage.Verity
	}{
		{"another file system", other, v}, {"empty", nil, v}, {"cut", whole[:301*block], v},
		{"another salt", whole, wrongSalt}, {"another root hash", whole, wrongRoot}, {"another size", whole, wrongSize}, {"absurd size", whole, absurd},
	} {
		if ok, err := Matches(bytes.NewReader(c.r), c.v); ok || err != nil {
			t.Errorf("%s: %v, %v: want false and no error", c.name, ok, err)
		}
		if err := Check(bytes.NewReader(c.r), c.v); err == nil {
			t.Errorf("%s: Check found nothing wrong", c.name)
		}
	}
	if _, err := Matches(failing{}, v); err == nil {
		t.Error("a read error is not another partition: want an error")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("medium error") }

func TestMakeRefuses(t *testing.T) {
	for _, size := range []int64{0, -1, maxBlocks*block + 1} {
		if _, _, err := Make(bytes.NewReader(nil), size, [32]byte{}); err == nil {
			t.Errorf("size %d: no error", size)
		}
	}
	if _, _, err := Make(bytes.NewReader(random(5)), 6, [32]byte{}); err == nil {
		t.Error("data shorter than said: no error")
	}
}

func FuzzSuperblock(f *testing.F) {
	whole, _ := partition(f, random(2*block), [32]byte{7})
	f.Add(whole[2*block : 2*block+512])
	f.Add([]byte("verity\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := ParseSuperblock(b)
		if err != nil {
			return
		}
		again, err := ParseSuperblock(superblock(v))
		if err != nil || again != v {
			t.Errorf("%+v becomes %+v, %v", v, again, err)
		}
	})
}

func BenchmarkMake(b *testing.B) {
	data := random(64 << 20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, _, err := Make(bytes.NewReader(data), int64(len(data)), [32]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}
