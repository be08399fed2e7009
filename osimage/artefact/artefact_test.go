package artefact

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/internal/ociimage"
	"github.com/holdfast-edge/holdfast/osimage/delta"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

func source(t testing.TB, version string) Source {
	root := bytes.Repeat([]byte("content of the root, "), 2000)
	root = append(root, version...)
	root = append(root, make([]byte, 4096-len(root)%4096)...)
	tree, v, err := verity.Make(bytes.NewReader(root), int64(len(root)), sha256.Sum256([]byte(version)))
	if err != nil {
		t.Fatal(err)
	}
	uki := append(bytes.Repeat([]byte("kernel"), 1000), version...)
	return Source{Version: version, Root: bytes.NewReader(append(root, tree...)), UKI: bytes.NewReader(uki), UKISize: int64(len(uki)), Verity: v}
}

var of = Config{Version: "1.1.0", Architecture: "amd64", Kubernetes: "1.36", Built: time.Unix(1_700_000_000, 0), Follows: []string{"1.0.0"}}

func TestWriteAndRead(t *testing.T) {
	dir, again := filepath.Join(t.TempDir(), "os"), filepath.Join(t.TempDir(), "again")
	before, now := source(t, "1.0.0"), source(t, "1.1.0")
	w, err := Write(t.Context(), dir, of, now, []Source{before}, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Write(t.Context(), again, of, now, []Source{before}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if w.Digest != second.Digest {
		t.Error("the same version twice gives two digests")
	}
	read, err := ReadLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w, read); d != "" {
		t.Error(d)
	}
	// Whoever pushes app images can push it, too.
	images, err := ociimage.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 || images[0].Digest.String() != w.Digest || images[0].Ref != "holdfast.dev/os:1.1.0-amd64" {
		t.Errorf("read as %+v", images)
	}
	uki, err := digest(before.UKI, before.UKISize)
	if err != nil {
		t.Fatal(err)
	}
	root := hex.EncodeToString(before.Verity.RootHash[:])
	for name, tt := range map[string]struct {
		set  Set
		old  Source
		from string
	}{
		"Whole": {w.Config.Choose("", ""), Source{}, ""},
		"Other": {w.Config.Choose(root, "sha256:other"), Source{}, ""},
		"Delta": {w.Config.Choose(root, uki.Digest), before, "1.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.set.From != tt.from {
				t.Fatalf("chose the set from %q, want %q", tt.set.From, tt.from)
			}
			if got := unpack(t, dir, tt.set.Root, tt.old.Root); got != w.Config.Root.Digest {
				t.Errorf("the root is %s, want %s", got, w.Config.Root.Digest)
			}
			if got := unpack(t, dir, tt.set.UKI, tt.old.UKI); got != w.Config.UKI.Digest {
				t.Errorf("the UKI is %s, want %s", got, w.Config.UKI.Digest)
			}
		})
	}
}

type buffer []byte

func (b buffer) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(b).ReadAt(p, off) }
func (b buffer) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

func unpack(t *testing.T, dir string, f File, old interface {
	ReadAt([]byte, int64) (int, error)
}) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "blobs", "sha256", f.Digest[7:]))
	if err != nil {
		t.Fatal(err)
	}
	d, err := delta.Open(bytes.NewReader(data), f.Size)
	if err != nil {
		t.Fatal(err)
	}
	to := make(buffer, d.NewSize())
	if err := d.Apply(t.Context(), old, to, nil); err != nil {
		t.Fatal(err)
	}
	got, err := digest(bytes.NewReader(to), int64(len(to)))
	if err != nil {
		t.Fatal(err)
	}
	return got.Digest
}

func TestParseRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "os")
	w, err := Write(t.Context(), dir, of, source(t, "1.1.0"), []Source{source(t, "1.0.0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"NewerFormat":     func(c *Config) { c.Format++ },
		"VersionIsAPath":  func(c *Config) { c.Version = "../x" },
		"Architecture":    func(c *Config) { c.Architecture = "x86_64" },
		"Minor":           func(c *Config) { c.Kubernetes = "1.36.2" },
		"NoVerity":        func(c *Config) { c.Verity = "" },
		"VerityAndMore":   func(c *Config) { c.Verity += " init=/bin/sh" },
		"RootSize":        func(c *Config) { c.Root.Size-- },
		"UKISize":         func(c *Config) { c.UKI.Size = 1 << 40 },
		"NegativeSize":    func(c *Config) { c.Whole.Root.Size = -1 },
		"NoDigest":        func(c *Config) { c.Whole.UKI.Digest = "sha256:../../x" },
		"DeltaFromNobody": func(c *Config) { c.Deltas[0].FromRoot = "" },
		"FollowsAPath":    func(c *Config) { c.Follows = []string{"../x"} },
		"ManyDeltas":      func(c *Config) { c.Deltas = make([]Set, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			c := w.Config
			c.Deltas = append([]Set(nil), c.Deltas...)
			change(&c)
			data, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(data); !errors.Is(err, ErrConfig) {
				t.Errorf("got %v, want ErrConfig", err)
			}
		})
	}
	t.Run("NewField", func(t *testing.T) {
		data, err := json.Marshal(w.Config)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(append([]byte(`{"later":1,`), data[1:]...)); err != nil {
			t.Errorf("a field of a later version is refused: %v", err)
		}
	})
	t.Run("Damaged", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", w.Digest[7:]), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadLayout(dir); err == nil {
			t.Error("a damaged manifest was read")
		}
	})
}

func FuzzParse(f *testing.F) {
	w, err := Write(f.Context(), filepath.Join(f.TempDir(), "os"), of, source(f, "1.1.0"), nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	data, err := json.Marshal(w.Config)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("what was read is refused when it is written: %v", err)
		}
	})
}
