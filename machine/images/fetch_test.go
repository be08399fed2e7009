package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestFetchImage(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	layer := content(1, 300_000)
	m := r.image(layer, content(2, 10), layer)
	img := Image{Ref: "shop/pos:1", Digest: m.Digest}
	var last, total atomic.Int64
	tree, err := fetcher(t, s, r).Image(t.Context(), img, func(d, n int64) {
		last.Store(max(last.Load(), d))
		total.Store(n)
	})
	must(t, err)
	if !s.Complete(m.Digest, Platform{"linux", "amd64", ""}) {
		t.Error("not complete")
	}
	if last.Load() != tree.Size() || total.Load() != tree.Size() {
		t.Errorf("progress ended at %d of %d, want %d", last.Load(), total.Load(), tree.Size())
	}
	before := r.asked()
	_, err = fetcher(t, s, r).Image(t.Context(), img, nil)
	must(t, err)
	if r.asked() != before {
		t.Errorf("a second fetch asked %d times", r.asked()-before)
	}
	police(t, s)
}

func TestFetchResumesAtEveryOffset(t *testing.T) {
	data := content(3, 97)
	for _, noRange := range []bool{false, true} {
		for cut := range len(data) + 1 {
			r, s := newRemote(t), newStore(t)
			m := r.image(data)
			w, err := s.Begin(t.Context(), DigestOf(data), int64(len(data)))
			must(t, err)
			_, _ = w.Write(data[:cut])
			must(t, w.Close())
			r.noRange = noRange
			_, err = fetcher(t, s, r).Image(t.Context(), Image{Digest: m.Digest}, nil)
			if err != nil {
				t.Fatalf("from %d, noRange %v: %v", cut, noRange, err)
			}
			police(t, s)
			r.Close()
		}
	}
}

func TestFetchThroughConnectionsThatBreak(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	m := r.image(content(4, 1<<20))
	r.cut = 100_000 // more than ten breaks, more than Attempts: progress counts
	_, err := fetcher(t, s, r).Image(t.Context(), Image{Digest: m.Digest}, nil)
	must(t, err)
	if r.asked() < 12 {
		t.Errorf("only %d requests: nothing was cut", r.asked())
	}
	police(t, s)
}

func TestFetchStartsOverWhenOldBytesAreDamaged(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	data := content(5, 5000)
	m := r.image(data)
	must(t, os.WriteFile(s.partialPath(DigestOf(data)), make([]byte, 3000), 0o600)) // a power cut leaves zeros
	s, err := OpenStore(s.dir, 0)
	must(t, err)
	var last atomic.Int64
	tree, err := fetcher(t, s, r).Image(t.Context(), Image{Digest: m.Digest}, func(d, _ int64) { last.Store(d) })
	must(t, err)
	if last.Load() != tree.Size() {
		t.Errorf("progress ended at %d, want %d", last.Load(), tree.Size())
	}
	police(t, s)
}

