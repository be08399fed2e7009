// Package hub is the courier between a fleet's releases and its machines: it
// stores, forwards and observes. It decides nothing that a machine obeys, reads no
// secret, and opens no session to anything.
//
// One process, one port. What a connection is for is told by its first message:
// a relay name as SNI is passed on unread to the machine that it means
// (relay.go); a machine's ALPN makes a session by the key that was shown
// (control.go for machines that a site lists, ward.go for the others); all else is
// the HTTP service for operators (api.go).
//
//	release: push.go | mirror.go -> intake.go (judge, store) -> head.go (switch)
//	   -> slices.go (cut, compress against what the machine holds, PUT)
//	report:  control.go -> roster.go -> status.go (GET /v1/status, watch)
//
// It promises: a release is stored only when its signature, its number and its whole
// tree hold; the head is the old one or the new, after kill -9 too; whatever
// strangers can hold is bounded in number, bytes and time; the loss of its disk
// costs the view and nothing else.
//
// It leaves out, for now: pacing (waves, windows), approvals, backups, more than one
// replica.
//
// # Calls of machines
//
// On control: POST /v1/hello and /v1/report (package wire). The hub calls PUT
// /v1/slice with a zstd body, made against the slice that wire.DictionaryHeader names,
// if there is one; POST /v1/relay. When a slice is larger than 64 KiB packed,
// the PUT has an empty body and the header Holdfast-Slice with the slice's digest: the
// machine answers 202 and fetches it on bulk, GET /v1/slice, where it names what it
// holds by wire.DictionaryHeader and the answer says in the same header what was used.
// What it then holds it says in its next report. On bulk also: GET /v2/… by digest.
//
// # Calls of operators
//
//	GET  /healthz                  anyone
//	GET  /v1/release               anyone: wire.Head
//	PUT  /v1/releases/N            a bundle; the signature is the permission
//	POST /v1/missing               ids of objects, 32 bytes each: those that are not here
//	     /v1/session               package operator
//	GET  /v1/status[?watch=CURSOR] role read: wire.Status
//	GET  /v1/quarantine            role read: wire.Quarantine
//	     /v2/…                     pull: role read; push: role release or operate
//	GET  /metrics                  this host; anyone if so configured; role read
package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/quarantine"
	"github.com/holdfast-edge/holdfast/hub/registry"
	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/release"
)

// Config of a Hub.
type Config struct {
	Addr      string         // host:port to listen on, when Listeners is empty (":443")
	Listeners []net.Listener // taken over: the hub closes them
	DataDir   string         // all that the hub keeps; made if needed; no other hub may use it

	Identity *link.Identity // one of the hub keys that trust.yaml pins
	Seed     release.Seed   // fleet, trust to begin with, lowest release

	GitRemote string        // polled for tags release/*; "": releases are only pushed
	PollEvery time.Duration // of GitRemote (60 s)

	ImageQuota  int64  // bytes of app images (64 GiB)
	BundleMax   int64  // bytes of one pushed release (512 MiB)
	MetricsOpen bool   // GET /metrics is for everybody, not only this host and role read
	Version     string // of this program, for metrics

	Gate       link.GateConfig   // bounds on connections before they have shown who they are
	Quarantine quarantine.Config // bounds on machines that no site lists
	History    store.Limits      // bounds on reports gone by

	Log *slog.Logger // nil: slog.Default()
}

// Hub is a courier. Make one with New, then Run it, once.
type Hub struct {
	cfg       Config
	log       *slog.Logger
	tls       *tls.Config
	listeners []net.Listener

	store     *store.Store
	source    release.Source
	images    *registry.Registry
	authority *operator.Authority
	metrics   *metrics

	current   atomic.Pointer[head]
	intake    sync.Mutex    // one release is taken in at a time
	spooling  chan struct{} // pushes whose bodies are read at the same time
	asking    chan struct{} // lists of missing objects that are looked up at the same time
	roster    *roster
	ward      *quarantine.Ward
	patients  patients
	cutter    *cutter
	deliverer *queue

	relays, guests *crowd
	people         *link.Conns
	work           sync.WaitGroup // everything that was started for a connection
}

// Serve makes a hub and runs it until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	h, err := New(cfg)
	if err != nil {
		return err
	}
	return h.Run(ctx)
}

// New opens the data and the port. What it returns must be Run.
func New(cfg Config) (_ *Hub, err error) {
	h := &Hub{cfg: cfg, log: cfg.Log, listeners: cfg.Listeners}
	if h.log == nil {
		h.log = slog.Default()
	}
	if h.cfg.PollEvery == 0 {
		h.cfg.PollEvery = time.Minute
	}
	if h.cfg.BundleMax == 0 {
		h.cfg.BundleMax = 512 << 20
	}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	if cfg.Identity == nil {
		return nil, errors.New("start the hub: no key: give it one of the hub keys that holdfast init made")
	}
	_, trust, err := cfg.Seed.Anchor()
	if err != nil {
		return nil, fmt.Errorf("start the hub: %w", err)
	}
	if err := h.openData(); err != nil {
		return nil, err
	}
	first, err := h.loadHead(context.Background(), trust)
	if err != nil {
		return nil, err
	}
	if err := checkKey(cfg.Identity, first.trust, h.log); err != nil {
		return nil, err
	}
	h.build(first)
	if err := h.roster.load(context.Background(), h.store); err != nil {
		return nil, fmt.Errorf("read what machines reported: %w", err)
	}
	return h, h.listen()
}

