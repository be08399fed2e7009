package hub

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/hub/quarantine"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

func TestReleaseReachesMachines(t *testing.T) {
	w := newWorld(t, 12)
	one, two := linktest.NewIdentity(t), linktest.NewIdentity(t)
	w.adopt(0, one.ID())
	w.adopt(1, two.ID())
	r := w.hub(t)
	first := w.release()
	res := r.mustPush(first)
	if !res.New || res.Head.N != 1 || res.Count == 0 {
		t.Fatalf("result = %+v", res)
	}
	a, b := r.machine(one), r.machine(two)
	a.waitRelease(1)
	b.waitRelease(1)
	a.wait("be greeted", func() bool { return a.reply.Capability > 0 }) // the release may be faster
	if a.reply.Site != w.siteName(0) || !a.reply.Listed {
		t.Errorf("reply = %+v", a.reply)
	}

	// One line that concerns one site.
	dir := fleetgen.SiteDir(0)
	w.files[dir+"/site.yaml"] = bytes.ReplaceAll(w.files[dir+"/site.yaml"], []byte("City 0"), []byte("Neustadt"))
	sentA, gotA := r.roster.find(one.ID()).bytes()
	second := w.release()
	res = r.mustPush(second)
	if res.Count > 8 {
		t.Errorf("a one-line change brought %d objects", res.Count)
	}
	a.waitRelease(2)
	b.waitRelease(2)
	a.mu.Lock()
	t.Logf("slices, packed: %v and %v bytes", a.taken, b.taken)
	if len(a.taken) != 2 || a.taken[1] > 1000 {
		t.Errorf("one-line change: %v bytes packed", a.taken)
	}
	a.mu.Unlock()
	r.waitFor("both taken", func() bool { return r.held(one.ID()) == 2 && r.held(two.ID()) == 2 })
	sent, got := r.roster.find(one.ID()).bytes()
	t.Logf("on the wire: %d out, %d in", sent-sentA, got-gotA)
	if total := sent - sentA + got - gotA; total > 1100 {
		t.Errorf("a one-line change took %d bytes on the wire", total)
	}

	t.Run("SameAgain", func(t *testing.T) {
		for _, tag := range []*release.Tag{second, first} {
			if res := r.mustPush(tag); res.New || res.Head.N != tag.Payload.N {
				t.Errorf("pushed again: %+v", res)
			}
		}
	})
	t.Run("Restart", func(t *testing.T) {
		// The hub forgets nothing: after a restart a delta is enough, on both sides.
		r.stop()
		cfg := r.cfg
		cfg.Addr, cfg.Listeners = r.addr(), nil
		again := w.start(t, cfg)
		w.files[dir+"/site.yaml"] = append(w.files[dir+"/site.yaml"], "# one more line\n"...)
		again.waitFor("both redialed", func() bool { return len(again.roster.online()) == 2 })
		again.mustPush(w.release())
		a.waitRelease(3)
		b.waitRelease(3)
		a.mu.Lock()
		defer a.mu.Unlock()
		if n := a.taken[len(a.taken)-1]; n > 1000 {
			t.Errorf("after a restart the change took %d bytes", n)
		}
		a.forget = true
	})
}

// held is the release of the slice that the hub thinks the machine holds.
func (r *running) held(id fleet.MachineID) uint64 {
	m := r.roster.find(id)
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held.n
}

func TestMachineThatLostItsSliceGetsTheWhole(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	m.update(func() { m.forget = true })
	r.mustPush(w.release())
	m.waitRelease(2)
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.taken) != 2 || m.taken[1] < 1000 {
		t.Errorf("taken %v, want the whole the second time", m.taken)
	}
}

func TestBlankDiskGetsTheWholeAgain(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	r.waitFor("it is known to hold it", func() bool { return r.held(id.ID()) == 1 })
	m.stop()
	r.machine(id).waitRelease(1)
}

func TestLargeSliceGoesByBulk(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	w.files[fleetgen.SiteDir(0)+"/patches/noise.txt"] = random(t, 100<<10)
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	r.waitFor("the report says what it holds", func() bool { return r.held(id.ID()) == 1 })
	w.files[fleetgen.SiteDir(0)+"/patches/more.txt"] = []byte("more")
	r.mustPush(w.release())
	m.waitRelease(2)
	// Once more by bulk, now against what it holds: much is new, but not all.
	r.waitFor("it is known to hold 2", func() bool { return r.held(id.ID()) == 2 })
	w.files[fleetgen.SiteDir(0)+"/patches/more.txt"] = random(t, 80<<10)
	r.mustPush(w.release())
	m.waitRelease(3)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.taken[0] < largestOnWire || m.taken[1] > 2000 || m.taken[2] < largestOnWire || m.taken[2] > 90<<10 {
		t.Errorf("taken %v", m.taken)
	}
}

