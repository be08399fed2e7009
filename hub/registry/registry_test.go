package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func open(t *testing.T, cfg Config) (*Registry, *httptest.Server) {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return r, srv
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

func do(t *testing.T, method, url string, body []byte, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp
}

func want(t *testing.T, resp *http.Response, status int, words ...string) {
	t.Helper()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != status {
		t.Fatalf("status %d, want %d: %s", resp.StatusCode, status, text)
	}
	for _, w := range words {
		if !strings.Contains(string(text), w) {
			t.Errorf("answer lacks %q: %s", w, text)
		}
	}
}

func push(t *testing.T, url string, blob []byte) {
	t.Helper()
	want(t, do(t, "POST", url+"/v2/app/blobs/uploads/?digest="+sum(blob), blob), http.StatusCreated)
}

func testImage(t *testing.T, layers ...string) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, l := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer([]byte(l), types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func TestOrdinaryClientPushesAndPulls(t *testing.T) {
	r, srv := open(t, Config{})
	img := testImage(t, "one", strings.Repeat("two", 100_000))
	host := strings.TrimPrefix(srv.URL, "http://")
	tag, err := name.NewTag(host + "/shop/pos:4.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time everything is there already
		if err := remote.Write(tag, img); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := img.Digest()
	got, err := remote.Image(tag.Digest(d.String()))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := got.Layers()
	if err != nil || len(layers) != 2 {
		t.Fatalf("layers = %d, %v", len(layers), err)
	}
	rc, err := layers[1].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(rc)
	if err != nil || len(text) != 300_000 {
		t.Fatalf("layer has %d bytes, %v", len(text), err)
	}
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
	if err := remote.WriteIndex(tag, idx); err != nil {
		t.Fatal(err)
	}
	di, _ := idx.Digest()
	if _, err := remote.Index(tag.Digest(di.String())); err != nil {
		t.Fatal(err)
	}
	if r.Uploads() != 0 {
		t.Errorf("%d uploads left", r.Uploads())
	}
	used, _ := r.Usage()
	again, err := Open(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if u, _ := again.Usage(); u != used {
		t.Errorf("used %d before and %d after opening again", used, u)
	}
	t.Run("ErrPullByTag", func(t *testing.T) {
		want(t, do(t, "GET", srv.URL+"/v2/shop/pos/manifests/4.2.1", nil), http.StatusNotFound, "MANIFEST_UNKNOWN", "digest")
		if _, err := remote.Image(tag); err == nil {
			t.Error("a tag was resolved")
		}
	})
}

func TestUploadInChunksResumes(t *testing.T) {
	blob := []byte(strings.Repeat("0123456789", 1000))
	r, srv := open(t, Config{})
	resp := do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil)
	want(t, resp, http.StatusAccepted)
	loc := resp.Header.Get("Location")
	want(t, do(t, "PATCH", srv.URL+loc, blob[:4000], "Content-Range", "0-3999"), http.StatusAccepted)

	t.Run("ErrRange", func(t *testing.T) {
		resp := do(t, "PATCH", srv.URL+loc, blob[5000:], "Content-Range", "5000-9999")
		want(t, resp, http.StatusRequestedRangeNotSatisfiable, "4000")
		if got := resp.Header.Get("Range"); got != "0-3999" {
			t.Errorf("Range = %q", got)
		}
		want(t, do(t, "PATCH", srv.URL+loc, blob[5000:], "Content-Range", "junk"), http.StatusRequestedRangeNotSatisfiable)
	})

	// A restart in between: the file is all that is left.
	_, srv2 := open(t, r.cfg)
	resp = do(t, "GET", srv2.URL+loc, nil)
	want(t, resp, http.StatusNoContent)
	if got := resp.Header.Get("Range"); got != "0-3999" {
		t.Fatalf("Range after a restart = %q", got)
	}
	want(t, do(t, "PATCH", srv2.URL+loc, blob[4000:9000]), http.StatusAccepted)
	want(t, do(t, "PUT", srv2.URL+loc+"?digest="+sum(blob), blob[9000:]), http.StatusCreated)

	resp = do(t, "GET", srv2.URL+"/v2/app/blobs/"+sum(blob), nil, "Range", "bytes=9995-")
	want(t, resp, http.StatusPartialContent, "56789")
	resp = do(t, "HEAD", srv2.URL+"/v2/app/blobs/"+sum(blob), nil)
	if resp.StatusCode != 200 || resp.ContentLength != int64(len(blob)) || resp.Header.Get("Docker-Content-Digest") != sum(blob) {
		t.Errorf("HEAD: %d %d %v", resp.StatusCode, resp.ContentLength, resp.Header)
	}
}

func TestBrokenChunkIsKept(t *testing.T) {
	r, srv := open(t, Config{})
	resp := do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil)
	loc := resp.Header.Get("Location")
	req := httptest.NewRequest("PATCH", loc, io.MultiReader(strings.NewReader("half"), brokenReader{}))
	w := httptest.NewRecorder()
	r.ServeHTTP(w, req)
	if w.Code != http.StatusBadRequest || w.Header().Get("Range") != "0-3" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	want(t, do(t, "PUT", srv.URL+loc+"?digest="+sum([]byte("half and half")), []byte(" and half"), "Content-Range", "4-12"), http.StatusCreated)
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("cut") }

func TestErrDigestMismatch(t *testing.T) {
	r, srv := open(t, Config{})
	other := sum([]byte("other"))
	want(t, do(t, "POST", srv.URL+"/v2/app/blobs/uploads/?digest="+other, []byte("this")), http.StatusBadRequest, "DIGEST_INVALID")
	want(t, do(t, "GET", srv.URL+"/v2/app/blobs/"+other, nil), http.StatusNotFound)
	want(t, do(t, "PUT", srv.URL+"/v2/app/manifests/"+other, []byte(`{}`)), http.StatusBadRequest, "DIGEST_INVALID")
	if used, _ := r.Usage(); used != 0 || r.Uploads() != 0 {
		t.Errorf("%d bytes and %d uploads left behind", used, r.Uploads())
	}
	if files, _ := os.ReadDir(r.path("uploads")); len(files) != 0 {
		t.Errorf("files left: %v", files)
	}
}

func TestErrQuota(t *testing.T) {
	r, srv := open(t, Config{Quota: 1000})
	push(t, srv.URL, bytes.Repeat([]byte("a"), 600))
	big := bytes.Repeat([]byte("b"), 600)
	want(t, do(t, "POST", srv.URL+"/v2/app/blobs/uploads/?digest="+sum(big), big), http.StatusInsufficientStorage, "full", "quota")
	if used, _ := r.Usage(); used != 600 {
		t.Errorf("used = %d, want 600", used)
	}
	resp := do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil)
	loc := resp.Header.Get("Location")
	small := bytes.Repeat([]byte("c"), 300)
	want(t, do(t, "PATCH", srv.URL+loc, small[:200]), http.StatusAccepted)
	want(t, do(t, "PATCH", srv.URL+loc, big), http.StatusInsufficientStorage)
	// What was refused left nothing; the upload goes on where it stood.
	want(t, do(t, "PUT", srv.URL+loc+"?digest="+sum(small), small[200:]), http.StatusCreated)
	// The same content once more is free.
	push(t, srv.URL, small[:0])
}

func TestErrTooManyUploads(t *testing.T) {
	r, srv := open(t, Config{MaxUploads: 2, UploadIdle: time.Hour})
	for range 2 {
		want(t, do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil), http.StatusAccepted)
	}
	want(t, do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil), http.StatusTooManyRequests)
	r.mu.Lock()
	r.expire(time.Now().Add(2 * time.Hour))
	r.mu.Unlock()
	want(t, do(t, "POST", srv.URL+"/v2/app/blobs/uploads/", nil), http.StatusAccepted)
}

