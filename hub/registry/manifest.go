package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// manifestMax bounds a manifest, as other registries do.
const manifestMax = 4 << 20

// Media types of manifests; anything else is refused.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifest is as much of one as says what must be there with it.
type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config"`
	Layers        []descriptor `json:"layers"`
	Manifests     []descriptor `json:"manifests"`
}

type descriptor struct {
	Digest string   `json:"digest"`
	Size   int64    `json:"size"`
	URLs   []string `json:"urls"`
}

func parseManifest(data []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("read manifest: schema version %d, want 2", m.SchemaVersion)
	}
	if m.MediaType == "" { // OCI allows to leave it out
		m.MediaType = ociManifest
		if m.Manifests != nil {
			m.MediaType = ociIndex
		}
	}
	switch m.MediaType {
	case ociManifest, dockerManifest:
		if m.Config == nil || m.Manifests != nil {
			return nil, errors.New("read manifest: an image has one config and no manifests")
		}
	case ociIndex, dockerIndex:
		if m.Config != nil || m.Layers != nil {
			return nil, errors.New("read manifest: an index has neither config nor layers")
		}
	default:
		return nil, fmt.Errorf("read manifest: unknown media type %.80q", m.MediaType)
	}
	for _, d := range m.descriptors() {
		if _, ok := parseDigest(d.Digest); !ok || d.Size < 0 {
			return nil, fmt.Errorf("read manifest: names %.80q with size %d: want sha256 and a size", d.Digest, d.Size)
		}
	}
	return &m, nil
}

func (m *manifest) descriptors() []descriptor {
	all := append(m.Layers[:len(m.Layers):len(m.Layers)], m.Manifests...)
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	return all
}

// putManifest stores a manifest under its digest. The tag, if it came under one,
// only carried it here.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, t target) {
	data, err := io.ReadAll(io.LimitReader(req.Body, manifestMax+1))
	if err != nil {
		Fail(w, http.StatusBadRequest, "MANIFEST_INVALID", "the manifest broke off")
		return
	}
	if len(data) > manifestMax {
		Fail(w, http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", fmt.Sprintf("the manifest is larger than %d bytes", manifestMax))
		return
	}
	sum := sha256.Sum256(data)
	got := digest(hex.EncodeToString(sum[:]))
	if want, isDigest := parseDigest(t.ref); isDigest && want != got {
		Fail(w, http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("the manifest hashes to %s, not to %s", got, want))
		return
	} else if !isDigest && !tagRE.MatchString(t.ref) {
		Fail(w, http.StatusBadRequest, "TAG_INVALID", "want a tag or sha256:HEX")
		return
	}
	m, err := parseManifest(data)
	if err != nil {
		Fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	if missing := r.missing(m); missing != "" {
		Fail(w, http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", missing+" is named by the manifest and not here: push it first")
		return
	}
	if err := r.storeManifest(got, data); err != nil {
		r.failWrite(w, err)
		return
	}
	w.Header().Set("Docker-Content-Digest", got.String())
	w.Header().Set("Location", "/v2/"+t.name+"/manifests/"+got.String())
	w.WriteHeader(http.StatusCreated)
}

// missing names one thing that m needs and that is not here, or "". The children of
// an index may be absent: an image is pushed for the platforms that a fleet has.
func (r *Registry) missing(m *manifest) string {
	needed := m.Layers
	if m.Config != nil {
		needed = append(needed[:len(needed):len(needed)], *m.Config)
	}
	for _, d := range needed {
		hex, _ := parseDigest(d.Digest)
		info, err := os.Stat(r.blobPath(hex))
		if len(d.URLs) > 0 && err != nil {
			continue // a layer that its owner wants fetched from elsewhere
		}
		if err != nil || info.Size() != d.Size {
			return d.Digest
		}
	}
	return ""
}

func (r *Registry) storeManifest(d digest, data []byte) error {
	r.mu.Lock() // two pushes of one manifest must not count it twice
	defer r.mu.Unlock()
	if _, err := os.Stat(r.manifestPath(d)); err == nil {
		return nil
	}
	if err := r.reserve(int64(len(data))); err != nil {
		return err
	}
	if err := durable.WriteFile(r.manifestPath(d), data, 0o600); err != nil {
		r.used.Add(-int64(len(data)))
		return full(err)
	}
	return nil
}

// failWrite answers to a write that our side could not do.
func (r *Registry) failWrite(w http.ResponseWriter, err error) {
	if errors.Is(err, ErrFull) {
		Fail(w, http.StatusInsufficientStorage, "DENIED", err.Error())
		return
	}
	r.cfg.Log.Error("write to the image store", "err", err)
	Fail(w, http.StatusInternalServerError, "UNKNOWN", "the hub cannot write to its store")
}