func TestFetchRefuses(t *testing.T) {
	data := content(6, 20_000)
	isBlob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, string(DigestOf(data))) }
	tests := []struct {
		name  string
		fault func(*remote)
		want  error
		max   int // requests
	}{
		{"ErrTamperedBlob", func(r *remote) {
			r.alter = func(d Digest, b []byte) []byte {
				if d == DigestOf(data) {
					b = bytes.Clone(b)
					b[77] ^= 1
				}
				return b
			}
		}, ErrDigest, 3},
		{"ErrTamperedManifest", func(r *remote) {
			r.alter = func(_ Digest, b []byte) []byte { return append(bytes.Clone(b), ' ') }
		}, ErrDigest, 1},
		{"ErrTruncatedForEver", func(r *remote) {
			r.override = func(w http.ResponseWriter, req *http.Request) bool {
				if isBlob(req) {
					w.Header().Set("Content-Length", "20000")
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
				return false
			}
		}, nil, 12},
		{"ErrShorterThanAnnounced", func(r *remote) {
			r.alter = func(d Digest, b []byte) []byte {
				if d == DigestOf(data) {
					b = b[:100]
				}
				return b
			}
		}, ErrSize, 3},
		{"ErrOversized", func(r *remote) {
			r.alter = func(d Digest, b []byte) []byte {
				if d == DigestOf(data) {
					b = append(bytes.Clone(b), 1)
				}
				return b
			}
		}, ErrSize, 3},
		{"ErrEndless", func(r *remote) {
			r.override = func(w http.ResponseWriter, req *http.Request) bool {
				if !isBlob(req) {
					return false
				}
				w.(http.Flusher).Flush() // chunked: no length
				for {
					if _, err := w.Write(data); err != nil {
						return true
					}
				}
			}
		}, ErrSize, 3},
		{"ErrEndlessManifest", func(r *remote) {
			r.override = func(w http.ResponseWriter, req *http.Request) bool {
				w.(http.Flusher).Flush()
				for {
					if _, err := w.Write(data); err != nil {
						return true
					}
				}
			}
		}, ErrSize, 1},
		{"ErrNotThere", func(r *remote) { delete(r.content, DigestOf(data)) }, ErrNotFound, 3},
		{"ErrForbidden", func(r *remote) {
			r.override = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(403); return true }
		}, nil, 1},
		{"ErrServerBroken", func(r *remote) {
			r.override = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
		}, nil, 6},
		{"ErrWrongRange", func(r *remote) {
			r.cut = 5000
			r.override = func(w http.ResponseWriter, req *http.Request) bool {
				if req.Header.Get("Range") == "" {
					return false
				}
				w.Header().Set("Content-Range", "bytes 0-19999/20000")
				w.WriteHeader(206)
				return true
			}
		}, nil, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newRemote(t), newStore(t)
			m := r.image(data)
			tt.fault(r)
			_, err := fetcher(t, s, r).Image(t.Context(), Image{Ref: "a/b:1", Digest: m.Digest}, nil)
			if err == nil {
				t.Fatal("taken")
			}
			if tt.want != nil {
				wantErr(t, err, tt.want)
			}
			if r.asked() > tt.max {
				t.Errorf("%d requests, want at most %d", r.asked(), tt.max)
			}
			if !strings.Contains(err.Error(), "a/b:1") {
				t.Errorf("the error does not name the image: %v", err)
			}
			police(t, s)
			// The same store takes the right bytes right after.
			good := newRemote(t)
			good.image(data)
			_, err = fetcher(t, s, good).Image(t.Context(), Image{Digest: m.Digest}, nil)
			must(t, err)
			police(t, s)
		})
	}
}

func TestFetchGivesUpOnStalledServer(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	m := r.image(content(7, 1000))
	r.override = func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 1))
			w.(http.Flusher).Flush()
			<-req.Context().Done()
		}
		return strings.Contains(req.URL.Path, "/blobs/")
	}
	f := fetcher(t, s, r)
	f.Stall, f.Attempts, f.Parallel = 20*time.Millisecond, 2, 1
	_, err := f.Image(t.Context(), Image{Digest: m.Digest}, nil)
	if err == nil {
		t.Fatal("a server that sends nothing was waited for")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = f.Image(ctx, Image{Digest: m.Digest}, nil)
	wantErr(t, err, context.Canceled)
}

