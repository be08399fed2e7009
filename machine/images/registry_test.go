package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRegistry(t *testing.T) {
	r, s := newRemote(t), newStore(t)
	layer := content(1, 1000)
	m := r.image(layer)
	_, err := fetcher(t, s, r).Image(t.Context(), Image{Digest: m.Digest}, nil)
	must(t, err)
	reg := &Registry{Store: s}
	must(t, reg.SetTable([]Image{{"r.example:5000/shop/pos:4", m.Digest}, {"nginx", m.Digest}, {"r.example/only@" + string(m.Digest), m.Digest}}))
	manifest, blob := "/manifests/"+string(m.Digest), "/blobs/"+string(DigestOf(layer))
	absent := string(DigestOf([]byte("absent")))
	accept := strings.Join([]string{typeDockerManifest, typeDockerList, typeOCIManifest, typeOCIIndex, "*/*"}, ", ")

	tests := []struct {
		name, method, path string
		header             http.Header
		status             int
		want               map[string]string // headers
		code               string
		body               []byte
	}{
		{name: "Version", path: "/v2/", status: 200, want: map[string]string{"Docker-Distribution-Api-Version": "registry/2.0"}},
		{name: "VersionNoSlash", path: "/v2", status: 200},
		{name: "HeadManifest", method: "HEAD", path: "/v2/shop/pos" + manifest + "?ns=r.example", header: http.Header{"Accept": {accept}}, status: 200,
			want: map[string]string{"Content-Type": typeOCIManifest, "Docker-Content-Digest": string(m.Digest)}},
		{name: "GetManifest", path: "/v2/shop/pos" + manifest, status: 200, want: map[string]string{"Content-Type": typeOCIManifest}, body: r.content[m.Digest]},
		{name: "AnyRepositoryByDigest", path: "/v2/other/name" + manifest, status: 200},
		{name: "Tag", method: "HEAD", path: "/v2/shop/pos/manifests/4?ns=r.example:5000", status: 200, want: map[string]string{"Docker-Content-Digest": string(m.Digest)}},
		{name: "TagOfDockerHub", path: "/v2/library/nginx/manifests/latest?ns=docker.io", status: 200, body: r.content[m.Digest]},
		{name: "ErrTagNotInTheTable", path: "/v2/shop/pos/manifests/5?ns=r.example:5000", status: 404, code: "MANIFEST_UNKNOWN"},
		{name: "ErrTagOfAnotherRegistry", path: "/v2/shop/pos/manifests/4?ns=evil.example", status: 404, code: "MANIFEST_UNKNOWN"},
		{name: "ErrTagWithoutRegistry", path: "/v2/shop/pos/manifests/4", status: 404, code: "MANIFEST_UNKNOWN"},
		{name: "ErrManifestUnknown", path: "/v2/shop/pos/manifests/" + absent, status: 404, code: "MANIFEST_UNKNOWN"},
		{name: "ErrLayerIsNoManifest", path: "/v2/shop/pos/manifests/" + string(DigestOf(layer)), status: 404, code: "MANIFEST_UNKNOWN"},
		{name: "HeadBlob", method: "HEAD", path: "/v2/shop/pos" + blob, status: 200, want: map[string]string{"Content-Length": "1000", "Accept-Ranges": "bytes"}},
		{name: "GetBlob", path: "/v2/shop/pos" + blob, status: 200, want: map[string]string{"Content-Type": "application/octet-stream", "Docker-Content-Digest": string(DigestOf(layer))}, body: layer},
		{name: "Range", path: "/v2/shop/pos" + blob, header: http.Header{"Range": {"bytes=990-"}}, status: 206, want: map[string]string{"Content-Range": "bytes 990-999/1000"}, body: layer[990:]},
		{name: "ErrRange", path: "/v2/shop/pos" + blob, header: http.Header{"Range": {"bytes=1000-"}}, status: 416},
		{name: "ErrBlobUnknown", path: "/v2/shop/pos/blobs/" + absent, status: 404, code: "BLOB_UNKNOWN"},
		{name: "ErrBlobDigest", path: "/v2/shop/pos/blobs/sha256:..%2f..%2fx", status: 400, code: "DIGEST_INVALID"},
		{name: "ErrPush", method: "POST", path: "/v2/shop/pos/blobs/uploads/", status: 405, code: "UNSUPPORTED"},
		{name: "ErrDelete", method: "DELETE", path: "/v2/shop/pos" + manifest, status: 405, code: "UNSUPPORTED"},
		{name: "ErrList", path: "/v2/shop/pos/tags/list", status: 404, code: "NAME_UNKNOWN"},
		{name: "ErrCatalog", path: "/v2/_catalog", status: 404, code: "NAME_UNKNOWN"},
		{name: "ErrName", path: "/v2/Shop/pos" + manifest, status: 404, code: "NAME_INVALID"},
		{name: "ErrElsewhere", path: "/", status: 404, code: "NAME_UNKNOWN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = "GET"
			}
			req := httptest.NewRequest(tt.method, tt.path, nil)
			for k, v := range tt.header {
				req.Header[k] = v
			}
			rec := httptest.NewRecorder()
			reg.ServeHTTP(rec, req)
			resp := rec.Result()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status {
				t.Fatalf("status %d, want %d: %s", resp.StatusCode, tt.status, body)
			}
			for k, v := range tt.want {
				if got := resp.Header.Get(k); got != v {
					t.Errorf("%s: %q, want %q", k, got, v)
				}
			}
			if tt.body != nil && !bytes.Equal(body, tt.body) {
				t.Errorf("body of %d bytes, want %d", len(body), len(tt.body))
			}
			if tt.code != "" {
				var e struct {
					Errors []struct{ Code, Message string }
				}
				if err := json.Unmarshal(body, &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != tt.code || e.Errors[0].Message == "" {
					t.Errorf("body %s, want code %s", body, tt.code)
				}
			}
		})
	}
}

func TestRegistryPullsThrough(t *testing.T) {
	data := content(2, 100)
	s := newStore(t)
	asked, fault := 0, error(nil)
	reg := &Registry{Store: s, Fetch: func(ctx context.Context, d Digest) error {
		asked++
		if fault != nil {
			return fault
		}
		return s.Put(ctx, d, data)
	}}
	get := func() int {
		rec := httptest.NewRecorder()
		reg.ServeHTTP(rec, httptest.NewRequest("GET", "/v2/a/blobs/"+string(DigestOf(data)), nil))
		return rec.Code
	}
	var got []int
	fault = errors.New("uplink is dead")
	got = append(got, get())
	fault = ErrNotFound
	got = append(got, get())
	fault = nil
	got = append(got, get(), get())
	if diff := cmp.Diff([]int{503, 404, 200, 200}, got); diff != "" || asked != 3 {
		t.Errorf("asked %d times, answers (-want +got):\n%s", asked, diff)
	}
}

func TestTableRefusesTwoMeanings(t *testing.T) {
	reg := &Registry{}
	if err := reg.SetTable([]Image{{"nginx:1", DigestOf(nil)}, {"docker.io/library/nginx:1", DigestOf([]byte("x"))}}); err == nil {
		t.Error("one tag with two digests is taken")
	}
	if err := reg.SetTable([]Image{{"not a name", DigestOf(nil)}}); err == nil {
		t.Error("a name that is none is taken")
	}
}
