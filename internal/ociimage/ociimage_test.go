package ociimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var config = Config{Name: "hello", Architecture: "amd64", Ports: []string{"8080/tcp"}, Labels: map[string]string{"b": "2", "a": "1"}}

func TestSameBytes(t *testing.T) {
	program := bytes.Repeat([]byte("a program "), 1000)
	first, err := Pack("holdfast.dev/hello:1.0.0", program, config)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Pack("holdfast.dev/hello:1.0.0", program, config)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same program packed twice gives different bytes")
	}
	// The digest is written down so that a change of compressor or library is
	// noticed: it would change every images.lock.
	sum := sha256.Sum256(first)
	if got := hex.EncodeToString(sum[:]); got != golden {
		t.Errorf("SHA-256 of the archive is %s, want %s", got, golden)
	}
}

const golden = "42dcc4845dd3f1e6a89834530ed6e6545a1d9c0f8d0877bb47b6e9051fba1d12"

func TestReadableByOthers(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "hello")
	if err := os.WriteFile(binary, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "hello.tar")
	if err := Write(file, "holdfast.dev/hello:1.0.0", binary, config); err != nil {
		t.Fatal(err)
	}
	unpacked := unpack(t, file)
	p, err := layout.FromPath(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m.Manifests[0].Annotations["io.containerd.image.name"], "holdfast.dev/hello:1.0.0"; got != want {
		t.Errorf("name = %q, want %q", got, want)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Errorf("image does not hold together: %v", err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{Entrypoint: []string{"/hello"}, WorkingDir: "/", User: "65535:65535",
		ExposedPorts: map[string]struct{}{"8080/tcp": {}}, Labels: config.Labels}
	if diff := cmp.Diff(want, c.Config); diff != "" {
		t.Error(diff)
	}
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		ref string
		c   Config
	}{
		"no tag":          {"holdfast.dev/hello", config},
		"no registry":     {"hello:1", config},
		"no architecture": {"holdfast.dev/hello:1", Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Pack(tt.ref, nil, tt.c); err == nil {
				t.Error("packed")
			}
		})
	}
}

func unpack(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
