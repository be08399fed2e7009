// Package ociimage packs one static program into an app image: an OCI layout in
// a tar file, which containerd, registries and package machine/images read.
//
// The same program, reference and configuration give the same bytes, on every
// computer and day: no clock, no owner, no host name enters. So an image made
// from source here has one digest everywhere, and images.lock can name it. It
// packs programs that need nothing beside them; it builds no layers on layers,
// and it neither pushes nor pulls.
package ociimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"sort"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Config is what the image says of the program in it.
type Config struct {
	// Name is the program's file name in the image, at its root; default "app".
	Name string
	// Architecture is Go's name of it, such as amd64.
	Architecture string
	// Args follow the program.
	Args []string
	// User is uid or uid:gid. The default is 65535:65535; root is to be asked for.
	User string
	// Ports are informative, such as 8080/tcp.
	Ports  []string
	Env    []string
	Labels map[string]string
}

// Write packs the program in file binary as an image named ref (registry/repo:tag)
// into the tar file path, replacing it whole.
func Write(path, ref, binary string, c Config) error {
	program, err := os.ReadFile(binary)
	if err != nil {
		return fmt.Errorf("read program for image %s: %w", ref, err)
	}
	data, err := Pack(ref, program, c)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write image %s: %w", ref, err)
	}
	return nil
}

// Pack is Write without files.
func Pack(ref string, program []byte, c Config) ([]byte, error) {
	tag, err := name.NewTag(ref, name.StrictValidation)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w", ref, err)
	}
	img, err := Build(program, c)
	if err != nil {
		return nil, fmt.Errorf("build image %s: %w", ref, err)
	}
	data, err := ociLayout(tag.Name(), img)
	if err != nil {
		return nil, fmt.Errorf("pack image %s: %w", ref, err)
	}
	return data, nil
}

// Build makes the image: one layer with one program.
func Build(program []byte, c Config) (v1.Image, error) {
	if c.Architecture == "" {
		return nil, fmt.Errorf("no architecture given")
	}
	if c.Name == "" {
		c.Name = "app"
	}
	if c.User == "" {
		c.User = "65535:65535"
	}
	blob, err := layer(c.Name, program)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(blob)), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, l)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", c.Architecture
	file.Config = v1.Config{
		Entrypoint: append([]string{"/" + c.Name}, c.Args...),
		WorkingDir: "/",
		User:       c.User,
		Env:        c.Env,
		Labels:     c.Labels,
	}
	for _, p := range c.Ports {
		if file.Config.ExposedPorts == nil {
			file.Config.ExposedPorts = map[string]struct{}{}
		}
		file.Config.ExposedPorts[p] = struct{}{}
	}
	return mutate.ConfigFile(img, file)
}

// layer is a compressed tar with one file. The compressor is a pinned module and
// not the standard library's, whose output may change with the toolchain.
func layer(name string, program []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	if err := add(w, name, 0o755, program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func add(w *tar.Writer, name string, mode int64, data []byte) error {
	h := &tar.Header{Name: name, Mode: mode, Size: int64(len(data)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// ociLayout writes an OCI layout with one image. The manifest lies in it byte for
// byte, so its digest is that of every registry it goes to.
func ociLayout(ref string, img v1.Image) ([]byte, error) {
	blobs := map[string][]byte{}
	put := func(h v1.Hash, data []byte) { blobs[path.Join("blobs", h.Algorithm, h.Hex)] = data }

	manifest, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return nil, err
	}
	put(digest, manifest)
	config, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	id, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	put(id, config)
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if err := putLayer(put, l); err != nil {
			return nil, err
		}
	}
	index, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2,
		MediaType:     types.OCIImageIndex,
		Manifests: []v1.Descriptor{{
			MediaType: types.OCIManifestSchema1,
			Size:      int64(len(manifest)),
			Digest:    digest,
			Platform:  &v1.Platform{OS: file.OS, Architecture: file.Architecture},
			Annotations: map[string]string{
				"io.containerd.image.name":          ref,
				"org.opencontainers.image.ref.name": ref,
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	blobs["index.json"] = index
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	return archive(blobs)
}

func putLayer(put func(v1.Hash, []byte), l v1.Layer) error {
	h, err := l.Digest()
	if err != nil {
		return err
	}
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	put(h, data)
	return nil
}

func archive(files map[string][]byte) ([]byte, error) {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, n := range names {
		if err := add(w, n, 0o644, files[n]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