func random(_ testing.TB, n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func TestReleaseRefusals(t *testing.T) {
	w := newWorld(t, 3)
	r := w.hub(t)
	one := w.release()
	r.mustPush(one)
	edited := func(edit func(*release.Payload)) *release.Tag {
		c := w.clone()
		p := c.payload()
		edit(&p)
		return c.sign(p, "ci")
	}
	for _, c := range []struct {
		name   string
		tag    *release.Tag
		status int
		word   string
	}{
		{"ErrForgedBundle", w.clone().sign(w.clone().payload(), "mallory"), 403, "not among the signers"},
		{"ErrOperatorSigns", w.clone().sign(w.clone().payload(), "ops"), 403, "not among the signers"},
		{"ErrWrongFleet", edited(func(p *release.Payload) { p.FleetID = "ffffffffffffffffffffffffffffffff" }), 403, "another fleet"},
		{"ErrFork", edited(func(p *release.Payload) { p.N, p.Previous = 1, release.Digest{} }), 409, "taken by"},
		{"ErrNotNext", edited(func(p *release.Payload) { p.Previous = release.Digest{1} }), 409, "predecessor"},
		{"ErrTimeFalls", edited(func(p *release.Payload) { p.Time = day0 }), 422, "falls"},
		{"ErrTrustDigest", edited(func(p *release.Payload) { p.TrustDigest = release.Digest{1} }), 422, "trust.yaml"},
		{"ErrTrustOld", edited(func(p *release.Payload) { p.TrustVersion = 7 }), 422, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.push(c.tag)
			refusal := wantRefusal(t, err, c.status, c.word)
			if c.name == "ErrFork" && refusal.Have != one.Digest().String() {
				t.Errorf("have = %q, want the winner %s", refusal.Have, one.Digest())
			}
		})
	}
	t.Run("ErrNumberOfPath", func(t *testing.T) {
		var b bytes.Buffer
		release.EncodeBundle(&b, w.clone().sign(w.clone().payload(), "ci").Raw, none)
		wantRefusal(t, r.put("/v1/releases/9", b.Bytes()), 422, "its tag says 2")
		wantRefusal(t, r.put("/v1/releases/x", b.Bytes()), 400)
	})
	t.Run("ErrMissingObject", func(t *testing.T) {
		c := w.clone()
		c.files["apps/new/README"] = []byte("new")
		var b bytes.Buffer
		release.EncodeBundle(&b, c.sign(c.payload(), "ci").Raw, none)
		wantRefusal(t, r.put("/v1/releases/2", b.Bytes()), 422, "missing")
	})
	t.Run("ErrTruncated", func(t *testing.T) {
		c := w.clone()
		var b bytes.Buffer
		release.EncodeBundle(&b, c.sign(c.payload(), "ci").Raw, none)
		for _, n := range []int{0, 5, 30, b.Len() - 1} {
			if err := r.put("/v1/releases/2", b.Bytes()[:n]); err == nil {
				t.Errorf("%d bytes of a bundle were taken", n)
			}
		}
		wantRefusal(t, r.put("/v1/releases/2", []byte(strings.Repeat("junk", 100))), 422, "begin")
	})
	t.Run("ErrBelowSeed", func(t *testing.T) {
		cfg := w.config(t)
		cfg.Seed.Lowest = 5
		_, err := w.start(t, cfg).push(one)
		wantRefusal(t, err, 409, "lowest")
	})
	t.Run("ErrOversize", func(t *testing.T) {
		cfg := w.config(t)
		cfg.BundleMax = 4_000
		small := w.start(t, cfg)
		_, err := small.push(one)
		wantRefusal(t, err, 413)
		if files, _ := os.ReadDir(small.spoolDir()); len(files) != 0 {
			t.Errorf("left in the spool: %v", files)
		}
	})
	t.Run("ErrTooManyIDs", func(t *testing.T) {
		wantRefusal(t, r.do(http.MethodPost, "/v1/missing", make([]byte, 32*missingMax+32)), 413)
		wantRefusal(t, r.do(http.MethodPost, "/v1/missing", make([]byte, 33)), 413)
	})
	// After all that the next good one is taken.
	r.mustPush(w.release())
	if n := r.head().N; n != 2 {
		t.Errorf("head = %d", n)
	}
	t.Run("ErrOld", func(t *testing.T) {
		r.mustPush(func() *release.Tag {
			p := w.payload()
			p.N, p.Previous = 9, release.Digest{}
			w.last = w.sign(p, "ci")
			return w.last
		}())
		_, err := r.push(edited(func(p *release.Payload) { p.N = 5 }))
		wantRefusal(t, err, 409, "older")
	})
}

