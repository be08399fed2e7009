package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// upload is a blob on its way in. Its file is its whole state: after a restart
// it is taken up where it stands.
type upload struct {
	path string

	mu   sync.Mutex // one request at a time
	size int64
	hash hash.Hash // over the first size bytes; nil: not read yet
	gone bool

	touched time.Time // guarded by Registry.mu
}

var (
	errRange    = errors.New("the chunk does not begin where the upload stands")
	errBrokeOff = errors.New("the chunk broke off")
)

// serveUpload is the push of one blob: POST, any number of PATCH, PUT.
func (r *Registry) serveUpload(w http.ResponseWriter, req *http.Request, t target) {
	if t.ref == "" {
		if req.Method != http.MethodPost {
			Fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "an upload begins with POST")
			return
		}
		r.beginUpload(w, req, t)
		return
	}
	u := r.findUpload(t.ref)
	if u == nil {
		Fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload: it ended, or nobody touched it for "+r.cfg.UploadIdle.String())
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		Fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "the upload has just ended")
		return
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		uploadHeaders(w, t, u)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPatch:
		if err := r.append(u, req); err != nil {
			r.failUpload(w, t, u, err)
			return
		}
		uploadHeaders(w, t, u)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		r.endUpload(w, req, t, u)
	case http.MethodDelete:
		r.drop(t.ref, u)
		w.WriteHeader(http.StatusNoContent)
	default:
		Fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "want GET, PATCH, PUT or DELETE")
	}
}

