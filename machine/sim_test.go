package machine

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/hub"
	"github.com/holdfast-edge/holdfast/hub/push"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/pki"
)

// agent is a machine without Kubernetes: identity, memory, uplink, door and
// reporter are the real ones, of its content it only says that it runs.
type agent struct {
	*Machine
	t    testing.TB
	dir  string
	stop func()
}

// agent starts a machine whose folders are in dir, so that it can be started again.
func (w *world) agent(t testing.TB, dir, hubAddress string) *agent {
	t.Helper()
	a, err := w.boot(t, dir, hubAddress)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) boot(t testing.TB, dir, hubAddress string) (*agent, error) {
	folder := filepath.Join(dir, "machine")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(durable.WriteJSON(filepath.Join(folder, "seed.json"), w.seed, 0o600),
		durable.WriteJSON(filepath.Join(folder, "network.json"), Network{Hubs: []string{hubAddress}}, 0o600)); err != nil {
		return nil, err
	}
	m := newMachine(Config{Folder: folder, StateDir: filepath.Join(dir, "state"), Hostname: "box", Hosted: true, Log: quiet()})
	m.config.APIPort = 0 // a free one
	ctx, cancel := context.WithCancel(context.Background())
	m.group, ctx = errgroup.WithContext(ctx)
	a := &agent{Machine: m, t: t, dir: dir}
	for _, do := range []func(context.Context) error{m.bootIdentity, m.bootSeed, m.bootMemory, a.bootCluster, m.bootDoor, a.bootContent, m.bootUplink} {
		if err := do(ctx); err != nil {
			cancel()
			return nil, err
		}
	}
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := m.group.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the machine ended: %v", err)
		}
	})
	t.Cleanup(a.stop)
	return a, nil
}

// bootCluster gives it the keys of a cluster that does not run.
func (a *agent) bootCluster(context.Context) error {
	keys, err := pki.Open(filepath.Join(a.dir, "pki"), pki.Options{Floor: a.memory.floor()})
	a.cluster = &cluster{keys: keys, log: a.log}
	return err
}

// bootContent records what arrives, and says of it what content would say.
func (a *agent) bootContent(ctx context.Context) error {
	a.content = newContent(a.Machine)
	a.content.wake()
	a.group.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-a.content.woken:
				if err := a.pretend(); err != nil {
					return err
				}
			}
		}
	})
	return nil
}

func (a *agent) pretend() error {
	t, _ := a.memory.now()
	if t == nil {
		return nil
	}
	if t.Evicted {
		a.reporter.update(func(r *wire.Report) { r.Phase, r.N = wire.Evicted, number(t) })
		return nil
	}
	site, _ := t.Fleet.Site(t.site())
	resolved, err := t.Fleet.Resolve(site)
	if err != nil {
		return err
	}
	rendering, err := render.Site(t.Tree, resolved)
	if err != nil {
		return err
	}
	if err := a.memory.setApplied(t); err != nil {
		return err
	}
	a.reporter.update(func(r *wire.Report) {
		r.Site, r.N, r.Effect, r.Phase = t.site(), number(t), rendering.Effect.Digest, wire.OK
	})
	return nil
}

// patience is how long a test waits for what must come.
const patience = time.Minute

// wait waits until what its report says makes holds true.
func (a *agent) wait(what string, holds func(wire.Report) bool) {
	a.t.Helper()
	limit := time.After(patience)
	for {
		report, changed := a.reporter.now()
		if holds(report) {
			return
		}
		select {
		case <-changed:
		case <-limit:
			a.t.Fatalf("the machine never came to: %s; it says %+v\n%s", what, report, a.screen())
		}
	}
}

func (a *agent) waitRelease(n uint64) {
	a.t.Helper()
	a.wait("a release", func(r wire.Report) bool { return r.N == n })
}

// screen is what its console shows.
func (a *agent) screen() string {
	text, err := os.ReadFile(a.console.path)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(text)
}

// waitScreen waits until its console shows the words. A console is a file that
// people read: it tells nobody that it changed.
func (a *agent) waitScreen(words string) {
	a.t.Helper()
	for limit := time.Now().Add(patience); !strings.Contains(a.screen(), words); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			a.t.Fatalf("the console never said %q:\n%s", words, a.screen())
		}
	}
}