func none(func(release.Object, error) bool) {}

func (r *running) put(path string, body []byte) error { return r.do(http.MethodPut, path, body) }

func (r *running) do(method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.url()+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := r.client("").HTTP.Do(req)
	if err != nil {
		return err
	}
	return wire.Answer(resp, nil)
}

func TestTwoPushesRace(t *testing.T) {
	w := newWorld(t, 3)
	r := w.hub(t)
	r.mustPush(w.release())
	var tags []*release.Tag
	for i := range 4 {
		c := w.clone()
		c.files["README.md"] = []byte{byte('a' + i)}
		tags = append(tags, c.release())
		for id, o := range c.objects {
			w.objects[id] = o
		}
	}
	var won []string
	var lost []*wire.Refusal
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, tag := range tags {
		wg.Go(func() {
			for {
				res, err := r.push(tag)
				if _, busy := wire.AsRefusal(err, http.StatusServiceUnavailable); busy {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				if refusal, ok := wire.AsRefusal(err, http.StatusConflict); ok {
					lost = append(lost, refusal)
				} else if err != nil {
					t.Error(err)
				} else {
					won = append(won, res.Head.Digest)
				}
				return
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || len(lost) != 3 {
		t.Fatalf("%d won, %d lost", len(won), len(lost))
	}
	for _, l := range lost {
		if l.Have != won[0] {
			t.Errorf("the loser is told %s, the winner is %s", l.Have, won[0])
		}
	}
}

func TestQuarantine(t *testing.T) {
	w := newWorld(t, 3)
	cfg := w.config(t)
	cfg.Quarantine = quarantine.Config{Total: 2, PerNetwork: 2}
	r := w.start(t, cfg)
	r.mustPush(w.release())
	id := linktest.NewIdentity(t)
	m := r.machine(id)
	m.wait("be greeted", func() bool { return m.reply.Capability > 0 && !m.reply.Introduce })
	if m.reply.Listed {
		t.Error("an unlisted machine is told that it is listed")
	}
	var q wire.Quarantine
	eye := r.client("eye")
	if err := eye.Call(t.Context(), http.MethodGet, "/v1/quarantine", nil, &q); err != nil {
		t.Fatal(err)
	}
	if len(q.Guests) != 1 || q.Guests[0].ID != id.ID() || !q.Guests[0].Online || q.Guests[0].Version != "0.1.0" {
		t.Fatalf("quarantine = %+v", q)
	}
	in, err := wire.ParseIntroduction(q.Guests[0].Introduction)
	if err != nil || in.Hostname != "box" {
		t.Errorf("introduction: %+v, %v", in, err)
	}
	if s := r.status("eye"); s.Quarantine != 1 {
		t.Errorf("status counts %d in quarantine", s.Quarantine)
	}

	t.Run("ErrUnlistedAsksForMore", func(t *testing.T) {
		client := link.Client(m.keeper.OpenControl, time.Second)
		for _, c := range [][2]string{{"GET", "/v1/slice"}, {"PUT", "/v1/slice"}, {"POST", "/v1/report"}, {"GET", "/v2/app/blobs/sha256:" + strings.Repeat("0", 64)}} {
			err := wire.Call(t.Context(), client, c[0], "http://"+link.Host+c[1], nil, nil)
			wantRefusal(t, err, 403, "adopt")
		}
		for _, class := range []link.Class{link.Bulk, link.Relay} {
			s, err := link.Dial(t.Context(), link.DialConfig{Address: r.addr(), Class: class, Identity: id, Pins: []link.Pin{w.key.Pin()}})
			if err != nil {
				continue
			}
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Errorf("an unlisted machine keeps a session for %s", class)
			}
			s.Close()
		}
	})
	t.Run("ErrIntroductionOfAnother", func(t *testing.T) {
		other := linktest.NewIdentity(t)
		stolen, _ := wire.SignIntroduction(wire.Introduction{Fleet: fleetID, Protection: "none"}, other)
		liar := r.machine(linktest.NewIdentity(t), func(m *fake) { m.intro = stolen })
		r.waitFor("the liar is seen", func() bool { n, _ := r.ward.Count(); return n == 2 })
		liar.stop()
		for _, e := range r.ward.List(time.Now()) {
			if e.Machine == liar.id.ID() && e.Introduction != nil {
				t.Error("another's introduction was taken")
			}
		}
	})
	t.Run("ErrQuarantineFull", func(t *testing.T) {
		second := r.machine(linktest.NewIdentity(t))
		second.wait("be greeted", func() bool { return second.reply.Capability > 0 })
		s, err := link.Dial(t.Context(), link.DialConfig{Address: r.addr(), Class: link.Control, Identity: linktest.NewIdentity(t), Pins: []link.Pin{w.key.Pin()}})
		if err == nil {
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Error("a third machine was let in")
			}
			s.Close()
		}
		if _, refused := r.ward.Count(); refused == 0 {
			t.Error("no refusal was counted")
		}
		second.stop()
	})
	t.Run("Adopted", func(t *testing.T) {
		w.adopt(1, id.ID())
		r.mustPush(w.release())
		m.waitRelease(2)
		r.waitFor("it leaves quarantine", func() bool {
			for _, e := range r.ward.List(time.Now()) {
				if e.Machine == id.ID() {
					return false
				}
			}
			return true
		})
	})
	t.Run("Evicted", func(t *testing.T) {
		dir := fleetgen.SiteDir(1)
		var err error
		if w.files[dir+"/machines.yaml"], err = fleet.AddMember([]byte(nil), fleet.Machine{Name: "new", ID: linktest.NewIdentity(t).ID(), Role: "control-plane"}); err != nil {
			t.Fatal(err)
		}
		if w.files[dir+"/machines.yaml"], err = fleet.AddTombstone(w.files[dir+"/machines.yaml"], fleet.Tombstone{ID: id.ID(), Verb: "retire"}); err != nil {
			t.Fatal(err)
		}
		r.mustPush(w.release())
		m.waitRelease(3) // a buried machine gets the slice that buries it
	})
	t.Run("GoneWithoutTombstone", func(t *testing.T) {
		delete(w.files, fleetgen.SiteDir(1)+"/machines.yaml")
		m.update(func() { m.reply = wire.HelloReply{} })
		r.mustPush(w.release())
		m.wait("be in quarantine again", func() bool { return m.reply.Capability > 0 && !m.reply.Listed })
	})
}

func TestHelloRefusals(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	s, err := link.Dial(t.Context(), link.DialConfig{Address: r.addr(), Class: link.Control, Identity: id, Pins: []link.Pin{w.key.Pin()}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	call := func(path string, in any) error {
		return wire.Call(t.Context(), link.Client(s.Open, 0), http.MethodPost, "http://"+link.Host+path, in, nil)
	}
	t.Run("ErrReportFromAnotherMachine", func(t *testing.T) {
		err := call(wire.PathHello, &wire.Hello{Capability: 1, Fleet: fleetID, Machine: linktest.NewIdentity(t).ID()})
		wantRefusal(t, err, 403, string(id.ID()))
	})
	t.Run("ErrOtherFleet", func(t *testing.T) {
		err := call(wire.PathHello, &wire.Hello{Capability: 1, Fleet: "ffffffffffffffffffffffffffffffff", Machine: id.ID()})
		wantRefusal(t, err, 403, string(fleetID))
	})
	t.Run("ErrMalformed", func(t *testing.T) {
		wantRefusal(t, call(wire.PathHello, map[string]int{"capability": 0}), 400)
		wantRefusal(t, call(wire.PathReport, map[string]int{"seq": 0}), 400)
		wantRefusal(t, call("/v1/other", nil), 404)
	})
	t.Run("ErrOversize", func(t *testing.T) {
		wantRefusal(t, call(wire.PathReport, map[string]string{"x": string(bytes.Repeat([]byte("ab1c"), 300<<10))}), 413)
	})
	t.Run("ErrBase", func(t *testing.T) {
		wantRefusal(t, call(wire.PathReport, &wire.Update{Seq: 9, Base: 5}), 409, "whole")
	})
}

func TestReportsAndStatus(t *testing.T) {
	w := newWorld(t, 12)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	cfg := w.config(t)
	r := w.start(t, cfg)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	eye := r.client("eye")
	before := r.status("eye")
	find := func(s *wire.Status) wire.MachineStatus {
		for _, site := range s.Sites {
			if site.Name == w.siteName(0) {
				return site.Machines[0]
			}
		}
		return wire.MachineStatus{}
	}
	if got := find(before); got.State != wire.Waiting || !got.Online || got.Version != "0.1.0" || got.BytesSent == 0 || got.BytesReceived == 0 {
		t.Errorf("before the first report: %+v", got)
	}
	if len(before.Sites) != 12 || before.Head.N != 1 {
		t.Errorf("%d sites, head %+v", len(before.Sites), before.Head)
	}

	changed := make(chan *wire.Status, 1)
	go func() {
		for cursor := before.Cursor; ; {
			var s wire.Status
			if err := eye.Call(t.Context(), http.MethodGet, "/v1/status?watch="+cursor, nil, &s); err != nil {
				if t.Context().Err() == nil {
					t.Error(err)
				}
				return
			}
			if find(&s).N == 1 {
				changed <- &s
				return
			}
			cursor = s.Cursor
		}
	}()
	if err := m.report(wire.Update{Seq: 1, Time: 1, State: &wire.State{Phase: wire.OK, N: 1, Site: w.siteName(0)}, Apps: []wire.AppStatus{{Name: "pos", Phase: wire.OK, Applied: 3}}}); err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-changed:
		if got := find(s); got.State != wire.OK || len(got.Apps) != 1 || got.Apps[0].Applied != 3 {
			t.Errorf("after the report: %+v", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the watch never told of the report")
	}
	if err := m.report(wire.Update{Seq: 2, Base: 1, Apps: []wire.AppStatus{{Name: "pos", Phase: wire.Failed}}}); err != nil {
		t.Fatal(err)
	}

	t.Run("ScopedOperatorSeesHisSites", func(t *testing.T) {
		s := r.status("berliner")
		if len(s.Sites) == 0 || len(s.Sites) == 12 {
			t.Errorf("%d sites", len(s.Sites))
		}
		for _, site := range s.Sites {
			if !strings.HasPrefix(site.Dir, "sites/de/") {
				t.Errorf("he sees %s", site.Dir)
			}
		}
	})
	t.Run("ErrNoSession", func(t *testing.T) {
		for _, path := range []string{"/v1/status", "/v1/quarantine"} {
			wantRefusal(t, r.client("").Call(t.Context(), http.MethodGet, path, nil, nil), 401)
		}
		wantRefusal(t, r.client("ci", operator.Release).Call(t.Context(), http.MethodGet, "/v1/status", nil, nil), 403)
	})
	t.Run("RefusedSlice", func(t *testing.T) {
		m.update(func() { m.refuse = "it renders to nothing" })
		r.mustPush(w.release())
		r.waitFor("the refusal", func() bool { return find(r.status("eye")).State == wire.Refused })
		if got := find(r.status("eye")); got.Detail != "it renders to nothing" || got.N != 1 {
			t.Errorf("status: %+v", got)
		}
		m.update(func() { m.refuse = "" })
		r.mustPush(w.release())
		m.waitRelease(3)
		r.waitFor("staging", func() bool { return find(r.status("eye")).State == wire.Staging })
	})
	t.Run("OfflineAndRestart", func(t *testing.T) {
		m.stop()
		r.waitFor("offline", func() bool { return !find(r.status("eye")).Online })
		r.stop()
		again := w.start(t, cfg)
		got := find(again.status("eye"))
		if got.State != wire.Offline || got.N != 1 || len(got.Apps) != 1 || got.Apps[0].Phase != wire.Failed || got.BytesSent == 0 || got.Since.IsZero() {
			t.Errorf("after a restart: %+v", got)
		}
	})
}

func TestRelay(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	for _, name := range []link.RelayName{link.MachineName(id.ID(), fleetID), link.KubeName(w.siteName(0), fleetID)} {
		for range 2 {
			conn, err := net.Dial("tcp", r.addr())
			if err != nil {
				t.Fatal(err)
			}
			hello := clientHello(t, name.String())
			conn.Write(hello)
			want := string(name.Target) + " here\n" + string(hello)
			got := make([]byte, len(want))
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
				t.Fatalf("relay to %s: %v after %d bytes %q, want the hello back, byte by byte", name, err, n, got[:min(n, 40)])
			}
			conn.Close()
		}
	}
	for _, c := range []struct {
		name string
		sni  link.RelayName
		want string
	}{
		{"ErrUnknownSite", link.KubeName("nowhere", fleetID), "unrecognized name"},
		{"ErrUnknownMachine", link.MachineName(linktest.NewIdentity(t).ID(), fleetID), "unrecognized name"},
		{"ErrOtherFleet", link.KubeName(w.siteName(0), "ffffffffffffffffffffffffffffffff"), "unrecognized name"},
		{"ErrSiteOffline", link.KubeName(w.siteName(1), fleetID), "internal error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := tls.Dial("tcp", r.addr(), &tls.Config{ServerName: c.sni.String(), InsecureSkipVerify: true})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("err = %v, want %q", err, c.want)
			}
		})
	}
}

// clientHello is the first message of a TLS client that asks for a name.
func clientHello(t *testing.T, sni string) []byte {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go tls.Client(a, &tls.Config{ServerName: sni, InsecureSkipVerify: true}).Handshake()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestImages(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer(random(t, 300<<10), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(link.Host+"/shop/pos:1.0.0", name.WithDefaultRegistry(""), name.Insecure)
	if err != nil {
		// A host without a dot needs a port to be one.
		if tag, err = name.NewTag(link.Host+":443/shop/pos:1.0.0", name.Insecure); err != nil {
			t.Fatal(err)
		}
	}
	d, _ := img.Digest()
	write := func(c *operator.Client) error {
		return remote.Write(tag, img, remote.WithTransport(plainHTTPS{c.HTTP.Transport}))
	}
	t.Run("ErrPushWithoutRole", func(t *testing.T) {
		if err := write(r.client("")); err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("err = %v", err)
		}
		if err := write(r.client("eye")); err == nil || !strings.Contains(err.Error(), "role release") && !strings.Contains(err.Error(), "403") {
			t.Errorf("err = %v", err)
		}
	})
	for _, who := range [][2]string{{"ci", operator.Release}, {"ops", operator.Operate}} {
		if err := write(r.client(who[0], who[1])); err != nil {
			t.Fatalf("%s: %v", who[0], err)
		}
	}
	m := r.machine(id)
	m.waitRelease(1)
	bulk := link.Client(m.keeper.OpenBulk, time.Minute)
	get := func(path string) (int, []byte) {
		resp, err := bulk.Get("http://" + link.Host + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, body
	}
	raw, _ := img.RawManifest()
	if status, body := get("/v2/shop/pos/manifests/" + d.String()); status != 200 || !bytes.Equal(body, raw) {
		t.Errorf("manifest over bulk: %d", status)
	}
	layers, _ := img.Layers()
	ld, _ := layers[0].Digest()
	if status, body := get("/v2/shop/pos/blobs/" + ld.String()); status != 200 || len(body) != 300<<10 {
		t.Errorf("layer over bulk: %d, %d bytes", status, len(body))
	}
	t.Run("ErrPullByTag", func(t *testing.T) {
		if status, _ := get("/v2/shop/pos/manifests/1.0.0"); status != 404 {
			t.Errorf("status %d", status)
		}
	})
	t.Run("ErrMachinePushes", func(t *testing.T) {
		resp, err := bulk.Post("http://"+link.Host+"/v2/shop/pos/blobs/uploads/", "", nil)
		if err != nil || resp.StatusCode != 405 {
			t.Errorf("%v %v", resp, err)
		}
	})
}

// plainHTTPS makes a client that believes in http use https.
type plainHTTPS struct{ http.RoundTripper }

func (p plainHTTPS) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "https", link.Host
	return p.RoundTripper.RoundTrip(r)
}

func TestOrdinaryHTTPClients(t *testing.T) {
	w := newWorld(t, 3)
	r := w.hub(t)
	get := func(h2 bool, path string) (*http.Response, string) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: h2}
		defer tr.CloseIdleConnections()
		req, _ := http.NewRequest("GET", "https://"+r.addr()+path, nil)
		req.Header.Set("Accept", "*/*")
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp, string(body)
	}
	if resp, _ := get(false, "/v1/release"); resp.StatusCode != 404 {
		t.Errorf("without a release: %s", resp.Status)
	}
	tag := w.release()
	r.mustPush(tag)
	for _, h2 := range []bool{false, true} {
		resp, body := get(h2, "/v1/release")
		if resp.ProtoMajor == 2 != h2 || resp.StatusCode != 200 || !strings.Contains(body, tag.Digest().String()) {
			t.Errorf("h2 %v: %s %s %s", h2, resp.Proto, resp.Status, body)
		}
	}
	if resp, body := get(false, "/healthz"); resp.StatusCode != 200 || body != "ok\n" {
		t.Errorf("healthz: %s %q", resp.Status, body)
	}
	_, body := get(true, "/metrics")
	for _, want := range []string{"holdfast_hub_release 1", `holdfast_hub_releases_total{origin="push",result="201"} 1`, `holdfast_hub_sessions{class="control"} 0`, "go_goroutines"} {
		if !strings.Contains(body, want) {
			t.Errorf("metrics lack %q", want)
		}
	}
}

func TestErrDrippedBody(t *testing.T) {
	// A stranger's body has a time in all, not only between bytes; who has shown that
	// he may gets longer.
	deadline := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	var short, long time.Duration
	patient(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body.(*patientBody).until = time.Now().Add(time.Second)
		r.Body.Read(make([]byte, 1))
		short = time.Until(deadline.read)
		trustBody(r)
		r.Body.Read(make([]byte, 1))
		long = time.Until(deadline.read)
	})).ServeHTTP(deadline, httptest.NewRequest("PUT", "/", strings.NewReader("drip drip")))
	if short > time.Second || long < stallTime/2 {
		t.Errorf("a read may take %v, and %v for those who may", short, long)
	}
}