// beginUpload answers at once when the blob is here, else opens a session; a body
// with ?digest is a whole push in one request.
func (r *Registry) beginUpload(w http.ResponseWriter, req *http.Request, t target) {
	q := req.URL.Query()
	if d, ok := parseDigest(q.Get("mount")); ok {
		if _, err := os.Stat(r.blobPath(d)); err == nil {
			created(w, t, d)
			return
		}
	}
	id, u, err := r.newUpload()
	if err != nil {
		r.failWrite(w, err)
		return
	}
	if u == nil {
		w.Header().Set("Retry-After", "10")
		Fail(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", fmt.Sprintf("%d uploads are open already", r.cfg.MaxUploads))
		return
	}
	t.ref = id
	u.mu.Lock()
	defer u.mu.Unlock()
	if q.Get("digest") != "" {
		r.endUpload(w, req, t, u)
		return
	}
	uploadHeaders(w, t, u)
	w.WriteHeader(http.StatusAccepted)
}

func (r *Registry) endUpload(w http.ResponseWriter, req *http.Request, t target, u *upload) {
	want, ok := parseDigest(req.URL.Query().Get("digest"))
	if !ok {
		Fail(w, http.StatusBadRequest, "DIGEST_INVALID", "want ?digest=sha256:HEX")
		return
	}
	if err := r.append(u, req); err != nil {
		r.failUpload(w, t, u, err)
		return
	}
	if err := u.rehash(); err != nil {
		r.failWrite(w, err)
		return
	}
	got := digest(hex.EncodeToString(u.hash.Sum(nil)))
	if got != want {
		r.drop(t.ref, u)
		Fail(w, http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("what was sent hashes to %s, not to %s", got, want))
		return
	}
	if err := r.keep(t.ref, u, got); err != nil {
		r.failWrite(w, err)
		return
	}
	created(w, t, got)
}

// append adds the body to the upload. What arrived before the body broke off stays,
// so that the client goes on from there; what the quota refuses does not.
func (r *Registry) append(u *upload, req *http.Request) error {
	if start, ok, err := chunkStart(req.Header.Get("Content-Range")); err != nil || ok && start != u.size {
		return errRange
	}
	if err := u.rehash(); err != nil {
		return err
	}
	f, err := os.OpenFile(u.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	before, state, err := u.size, []byte(nil), error(nil)
	if state, err = u.hash.(encoding.BinaryMarshaler).MarshalBinary(); err != nil {
		return err
	}
	err = r.copyChunk(u, f, req.Body)
	if err == nil || errors.Is(err, errBrokeOff) {
		return err
	}
	// Take the chunk back, on disk and in the count.
	r.used.Add(before - u.size)
	u.size = before
	return errors.Join(err, f.Truncate(before), u.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(state))
}

func (r *Registry) copyChunk(u *upload, f *os.File, body io.Reader) error {
	buf := make([]byte, 128<<10)
	for {
		n, rerr := body.Read(buf)
		if n > 0 {
			if err := r.reserve(int64(n)); err != nil {
				return err
			}
			if _, err := f.WriteAt(buf[:n], u.size); err != nil {
				r.used.Add(-int64(n))
				return full(err)
			}
			u.hash.Write(buf[:n])
			u.size += int64(n)
		}
		switch {
		case rerr == io.EOF:
			return nil
		case rerr != nil:
			return fmt.Errorf("%w: %v", errBrokeOff, rerr)
		}
	}
}

// rehash makes u.hash stand at u.size, reading the file if it was left by an earlier run.
func (u *upload) rehash() error {
	if u.hash != nil {
		return nil
	}
	f, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(h, f, u.size); err != nil {
		return err
	}
	u.hash = h
	return nil
}

func (r *Registry) newUpload() (string, *upload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expire(time.Now())
	if len(r.uploads) >= r.cfg.MaxUploads {
		return "", nil, nil
	}
	var raw [16]byte
	rand.Read(raw[:])
	id := hex.EncodeToString(raw[:])
	u := &upload{path: r.path("uploads", id), hash: sha256.New(), touched: time.Now()}
	f, err := os.OpenFile(u.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", nil, full(err)
	}
	if err := f.Close(); err != nil {
		return "", nil, err
	}
	r.uploads[id] = u
	return id, u, nil
}

// expire drops idle uploads. One with a request in it holds its lock and is not idle.
func (r *Registry) expire(now time.Time) {
	for id, u := range r.uploads {
		if now.Sub(u.touched) <= r.cfg.UploadIdle || !u.mu.TryLock() {
			continue
		}
		r.discard(id, u)
		u.mu.Unlock()
	}
}

func (r *Registry) findUpload(id string) *upload {
	r.mu.Lock()
	defer r.mu.Unlock()
	u := r.uploads[id]
	if u != nil {
		u.touched = time.Now()
	}
	return u
}

// drop ends an upload and forgets its bytes. The caller holds u.mu.
func (r *Registry) drop(id string, u *upload) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.discard(id, u)
}

func (r *Registry) discard(id string, u *upload) {
	delete(r.uploads, id)
	u.gone = true
	if err := os.Remove(u.path); err != nil {
		r.cfg.Log.Warn("remove an upload", "path", u.path, "err", err)
		return
	}
	r.used.Add(-u.size)
}

// keep makes a verified upload a blob. The content is on disk before the name is, and
// the name before the client hears of it: a crash leaves the upload or the blob.
func (r *Registry) keep(id string, u *upload, d digest) error {
	path := r.blobPath(d)
	if err := syncFile(u.path); err != nil {
		return full(err)
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return full(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := os.Stat(path); err == nil {
		r.discard(id, u) // another push was faster
		return nil
	}
	if err := os.Rename(u.path, path); err != nil {
		return full(err)
	}
	delete(r.uploads, id)
	u.gone = true
	return syncFolder(filepath.Dir(path))
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncFolder flushes a folder's names. Windows has no such call; NTFS logs names.
func syncFolder(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (r *Registry) failUpload(w http.ResponseWriter, t target, u *upload, err error) {
	switch {
	case errors.Is(err, errRange):
		uploadHeaders(w, t, u)
		Fail(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", fmt.Sprintf("%v, at byte %d", errRange, u.size))
	case errors.Is(err, errBrokeOff):
		uploadHeaders(w, t, u)
		Fail(w, http.StatusBadRequest, "BLOB_UPLOAD_INVALID", errBrokeOff.Error())
	default:
		r.failWrite(w, err)
	}
}

func uploadHeaders(w http.ResponseWriter, t target, u *upload) {
	h := w.Header()
	h.Set("Location", "/v2/"+t.name+"/blobs/uploads/"+t.ref)
	h.Set("Docker-Upload-UUID", t.ref)
	// The protocol's range is inclusive and so cannot say "nothing"; this is how all spell it.
	h.Set("Range", fmt.Sprintf("0-%d", max(u.size-1, 0)))
}

func created(w http.ResponseWriter, t target, d digest) {
	w.Header().Set("Location", "/v2/"+t.name+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

// chunkStart reads "FIRST-LAST", as this protocol writes it, and "bytes FIRST-LAST/TOTAL".
func chunkStart(s string) (start int64, ok bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	s = strings.TrimPrefix(s, "bytes ")
	s, _, _ = strings.Cut(s, "/")
	first, last, found := strings.Cut(s, "-")
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	if !found || err1 != nil || err2 != nil || start < 0 || end < start-1 {
		return 0, false, fmt.Errorf("read range %.40q: want FIRST-LAST", s)
	}
	return start, true, nil
}
