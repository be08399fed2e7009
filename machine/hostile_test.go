package machine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// enemy is a hub in an attacker's hands: it has the key that machines pin, and
// sends them what it likes.
type enemy struct {
	t        testing.TB
	listener net.Listener
	sessions chan link.Session // control, once the machine has said hello

	mu   sync.Mutex   // guards what follows
	bulk http.Handler // answers GET /v1/slice
}

func newEnemy(t testing.TB, key *link.Identity) *enemy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &enemy{t: t, listener: l, sessions: make(chan link.Session, 8)}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	config := link.ServerTLS(key, string(link.Control), string(link.Bulk), string(link.Relay))
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				secure, err := link.Handshake(ctx, conn, config)
				if err != nil {
					return
				}
				if s, err := link.Serve(secure); err == nil {
					defer s.Close()
					link.ServeHTTP(ctx, s, e)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); cancel(); work.Wait() })
	return e
}

func (e *enemy) addr() string { return e.listener.Addr().String() }

func (e *enemy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.PathHello:
		wire.Write(w, http.StatusOK, &wire.HelloReply{Capability: 1, Listed: true, Site: "de-00001"})
		if s, ok := link.SessionFrom(r.Context()); ok {
			e.sessions <- s
		}
	case wire.PathReport:
		w.WriteHeader(http.StatusNoContent)
	case wire.PathSlice:
		e.mu.Lock()
		bulk := e.bulk
		e.mu.Unlock()
		bulk.ServeHTTP(w, r)
	}
}

// put hands the machine a body; dictionary is what the header says of it.
func put(t testing.TB, client *http.Client, body io.Reader, header, value string) error {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+link.Host+wire.PathSlice, body)
	if err != nil {
		t.Fatal(err)
	}
	if header != "" {
		r.Header.Set(header, value)
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	return wire.Answer(resp, nil)
}

// kept is all that the machine remembers, as bytes.
func (a *agent) kept() map[string]string {
	a.t.Helper()
	all := map[string]string{}
	for _, dir := range []string{a.memory.public, a.memory.state} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			a.t.Fatal(err)
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				a.t.Fatal(err)
			}
			all[e.Name()] = string(data)
		}
	}
	return all
}

// same checks that the machine remembers what it remembered before.
func (a *agent) same(before map[string]string) {
	a.t.Helper()
	after := a.kept()
	for name := range after {
		if after[name] != before[name] {
			a.t.Errorf("%s changed or came", name)
		}
	}
	for name := range before {
		if _, ok := after[name]; !ok {
			a.t.Errorf("%s is gone", name)
		}
	}
}

// attacked is a machine at release 3 with a hostile hub, in a fleet where the
// signer temp has expired.
func attacked(t testing.TB) (*world, *enemy, *agent, *http.Client) {
	t.Helper()
	w := newWorld(t, 12)
	w.trust(1, []string{"ops"}, "ci", "temp until="+day0.Add(150*time.Minute).Format(time.RFC3339))
	w.seed.Trust = w.files["trust.yaml"]
	e := newEnemy(t, w.hubKey)
	a := w.agent(t, t.TempDir(), e.addr())
	w.adopt(1, a.identity.ID())
	client := link.Client((<-e.sessions).Open, 0)
	for range 3 {
		w.release()
		takes(t, w, a, client)
	}
	return w, e, a, client
}

// takes checks that the machine takes the last release, against the slice that it has.
func takes(t testing.TB, w *world, a *agent, client *http.Client) {
	t.Helper()
	dictionary, held, _ := (&uplink{Machine: a.Machine}).dictionary("")
	header := ""
	if accepted, _ := a.memory.now(); accepted != nil {
		header, dictionary = wire.DictionaryHeader, accepted.Encoded
	}
	body := release.Compress(w.slice(1).Encode(), dictionary)
	if err := put(t, client, bytes.NewReader(body), header, wire.DictionaryName(held)); err != nil {
		t.Fatalf("a valid release was refused: %v", err)
	}
	a.t = t
	a.waitRelease(w.last.Payload.N)
	if strings.Contains(a.screen(), "refused") {
		t.Errorf("the console still tells of a refusal:\n%s", a.screen())
	}
}