func TestManifestRefusals(t *testing.T) {
	_, srv := open(t, Config{})
	config, layer := []byte("config"), []byte("layer")
	push(t, srv.URL, config)
	push(t, srv.URL, layer)
	desc := func(b []byte) string { return fmt.Sprintf(`{"digest":%q,"size":%d}`, sum(b), len(b)) }
	good := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ociManifest, desc(config), desc(layer))
	want(t, do(t, "PUT", srv.URL+"/v2/app/manifests/latest", []byte(good)), http.StatusCreated)
	for _, c := range []struct{ name, ref, body, word string }{
		{"ErrBlobMissing", "x", strings.Replace(good, sum(layer), sum([]byte("absent")), 1), "MANIFEST_BLOB_UNKNOWN"},
		{"ErrWrongSize", "x", strings.Replace(good, `"size":5`, `"size":6`, 1), "MANIFEST_BLOB_UNKNOWN"},
		{"ErrNotJSON", "x", "junk", "MANIFEST_INVALID"},
		{"ErrSchema1", "x", `{"schemaVersion":1}`, "MANIFEST_INVALID"},
		{"ErrMediaType", "x", strings.Replace(good, ociManifest, "text/html", 1), "MANIFEST_INVALID"},
		{"ErrDigestKind", "x", strings.Replace(good, "sha256:", "md5:", 1), "MANIFEST_INVALID"},
		{"ErrTag", "..%2fx", good, "NAME_INVALID"},
		{"ErrTagForm", "-x", good, "TAG_INVALID"},
		{"ErrOversize", "x", good + strings.Repeat(" ", manifestMax), "larger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := do(t, "PUT", srv.URL+"/v2/app/manifests/"+c.ref, []byte(c.body))
			if resp.StatusCode/100 != 4 {
				t.Fatalf("status %d", resp.StatusCode)
			}
			want(t, resp, resp.StatusCode, c.word)
		})
	}
	t.Run("ErrBlobAsManifest", func(t *testing.T) {
		want(t, do(t, "GET", srv.URL+"/v2/app/manifests/"+sum(config), nil), http.StatusNotFound)
	})
}