// code is what a person copies from its console.
func (a *agent) code() string {
	for line := range strings.Lines(a.screen()) {
		if code, ok := strings.CutPrefix(strings.TrimSpace(line), "code"); ok {
			return strings.TrimSpace(code)
		}
	}
	a.t.Fatalf("no code:\n%s", a.screen())
	return ""
}

// control is its control session.
func (a *agent) control() link.Session {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	s, err := a.keeper.Control(ctx)
	if err != nil {
		a.t.Fatal(err)
	}
	return s
}

// settled waits until its link is at rest, and returns the bytes on the wire so
// far, both ways, below TLS.
func (a *agent) settled() uint64 {
	a.t.Helper()
	last, since := uint64(0), time.Now()
	for limit := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		sent, received := a.control().Bytes()
		switch n := sent + received; {
		case n != last:
			last, since = n, time.Now()
		case time.Since(since) > 3*reportAfter: // longer than a report waits
			return n
		}
		if time.Now().After(limit) {
			a.t.Fatal("the link never comes to rest")
		}
	}
}

// courier is a real hub in this process.
type courier struct {
	*hub.Hub
	t    testing.TB
	w    *world
	dir  string
	addr string
	stop func()
}

// hub starts a hub; addr "" is a free port.
func (w *world) hub(t testing.TB, dir, addr string) *courier {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	gate := link.GateConfig{PerNetwork: 512} // every machine here comes from one network
	h, err := hub.New(hub.Config{Listeners: []net.Listener{l}, DataDir: dir, Identity: w.hubKey, Seed: w.seed, Gate: gate, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	c := &courier{Hub: h, t: t, w: w, dir: dir, addr: l.Addr().String(), stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the hub ended: %v", err)
		}
	})}
	t.Cleanup(c.stop)
	return c
}

// again starts it again where it was, on that folder.
func (c *courier) again(dir string) *courier {
	c.t.Helper()
	c.stop()
	return c.w.hub(c.t, dir, c.addr)
}

