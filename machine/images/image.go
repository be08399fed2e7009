package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// Image is one app image as images.lock names it.
type Image struct {
	Ref    string // registry/repository:tag
	Digest Digest // of the index or manifest behind the tag
}

// Descriptor points at content, as in the OCI image specification.
type Descriptor struct {
	MediaType    string    `json:"mediaType,omitempty"`
	Digest       Digest    `json:"digest"`
	Size         int64     `json:"size"`
	ArtifactType string    `json:"artifactType,omitempty"`
	Platform     *Platform `json:"platform,omitempty"`
}

// Platform is what an image was built for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// ThisPlatform is the platform of this machine.
func ThisPlatform() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH} }

// Tree is all that one image needs on one platform.
type Tree struct {
	Indexes  []Descriptor // from the root downwards; empty when the root is a manifest
	Manifest Descriptor
	Config   Descriptor
	Layers   []Descriptor
}

// Blobs lists every descriptor once, manifests first.
func (t Tree) Blobs() []Descriptor {
	all := append(slices.Clone(t.Indexes), t.Manifest, t.Config)
	all = append(all, t.Layers...)
	seen := map[Digest]bool{}
	return slices.DeleteFunc(all, func(d Descriptor) bool {
		had := seen[d.Digest]
		seen[d.Digest] = true
		return had
	})
}

// Size is how many bytes the tree has, each blob counted once.
func (t Tree) Size() (n int64) {
	for _, d := range t.Blobs() {
		n += d.Size
	}
	return n
}

const (
	maxManifest = 4 << 20  // bytes of one manifest or index
	maxBlob     = 64 << 30 // bytes of one layer
	maxChildren = 1024     // descriptors in one manifest or index
	maxNesting  = 3        // indexes within indexes
)