// packed is a body that stands alone.
func packed(s *release.Slice) []byte { return release.Compress(s.Encode(), nil) }

// resigned is the last slice with its tag made anew.
func (w *world) resigned(edit func(payload []byte) []byte) []byte {
	w.release()
	s := w.slice(1)
	s.Tag = edit(bytes.Clone(w.last.PayloadBytes))
	return packed(s)
}

func (w *world) sliced(edit func(s *release.Slice)) []byte {
	w.release()
	s := w.slice(1)
	edit(s)
	return packed(s)
}

// object finds the id of a file in the last release's tree.
func (w *world) object(name string) release.ObjectID {
	return release.HashObject(release.KindBlob, w.files[name])
}

// What a hostile hub may send over the control session. Each is refused by name,
// the machine remembers nothing of it, and takes a valid release right after.
func TestHostileHub(t *testing.T) {
	w, _, a, client := attacked(t)
	site := fleetgen.SiteDir(1) + "/site.yaml"
	for _, c := range []struct {
		name string
		want error
		evil func(w *world) []byte
	}{
		{"forged", release.ErrSigner, func(w *world) []byte {
			old := w.last.Signature
			return w.resigned(func(p []byte) []byte { return append(p, old...) })
		}},
		{"unsigned", release.ErrUnsigned, func(w *world) []byte { return w.resigned(func(p []byte) []byte { return p }) }},
		{"unsigned tail", release.ErrUnsigned, func(w *world) []byte {
			return w.sliced(func(s *release.Slice) { s.Tag = append(bytes.Clone(s.Tag), "Root: evil\n"...) })
		}},
		{"wrong signer", release.ErrSigner, func(w *world) []byte { w.releaseWith(nil, "stranger"); return packed(w.slice(1)) }},
		{"expired signer", release.ErrExpired, func(w *world) []byte { w.releaseWith(nil, "temp"); return packed(w.slice(1)) }},
		{"expired signer with an old time", release.ErrExpired, func(w *world) []byte {
			w.releaseWith(func(p *release.Payload) { p.Time = day0.Add(2 * time.Hour) }, "temp")
			return packed(w.slice(1))
		}},
		{"wrong fleet", release.ErrFleet, func(w *world) []byte {
			w.releaseWith(func(p *release.Payload) { p.FleetID = fleet.ID(strings.Repeat("ab", 16)) }, "ci")
			return packed(w.slice(1))
		}},
		{"old number", release.ErrOld, func(w *world) []byte {
			w.releaseWith(func(p *release.Payload) { p.N = 1 }, "ci")
			return packed(w.slice(1))
		}},
		{"same number, other digest", release.ErrFork, func(w *world) []byte {
			w.releaseWith(func(p *release.Payload) { p.N-- }, "ci")
			return packed(w.slice(1))
		}},
		{"time falls", release.ErrTime, func(w *world) []byte {
			w.releaseWith(func(p *release.Payload) { p.Time = day0 }, "ci")
			return packed(w.slice(1))
		}},
		{"trust by a thief", release.ErrTrustStep, func(w *world) []byte {
			w.trust(2, nil, "thief")
			w.releaseWith(nil, "thief")
			return packed(w.slice(1))
		}},
		{"another site's slice", release.ErrNotMine, func(w *world) []byte { w.release(); return packed(w.slice(2)) }},
		{"another site's slice under this one's name", release.ErrObjectMissing, func(w *world) []byte {
			w.release()
			s := w.slice(2)
			s.SiteDir = fleetgen.SiteDir(1)
			return packed(s)
		}},
		{"mixed from two releases", release.ErrAltered, func(w *world) []byte {
			w.release()
			old := w.slice(1)
			w.city(1, "Mixed")
			return w.sliced(func(s *release.Slice) { s.Objects = old.Objects })
		}},
		{"object missing", release.ErrObjectMissing, func(w *world) []byte {
			return w.sliced(func(s *release.Slice) { delete(s.Objects, w.object(site)) })
		}},
		{"object extra", release.ErrObjectExtra, func(w *world) []byte {
			return w.sliced(func(s *release.Slice) {
				s.Objects = maps.Clone(s.Objects)
				s.Objects[release.HashObject(release.KindBlob, []byte("stowaway"))] = release.Object{Kind: release.KindBlob, Data: []byte("stowaway")}
			})
		}},
		{"altered", release.ErrAltered, func(w *world) []byte {
			return w.sliced(func(s *release.Slice) {
				s.Objects = maps.Clone(s.Objects)
				delete(s.Objects, w.object(site))
				evil := append(bytes.Clone(w.files[site]), "# evil\n"...)
				s.Objects[release.HashObject(release.KindBlob, evil)] = release.Object{Kind: release.KindBlob, Data: evil}
			})
		}},
		{"truncated", release.ErrTruncated, func(w *world) []byte {
			w.release()
			plain := w.slice(1).Encode()
			return release.Compress(plain[:len(plain)/2], nil)
		}},
		{"truncated below", release.ErrGrammar, func(w *world) []byte {
			w.release()
			b := packed(w.slice(1))
			return b[:len(b)/2]
		}},
		{"nothing", release.ErrGrammar, func(w *world) []byte { return nil }},
		{"no slice at all", release.ErrGrammar, func(w *world) []byte { return release.Compress([]byte("#!/bin/sh\nreboot\n"), nil) }},
		{"bomb", release.ErrOversized, func(w *world) []byte { return release.Compress(make([]byte, 64<<20), nil) }},
		{"oversized", release.ErrOversized, func(w *world) []byte { return make([]byte, largestOnControl+1) }},
		{"against another dictionary", release.ErrGrammar, func(w *world) []byte {
			w.release()
			return release.Compress(w.slice(1).Encode(), w.slice(1).Encode())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.t = t
			before, anchor := a.kept(), a.memory.anchor
			evil := w.clone()
			evil.t = t
			err := put(t, client, bytes.NewReader(c.evil(evil)), "", "")
			refusal, ok := wire.AsRefusal(err, http.StatusUnprocessableEntity)
			if errors.Is(c.want, release.ErrOversized) && !ok {
				refusal, ok = wire.AsRefusal(err, http.StatusRequestEntityTooLarge)
			}
			if !ok || !strings.Contains(refusal.Reason, c.want.Error()) {
				t.Errorf("got %v, want a refusal with %q", err, c.want)
			}
			a.same(before)
			if a.memory.anchor != anchor {
				t.Errorf("a refusal changed the anchor to %+v", a.memory.anchor)
			}
			w.release()
			takes(t, w, a, client)
		})
	}
}

