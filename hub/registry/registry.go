// Package registry is the hub's store of app images: the push and pull half of
// the OCI distribution protocol over a folder.
//
// Content goes out by digest only. A tag is accepted on push, because that is
// how clients push, and forgotten at once: nothing here ever resolves a tag, so that
// whoever holds the hub cannot choose what a machine runs. Blobs are hashed while
// they are written and appear under their digest whole or not at all, after kill -9
// and loss of power too. A manifest is taken only when all that it names is there.
//
// All is bounded: uploads in number and idle time, manifests in size, everything
// together by a quota; what would pass it gets 507 and leaves nothing behind. Pulls
// and pushes resume at any byte.
//
// It leaves out: who may push (the hub asks before it calls), garbage collection,
// deletion, listing, and repositories as borders (content is one pool, by digest).
package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Config of a Registry.
type Config struct {
	Dir        string        // where everything lies; made if needed
	Quota      int64         // bytes of all content and unfinished uploads (64 GiB)
	MaxUploads int           // unfinished uploads at a time (64)
	UploadIdle time.Duration // an upload that nobody touched for so long is dropped (1 h)
	Log        *slog.Logger  // nil: slog.Default()
}

// ErrFull says that the quota, or the disk, leaves no room.
var ErrFull = errors.New("the hub's image store is full")

// Registry is an http.Handler for paths below /v2/. Make one with Open.
type Registry struct {
	cfg  Config
	used atomic.Int64 // bytes on disk and reserved by uploads

	mu      sync.Mutex
	uploads map[string]*upload // by session id
}

// Open opens the registry in cfg.Dir and drops what a crash or an idle client left.
func Open(cfg Config) (*Registry, error) {
	if cfg.Quota == 0 {
		cfg.Quota = 64 << 30
	}
	if cfg.MaxUploads == 0 {
		cfg.MaxUploads = 64
	}
	if cfg.UploadIdle == 0 {
		cfg.UploadIdle = time.Hour
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	r := &Registry{cfg: cfg, uploads: map[string]*upload{}}
	for _, dir := range []string{r.path("blobs"), r.path("manifests"), r.path("uploads")} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open the image store: %w", err)
		}
	}
	if err := r.recover(); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	return r, nil
}

// recover counts what is there and takes unfinished uploads up again.
func (r *Registry) recover() error {
	if err := durable.Clean(r.path("manifests")); err != nil {
		return err
	}
	err := filepath.WalkDir(r.cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if filepath.Dir(path) == r.path("uploads") {
			if !uploadID.MatchString(d.Name()) || time.Since(info.ModTime()) > r.cfg.UploadIdle || len(r.uploads) >= r.cfg.MaxUploads {
				return os.Remove(path)
			}
			r.uploads[d.Name()] = &upload{path: path, size: info.Size(), touched: info.ModTime()}
		}
		r.used.Add(info.Size())
		return nil
	})
	return err
}

// Usage returns the bytes in use and the quota.
func (r *Registry) Usage() (used, quota int64) { return r.used.Load(), r.cfg.Quota }

// Uploads returns the number of unfinished uploads.
func (r *Registry) Uploads() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.uploads)
}

func (r *Registry) path(elem ...string) string {
	return filepath.Join(append([]string{r.cfg.Dir}, elem...)...)
}

func (r *Registry) blobPath(d digest) string     { return r.path("blobs", string(d[:2]), string(d)) }
func (r *Registry) manifestPath(d digest) string { return r.path("manifests", string(d)) }

// reserve takes n bytes of the quota, or returns ErrFull.
func (r *Registry) reserve(n int64) error {
	if now := r.used.Add(n); now > r.cfg.Quota {
		r.used.Add(-n)
		return fmt.Errorf("%w: %d of %d bytes are in use: raise its quota, or give the hub a larger disk", ErrFull, now-n, r.cfg.Quota)
	}
	return nil
}

// full makes a full disk the same error as a full quota.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}

// digest is 64 lower-case hex digits of SHA-256, the only algorithm we take.
type digest string

var (
	digestRE = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)
	nameRE   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	uploadID = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

func parseDigest(s string) (digest, bool) {
	m := digestRE.FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	return digest(m[1]), true
}

func (d digest) String() string { return "sha256:" + string(d) }

// target is what a path below /v2/ names.
type target struct {
	kind string // "", "blobs", "uploads", "manifests"
	name string
	ref  string
}

// parsePath reads a path; whatever it returns is safe to make a file name of once
// the ref has been parsed as a digest or an upload id.
func parsePath(path string) (target, bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || len(rest) > 512 {
		return target{}, path == "/v2"
	}
	if rest == "" {
		return target{}, true
	}
	for _, kind := range []struct{ infix, kind string }{{"/blobs/uploads", "uploads"}, {"/blobs/", "blobs"}, {"/manifests/", "manifests"}} {
		i := strings.LastIndex(rest, kind.infix)
		if i < 0 {
			continue
		}
		t := target{kind: kind.kind, name: rest[:i], ref: strings.TrimPrefix(rest[i+len(kind.infix):], "/")}
		return t, len(t.name) <= 255 && nameRE.MatchString(t.name) && !strings.Contains(t.ref, "/")
	}
	return target{}, false
}

// ServeHTTP serves push and pull. Whoever calls has asked whether the client may.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) { r.serve(w, req, true) }

// Pull serves pull alone, for machines.
func (r *Registry) Pull() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(w, req, false) })
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request, push bool) {
	t, ok := parsePath(req.URL.Path)
	if !ok {
		Fail(w, http.StatusNotFound, "NAME_INVALID", "no such path: want /v2/NAME/{blobs,manifests}/sha256:HEX")
		return
	}
	get := req.Method == http.MethodGet || req.Method == http.MethodHead
	if !get && !push {
		Fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "only pulls are served here")
		return
	}
	switch {
	case t.kind == "" && get:
		w.WriteHeader(http.StatusOK)
	case t.kind == "blobs" && get:
		r.getBlob(w, req, t)
	case t.kind == "manifests" && get:
		r.getManifest(w, req, t)
	case t.kind == "manifests" && req.Method == http.MethodPut:
		r.putManifest(w, req, t)
	case t.kind == "uploads" && push:
		r.serveUpload(w, req, t)
	default:
		Fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry neither lists nor deletes")
	}
}