type deadlines struct {
	*httptest.ResponseRecorder
	read time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error  { d.read = t; return nil }
func (d *deadlines) SetWriteDeadline(t time.Time) error { return nil }

func TestErrMetricsFromAfar(t *testing.T) {
	w := newWorld(t, 3)
	r := w.hub(t)
	rec := httptest.NewRecorder()
	req := httptest.NewRequest("GET", "/metrics", nil) // from 192.0.2.1
	r.guardMetrics(http.NotFoundHandler()).ServeHTTP(rec, req)
	if rec.Code != http.StatusForbidden {
		t.Errorf("status %d", rec.Code)
	}
}

func TestStartRefusals(t *testing.T) {
	w := newWorld(t, 3)
	for _, c := range []struct {
		name string
		edit func(*Config)
		want []string
	}{
		{"ErrNoKey", func(c *Config) { c.Identity = nil }, []string{"no key", "holdfast init"}},
		{"ErrWrongKey", func(c *Config) { c.Identity = linktest.NewIdentity(t) }, []string{"none of those that trust.yaml", "holdfast init"}},
		{"ErrNoFolder", func(c *Config) { c.DataDir = "" }, []string{"no folder", "may write"}},
		{"ErrUnwritableFolder", func(c *Config) {
			file := filepath.Join(t.TempDir(), "file")
			os.WriteFile(file, nil, 0o600)
			c.DataDir = filepath.Join(file, "data")
		}, []string{"open the hub's data", "may write"}},
		{"ErrSeed", func(c *Config) { c.Seed.Trust = []byte("x") }, []string{"seed"}},
		{"ErrTakenPort", func(c *Config) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			c.Addr = l.Addr().String()
		}, []string{"in use", "stop what has the port"}},
		{"ErrFolderInUse", func(c *Config) { c.DataDir = w.hub(t).cfg.DataDir }, []string{"another hub"}},
		{"ErrOtherFleet", func(c *Config) {
			r := w.hub(t)
			r.mustPush(w.release())
			r.stop()
			c.DataDir, c.Seed.FleetID = r.cfg.DataDir, "ffffffffffffffffffffffffffffffff"
		}, []string{"is of fleet", "folder of its own"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := w.config(t)
			c.edit(&cfg)
			_, err := New(cfg)
			if err == nil {
				t.Fatal("it starts")
			}
			for _, word := range c.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q lacks %q", err, word)
				}
			}
		})
	}
}