const (
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// document is an index or a manifest: whichever of the two has its fields.
type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
	Config        *Descriptor  `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

func (d *document) isIndex() bool {
	return d.MediaType == typeOCIIndex || d.MediaType == typeDockerList
}

// parseDocument decodes an index or manifest of the four kinds that containerd knows, and bounds what it points at.
func parseDocument(data []byte) (*document, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("manifest of %d bytes: at most %d are read: %w", len(data), maxManifest, ErrSize)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if d.SchemaVersion != 2 {
		return nil, fmt.Errorf("manifest: schemaVersion %d: only 2 is read", d.SchemaVersion)
	}
	// One document that could be read as both is read differently by different programs: refused, as containerd does.
	hasIndex, hasManifest := d.Manifests != nil, d.Config != nil || d.Layers != nil
	if d.MediaType == "" {
		switch {
		case hasIndex:
			d.MediaType = typeOCIIndex
		case hasManifest:
			d.MediaType = typeOCIManifest
		}
	}
	switch {
	case hasIndex && hasManifest:
		return nil, errors.New("manifest: is an index and a manifest at once")
	case d.isIndex() && !hasManifest:
	case (d.MediaType == typeOCIManifest || d.MediaType == typeDockerManifest) && !hasIndex && d.Config != nil:
	default:
		return nil, fmt.Errorf("manifest: media type %.80q does not fit its fields or is not known", d.MediaType)
	}
	children := slices.Concat(d.Manifests, d.Layers)
	if d.Config != nil {
		children = append(children, *d.Config)
	}
	if len(children) > maxChildren {
		return nil, fmt.Errorf("manifest: %d descriptors: at most %d are read", len(children), maxChildren)
	}
	for _, c := range children {
		if _, err := ParseDigest(string(c.Digest)); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		if c.Size < 0 || c.Size > maxBlob {
			return nil, fmt.Errorf("manifest: %s has a size of %d bytes: %w", c.Digest, c.Size, ErrSize)
		}
	}
	return &d, nil
}

// choose picks the entry of an index that containerd would pick on platform p: an entry for it, the best variant first,
// else one that names no platform.
func choose(entries []Descriptor, p Platform) (Descriptor, error) {
	best, rank := Descriptor{}, -1
	var names []string
	for _, e := range entries {
		r := fit(e.Platform, p)
		if r > rank {
			best, rank = e, r
		}
		if e.Platform != nil {
			names = append(names, e.Platform.OS+"/"+e.Platform.Architecture)
		}
	}
	if rank < 0 {
		return Descriptor{}, fmt.Errorf("index has no image for %s/%s, only for: %s", p.OS, p.Architecture, strings.Join(names, ", "))
	}
	return best, nil
}

// fit ranks an entry's platform: -1 does not run here.
func fit(have *Platform, want Platform) int {
	if have == nil {
		return 0
	}
	if have.OS != want.OS || have.Architecture != want.Architecture {
		return -1
	}
	variants := map[string][]string{ // what runs, worst first
		"amd64": {"v1", ""},
		"arm64": {"v8", ""},
		"arm":   {"v5", "v6", "v7", ""},
	}[want.Architecture]
	if variants == nil {
		variants = []string{want.Variant}
	}
	if want.Variant != "" && have.Variant == want.Variant {
		return 100
	}
	if i := slices.Index(variants, have.Variant); i >= 0 {
		return 1 + i
	}
	return -1
}

// walk reads the tree below root; get returns the bytes of one index or manifest, of any size when size is negative.
func walk(root Digest, p Platform, get func(Descriptor) ([]byte, error)) (Tree, error) {
	var t Tree
	next := Descriptor{Digest: root, Size: -1}
	for range maxNesting + 1 {
		data, err := get(next)
		if err != nil {
			return Tree{}, err
		}
		doc, err := parseDocument(data)
		if err != nil {
			return Tree{}, fmt.Errorf("%s: %w", next.Digest, err)
		}
		next.Size, next.MediaType = int64(len(data)), doc.MediaType
		if !doc.isIndex() {
			t.Manifest, t.Config, t.Layers = next, *doc.Config, doc.Layers
			return t, nil
		}
		t.Indexes = append(t.Indexes, next)
		if next, err = choose(doc.Manifests, p); err != nil {
			return Tree{}, fmt.Errorf("%s: %w", t.Indexes[len(t.Indexes)-1].Digest, err)
		}
	}
	return Tree{}, fmt.Errorf("%s: indexes nest deeper than %d", root, maxNesting)
}

// Tree reads an image's tree from the store alone; ErrNotFound when an index or manifest of it is missing.
func (s *Store) Tree(root Digest, p Platform) (Tree, error) {
	return walk(root, p, func(d Descriptor) ([]byte, error) {
		data, err := s.Read(d.Digest, maxManifest)
		if err == nil && d.Size >= 0 && int64(len(data)) != d.Size {
			err = fmt.Errorf("manifest %s: %w", d.Digest, ErrSize)
		}
		return data, err
	})
}

// Complete says whether every blob of the image is in the store, for platform p.
func (s *Store) Complete(root Digest, p Platform) bool {
	t, err := s.Tree(root, p)
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(t.Blobs(), func(d Descriptor) bool { return !s.Has(d.Digest) })
}

// Reference is an image name taken apart and spelt out, as containerd does it: "nginx" is docker.io/library/nginx:latest.
type Reference struct {
	Registry, Repository, Tag string
	Digest                    Digest
}

// ParseReference spells a name out. The tag is empty when only a digest is given.
func ParseReference(s string) (Reference, error) {
	fault := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("image name %.200q: %s", s, why)
	}
	var r Reference
	rest, digest, ok := strings.Cut(s, "@")
	if ok {
		d, err := ParseDigest(digest)
		if err != nil {
			return fault(err.Error())
		}
		r.Digest = d
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !validTag(r.Tag) {
			return fault("not a tag")
		}
	}
	first, tail, ok := strings.Cut(rest, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost" || strings.ToLower(first) != first) {
		r.Registry, r.Repository = first, tail
	} else {
		r.Registry, r.Repository = "docker.io", rest
	}
	if r.Registry == "index.docker.io" {
		r.Registry = "docker.io"
	}
	if r.Registry == "docker.io" && !strings.Contains(r.Repository, "/") {
		r.Repository = "library/" + r.Repository
	}
	if !validHost(r.Registry) {
		return fault("not a registry")
	}
	if !validRepository(r.Repository) {
		return fault("not a repository")
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Name is registry/repository.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// Tagged is registry/repository:tag; empty without a tag.
func (r Reference) Tagged() string {
	if r.Tag == "" {
		return ""
	}
	return r.Name() + ":" + r.Tag
}

// At is registry/repository@digest.
func (r Reference) At(d Digest) string { return r.Name() + "@" + string(d) }

func validTag(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && s[0] != '-' && onlyBytes(s, "._-", true)
}

func validHost(s string) bool {
	host, port, ok := strings.Cut(s, ":")
	if ok && (port == "" || strings.Trim(port, "0123456789") != "") {
		return false
	}
	return host != "" && len(s) <= 255 && onlyBytes(host, ".-", true) && !strings.ContainsRune(".-", rune(host[0]))
}

func validRepository(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || !onlyBytes(part, "._-", false) || strings.Contains(part, "..") ||
			strings.ContainsRune("._-", rune(part[0])) || strings.ContainsRune("._-", rune(part[len(part)-1])) {
			return false
		}
	}
	return true
}

// onlyBytes: letters and digits and the given others; upper case when told.
func onlyBytes(s, others string, upper bool) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.IndexByte(others, c) >= 0:
		case upper && c >= 'A' && c <= 'Z':
		default:
			return false
		}
	}
	return true
}
