package hub

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/hub/push"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

const fleetID = fleet.ID("00112233445566778899aabbccddeeff")

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// sshKey is the key of a person, always the same.
func sshKey(name string) ssh.Signer {
	seed := sha256.Sum256([]byte("key of " + name))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

func keyLine(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshKey(name).PublicKey())))
}

// world is a fleet repo, those who release from it, and its hub key.
type world struct {
	t       testing.TB
	key     *link.Identity
	files   map[string][]byte
	objects release.Objects
	last    *release.Tag
	seed    release.Seed
	clock   time.Time
}

func newWorld(t testing.TB, sites int) *world { return newWorldWith(t, sites, linktest.NewIdentity(t)) }

func newWorldWith(t testing.TB, sites int, key *link.Identity) *world {
	w := &world{t: t, key: key, files: fleetgen.Files(sites), objects: release.Objects{}, clock: day0}
	w.trust(1, "ci")
	w.seed = release.Seed{FleetID: fleetID, Fleet: "shops", Trust: w.files["trust.yaml"], Lowest: 1}
	return w
}

// trust writes a trust.yaml with these release signers and the operators ops and
// (read only) eye.
func (w *world) trust(version int, signers ...string) {
	text := fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: Trust\nspec:\n  version: %d\n  signers:\n", version)
	for _, s := range signers {
		text += fmt.Sprintf("    - {name: %s, key: %s, roles: [release]}\n", s, keyLine(s))
	}
	text += fmt.Sprintf("  operators:\n    - {name: ops, key: %s, roles: [operate]}\n    - {name: eye, key: %s, roles: [read]}\n    - {name: berliner, key: %s, roles: [read], sites: [de]}\n", keyLine("ops"), keyLine("eye"), keyLine("berliner"))
	text += fmt.Sprintf("  hubs:\n    - {name: first, pin: %q, role: active}\n", w.key.Pin())
	w.files["trust.yaml"] = []byte(text)
}

// adopt lists a machine at site i as its only one.
func (w *world) adopt(i int, id fleet.MachineID) {
	w.files[fleetgen.SiteDir(i)+"/machines.yaml"] = fmt.Appendf(nil, "apiVersion: holdfast.dev/v1alpha1\nkind: Machines\nspec:\n  members:\n    - {name: m0, id: %s, role: control-plane, siteAddress: 10.213.0.11, protection: none}\n", id)
}

func (w *world) siteName(i int) string {
	dir := fleetgen.SiteDir(i)
	return dir[strings.LastIndex(dir, "/")+1:]
}

// clone is a world that goes another way from here.
func (w *world) clone() *world {
	c := *w
	c.files, c.objects = maps.Clone(w.files), maps.Clone(w.objects)
	return &c
}

func (w *world) payload() release.Payload {
	w.t.Helper()
	w.clock = w.clock.Add(time.Hour)
	root, err := release.Import(fleetgen.FS(w.files), w.objects.Add)
	if err != nil {
		w.t.Fatal(err)
	}
	trust, err := fleet.ParseTrust("trust.yaml", w.files["trust.yaml"])
	if err != nil {
		w.t.Fatal(err)
	}
	p := release.Payload{
		Object: strings.Repeat("0123456789", 4), TaggerName: "Ada Lovelace", TaggerEmail: "ada@example.com", TaggerTime: w.clock,
		Message: "Tills print again", FleetID: fleetID, N: 1, Time: w.clock,
		TrustVersion: trust.Version, TrustDigest: sha256.Sum256(w.files["trust.yaml"]), MinMachined: "0.1.0", Urgency: release.Normal, Root: ".", TreeSHA256: root,
	}
	if w.last != nil {
		p.N, p.Previous = w.last.Payload.N+1, w.last.Digest()
	}
	return p
}

func (w *world) sign(p release.Payload, by string) *release.Tag {
	w.t.Helper()
	raw, err := release.SignTag(p, sshKey(by))
	if err != nil {
		w.t.Fatal(err)
	}
	t, err := release.ParseTag(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	return t
}

// release makes the next release.
func (w *world) release() *release.Tag {
	w.last = w.sign(w.payload(), "ci")
	return w.last
}

func quiet() *slog.Logger {
	if os.Getenv("HUB_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// running is a hub in this process.
type running struct {
	*Hub
	t    testing.TB
	w    *world
	stop func()
}

func (w *world) config(t testing.TB) Config {
	return Config{Addr: "127.0.0.1:0", DataDir: t.TempDir(), Identity: w.key, Seed: w.seed, Log: quiet()}
}

func (w *world) start(t testing.TB, cfg Config) *running {
	t.Helper()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	r := &running{Hub: h, t: t, w: w, stop: sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the hub does not end")
		}
	})}
	t.Cleanup(r.stop)
	return r
}