func TestIndexChoosesPlatform(t *testing.T) {
	platform := func(os, arch, variant string) *Platform { return &Platform{os, arch, variant} }
	entry := func(n int, p *Platform) Descriptor {
		return Descriptor{Digest: DigestOf(fmt.Append(nil, n)), Size: 1, Platform: p}
	}
	tests := []struct {
		name    string
		entries []Descriptor
		want    Platform
		chosen  int // -1: refused
	}{
		{"OnlyOne", []Descriptor{entry(0, platform("linux", "amd64", ""))}, Platform{"linux", "amd64", ""}, 0},
		{"Many", []Descriptor{entry(0, platform("linux", "arm64", "v8")), entry(1, platform("windows", "amd64", "")), entry(2, platform("linux", "amd64", "")), entry(3, platform("unknown", "unknown", ""))}, Platform{"linux", "amd64", ""}, 2},
		{"ArmVariant", []Descriptor{entry(0, platform("linux", "arm", "v5")), entry(1, platform("linux", "arm", "v7")), entry(2, platform("linux", "arm", "v6"))}, Platform{"linux", "arm", ""}, 1},
		{"Arm64Plain", []Descriptor{entry(0, platform("linux", "arm64", "v9")), entry(1, platform("linux", "arm64", ""))}, Platform{"linux", "arm64", ""}, 1},
		{"NoBetterInstructionsThanHere", []Descriptor{entry(0, platform("linux", "amd64", "v3")), entry(1, platform("linux", "amd64", ""))}, Platform{"linux", "amd64", ""}, 1},
		{"FirstOfEqual", []Descriptor{entry(0, platform("linux", "amd64", "")), entry(1, platform("linux", "amd64", ""))}, Platform{"linux", "amd64", ""}, 0},
		{"UnnamedIsLast", []Descriptor{entry(0, nil), entry(1, platform("linux", "amd64", ""))}, Platform{"linux", "amd64", ""}, 1},
		{"UnnamedAlone", []Descriptor{entry(0, platform("linux", "s390x", "")), entry(1, nil)}, Platform{"linux", "amd64", ""}, 1},
		{"ErrNone", []Descriptor{entry(0, platform("linux", "s390x", ""))}, Platform{"linux", "amd64", ""}, -1},
		{"ErrEmpty", []Descriptor{}, Platform{"linux", "amd64", ""}, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := choose(tt.entries, tt.want)
			if (err != nil) != (tt.chosen < 0) {
				t.Fatalf("err %v, want entry %d", err, tt.chosen)
			}
			if err == nil && got.Digest != tt.entries[tt.chosen].Digest {
				t.Errorf("got %+v, want entry %d", got, tt.chosen)
			}
		})
	}
}

func TestFetchIndexBringsOnlyThisPlatform(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	mine, other := r.image(content(8, 100)), r.image(content(9, 100))
	mine.Platform, other.Platform = &Platform{OS: "linux", Architecture: "amd64"}, &Platform{OS: "linux", Architecture: "arm64"}
	index := r.addJSON(map[string]any{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []Descriptor{other, mine}})
	tree, err := fetcher(t, s, r).Image(t.Context(), Image{Digest: index.Digest}, nil)
	must(t, err)
	if tree.Manifest.Digest != mine.Digest || s.Has(other.Digest) {
		t.Error("fetched another platform")
	}
	if !s.Complete(index.Digest, Platform{"linux", "amd64", ""}) || s.Complete(index.Digest, Platform{"linux", "arm64", ""}) {
		t.Error("Complete is wrong")
	}
	must(t, s.Delete(tree.Layers[0].Digest))
	if s.Complete(index.Digest, Platform{"linux", "amd64", ""}) {
		t.Error("complete without a layer")
	}
}