func TestNewHubOnAnEmptyDisk(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	old := w.hub(t)
	tag := w.release()
	old.mustPush(tag)
	var addr string
	var mu sync.Mutex
	where := func() string { mu.Lock(); defer mu.Unlock(); return addr }
	addr = old.addr()
	m := startFake(t, w, where, id)
	m.waitRelease(1)
	if err := m.report(wire.Update{Seq: 7, State: &wire.State{Phase: wire.OK, N: 1}}); err != nil {
		t.Fatal(err)
	}
	old.stop()

	fresh := w.hub(t)
	m.update(func() { m.reply = wire.HelloReply{} })
	mu.Lock()
	addr = fresh.addr()
	mu.Unlock()
	m.wait("greeted as a stranger", func() bool { return m.reply.Capability > 0 })
	fresh.mustPush(tag) // the same release refills it
	m.wait("greeted as listed", func() bool { return m.reply.Listed && m.reply.Reported == 0 })
	fresh.waitFor("it knows what the machine holds", func() bool { return fresh.held(id.ID()) == 1 })
	w.files["README.md"] = []byte("x")
	fresh.mustPush(w.release())
	m.waitRelease(2)
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.taken[len(m.taken)-1]; n > 1000 {
		t.Errorf("the new hub needed %d bytes for a small change", n)
	}
}