// The hub claims a dictionary that is not here: the machine says which one it
// has, and judges nothing.
func TestErrDictionary(t *testing.T) {
	w, _, a, client := attacked(t)
	before := a.kept()
	w.release()
	_, held, _ := (&uplink{Machine: a.Machine}).dictionary("")
	err := put(t, client, bytes.NewReader(packed(w.slice(1))), wire.DictionaryHeader, strings.Repeat("ab", 8))
	refusal, ok := wire.AsRefusal(err, http.StatusConflict)
	if !ok || refusal.Have != held {
		t.Errorf("got %v, want 409 with %s", err, held)
	}
	err = put(t, client, bytes.NewReader(release.Compress(w.slice(1).Encode(), w.slice(2).Encode())), wire.DictionaryHeader, held)
	if refusal, ok := wire.AsRefusal(err, http.StatusUnprocessableEntity); !ok || !strings.Contains(refusal.Reason, release.ErrDictionary.Error()) {
		t.Errorf("made against another: got %v, want ErrDictionary", err)
	}
	a.same(before)
	takes(t, w, a, client)
}

// A hub that drips a slice keeps nobody waiting: others on the same session go
// past, and the end of the drip is judged like any.
func TestDripped(t *testing.T) {
	w, _, a, client := attacked(t)
	var drips []*io.PipeWriter
	var answers []chan error
	for range 8 {
		r, pipe := io.Pipe()
		answer := make(chan error, 1)
		go func() { answer <- put(t, client, r, "", "") }()
		if _, err := pipe.Write([]byte{0x28, 0xb5, 0x2f}); err != nil {
			t.Fatal(err)
		}
		drips, answers = append(drips, pipe), append(answers, answer)
	}
	w.release()
	takes(t, w, a, client)
	for i := range drips {
		drips[i].Close()
		if err := <-answers[i]; err == nil || !strings.Contains(err.Error(), release.ErrGrammar.Error()) {
			t.Errorf("drip %d: got %v, want ErrGrammar", i, err)
		}
	}
	w.release()
	takes(t, w, a, client)
}

