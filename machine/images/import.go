package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// Import puts the images of an OCI layout in a tar file into the store and returns
// them under the names that its index gives.
func Import(ctx context.Context, s *Store, path string) ([]Image, error) {
	index, err := readEntry(path, "index.json")
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	images, err := importLayout(ctx, s, path, index)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", path, err)
	}
	return images, nil
}

// write stores exactly size bytes of r.
func (s *Store) write(ctx context.Context, d Digest, size int64, r io.Reader) error {
	w, err := s.Begin(ctx, d, size)
	if errors.Is(err, ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Reset(); err != nil {
		return err
	}
	if _, err := io.Copy(w, &ctxReader{ctx, r}); err != nil {
		return err
	}
	return w.Commit()
}

// importLayout stores the blobs of an OCI layout; index is its index.json.
func importLayout(ctx context.Context, s *Store, path string, index []byte) ([]Image, error) {
	var list struct {
		Manifests []struct {
			Digest      Digest            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var images []Image
	for _, m := range list.Manifests {
		ref := m.Annotations["io.containerd.image.name"]
		if ref == "" {
			ref = m.Annotations["org.opencontainers.image.ref.name"]
		}
		if _, err := ParseDigest(string(m.Digest)); err != nil {
			return nil, fmt.Errorf("index.json: %w", err)
		}
		if ref != "" {
			images = append(images, Image{Ref: ref, Digest: m.Digest})
		}
	}
	if len(images) == 0 {
		return nil, errors.New("index.json names no image (annotation org.opencontainers.image.ref.name)")
	}
	err := entries(path, func(h *tar.Header, r io.Reader) error {
		hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/")
		if !ok || h.Typeflag != tar.TypeReg {
			return nil
		}
		d, err := ParseDigest(digestPrefix + hex)
		if err != nil {
			return err
		}
		return s.write(ctx, d, h.Size, r)
	})
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if !s.Complete(img.Digest, ThisPlatform()) {
			return nil, fmt.Errorf("image %s: the file lacks a part of it for this platform", img.Ref)
		}
	}
	return images, nil
}

// entries calls f for each entry of a tar file, with names in their plain form.
func entries(path string, f func(*tar.Header, io.Reader) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for t := tar.NewReader(file); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Name = strings.TrimPrefix(h.Name, "./")
		if err := f(h, t); err != nil {
			return err
		}
	}
}

// readEntry reads one small file of a tar file.
func readEntry(path, want string) (data []byte, err error) {
	found := false
	err = entries(path, func(h *tar.Header, r io.Reader) error {
		if h.Name != want || found {
			return nil
		}
		found = true
		data, err = io.ReadAll(io.LimitReader(r, maxManifest))
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("%s: %w", want, ErrNotFound)
	}
	return data, err
}