func TestTrustChange(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	eye := r.client("eye")

	// Version 2 drops an operator; version 3 changes nothing.
	w.trust(2, "ci")
	w.files["trust.yaml"] = bytes.Replace(w.files["trust.yaml"], []byte(keyLine("eye")), []byte(keyLine("nobody")), 1)
	r.mustPush(w.release())
	m.waitRelease(2)
	wantRefusal(t, eye.Call(t.Context(), http.MethodGet, "/v1/status", nil, nil), 401)
	w.files["trust.yaml"] = bytes.Replace(w.files["trust.yaml"], []byte("version: 2"), []byte("version: 3"), 1)
	r.mustPush(w.release())
	m.waitRelease(3)
	w.files["README.md"] = []byte("x")
	r.mustPush(w.release())
	m.waitRelease(4)
	m.mu.Lock()
	t.Logf("slices, packed: %v", m.taken)
	if m.taken[3] > 1000 {
		t.Errorf("deltas are whole again after a change of trust: %v", m.taken)
	}
	m.mu.Unlock()

	// A machine that slept walks the steps.
	late := linktest.NewIdentity(t)
	w.adopt(1, late.ID())
	r.mustPush(w.release())
	r.machine(late).waitRelease(5)
}

func TestShutdownIsClean(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	r := w.hub(t)
	r.mustPush(w.release())
	m := r.machine(id)
	m.waitRelease(1)
	watch := make(chan error, 1)
	eye := r.client("eye")
	cursor := r.status("eye").Cursor
	go func() {
		watch <- eye.Call(context.Background(), http.MethodGet, "/v1/status?watch="+cursor, nil, nil)
	}()
	began := time.Now()
	r.stop()
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v to end", took)
	}
	select {
	case <-watch:
	case <-time.After(10 * time.Second):
		t.Error("a watch outlives the hub")
	}
	if _, err := r.store.Head(context.Background()); err == nil {
		t.Error("the store is still open")
	}
}

func TestErrTooManyGuests(t *testing.T) {
	c := newCrowd(3, 2)
	a, b := addressOf(fakeAddr("10.0.0.1:5")), addressOf(fakeAddr("10.0.1.1:5"))
	leave, ok := c.enter(a)
	if !ok {
		t.Fatal("no room")
	}
	c.enter(a)
	if _, ok := c.enter(a); ok {
		t.Error("a third of one network")
	}
	if _, ok := c.enter(b); !ok {
		t.Error("another network pays for it")
	}
	if _, ok := c.enter(b); ok {
		t.Error("a fourth in all")
	}
	leave()
	leave()
	if c.size() != 2 {
		t.Errorf("size = %d", c.size())
	}
	if _, ok := c.enter(b); !ok {
		t.Error("no room after one left")
	}
}

type fakeConn struct {
	net.Conn
	addr string
}

func fakeAddr(addr string) net.Conn { return fakeConn{addr: addr} }

func (f fakeConn) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", f.addr)
	if err != nil {
		panic(errors.New("bad address"))
	}
	return a
}
