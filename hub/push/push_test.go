package push

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// hub answers POST /v1/missing with what answer makes of the ids.
func hub(t *testing.T, answer func(ids []byte) (int, []byte)) string {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ids := make([]byte, r.ContentLength)
		r.Body.Read(ids)
		status, body := answer(ids)
		w.WriteHeader(status)
		w.Write(body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func tree() (release.Objects, release.ObjectID) {
	objects := release.Objects{}
	blob := release.Object{Kind: release.KindBlob, Data: []byte("x")}
	objects[blob.ID()] = blob
	root := release.Object{Kind: release.KindTree, Data: release.EncodeTree([]release.Entry{{Mode: release.ModeFile, Name: "a", ID: blob.ID()}, {Mode: release.ModeFile, Name: "b", ID: blob.ID()}})}
	objects[root.ID()] = root
	return objects, root.ID()
}

func TestNegotiate(t *testing.T) {
	objects, root := tree()
	asked := 0
	all := hub(t, func(ids []byte) (int, []byte) { asked += len(ids) / 32; return 200, ids })
	got, err := negotiate(t.Context(), http.DefaultClient, all, objects, root)
	if err != nil || len(got) != 2 || asked != 2 {
		t.Errorf("an empty hub lacks %d of 2 (%v), %d were asked for", len(got), err, asked)
	}
	none := hub(t, func([]byte) (int, []byte) { return 200, nil })
	if got, err := negotiate(t.Context(), http.DefaultClient, none, objects, root); err != nil || len(got) != 0 {
		t.Errorf("a full hub lacks %v, %v", got, err)
	}
	t.Run("ErrUnasked", func(t *testing.T) {
		for _, answer := range [][]byte{make([]byte, 32), make([]byte, 31), append(append([]byte{}, root[:]...), root[:]...)} {
			url := hub(t, func([]byte) (int, []byte) { return 200, answer })
			if _, err := negotiate(t.Context(), http.DefaultClient, url, objects, root); !errors.Is(err, errBadAnswer) {
				t.Errorf("%d bytes: err = %v", len(answer), err)
			}
		}
	})
	t.Run("ErrMissingHere", func(t *testing.T) {
		delete(objects, root)
		if _, err := negotiate(t.Context(), http.DefaultClient, all, objects, root); !errors.Is(err, release.ErrObjectMissing) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("ErrHubRefuses", func(t *testing.T) {
		url := hub(t, func([]byte) (int, []byte) { return 503, []byte(`{"reason":"busy"}`) })
		_, err := negotiate(t.Context(), http.DefaultClient, url, objects, root)
		if _, ok := wire.AsRefusal(err, 503); !ok || !strings.Contains(err.Error(), "busy") {
			t.Errorf("err = %v", err)
		}
	})
}

func TestErrUnsignedTag(t *testing.T) {
	if _, err := Release(t.Context(), http.DefaultClient, "https://nowhere", release.Objects{}, []byte("tag")); !errors.Is(err, release.ErrUnsigned) {
		t.Errorf("err = %v", err)
	}
}
