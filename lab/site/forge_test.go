//go:build site

package site

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/push"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// testForged pushes a next release that is right in everything but its signer.
func (s *shop) testForged(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	repo, err := git.Open(ctx, s.Fleet)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := repo.ReadTag(ctx, release.TagName(s.head))
	if err != nil {
		t.Fatal(err)
	}
	last, err := release.ParseTag(raw)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := repo.Tree(ctx, "refs/tags/"+release.TagName(s.head), last.Payload.Root)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	objects := release.Objects{}
	root, err := release.Import(tree, objects.Add)
	if err != nil {
		t.Fatal(err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mallory, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := last.Payload
	p.N, p.Previous, p.TreeSHA256, p.Message = p.N+1, last.Digest(), root, "mallory was here"
	forged, err := release.SignTag(p, mallory)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	client := s.stranger(t, f)
	defer client.Close()
	_, err = push.Release(ctx, client.HTTP, strings.TrimSuffix(client.URL("/"), "/"), objects, forged)
	if _, refused := wire.AsRefusal(err, http.StatusForbidden); !refused {
		t.Errorf("a forged release got %v from the hub, want 403", err)
	}
	if err := s.well(); err != nil {
		t.Errorf("after a forged release: %v", err)
	}
	s.answers(t)
}

// stranger speaks to the hub without any session.
func (s *shop) stranger(t *testing.T, f *fleet.Fleet) *operator.Client {
	t.Helper()
	key, err := link.LoadOrCreateKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	identity, err := link.NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	var pins []link.Pin
	for _, h := range f.Trust.Hubs {
		pin, err := link.ParsePin(h.Pin)
		if err != nil {
			t.Fatal(err)
		}
		pins = append(pins, pin)
	}
	client, err := operator.Open(t.Context(), operator.ClientConfig{Fleet: f.ID, Dial: link.DialConfig{Address: s.Hub, Identity: identity, Pins: pins}})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
