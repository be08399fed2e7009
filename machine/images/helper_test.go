package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// content makes size bytes that are the same for the same seed.
func content(seed uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// remote is a place that images come from: a working registry by digest, with faults to switch on.
type remote struct {
	*httptest.Server
	mu       sync.Mutex
	content  map[Digest][]byte
	requests int

	cut      int                                           // end each body after so many bytes (0: never)
	noRange  bool                                          // answer 200 with everything, whatever is asked
	alter    func(d Digest, b []byte) []byte               // change what is sent
	override func(http.ResponseWriter, *http.Request) bool // true: answered
}

func newRemote(t *testing.T) *remote {
	r := &remote{content: map[Digest][]byte{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

// asked is how many requests came; a request that is still being answered is waited for.
func (r *remote) asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests
}

func (r *remote) add(b []byte) Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := DigestOf(b)
	r.content[d] = b
	return Descriptor{Digest: d, Size: int64(len(b))}
}

func (r *remote) addJSON(v any) Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return r.add(b)
}

// image adds a manifest with layers and returns its descriptor.
func (r *remote) image(layers ...[]byte) Descriptor {
	config := r.addJSON(map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{}}})
	config.MediaType = "application/vnd.oci.image.config.v1+json"
	m := map[string]any{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": config}
	var ls []Descriptor
	for _, l := range layers {
		d := r.add(l)
		d.MediaType = "application/vnd.oci.image.layer.v1.tar"
		ls = append(ls, d)
	}
	m["layers"] = ls
	d := r.addJSON(m)
	d.MediaType = typeOCIManifest
	return d
}

func (r *remote) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	if r.override != nil && r.override(w, req) {
		return
	}
	d := Digest(req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:])
	b, ok := r.content[d]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if r.alter != nil {
		b = r.alter(d, b)
	}
	if r.cut > 0 && strings.Contains(req.URL.Path, "/blobs/") {
		w = &cutWriter{ResponseWriter: w, left: r.cut}
	}
	if r.noRange {
		req.Header.Del("Range")
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(b))
}

// cutWriter breaks the connection after some bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func fetcher(t *testing.T, s *Store, r *remote) *Fetcher {
	return &Fetcher{Store: s, Client: r.Client(), Base: r.URL + "/v2/any", Platform: Platform{OS: "linux", Architecture: "amd64"},
		Backoff: time.Microsecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("got error %v, want %v", got, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// police fails the test when a file in the store is not what its name says, or the books are wrong.
func police(t *testing.T, s *Store) {
	t.Helper()
	var sum int64
	must(t, each(s.blobs(), func(d Digest, size int64) {
		sum += size
		if err := s.Verify(context.Background(), d); err != nil {
			t.Error(err)
		}
	}))
	must(t, each(s.partial(), func(_ Digest, size int64) { sum += size }))
	if used := s.Used(); used != sum {
		t.Errorf("store says %d bytes are used, on disk are %d", used, sum)
	}
}