// The same on bulk, where a slice may be large.
func TestHostileBulk(t *testing.T) {
	w, e, a, client := attacked(t)
	for _, c := range []struct {
		name string
		want error
		evil func(w *world) http.HandlerFunc
	}{
		{"wrong signer", release.ErrSigner, func(w *world) http.HandlerFunc {
			w.releaseWith(nil, "stranger")
			return func(rw http.ResponseWriter, _ *http.Request) { rw.Write(packed(w.slice(1))) }
		}},
		{"another site's slice", release.ErrNotMine, func(w *world) http.HandlerFunc {
			w.release()
			return func(rw http.ResponseWriter, _ *http.Request) { rw.Write(packed(w.slice(2))) }
		}},
		{"bomb", release.ErrOversized, func(w *world) http.HandlerFunc {
			return func(rw http.ResponseWriter, _ *http.Request) { rw.Write(release.Compress(make([]byte, 64<<20), nil)) }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.t = t
			before := a.kept()
			evil := w.clone()
			evil.t = t
			e.answer(c.evil(evil))
			if err := put(t, client, nil, sliceHeader, strings.Repeat("ab", 32)); err != nil {
				t.Fatal(err)
			}
			a.wait("a refusal", func(r wire.Report) bool {
				return len(r.Conditions) == 1 && strings.Contains(r.Conditions[0].Detail, c.want.Error())
			})
			a.same(before)
			w.release()
			good := packed(w.slice(1))
			e.answer(func(rw http.ResponseWriter, _ *http.Request) { rw.Write(good) })
			if err := put(t, client, nil, sliceHeader, strings.Repeat("ab", 32)); err != nil {
				t.Fatal(err)
			}
			a.waitRelease(w.last.Payload.N)
		})
	}
}

func (e *enemy) answer(f http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bulk = f
}

// A hub whose key nobody pinned is not spoken to.
func TestErrPin(t *testing.T) {
	w := newWorld(t, 12)
	e := newEnemy(t, linktest.NewIdentity(t))
	a := w.agent(t, t.TempDir(), e.addr())
	a.waitScreen("not pinned")
	select {
	case <-e.sessions:
		t.Error("it said hello")
	default:
	}
}

// A disk that takes nothing is no refusal: the hub is to try again.
func TestFullDiskOverTheLink(t *testing.T) {
	w, _, a, client := attacked(t)
	a.memory.mu.Lock()
	a.memory.disk = rim{func(string, []byte, os.FileMode) error { return errors.New("no space left on device") }, unsynced.remove}
	a.memory.mu.Unlock()
	w.release()
	err := put(t, client, bytes.NewReader(packed(w.slice(1))), "", "")
	if refusal, ok := wire.AsRefusal(err, http.StatusServiceUnavailable); !ok || !strings.Contains(refusal.Reason, "no space left") {
		t.Errorf("got %v, want 503 with the reason", err)
	}
	a.memory.mu.Lock()
	a.memory.disk = onDisk
	a.memory.mu.Unlock()
	takes(t, w, a, client)
}
