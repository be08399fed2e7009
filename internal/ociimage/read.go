package ociimage

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// manifestMax bounds a manifest, as registries do.
const manifestMax = 4 << 20

// Image is one image of a file: what a lock says of it, and its content for
// whoever pushes it. The file is read again when content is asked for.
type Image struct {
	Ref       string // as the file names it: registry/repo:tag, or shorter
	Digest    v1.Hash
	Size      int64    // what one machine fetches of it, for the largest platform
	Platforms []string // os/architecture[/variant], sorted

	// Images is the content: the image itself or, of an index, what the file has
	// of its platforms. Index is the index then, byte by byte.
	Images []v1.Image
	Index  []byte
	Media  types.MediaType // of what Digest names
}

// Read lists the named images of an OCI layout (a folder, or a tar file) or of
// what `docker save` writes. The manifest in an OCI layout is taken byte by byte;
// an older docker file has none, and the one that is made for it is the same each
// time, here as on a machine that imports the file.
func Read(file string) ([]Image, error) {
	images, err := read(file)
	if err == nil && len(images) == 0 {
		err = errors.New("it names no image; docker save NAME:TAG and skopeo write one that does")
	}
	if err != nil {
		return nil, fmt.Errorf("read images of %s: %w", file, err)
	}
	return images, nil
}

func read(file string) ([]Image, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	var src source = folder(file)
	if !info.IsDir() {
		if src, err = scan(file); err != nil {
			return nil, err
		}
	}
	index, err := readAll(src, "index.json")
	if errors.Is(err, fs.ErrNotExist) && !info.IsDir() {
		return readDocker(file)
	}
	if err != nil {
		return nil, err
	}
	var list v1.IndexManifest
	if err := json.Unmarshal(index, &list); err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	var images []Image
	for _, d := range list.Manifests {
		ref := d.Annotations["io.containerd.image.name"]
		if ref == "" {
			ref = d.Annotations["org.opencontainers.image.ref.name"]
		}
		if ref == "" {
			continue
		}
		image, err := readManifest(src, ref, d)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		images = append(images, *image)
	}
	return images, nil
}

// source is where the files of an OCI layout are.
type source interface {
	open(name string) (io.ReadCloser, error)
}

type folder string

func (f folder) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(f), filepath.FromSlash(name)))
}

// archived is a tar file whose entries have been looked up once.
type archived struct {
	file    string
	entries map[string]span
}

type span struct{ offset, size int64 }

func scan(file string) (*archived, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	a := &archived{file: file, entries: map[string]span{}}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("it is no tar file: %w", err)
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			a.entries[strings.TrimPrefix(h.Name, "./")] = span{at, h.Size}
		}
	}
}

func (a *archived) open(name string) (io.ReadCloser, error) {
	s, ok := a.entries[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	f, err := os.Open(a.file)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, s.offset, s.size), f}, nil
}

func readAll(src source, name string) ([]byte, error) {
	r, err := src.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, manifestMax+1))
	if err == nil && len(data) > manifestMax {
		err = fmt.Errorf("%s is larger than %d bytes", name, manifestMax)
	}
	return data, err
}