func (w *world) hub(t testing.TB) *running { t.Helper(); return w.start(t, w.config(t)) }

func (r *running) addr() string { return r.Addrs()[0].String() }

func (r *running) url() string { return "https://" + link.Host }

// client is an operator's; name "" opens no session.
func (r *running) client(name string, roles ...string) *operator.Client {
	r.t.Helper()
	cfg := operator.ClientConfig{Fleet: fleetID, Roles: roles, Dial: link.DialConfig{Address: r.addr(), Pins: []link.Pin{r.w.key.Pin()}}}
	if name != "" {
		cfg.Signer, cfg.Dial.Identity = sshKey(name), linktest.NewIdentity(r.t)
	}
	c, err := operator.Open(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(c.Close)
	return c
}

// push sends a release and returns the error.
func (r *running) push(tag *release.Tag) (*push.Result, error) {
	return push.Release(r.t.Context(), r.client("").HTTP, r.url(), r.w.objects, tag.Raw)
}

func (r *running) mustPush(tag *release.Tag) *push.Result {
	r.t.Helper()
	res, err := r.push(tag)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

// wantRefusal checks the status and the words of a refusal.
func wantRefusal(t testing.TB, err error, status int, words ...string) *wire.Refusal {
	t.Helper()
	refusal, ok := wire.AsRefusal(err, status)
	if !ok {
		t.Fatalf("err = %v, want status %d", err, status)
	}
	for _, w := range words {
		if !strings.Contains(refusal.Reason, w) {
			t.Errorf("reason %q lacks %q", refusal.Reason, w)
		}
	}
	return refusal
}

func (r *running) status(name string) *wire.Status {
	r.t.Helper()
	var s wire.Status
	if err := r.client(name, operator.Read).Call(r.t.Context(), http.MethodGet, "/v1/status", nil, &s); err != nil {
		r.t.Fatal(err)
	}
	return &s
}

// fake is a machine: its link is real, the rest is a slice and an anchor.
type fake struct {
	t      testing.TB
	id     *link.Identity
	keeper *link.Keeper
	stop   func()

	mu      sync.Mutex
	anchor  release.Anchor
	trust   *fleet.Trust
	slice   []byte // as accepted
	taken   []int  // bytes of each slice that came, packed
	refuse  string // answer every slice so
	reply   wire.HelloReply
	changed chan struct{}
	intro   []byte
	forget  bool // answer 409 with nothing held, once
}

// machine starts a machine that dials the hub.
func (r *running) machine(id *link.Identity, edit ...func(*fake)) *fake {
	r.t.Helper()
	return startFake(r.t, r.w, func() string { return r.addr() }, id, edit...)
}

func startFake(t testing.TB, w *world, addr func() string, id *link.Identity, edit ...func(*fake)) *fake {
	t.Helper()
	m := &fake{t: t, id: id, changed: make(chan struct{})}
	var err error
	if m.anchor, m.trust, err = w.seed.Anchor(); err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(m)
	}
	m.keeper = link.NewKeeper(link.KeeperConfig{
		Identity: id, Log: quiet(), LeastWait: 5 * time.Millisecond, MostWait: 100 * time.Millisecond,
		Hubs:  func() []link.Hub { return []link.Hub{{Address: addr(), Pins: []link.Pin{w.key.Pin()}}} },
		Greet: m.greet,
		Serve: m.serve,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); m.keeper.Run(ctx) }()
	m.stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(m.stop)
	return m
}

func (m *fake) greet(ctx context.Context, s link.Session) error {
	m.mu.Lock()
	hello := wire.Hello{Capability: 1, Fleet: m.anchor.FleetID, Machine: m.id.ID(), N: m.anchor.N, Version: "0.1.0", Architecture: "amd64"}
	if m.slice != nil {
		hello.Slice = release.Digest(sha256.Sum256(m.slice)).String()
	}
	m.mu.Unlock()
	client := link.Client(s.Open, 0)
	var reply wire.HelloReply
	if err := wire.Call(ctx, client, http.MethodPost, "http://"+link.Host+wire.PathHello, &hello, &reply); err != nil {
		return err
	}
	if reply.Introduce {
		hello.Introduction, reply = m.introduction(), wire.HelloReply{}
		if err := wire.Call(ctx, client, http.MethodPost, "http://"+link.Host+wire.PathHello, &hello, &reply); err != nil {
			return err
		}
	}
	m.update(func() { m.reply = reply })
	return nil
}

func (m *fake) introduction() []byte {
	if m.intro != nil {
		return m.intro
	}
	signed, err := wire.SignIntroduction(wire.Introduction{Fleet: fleetID, Protection: "none", Hostname: "box"}, m.id)
	if err != nil {
		m.t.Error(err)
	}
	return signed
}

func (m *fake) serve(ctx context.Context, s link.Session) {
	if s.Class() == link.Relay {
		for {
			stream, err := s.Accept()
			if err != nil {
				return
			}
			go m.serveRelay(stream)
		}
	}
	link.ServeHTTP(ctx, s, http.HandlerFunc(m.handle))
}

// serveRelay answers with what the stream is for, then says everything twice.
func (m *fake) serveRelay(stream net.Conn) {
	defer stream.Close()
	target, err := link.AcceptRelay(stream)
	if err != nil {
		return
	}
	fmt.Fprintf(stream, "%s here\n", target)
	io.Copy(stream, stream)
}

func (m *fake) handle(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case wire.PathSlice:
		m.takeSlice(w, r)
	case wire.PathRelay:
		w.WriteHeader(http.StatusNoContent)
		go m.keeper.Relay(context.Background())
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (m *fake) takeSlice(w http.ResponseWriter, r *http.Request) {
	if name := r.Header.Get(sliceHeader); name != "" {
		w.WriteHeader(http.StatusAccepted)
		go m.fetchSlice()
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	m.mu.Lock()
	forget := m.forget
	m.forget = false
	if forget {
		m.slice = nil
	}
	m.mu.Unlock()
	err = m.accept(body, r.Header.Get(wire.DictionaryHeader))
	var have errHave
	switch {
	case errors.As(err, &have):
		wire.Write(w, http.StatusConflict, &wire.Refusal{Have: string(have)})
	case err != nil:
		wire.Refuse(w, http.StatusUnprocessableEntity, err.Error())
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

type errHave string

func (errHave) Error() string { return "another dictionary" }

// accept does what a machine does with a slice.
func (m *fake) accept(body []byte, dictionary string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	have, against := "", []byte(nil)
	if m.slice != nil {
		have = release.Digest(sha256.Sum256(m.slice)).String()
	}
	if dictionary != "" {
		if against = m.slice; dictionary != wire.DictionaryName(have) {
			return errHave(have)
		}
	}
	if m.refuse != "" {
		m.taken = append(m.taken, len(body))
		m.broadcast()
		return errors.New(m.refuse)
	}
	plain, err := release.Decompress(body, against, release.DefaultLimits().Slice)
	if err != nil {
		return err
	}
	s, err := release.DecodeSlice(plain)
	if err != nil {
		return err
	}
	a, err := release.Accept(s, m.anchor, m.trust, m.id.ID())
	if err != nil {
		return err
	}
	m.anchor, m.trust, m.slice = a.Anchor, a.Trust, plain
	m.taken = append(m.taken, len(body))
	m.broadcast()
	return nil
}

func (m *fake) fetchSlice() {
	req, err := http.NewRequest(http.MethodGet, "http://"+link.Host+wire.PathSlice, nil)
	if err != nil {
		m.t.Error(err)
		return
	}
	m.mu.Lock()
	if m.slice != nil {
		req.Header.Set(wire.DictionaryHeader, release.Digest(sha256.Sum256(m.slice)).String())
	}
	m.mu.Unlock()
	resp, err := link.Client(m.keeper.OpenBulk, time.Minute).Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = m.accept(body, resp.Header.Get(wire.DictionaryHeader))
	}
	if err != nil {
		m.t.Errorf("slice by bulk: %v", err)
		return
	}
	m.mu.Lock()
	u := wire.Update{Seq: uint64(time.Now().UnixNano()), State: &wire.State{Phase: wire.OK, N: m.anchor.N, Slice: release.Digest(sha256.Sum256(m.slice)).String()}}
	m.mu.Unlock()
	m.report(u)
}

func (m *fake) report(u wire.Update) error {
	return wire.Call(m.t.Context(), link.Client(m.keeper.OpenControl, time.Second), http.MethodPost, "http://"+link.Host+wire.PathReport, &u, nil)
}

func (m *fake) update(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	m.broadcast()
}

func (m *fake) broadcast() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// wait waits until what is said of the machine holds.
func (m *fake) wait(what string, holds func() bool) {
	m.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		ok, changed := holds(), m.changed
		m.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-limit:
			m.mu.Lock()
			defer m.mu.Unlock()
			m.t.Fatalf("machine never came to: %s (release %d, reply %+v)", what, m.anchor.N, m.reply)
		}
	}
}

func (m *fake) waitRelease(n uint64) {
	m.t.Helper()
	m.wait(fmt.Sprintf("hold release %d", n), func() bool { return m.anchor.N == n && m.slice != nil })
}

// waitFor waits for a state of the hub.
func (r *running) waitFor(what string, holds func() bool) {
	r.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		_, changed := r.roster.watch()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-limit:
			r.t.Fatalf("hub never came to: %s", what)
		}
	}
}
