package ociimage

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const ref = "holdfast.local/hello:1.0.0"

func build(t testing.TB, architecture string) v1.Image {
	t.Helper()
	img, err := Build([]byte("a program for "+architecture), Config{Architecture: architecture})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func one(t testing.TB, file string) Image {
	t.Helper()
	images, err := Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 {
		t.Fatalf("%d images, want 1", len(images))
	}
	for _, img := range images[0].Images {
		if err := validate.Image(img); err != nil {
			t.Errorf("does not hold together: %v", err)
		}
	}
	return images[0]
}

// What Pack writes is read with the digest that it was built with, from the tar
// file and unpacked.
func TestReadLayout(t *testing.T) {
	data, err := Pack(ref, []byte("a program for amd64"), Config{Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "hello.tar")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	want, err := build(t, "amd64").Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, unpack(t, file)} {
		got := one(t, path)
		if got.Ref != ref || got.Digest != want || got.Size < 100 {
			t.Errorf("read %s %s %d, want %s %s", got.Ref, got.Digest, got.Size, ref, want)
		}
		if d := cmp.Diff([]string{"linux/amd64"}, got.Platforms); d != "" {
			t.Error(d)
		}
	}
}

// An old docker file has no manifest; the one made for it is that of the library,
// which machine/images makes too.
func TestReadDockerFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "docker.tar")
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(file, tag, build(t, "arm64")); err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if got := one(t, file); got.Digest != want || got.Platforms[0] != "linux/arm64" {
		t.Errorf("read %s for %v, want %s", got.Digest, got.Platforms, want)
	}
}

// An index keeps its own digest and lists the platforms that are there.
func TestReadIndex(t *testing.T) {
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: build(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: build(t, "arm64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}})
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
		t.Fatal(err)
	}
	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got := one(t, dir)
	if got.Digest != want || len(got.Images) != 2 || got.Index == nil {
		t.Errorf("read %s with %d images, want %s with 2", got.Digest, len(got.Images), want)
	}
	if d := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, got.Platforms); d != "" {
		t.Error(d)
	}
	small, err := build(t, "arm64").Digest()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("OnePlatformMissing", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "blobs", "sha256", small.Hex)); err != nil {
			t.Fatal(err)
		}
		if got := one(t, dir); got.Digest != want || len(got.Images) != 1 {
			t.Errorf("read %s with %d images, want %s with 1", got.Digest, len(got.Images), want)
		}
	})
	t.Run("ErrAltered", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", want.Hex), []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); err == nil {
			t.Error("read an index whose bytes are not those of its digest")
		}
	})
}

func TestReadRefusals(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string][]byte{"no tar": []byte("hello"), "empty": nil, "zeros": make([]byte, 1024)} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, "x")
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(file); err == nil {
				t.Error("read")
			}
		})
	}
	if _, err := Read(dir + "/none"); err == nil {
		t.Error("read a file that is not there")
	}
}

// Whatever a file says, reading it ends in images that hash to their digests, or
// in an error.
func FuzzRead(f *testing.F) {
	data, err := Pack(ref, []byte("p"), Config{Architecture: "amd64"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(bytes.Repeat([]byte{0}, 1024))
	file := filepath.Join(f.TempDir(), "x.tar")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		images, err := Read(file)
		if err != nil {
			return
		}
		for _, image := range images {
			if image.Index != nil {
				continue
			}
			for _, img := range image.Images {
				if got, err := img.Digest(); err != nil || got != image.Digest {
					t.Errorf("listed as %s, is %s (%v)", image.Digest, got, err)
				}
			}
		}
	})
}
