package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program makes an image of one file, as the build makes the pause image.
func program(t testing.TB, file []byte) v1.Image {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: int64(len(file)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(file)
	_ = w.Close()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: ThisPlatform().Architecture, OS: "linux", Config: v1.Config{Entrypoint: []string{"/app"}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{mustHash(t, layer)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func mustHash(t testing.TB, l v1.Layer) v1.Hash {
	h, err := l.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func saveTar(t testing.TB, ref string, img v1.Image) string {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestImportDockerTar(t *testing.T) {
	s := newStore(t)
	path := saveTar(t, "holdfast.dev/pause:1", program(t, content(1, 5000)))
	got, err := Import(t.Context(), s, path)
	must(t, err)
	if len(got) != 1 || got[0].Ref != "holdfast.dev/pause:1" || !s.Complete(got[0].Digest, ThisPlatform()) {
		t.Fatalf("imported %+v", got)
	}
	again, err := Import(t.Context(), s, path)
	must(t, err)
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("the same file gave another image (-first +second):\n%s", diff)
	}
	police(t, s)
}

func layoutTar(t *testing.T, index any, blobs map[string][]byte) string {
	path := filepath.Join(t.TempDir(), "layout.tar")
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	w := tar.NewWriter(f)
	defer w.Close()
	data, err := json.Marshal(index)
	must(t, err)
	put := func(name string, b []byte) {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg}))
		_, err := w.Write(b)
		must(t, err)
	}
	put("./index.json", data)
	for name, b := range blobs {
		put("blobs/sha256/"+name, b)
	}
	return path
}

func TestImportLayout(t *testing.T) {
	r := newRemote(t)
	layer := content(2, 300)
	m := r.image(layer)
	index := map[string]any{"schemaVersion": 2, "manifests": []any{map[string]any{
		"digest": m.Digest, "size": m.Size, "annotations": map[string]string{"org.opencontainers.image.ref.name": "r.example/a:1"}}}}
	blobs := map[string][]byte{}
	for d, b := range r.content {
		blobs[d.Hex()] = b
	}
	s := newStore(t)
	got, err := Import(t.Context(), s, layoutTar(t, index, blobs))
	must(t, err)
	if diff := cmp.Diff([]Image{{"r.example/a:1", m.Digest}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	police(t, s)

	t.Run("ErrBlobAltered", func(t *testing.T) {
		bad := map[string][]byte{DigestOf(layer).Hex(): content(3, 300)}
		_, err := Import(t.Context(), newStore(t), layoutTar(t, index, bad))
		wantErr(t, err, ErrDigest)
	})
	t.Run("ErrPartMissing", func(t *testing.T) {
		_, err := Import(t.Context(), newStore(t), layoutTar(t, index, map[string][]byte{m.Digest.Hex(): r.content[m.Digest]}))
		if err == nil {
			t.Error("taken")
		}
	})
	t.Run("ErrNameEscapes", func(t *testing.T) {
		_, err := Import(t.Context(), newStore(t), layoutTar(t, index, map[string][]byte{"../../x": nil}))
		if err == nil {
			t.Error("taken")
		}
	})
	t.Run("ErrNoName", func(t *testing.T) {
		_, err := Import(t.Context(), newStore(t), layoutTar(t, map[string]any{}, nil))
		if err == nil {
			t.Error("taken")
		}
	})
	t.Run("ErrNoFile", func(t *testing.T) {
		_, err := Import(t.Context(), newStore(t), filepath.Join(t.TempDir(), "none"))
		wantErr(t, err, os.ErrNotExist)
	})
}
