package artefact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/delta"
)

// Written is what os/VERSION.yaml says of an artefact.
type Written struct {
	Digest string // of the manifest
	Size   int64  // of what a machine fetches that has no version before
	Config Config
}

// Files lists the files of a root, for deltas: package osimage/delta/erofs has it.
type Files func(root io.ReaderAt) ([]delta.Extent, error)

// Write makes the artefact in the folder dir, an OCI layout that holds it alone.
// of says what the version is: Version, Architecture, Kubernetes, Built, Follows.
func Write(ctx context.Context, dir string, of Config, new Source, old []Source, files Files) (Written, error) {
	w, err := write(ctx, dir, of, new, old, files)
	if err != nil {
		return Written{}, fmt.Errorf("write the artefact of OS %s: %w", of.Version, err)
	}
	return w, nil
}

func write(ctx context.Context, dir string, c Config, new Source, old []Source, files Files) (Written, error) {
	b := &builder{ctx: ctx, blobs: filepath.Join(dir, "blobs", "sha256")}
	if err := os.RemoveAll(dir); err != nil {
		return Written{}, err
	}
	if err := os.MkdirAll(b.blobs, 0o755); err != nil {
		return Written{}, err
	}
	c.Format, c.OS, c.Verity = Format, "linux", new.Verity.Argument()
	c.Built = c.Built.UTC()
	var err error
	if c.Root, err = digest(new.Root, new.rootSize()); err != nil {
		return Written{}, err
	}
	if c.UKI, err = digest(new.UKI, new.UKISize); err != nil {
		return Written{}, err
	}
	if c.Whole, err = b.set(Source{}, new, files); err != nil {
		return Written{}, err
	}
	for _, from := range old {
		s, err := b.set(from, new, files)
		if err != nil {
			return Written{}, fmt.Errorf("delta from %s: %w", from.Version, err)
		}
		uki, err := digest(from.UKI, from.UKISize)
		if err != nil {
			return Written{}, err
		}
		s.From, s.FromRoot, s.FromUKI = from.Version, hex.EncodeToString(from.Verity.RootHash[:]), uki.Digest
		c.Deltas = append(c.Deltas, s)
	}
	if err := c.check(); err != nil {
		return Written{}, err
	}
	return b.layout(dir, c)
}

func (s Source) rootSize() int64 { return int64(s.Verity.DataBlocks) * osimage.VerityBlock }

func digest(r io.ReaderAt, size int64) (File, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(r, 0, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return File{"sha256:" + hex.EncodeToString(h.Sum(nil)), size}, err
}

// builder writes blobs.
type builder struct {
	ctx   context.Context
	blobs string
}

// set makes a version from another, or from nothing.
func (b *builder) set(from, to Source, files Files) (s Set, err error) {
	var oldRoot, oldUKI, newRoot, newUKI delta.Image
	if newRoot, newUKI, err = to.images(files); err != nil {
		return Set{}, err
	}
	if from.Root != nil {
		if oldRoot, oldUKI, err = from.images(files); err != nil {
			return Set{}, err
		}
	}
	if s.Root, err = b.delta(oldRoot, newRoot); err != nil {
		return Set{}, err
	}
	s.UKI, err = b.delta(oldUKI, newUKI)
	return s, err
}

func (s Source) images(files Files) (root, uki delta.Image, err error) {
	root = delta.Image{R: s.Root, Size: s.rootSize()}
	uki = delta.Image{R: s.UKI, Size: s.UKISize}
	if files != nil {
		root.Files, err = files(io.NewSectionReader(s.Root, 0, root.Size))
	}
	return root, uki, err
}

func (b *builder) delta(from, to delta.Image) (File, error) {
	f, err := os.CreateTemp(b.blobs, "delta-*")
	if err != nil {
		return File{}, err
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	if err := f.Chmod(0o644); err != nil {
		return File{}, err
	}
	stats, err := delta.Make(b.ctx, f, from, to, delta.Options{})
	if err != nil {
		return File{}, err
	}
	file, err := digest(f, stats.Size)
	if err != nil {
		return File{}, err
	}
	return file, os.Rename(f.Name(), b.path(file.Digest))
}

func (b *builder) path(digest string) string { return filepath.Join(b.blobs, digest[len("sha256:"):]) }

func (b *builder) put(data []byte) (File, error) {
	f, err := digest(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return File{}, err
	}
	return f, durable.WriteFile(b.path(f.Digest), data, 0o644)
}

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

const manifestMedia = "application/vnd.oci.image.manifest.v1+json"

func (b *builder) layout(dir string, c Config) (Written, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return Written{}, err
	}
	config, err := b.put(data)
	if err != nil {
		return Written{}, err
	}
	manifest := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		ArtifactType  string       `json:"artifactType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{2, manifestMedia, Type, descriptor{MediaType: ConfigMedia, Digest: config.Digest, Size: config.Size}, nil}
	for _, f := range c.layers() {
		manifest.Layers = append(manifest.Layers, descriptor{MediaType: DeltaMedia, Digest: f.Digest, Size: f.Size})
	}
	if data, err = json.Marshal(manifest); err != nil {
		return Written{}, err
	}
	m, err := b.put(data)
	if err != nil {
		return Written{}, err
	}
	index, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", []descriptor{{MediaType: manifestMedia, Digest: m.Digest, Size: m.Size, ArtifactType: Type,
		Annotations: map[string]string{"org.opencontainers.image.ref.name": Ref(c.Version, c.Architecture)}}}})
	if err != nil {
		return Written{}, err
	}
	for name, data := range map[string][]byte{"index.json": index, "oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := durable.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return Written{}, err
		}
	}
	return Written{Digest: m.Digest, Size: m.Size + config.Size + c.Whole.Size(), Config: c}, nil
}

// ReadLayout reads what Write wrote in dir: the manifest's digest and the config.
func ReadLayout(dir string) (Written, error) {
	fail := func(err error) (Written, error) {
		return Written{}, fmt.Errorf("read the OS artefact in %s: %w", dir, err)
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return fail(err)
	}
	if err := json.Unmarshal(data, &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].ArtifactType != Type {
		return fail(fmt.Errorf("it holds something else (%v): make it with holdfast os build", err))
	}
	b := &builder{blobs: filepath.Join(dir, "blobs", "sha256")}
	var manifest struct {
		Config descriptor `json:"config"`
	}
	if err := b.read(index.Manifests[0], &manifest); err != nil {
		return fail(err)
	}
	var raw json.RawMessage
	if err := b.read(manifest.Config, &raw); err != nil {
		return fail(err)
	}
	c, err := Parse(raw)
	if err != nil {
		return fail(err)
	}
	m := index.Manifests[0]
	return Written{Digest: m.Digest, Size: m.Size + manifest.Config.Size + c.Whole.Size(), Config: *c}, nil
}

func (b *builder) read(d descriptor, v any) error {
	if !digestRE.MatchString(d.Digest) {
		return fmt.Errorf("%.80q is no digest", d.Digest)
	}
	f, err := os.Open(b.path(d.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return err
	}
	if got, err := digest(bytes.NewReader(data), int64(len(data))); err != nil || got.Digest != d.Digest {
		return fmt.Errorf("%s is damaged or too large", d.Digest)
	}
	return json.Unmarshal(data, v)
}