func blobName(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// readBlob reads a small blob and holds it against its digest.
func readBlob(src source, h v1.Hash) ([]byte, error) {
	data, err := readAll(src, blobName(h))
	if err != nil {
		return nil, err
	}
	got, _, err := v1.SHA256(bytes.NewReader(data))
	if err == nil && got != h {
		err = fmt.Errorf("the content of %s hashes to %s", h, got)
	}
	return data, err
}

func readManifest(src source, ref string, d v1.Descriptor) (*Image, error) {
	raw, err := readBlob(src, d.Digest)
	if err != nil {
		return nil, err
	}
	image := &Image{Ref: ref, Digest: d.Digest, Media: d.MediaType}
	if !isIndex(raw, d.MediaType) {
		return image, image.add(src, raw, d)
	}
	image.Index = raw
	if image.Media == "" {
		image.Media = types.OCIImageIndex
	}
	var list v1.IndexManifest
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	for _, child := range list.Manifests {
		if child.Platform != nil && (child.Platform.OS == "unknown" || child.Platform.OS == "windows") {
			continue // attestations, and what no machine runs
		}
		raw, err := readBlob(src, child.Digest)
		if errors.Is(err, fs.ErrNotExist) {
			continue // docker save keeps the platforms that it has
		}
		if err != nil {
			return nil, err
		}
		if err := image.add(src, raw, child); err != nil {
			return nil, err
		}
	}
	if len(image.Images) == 0 {
		return nil, errors.New("the file has none of its platforms")
	}
	return image, nil
}

func isIndex(raw []byte, media types.MediaType) bool {
	if media != "" {
		return media.IsIndex()
	}
	var probe struct{ Manifests json.RawMessage }
	return json.Unmarshal(raw, &probe) == nil && probe.Manifests != nil
}

// add takes one manifest with its content into the image.
func (i *Image) add(src source, raw []byte, d v1.Descriptor) error {
	media := d.MediaType
	if media == "" {
		media = types.OCIManifestSchema1
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	img, err := partial.CompressedToImage(&content{src, raw, media, m})
	if err != nil {
		return err
	}
	if i.Media == "" {
		i.Media = media
	}
	i.Images = append(i.Images, img)
	return i.describe(img)
}

// describe notes platform and size of one of the image's platforms.
func (i *Image) describe(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	size, err := img.Size()
	if err != nil {
		return err
	}
	i.Size = max(i.Size, Bytes(m, size))
	if p := config.Platform(); p != nil && p.OS != "" {
		i.Platforms = append(i.Platforms, PlatformName(*p))
		slices.Sort(i.Platforms)
		i.Platforms = slices.Compact(i.Platforms)
	}
	return nil
}

// Bytes is what a machine fetches of an image: its manifest of the size given,
// its configuration and its layers.
func Bytes(m *v1.Manifest, manifest int64) int64 {
	n := manifest + m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}

// PlatformName is os/architecture or os/architecture/variant.
func PlatformName(p v1.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// content is an image of an OCI layout.
type content struct {
	src      source
	raw      []byte
	media    types.MediaType
	manifest *v1.Manifest
}

func (c *content) RawManifest() ([]byte, error)        { return c.raw, nil }
func (c *content) MediaType() (types.MediaType, error) { return c.media, nil }
func (c *content) RawConfigFile() ([]byte, error)      { return readBlob(c.src, c.manifest.Config.Digest) }
func (c *content) Manifest() (*v1.Manifest, error)     { return c.manifest, nil }
func (c *content) find(h v1.Hash) (v1.Descriptor, error) {
	for _, d := range append(c.manifest.Layers[:len(c.manifest.Layers):len(c.manifest.Layers)], c.manifest.Config) {
		if d.Digest == h {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("the manifest names no %s", h)
}

func (c *content) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	d, err := c.find(h)
	return layerOf{c.src, d}, err
}

type layerOf struct {
	src source
	d   v1.Descriptor
}

func (l layerOf) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l layerOf) Compressed() (io.ReadCloser, error)  { return l.src.open(blobName(l.d.Digest)) }
func (l layerOf) Size() (int64, error)                { return l.d.Size, nil }
func (l layerOf) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }

// readDocker reads a tar file of docker save before its version 25, which has no
// manifests of registries.
func readDocker(file string) ([]Image, error) {
	opener := func() (io.ReadCloser, error) { return os.Open(file) }
	list, err := tarball.LoadManifest(opener)
	if err != nil {
		return nil, fmt.Errorf("it is neither an OCI layout nor a file of docker save: %w", err)
	}
	var images []Image
	for _, entry := range list {
		for _, ref := range entry.RepoTags {
			tag, err := name.NewTag(ref)
			if err != nil {
				return nil, err
			}
			img, err := tarball.Image(opener, &tag)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", ref, err)
			}
			image := Image{Ref: ref, Images: []v1.Image{img}}
			if image.Digest, err = img.Digest(); err != nil {
				return nil, fmt.Errorf("image %s: %w", ref, err)
			}
			if image.Media, err = img.MediaType(); err != nil {
				return nil, fmt.Errorf("image %s: %w", ref, err)
			}
			if err := image.describe(img); err != nil {
				return nil, fmt.Errorf("image %s: %w", ref, err)
			}
			images = append(images, image)
		}
	}
	return images, nil
}