func (c *courier) client(name string, roles ...string) *operator.Client {
	c.t.Helper()
	config := operator.ClientConfig{Fleet: fleetID, Roles: roles, Dial: link.DialConfig{Address: c.addr, Pins: []link.Pin{c.w.hubKey.Pin()}}}
	if name != "" {
		config.Signer, config.Dial.Identity = sshKey(name), linktest.NewIdentity(c.t)
	}
	client, err := operator.Open(c.t.Context(), config)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// push brings the world's last release to the hub.
func (c *courier) push() {
	c.t.Helper()
	client := c.client("")
	if _, err := push.Release(c.t.Context(), client.HTTP, client.URL(""), c.w.objects, c.w.last.Raw, c.w.further...); err != nil {
		c.t.Fatal(err)
	}
}

// next releases and pushes.
func (c *courier) next() uint64 {
	c.t.Helper()
	n := c.w.release().Payload.N
	c.push()
	return n
}

// watch waits until the hub's status holds.
func (c *courier) watch(what string, holds func(*wire.Status) bool) {
	c.t.Helper()
	client := c.client("eye", operator.Read)
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for path := "/v1/status"; ; {
		var s wire.Status
		if err := client.Call(ctx, http.MethodGet, path, nil, &s); err != nil {
			c.t.Fatalf("the hub never came to: %s: %v", what, err)
		}
		if holds(&s) {
			return
		}
		path = "/v1/status?watch=" + s.Cursor
	}
}

func (c *courier) waitReported(id fleet.MachineID, n uint64) {
	c.t.Helper()
	c.watch("a report of release", func(s *wire.Status) bool {
		m := find(s, id)
		return m != nil && m.Online && m.N == n && m.State == wire.OK
	})
}

func find(s *wire.Status, id fleet.MachineID) *wire.MachineStatus {
	for _, site := range s.Sites {
		for i := range site.Machines {
			if site.Machines[i].ID == id {
				return &site.Machines[i]
			}
		}
	}
	return nil
}

// fleetOf starts a hub and an agent at each of these sites, adopted by release 1.
func fleetOf(t testing.TB, sites ...int) (*world, *courier, []*agent) {
	t.Helper()
	w := newWorld(t, 12)
	h := w.hub(t, t.TempDir(), "")
	var agents []*agent
	for _, i := range sites {
		a := w.agent(t, t.TempDir(), h.addr)
		w.adopt(i, a.identity.ID())
		agents = append(agents, a)
	}
	h.next()
	for _, a := range agents {
		a.waitRelease(1)
		h.waitReported(a.identity.ID(), 1)
	}
	return w, h, agents
}

// A stranger introduces itself, is taken in by the code on its console, and gets
// a release. A key that the hub made up does not match that code.
func TestAdoptionByCode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 12)
	h := w.hub(t, t.TempDir(), "")
	h.next()
	a := w.agent(t, t.TempDir(), h.addr)
	a.waitScreen("waiting to be adopted")
	before := a.settled()
	client := h.client("eye", operator.Read)
	var q wire.Quarantine
	if err := client.Call(t.Context(), http.MethodGet, "/v1/quarantine", nil, &q); err != nil {
		t.Fatal(err)
	}
	if len(q.Guests) != 1 || !link.MatchCode(q.Guests[0].ID, a.code()) {
		t.Fatalf("guests %+v, code %s", q.Guests, a.code())
	}
	in, err := wire.ParseIntroduction(q.Guests[0].Introduction)
	if err != nil {
		t.Fatal(err)
	}
	if in.Machine != a.identity.ID() || in.Fleet != fleetID || in.Protection != "none" || in.Hostname != "box" || in.Recipient != a.recipient {
		t.Errorf("introduction %+v", in)
	}
	t.Run("ErrHubsOwnKey", func(t *testing.T) {
		for name, id := range map[string]*link.Identity{"the hub's": w.hubKey, "one that it made up": linktest.NewIdentity(t)} {
			if link.MatchCode(id.ID(), a.code()) {
				t.Errorf("%s key matches the code on the machine's console", name)
			}
			forged, err := wire.SignIntroduction(wire.Introduction{Fleet: fleetID, Protection: "none"}, id)
			if err != nil {
				t.Fatal(err)
			}
			if in, err := wire.ParseIntroduction(forged); err != nil || in.Machine == a.identity.ID() {
				t.Errorf("%s introduction passes as the machine's: %v", name, err)
			}
		}
	})
	t.Run("a stranger sends no reports", func(t *testing.T) {
		a.reporter.state(wire.Quarantined, "something changed")
		if after := a.settled(); after != before {
			t.Errorf("it sent %d bytes, for which a hub cuts it", after-before)
		}
	})
	file := w.machines(1)
	w.files[file] = []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Machines\nspec:\n  members: []\n")
	if w.files[file], err = fleet.AddMember(w.files[file], fleet.Machine{Name: "m1", ID: in.Machine, Role: "control-plane", Recipient: in.Recipient, Protection: in.Protection}); err != nil {
		t.Fatal(err)
	}
	n := h.next()
	a.waitRelease(n)
	h.waitReported(a.identity.ID(), n)
	if accepted, _ := a.memory.now(); accepted.Member.Name != "m1" || accepted.SiteDir != fleetgen.SiteDir(1) {
		t.Errorf("member %+v of %s", accepted.Member, accepted.SiteDir)
	}
	if !strings.Contains(a.screen(), "signed by ci") {
		t.Errorf("console:\n%s", a.screen())
	}
}

// A one-line change for one site: all that passes below TLS, both ways, slice,
// answers and report together.
func TestBytesOfAOneLineChange(t *testing.T) {
	t.Parallel()
	w, h, agents := fleetOf(t, 1, 2)
	concerned, other := agents[0], agents[1]
	measure := func(what string, at int) {
		a, b := concerned.settled(), other.settled()
		effect, _ := other.reporter.now()
		w.city(at, what)
		n := h.next()
		for _, x := range agents {
			x.waitRelease(n)
			h.waitReported(x.identity.ID(), n)
		}
		a, b = concerned.settled()-a, other.settled()-b
		t.Logf("%s: %d B at the site that it concerns, %d B at another", what, a, b)
		if a > 1024 || b > 1024 {
			t.Errorf("more than 1 kB")
		}
		if after, _ := other.reporter.now(); after.Effect != effect.Effect {
			t.Error("the effect at the other site changed")
		}
	}
	measure("City A", 1)
	measure("City B", 1)
}