func TestErrMachinesOnlyPull(t *testing.T) {
	r, _ := open(t, Config{})
	for _, c := range [][2]string{{"POST", "/v2/app/blobs/uploads/"}, {"PUT", "/v2/app/manifests/x"}, {"DELETE", "/v2/app/manifests/x"}, {"PATCH", "/v2/app/blobs/uploads/" + strings.Repeat("0", 32)}} {
		w := httptest.NewRecorder()
		r.Pull().ServeHTTP(w, httptest.NewRequest(c[0], c[1], nil))
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %d", c[0], c[1], w.Code)
		}
	}
	w := httptest.NewRecorder()
	r.Pull().ServeHTTP(w, httptest.NewRequest("GET", "/v2/app/blobs/uploads/"+strings.Repeat("0", 32), nil))
	if w.Code == http.StatusNoContent || r.Uploads() != 0 {
		t.Errorf("uploads are seen by a puller: %d", w.Code)
	}
}

func TestCrashLeavesNothingHalf(t *testing.T) {
	dir := t.TempDir()
	r, _ := open(t, Config{Dir: dir})
	if err := os.WriteFile(filepath.Join(dir, "manifests", ".x.durable-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "uploads", strings.Repeat("a", 32))
	if err := os.WriteFile(old, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-2 * r.cfg.UploadIdle)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	again, _ := open(t, Config{Dir: dir})
	if used, _ := again.Usage(); used != 0 {
		t.Errorf("%d bytes left by a crash", used)
	}
}

func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v2/", "/v2/a/b/manifests/sha256:" + strings.Repeat("0", 64), "/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/../../x", "/v2/../manifests/x"} {
		f.Add(s)
	}
	r := &Registry{cfg: Config{Dir: "/store"}}
	f.Fuzz(func(t *testing.T, path string) {
		target, ok := parsePath(path)
		if !ok {
			return
		}
		if d, ok := parseDigest(target.ref); ok {
			for _, p := range []string{r.blobPath(d), r.manifestPath(d)} {
				if filepath.Base(p) != string(d) || !strings.HasPrefix(p, "/store/") || len(d) != 64 {
					t.Errorf("%q leads to %q", path, p)
				}
			}
		}
		if target.kind == "uploads" && uploadID.MatchString(target.ref) && strings.ContainsAny(target.ref, "/.") {
			t.Errorf("%q is an upload", target.ref)
		}
		if strings.Contains(target.name, "..") {
			t.Errorf("name %q", target.name)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":1},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		if err != nil {
			return
		}
		for _, d := range m.descriptors() {
			if _, ok := parseDigest(d.Digest); !ok {
				t.Errorf("passed digest %q", d.Digest)
			}
		}
	})
}

func FuzzChunkStart(f *testing.F) {
	f.Add("0-3999")
	f.Add("bytes 5-9/10")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		if start, _, err := chunkStart(s); err == nil && start < 0 {
			t.Errorf("%q starts at %d", s, start)
		}
	})
}
