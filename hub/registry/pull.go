package registry

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"
)

func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, t target) {
	d, ok := parseDigest(t.ref)
	if !ok {
		Fail(w, http.StatusBadRequest, "DIGEST_INVALID", "want blobs/sha256:HEX")
		return
	}
	r.sendFile(w, req, r.blobPath(d), d, "application/octet-stream", "BLOB_UNKNOWN")
}

func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, t target) {
	d, ok := parseDigest(t.ref)
	if !ok {
		// 404, so that a client that looks before it pushes goes on.
		Fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "tags are not resolved here: ask for the digest, as images.lock names it")
		return
	}
	data, err := os.ReadFile(r.manifestPath(d))
	if err != nil {
		r.sendFile(w, req, r.manifestPath(d), d, "", "MANIFEST_UNKNOWN")
		return
	}
	m, err := parseManifest(data)
	if err != nil {
		Fail(w, http.StatusInternalServerError, "UNKNOWN", "stored manifest is damaged: push the image again")
		return
	}
	r.sendFile(w, req, r.manifestPath(d), d, m.MediaType, "MANIFEST_UNKNOWN")
}

// sendFile answers with the file, or the part of it that a Range header asks for.
func (r *Registry) sendFile(w http.ResponseWriter, req *http.Request, path string, d digest, mediaType, unknown string) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		Fail(w, http.StatusNotFound, unknown, d.String()+" is not here: push the image (holdfast images push)")
		return
	}
	if err != nil {
		r.cfg.Log.Error("open stored content", "digest", d.String(), "err", err)
		Fail(w, http.StatusInternalServerError, "UNKNOWN", "the hub cannot read its store")
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	// No time: it would cost bytes in each answer and mean nothing.
	http.ServeContent(w, req, "", time.Time{}, f)
}

// Fail answers in the protocol's own form.
func Fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	_ = json.NewEncoder(w).Encode(map[string][]item{"errors": {{code, message}}})
}
