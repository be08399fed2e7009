package images

import (
	"archive/tar"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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
	again, err := Import(t.Context(), s, layoutTar(t, index, blobs))
	must(t, err)
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("the same file gave another image (-first +second):\n%s", diff)
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
	t.Run("ErrNoIndex", func(t *testing.T) {
		empty := filepath.Join(t.TempDir(), "empty.tar")
		must(t, os.WriteFile(empty, make([]byte, 1024), 0o600))
		_, err := Import(t.Context(), newStore(t), empty)
		wantErr(t, err, ErrNotFound)
	})
	t.Run("ErrNoFile", func(t *testing.T) {
		_, err := Import(t.Context(), newStore(t), filepath.Join(t.TempDir(), "none"))
		wantErr(t, err, os.ErrNotExist)
	})
}
