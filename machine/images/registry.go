package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// Registry answers containerd on loopback as an OCI registry that can only be read: an http.Handler for everything under /v2/.
//
// Content goes by digest, from the store. Tags are answered from the table of [Registry.SetTable] and from nothing else. What is not known is 404,
// and that is the end of it: the configuration that package kube writes gives containerd no other registry to ask.
type Registry struct {
	Store *Store
	// Fetch, when set, brings content that is not in the store; it must have put it there when it returns nil.
	// ErrNotFound becomes 404, any other error 503.
	Fetch func(ctx context.Context, d Digest) error
	Log   *slog.Logger // nil: slog.Default

	table atomic.Pointer[map[string]Digest] // registry/repository:tag, spelt out
}

// SetTable replaces what tags mean: the names of images.lock, in any spelling.
func (r *Registry) SetTable(images []Image) error {
	table := map[string]Digest{}
	for _, img := range images {
		ref, err := ParseReference(img.Ref)
		if err != nil {
			return err
		}
		if ref.Tag == "" {
			continue
		}
		if other, ok := table[ref.Tagged()]; ok && other != img.Digest {
			return fmt.Errorf("image name %s: stands for %s and for %s", ref.Tagged(), other, img.Digest)
		}
		table[ref.Tagged()] = img.Digest
	}
	r.table.Store(&table)
	return nil
}

func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry can only be read")
		return
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if req.URL.Path == "/v2" || ok && path == "" {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, "{}")
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		i := strings.LastIndex(path, kind)
		if !ok || i < 0 {
			continue
		}
		name, ref := path[:i], path[i+len(kind):]
		if !validRepository(name) {
			refuse(w, http.StatusNotFound, "NAME_INVALID", "not the name of a repository")
			return
		}
		if kind == "/blobs/" {
			r.blob(w, req, ref)
		} else {
			r.manifest(w, req, name, ref)
		}
		return
	}
	refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "nothing here but manifests and blobs")
}

// refuse writes an error the way the distribution specification wants it.
func refuse(w http.ResponseWriter, status int, code, message string) {
	type fault struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]fault{"errors": {{code, message}}})
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, ref string) {
	d, err := ParseDigest(ref)
	if err != nil {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	if err := r.ensure(req.Context(), d); err != nil {
		r.missing(w, d, "BLOB_UNKNOWN", err)
		return
	}
	f, err := r.Store.Open(d)
	if err != nil {
		r.missing(w, d, "BLOB_UNKNOWN", err)
		return
	}
	defer f.Close()
	describe(w, d, "application/octet-stream")
	http.ServeContent(w, req, "", time.Time{}, f) // ranges, If-Range, HEAD
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, name, ref string) {
	d, err := ParseDigest(ref)
	if err != nil {
		if d, err = r.resolve(req.URL.Query().Get("ns"), name, ref); err != nil {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error())
			return
		}
	}
	if err := r.ensure(req.Context(), d); err != nil {
		r.missing(w, d, "MANIFEST_UNKNOWN", err)
		return
	}
	data, err := r.Store.Read(d, maxManifest)
	if err != nil {
		r.missing(w, d, "MANIFEST_UNKNOWN", err)
		return
	}
	doc, err := parseDocument(data)
	if err != nil {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("%s is not a manifest", d))
		return
	}
	describe(w, d, doc.MediaType)
	http.ServeContent(w, req, "", time.Time{}, strings.NewReader(string(data)))
}

// describe sets what containerd reads about content besides its bytes.
func describe(w http.ResponseWriter, d Digest, mediaType string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", string(d))
	w.Header().Set("Etag", `"`+string(d)+`"`)
}

// resolve looks a tag up in the table. ns is how containerd tells a mirror which registry the name belongs to.
func (r *Registry) resolve(ns, name, tag string) (Digest, error) {
	full := name + ":" + tag
	if ns != "" {
		full = ns + "/" + full
	}
	ref, err := ParseReference(full)
	if err != nil {
		return "", err
	}
	if table := r.table.Load(); table != nil {
		if d, ok := (*table)[ref.Tagged()]; ok {
			return d, nil
		}
	}
	return "", fmt.Errorf("%s has no line in the release's images.lock", ref.Tagged())
}

func (r *Registry) ensure(ctx context.Context, d Digest) error {
	if r.Store.Has(d) {
		return nil
	}
	if r.Fetch == nil {
		return fmt.Errorf("%s: %w", d, ErrNotFound)
	}
	return r.Fetch(ctx, d)
}

func (r *Registry) missing(w http.ResponseWriter, d Digest, code string, err error) {
	if errors.Is(err, ErrNotFound) {
		refuse(w, http.StatusNotFound, code, fmt.Sprintf("%s is not on this machine", d))
		return
	}
	log := r.Log
	if log == nil {
		log = slog.Default()
	}
	log.Warn("content cannot be served", "digest", d, "err", err)
	refuse(w, http.StatusServiceUnavailable, "UNAVAILABLE", fmt.Sprintf("%s cannot be fetched at the moment", d))
}