func TestFetchRefusesLyingManifests(t *testing.T) {
	d := Descriptor{Digest: DigestOf(nil), Size: 0}
	nested := func(r *remote, n int) Descriptor {
		m := r.image()
		for range n {
			m = r.addJSON(map[string]any{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": []Descriptor{m}})
		}
		return m
	}
	tests := []struct {
		name string
		make func(*remote) Descriptor
	}{
		{"ErrNotJSON", func(r *remote) Descriptor { return r.add([]byte("<html>")) }},
		{"ErrSchema1", func(r *remote) Descriptor { return r.addJSON(map[string]any{"schemaVersion": 1}) }},
		{"ErrBothAtOnce", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "manifests": []Descriptor{d}, "config": d, "layers": []Descriptor{d}})
		}},
		{"ErrTypeDoesNotFit", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "mediaType": typeOCIIndex, "config": d})
		}},
		{"ErrUnknownType", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "mediaType": "text/html", "config": d})
		}},
		{"ErrDigestEscapes", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "config": Descriptor{Digest: "sha256:../../../etc/passwd"}})
		}},
		{"ErrNegativeSize", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "config": Descriptor{Digest: d.Digest, Size: -1}})
		}},
		{"ErrTooManyLayers", func(r *remote) Descriptor {
			return r.addJSON(map[string]any{"schemaVersion": 2, "config": d, "layers": make([]Descriptor, 5000)})
		}},
		{"ErrDeep", func(r *remote) Descriptor { return nested(r, maxNesting+1) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newRemote(t), newStore(t)
			m := tt.make(r)
			if _, err := fetcher(t, s, r).Tree(t.Context(), Image{Digest: m.Digest}); err == nil {
				t.Error("taken")
			}
			police(t, s)
		})
	}
	r, s := newRemote(t), newStore(t)
	_, err := fetcher(t, s, r).Tree(t.Context(), Image{Digest: nested(r, maxNesting).Digest})
	must(t, err)
}

func TestFetchStopsWhenTheDiskIsFull(t *testing.T) {
	r := newRemote(t)
	s, err := OpenStore(t.TempDir(), 10_000)
	must(t, err)
	m := r.image(content(10, 20_000))
	_, err = fetcher(t, s, r).Image(t.Context(), Image{Digest: m.Digest}, nil)
	wantErr(t, err, ErrQuota)
	police(t, s)
}

func TestReferences(t *testing.T) {
	h := string(DigestOf(nil))
	for in, want := range map[string]Reference{
		"nginx":                          {"docker.io", "library/nginx", "latest", ""},
		"nginx:1.27":                     {"docker.io", "library/nginx", "1.27", ""},
		"shop/pos:4":                     {"docker.io", "shop/pos", "4", ""},
		"index.docker.io/library/x:1":    {"docker.io", "library/x", "1", ""},
		"localhost/x:1":                  {"localhost", "x", "1", ""},
		"localhost:5000/a/b:c":           {"localhost:5000", "a/b", "c", ""},
		"r.example/a/b@" + h:             {"r.example", "a/b", "", Digest(h)},
		"r.example:5000/a/b:v1.2@" + h:   {"r.example:5000", "a/b", "v1.2", Digest(h)},
		"registry.example.com/a_b-c/d.e": {"registry.example.com", "a_b-c/d.e", "latest", ""},
	} {
		got, err := ParseReference(in)
		if err != nil || got != want {
			t.Errorf("ParseReference(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", ":", "a:", "@", "a@sha256:0", "a//b", "a/../b", "/a", "a/", "a b", "r.example/A:1", "r.example:x/a", "a:b:c", "-a", "a/-b", "x.y:/a"} {
		if got, err := ParseReference(bad); err == nil {
			t.Errorf("ParseReference(%q) is taken as %+v", bad, got)
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"nginx", "r.example:5000/a/b:v1@" + string(DigestOf(nil)), "localhost/x", "a/b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		spelt := r.Name()
		if r.Tag != "" {
			spelt = r.Tagged()
		}
		if r.Digest != "" {
			spelt += "@" + string(r.Digest)
		}
		again, err := ParseReference(spelt)
		if err != nil || again != r {
			t.Errorf("%q is spelt %q, which reads as %+v, %v", s, spelt, again, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	d := string(DigestOf(nil))
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"` + d + `","size":3},"layers":[]}`))
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[{"digest":"` + d + `","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := walk(DigestOf(data), Platform{"linux", "amd64", ""}, func(d Descriptor) ([]byte, error) {
			if d.Size < 0 {
				return data, nil
			}
			return nil, errors.New("end")
		})
		if err != nil {
			return
		}
		for _, b := range tree.Blobs() {
			if _, err := ParseDigest(string(b.Digest)); err != nil || b.Size < 0 {
				t.Errorf("%+v got through", b)
			}
		}
	})
}
