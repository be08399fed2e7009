package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/push"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// hubAddresses are host:port of the hubs to talk to: --hub, or HOLDFAST_HUB, or
// the lab that runs for this clone, or what fleet.yaml names.
func (e *env) hubAddresses(gitDir string, f *fleet.Fleet) ([]string, error) {
	if e.hub != "" {
		return []string{e.hub}, nil
	}
	if h := os.Getenv("HOLDFAST_HUB"); h != "" {
		return []string{h}, nil
	}
	if h, ok := labHub(gitDir); ok {
		return []string{h}, nil
	}
	var list []string
	for _, h := range f.Hubs {
		u, err := url.Parse(h.URL)
		if err != nil {
			return nil, fmt.Errorf("fleet.yaml: hub %q: %w", h.URL, err)
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		list = append(list, net.JoinHostPort(u.Hostname(), port))
	}
	if len(list) == 0 {
		return nil, hint(errors.New("fleet.yaml names no hub"), "add one below spec.hubs, or name it with --hub HOST:PORT")
	}
	return list, nil
}

// hubPins are the keys that trust.yaml pins for hubs.
func hubPins(t *fleet.Trust) ([]link.Pin, error) {
	var pins []link.Pin
	for _, h := range t.Hubs {
		pin, err := link.ParsePin(h.Pin)
		if err != nil {
			return nil, fmt.Errorf("trust.yaml: hub key %s: %w", h.Name, err)
		}
		pins = append(pins, pin)
	}
	return pins, nil
}

// clientIdentity is this person's TLS key for a fleet: sessions are bound to it.
func clientIdentity(id fleet.ID) (*link.Identity, error) {
	dir, err := notes(id)
	if err != nil {
		return nil, err
	}
	key, err := link.LoadOrCreateKey(filepath.Join(dir, "client.key"))
	if err != nil {
		return nil, err
	}
	return link.NewIdentity(key)
}

// dialHub opens a client to a hub; a nil signer opens no session.
func (e *env) dialHub(ctx context.Context, f *fleet.Fleet, address string, signer ssh.Signer, roles ...string) (*operator.Client, error) {
	pins, err := hubPins(f.Trust)
	if err != nil {
		return nil, err
	}
	identity, err := clientIdentity(f.ID)
	if err != nil {
		return nil, err
	}
	c, err := operator.Open(ctx, operator.ClientConfig{
		Fleet: f.ID, Signer: signer, Roles: roles,
		Dial: link.DialConfig{Address: address, Identity: identity, Pins: pins},
	})
	return c, unreachable(err, "the hub at "+address)
}

// unreachable turns a failed dial into an error that says what to look at.
func unreachable(err error, whom string) error {
	if err == nil {
		return nil
	}
	var refusal *wire.Refusal
	switch {
	case errors.As(err, &refusal):
		return coded(CodeRefused, fmt.Errorf("%s: %w", whom, err))
	case errors.Is(err, link.ErrPin):
		return hint(coded(CodeRefused, fmt.Errorf("%s is not the hub that trust.yaml pins: %w", whom, err)), "see that the address is right; if the hub has a new key, trust.yaml must name it first")
	case errors.Is(err, context.Canceled):
		return err
	}
	return hint(coded(CodeUnreachable, fmt.Errorf("%s does not answer: %w", whom, err)), "see that it runs (holdfast lab status, or the hub's own log) and that --hub or fleet.yaml names its address")
}

// anyHub opens a client to the first hub that answers.
func (e *env) anyHub(ctx context.Context, r *repo, f *fleet.Fleet, signer ssh.Signer, roles ...string) (*operator.Client, error) {
	addresses, err := e.hubAddresses(r.GitDir(), f)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, a := range addresses {
		c, err := e.dialHub(ctx, f, a, signer, roles...)
		if err == nil {
			return c, nil
		}
		faults = append(faults, err)
	}
	return nil, errors.Join(faults...)
}

// deliver pushes the tag to origin, where there is one, and hands the release
// to every hub. All of it can be done again.
func (e *env) deliver(ctx context.Context, r *repo, t *release.Tag, answer *released) error {
	name := release.TagName(t.Payload.N)
	if origin, err := r.Config(ctx, "remote.origin.url"); err != nil {
		return err
	} else if origin != "" {
		if err := r.Push(ctx, "origin", "refs/tags/"+name); err != nil {
			if errors.Is(err, git.ErrRace) {
				return hint(err, "somebody released %d before you: git tag -d %s && git fetch --tags, rebase, and run again", t.Payload.N, name)
			}
			return hint(err, "%s is signed and kept here: run holdfast release again when the remote answers", name)
		}
		answer.Pushed = "origin"
		if e.output != "json" {
			e.printf("pushed %s to origin\n", name)
		}
	}
	return e.handOver(ctx, r, t, answer)
}

func (e *env) handOver(ctx context.Context, r *repo, t *release.Tag, answer *released) error {
	tree, err := r.Tree(ctx, "refs/tags/"+release.TagName(t.Payload.N), t.Payload.Root)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		return err
	}
	f, err := load(tree)
	if err != nil {
		return err
	}
	objects := release.Objects{}
	if _, err := release.Import(tree, objects.Add); err != nil {
		return err
	}
	addresses, err := e.hubAddresses(r.GitDir(), f)
	if err != nil {
		return err
	}
	var faults []error
	for _, a := range addresses {
		if err := e.pushTo(ctx, f, a, objects, t, answer); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) == len(addresses) && answer.Pushed == "" {
		err := errors.Join(faults...)
		if Code(err) == CodeRefused {
			return hint(err, "machines judge as the hub does; if the tag is a mistake: git tag -d %s", release.TagName(t.Payload.N))
		}
		return hint(err, "release/%d is signed and kept here: run holdfast release again when a hub answers", t.Payload.N)
	}
	for _, err := range faults {
		fmt.Fprintf(e.err, "holdfast: %v\n", err)
	}
	// Not before: of two that sign N at the same moment one must forget his own.
	return raiseAnchor(t)
}

func (e *env) pushTo(ctx context.Context, f *fleet.Fleet, address string, objects release.Objects, t *release.Tag, answer *released) error {
	c, err := e.dialHub(ctx, f, address, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	result, err := push.Release(ctx, c.HTTP, strings.TrimSuffix(c.URL("/"), "/"), objects, t.Raw)
	if refusal, taken := wire.AsRefusal(err, http.StatusConflict); taken {
		return hint(coded(CodeRefused, fmt.Errorf("the hub at %s has another release %d: %s", address, t.Payload.N, refusal.Reason)),
			"fetch it (git fetch --tags) and release again on top of it")
	}
	if err != nil {
		return unreachable(err, "the hub at "+address)
	}
	answer.Hubs = append(answer.Hubs, address)
	if e.output != "json" {
		e.printf("the hub at %s has release/%d (%s, %d objects)\n", address, t.Payload.N, size(result.Sent), result.Count)
	}
	return nil
}