// openData opens the folder of the hub.
func (h *Hub) openData() error {
	hint := "give it a folder that this user may write"
	dir := h.cfg.DataDir
	if dir == "" {
		return errors.New("start the hub: no folder for its data: " + hint)
	}
	var err error
	if h.store, err = store.Open(filepath.Join(dir, "store"), h.cfg.History); errors.Is(err, store.ErrInUse) {
		return fmt.Errorf("open the hub's data: %w", err)
	} else if err != nil {
		return fmt.Errorf("open the hub's data in %s: %w: %s", dir, err, hint)
	}
	h.source = newSource(h.store)
	if h.images, err = registry.Open(registry.Config{Dir: filepath.Join(dir, "images"), Quota: h.cfg.ImageQuota, Log: h.log}); err != nil {
		return fmt.Errorf("open the hub's data in %s: %w: %s", dir, err, hint)
	}
	// What a crash left half spooled; the lock on the store says that it is ours.
	if err := os.RemoveAll(h.spoolDir()); err != nil {
		return fmt.Errorf("clean %s: %w", h.spoolDir(), err)
	}
	if err := os.MkdirAll(h.spoolDir(), 0o700); err != nil {
		return fmt.Errorf("open the hub's data in %s: %w: %s", dir, err, hint)
	}
	return nil
}

func (h *Hub) spoolDir() string { return filepath.Join(h.cfg.DataDir, "spool") }

// checkKey refuses a key that no machine would believe.
func checkKey(id *link.Identity, trust *fleet.Trust, log *slog.Logger) error {
	var pins []string
	for _, k := range trust.Hubs {
		pins = append(pins, k.Pin)
	}
	if len(pins) == 0 {
		log.Warn("trust.yaml pins no hub key: no machine will dial this hub", "pin", id.Pin())
		return nil
	}
	if !slices.Contains(pins, id.Pin().String()) {
		return fmt.Errorf("start the hub: its key %s is none of those that trust.yaml (version %d) pins, so no machine would believe it: give it the hub key that holdfast init made, or release a trust.yaml that lists this one", id.Pin(), trust.Version)
	}
	return nil
}

func (h *Hub) build(first *head) {
	h.current.Store(first)
	h.tls = link.ServerTLS(h.cfg.Identity, alpn...)
	h.spooling = make(chan struct{}, 2)
	h.asking = make(chan struct{}, 4)
	h.ward = quarantine.New(h.cfg.Quarantine)
	h.roster = newRoster()
	h.cutter = newCutter(h.source)
	h.deliverer = newQueue()
	h.relays = newCrowd(relaysInAll, relaysPerNetwork)
	h.guests = newCrowd(512, 128)
	h.people = link.NewConns(nil)
	h.authority = operator.New(operator.Config{
		Fleet: h.cfg.Seed.FleetID, Target: h.cfg.Identity.Pin(), Log: h.log,
		Trust: func() *fleet.Trust { return h.head().trust },
	})
	h.metrics = newMetrics(h)
}

func (h *Hub) listen() error {
	if len(h.listeners) > 0 {
		return nil
	}
	addr := h.cfg.Addr
	if addr == "" {
		addr = ":443"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for machines and operators: %w: stop what has the port, or choose another", err)
	}
	h.listeners = []net.Listener{l}
	return nil
}

// Addrs returns where the hub listens.
func (h *Hub) Addrs() []net.Addr {
	var all []net.Addr
	for _, l := range h.listeners {
		all = append(all, l.Addr())
	}
	return all
}

// shutdownGrace is how long calls of operators may take once the hub was told to end.
const shutdownGrace = 5 * time.Second

// Run serves until ctx ends, then ends what it started, in reverse, and writes what
// is not written yet. It returns nil after a clean end.
func (h *Hub) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, h.close()) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	server := link.APIServer(h.api(), h.log)
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 32}
	server.BaseContext = func(net.Listener) context.Context { return ctx }

	var parts sync.WaitGroup
	parts.Go(func() {
		if err := server.Serve(h.people); err != nil && !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve operators: %w", err))
		}
	})
	parts.Go(func() { h.deliverer.run(ctx, deliveries, h.deliver) })
	parts.Go(func() { h.keepSightings(ctx) })
	if h.cfg.GitRemote != "" {
		parts.Go(func() { h.poll(ctx) })
	}
	for _, l := range h.listeners {
		parts.Go(func() {
			if err := h.accept(ctx, l); err != nil {
				cancel(fmt.Errorf("accept connections on %s: %w", l.Addr(), err))
			}
		})
		h.log.Info("hub listens", "addr", l.Addr().String(), "fleet", h.cfg.Seed.Fleet, "release", h.head().N, "pin", h.cfg.Identity.Pin())
	}

	<-ctx.Done()
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer stop()
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	h.people.Close()
	h.authority.Close()
	parts.Wait()
	h.work.Wait()
	h.saveSightings()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	h.log.Info("hub ended")
	return nil
}

// close gives back what New opened.
func (h *Hub) close() error {
	for _, l := range h.listeners {
		l.Close()
	}
	if h.store == nil {
		return nil
	}
	return h.store.Close()
}