// Without its hub a machine goes on, and comes back by itself; a hub that lost
// its disk is told everything again.
func TestHubRestartAndLoss(t *testing.T) {
	t.Parallel()
	w, h, agents := fleetOf(t, 1)
	a := agents[0]
	h.stop()
	a.waitScreen("not connected")
	a.reporter.update(func(r *wire.Report) { r.Detail = "told while the hub was away" })
	told := func(s *wire.Status) bool {
		m := find(s, a.identity.ID())
		return m != nil && m.Online && m.Detail == "told while the hub was away"
	}
	h = h.again(h.dir)
	h.watch("what was told meanwhile", told)
	n := h.next()
	a.waitRelease(n)

	t.Run("loss", func(t *testing.T) {
		empty := h.again(t.TempDir())
		empty.push() // the newest release, from a clone of the fleet repo
		empty.watch("the whole report", told)
		w.city(1, "Elsewhere")
		n := empty.next()
		a.waitRelease(n)
		empty.waitReported(a.identity.ID(), n)
	})
}

// Started again, a machine knows its release, refuses older ones, and still takes
// the next one as a difference to the slice on its disk.
func TestMachineRestart(t *testing.T) {
	t.Parallel()
	w, h, agents := fleetOf(t, 1)
	a := agents[0]
	anchor := a.memory.anchor
	a.stop()
	w.city(1, "While it slept")
	a = w.agent(t, a.dir, h.addr)
	if a.memory.anchor != anchor {
		t.Errorf("anchor %+v, want %+v", a.memory.anchor, anchor)
	}
	h.waitReported(a.identity.ID(), 1)
	if accepted, applied := a.memory.now(); number(accepted) != 1 || number(applied) != 1 {
		t.Errorf("accepted %d, applied %d", number(accepted), number(applied))
	}
	before := a.settled()
	n := h.next()
	a.waitRelease(n)
	h.waitReported(a.identity.ID(), n)
	// The first calls of a session open streams, a hundred bytes in all.
	cost := a.settled() - before
	t.Logf("the first one-line change after a restart: %d B", cost)
	if cost > 1200 {
		t.Errorf("the next release took %d B: not against the slice on its disk", cost)
	}
}

// Buried by a release, a machine says so and stays out, after a restart too.
func TestEvictionOverTheLink(t *testing.T) {
	t.Parallel()
	w, h, agents := fleetOf(t, 1)
	a := agents[0]
	w.bury(1, a.identity.ID())
	h.next()
	a.wait("eviction", func(r wire.Report) bool { return r.Phase == wire.Evicted })
	a.stop()
	a = w.agent(t, a.dir, h.addr)
	a.wait("eviction after a restart", func(r wire.Report) bool { return r.Phase == wire.Evicted && r.N == 2 })
	if accepted, applied := a.memory.now(); !accepted.Evicted || applied != nil {
		t.Errorf("evicted %v, applied %d", accepted.Evicted, number(applied))
	}
}

// A hundred machines come back after their hub was started again.
func TestManyMachinesComeBack(t *testing.T) {
	const many = 100
	w := newWorld(t, many)
	h := w.hub(t, t.TempDir(), "")
	agents := make([]*agent, many)
	root := t.TempDir()
	var group errgroup.Group
	group.SetLimit(16)
	for i := range agents {
		group.Go(func() (err error) {
			agents[i], err = w.boot(t, filepath.Join(root, fleetgen.SiteDir(i)), h.addr)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, a := range agents {
		w.adopt(i, a.identity.ID())
	}
	online := func(n uint64) func(*wire.Status) bool {
		return func(s *wire.Status) bool {
			count := 0
			for _, site := range s.Sites {
				for _, m := range site.Machines {
					if m.Online && m.N == n && m.State == wire.OK {
						count++
					}
				}
			}
			return count == many
		}
	}
	began := time.Now()
	h.next()
	h.watch("all adopted, release 1", online(1))
	t.Logf("%d machines adopted and at release 1 after %s", many, time.Since(began).Round(time.Millisecond))
	h.stop()
	for _, a := range agents {
		a.waitScreen("not connected")
	}
	began = time.Now()
	h = h.again(h.dir)
	h.watch("all back", online(1))
	t.Logf("%d machines back %s after the hub's start", many, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	n := h.next()
	h.watch("all at the next release", online(n))
	t.Logf("%d machines at release %d after %s", many, n, time.Since(began).Round(time.Millisecond))
}
