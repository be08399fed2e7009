package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// noise is bytes that do not compress, always the same.
func noise(n int) []byte {
	var out []byte
	for seed := sha256.Sum256(nil); len(out) < n; seed = sha256.Sum256(seed[:]) {
		out = append(out, seed[:]...)
	}
	return out[:n]
}

func TestCompress(t *testing.T) {
	old := noise(300_000)
	edited := append(append(bytes.Clone(old[:1000]), "one line"...), old[1000:]...)
	for name, c := range map[string]struct {
		plain, dictionary []byte
		most              int
	}{
		"small":             {[]byte("hello"), nil, 64},
		"small, dictionary": {old[70_000:70_200], old, 64},
		"noise":             {old, nil, len(old) + 1000},
		"the same":          {old, old, 200},
		"one line":          {edited, old, 300},
		"short dictionary":  {edited, []byte("x"), len(old) + 1000},
		"far back":          {old[:5000], old, 200},
		"longer than old":   {append(bytes.Clone(old), old...), old, 400},
	} {
		t.Run(name, func(t *testing.T) {
			packed := Compress(c.plain, c.dictionary)
			if len(packed) > c.most {
				t.Errorf("%d bytes, want at most %d", len(packed), c.most)
			}
			got, err := Decompress(packed, c.dictionary, len(c.plain))
			if err != nil || !bytes.Equal(got, c.plain) {
				t.Fatalf("got %d bytes, %v; want %d", len(got), err, len(c.plain))
			}
			if !bytes.Equal(packed, Compress(c.plain, c.dictionary)) {
				t.Error("packed again: other bytes")
			}
			if len(c.plain) > 0 {
				if _, err := Decompress(packed, c.dictionary, len(c.plain)-1); !errors.Is(err, ErrOversized) {
					t.Errorf("limit below: got %v, want ErrOversized", err)
				}
			}
			for n := 0; n < len(packed); n += 1 + len(packed)/40 {
				if _, err := Decompress(packed[:n], c.dictionary, len(c.plain)); err == nil {
					t.Fatalf("%d of %d bytes: got nil", n, len(packed))
				}
			}
		})
	}
	packed := Compress(edited, old)
	for name, dictionary := range map[string][]byte{"none": nil, "another": noise(200_000)[1:], "shorter": old[1:]} {
		if _, err := Decompress(packed, dictionary, len(edited)); err == nil {
			t.Errorf("dictionary %s: got nil", name)
		}
	}
	if _, err := Decompress(packed, old[1:], len(edited)); !errors.Is(err, ErrDictionary) {
		t.Errorf("another dictionary: got %v, want ErrDictionary", err)
	}
}

// A few bytes that say, truly or not, that they stand for gigabytes.
func TestRefuseBomb(t *testing.T) {
	bomb := Compress(make([]byte, 64<<20), nil)
	if len(bomb) > 10_000 {
		t.Fatalf("the bomb has %d bytes", len(bomb))
	}
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var streamed bytes.Buffer
	s, err := zstd.NewWriter(&streamed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	limit := DefaultLimits().Slice
	lying := bytes.Clone(bomb)
	var h zstd.Header
	if err := h.Decode(lying); err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(lying[:16], []byte{0, 0, 0, 4}) // 64 MiB, the lowest byte first
	if at < 0 {
		t.Fatalf("no size in %x", lying[:16])
	}
	lying[at+3] = 1 // 16 MiB
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"honest":          {bomb, ErrOversized},
		"lying":           {lying, ErrGrammar},
		"without a size":  {streamed.Bytes(), ErrGrammar},
		"second frame":    {append(Compress([]byte("a"), nil), bomb...), ErrGrammar},
		"skippable frame": {append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, bomb...), ErrGrammar},
		"not zstd":        {[]byte("\x1f\x8b gzip, it may be"), ErrGrammar},
		"nothing":         {nil, ErrGrammar},
		"empty frame":     {Compress(nil, nil), ErrGrammar},
	} {
		if got, err := Decompress(c.b, nil, limit); !errors.Is(err, c.want) {
			t.Errorf("%s: got %d bytes, %v; want %v", name, len(got), err, c.want)
		}
	}
	w, m := begun(t)
	w.release("ci")
	plain := must(Decompress(Compress(w.slice(1).Encode(), nil), nil, limit))(t)
	if _, err := m.take(plain); err != nil {
		t.Errorf("a valid release after it: %v", err)
	}
}

// Where the zstd program is, both understand each other.
func TestStockZstd(t *testing.T) {
	program, err := exec.LookPath("zstd")
	if err != nil {
		t.Log("no zstd program here; nothing else depends on it")
		return
	}
	dir := t.TempDir()
	old, plain := noise(50_000), append(noise(50_000), "more"...)
	for name, data := range map[string][]byte{"old": old, "p.zst": Compress(plain, old)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "-q", "-d", "--patch-from=old", "p.zst", "-o", "p")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "p")); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("zstd -d gives %d bytes, %v", len(got), err)
	}
}
