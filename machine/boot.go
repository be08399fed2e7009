package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/pki"
	"github.com/holdfast-edge/holdfast/machine/supervise"
	"github.com/holdfast-edge/holdfast/release"
)

// Config says where the machine finds itself. Who owns a box (PID 1 of the OS
// image) fills in more of it than a hosted machine, which lives in namespaces of
// an ordinary Linux.
type Config struct {
	// Folder holds what was put there before the first start: seed.json and
	// network.json; and tpm/ and console, where nothing below says otherwise.
	// It may be empty on a machine that has Box, PublicDir, Seed and Network.
	Folder   string
	StateDir string // survives reboots, no pod can write there
	DataDir  string // images, volumes, logs
	RunDir   string // empty at each boot
	BinDir   string // the programs of bin/system and pause.tar

	// Applier renders and applies. Nil: the program applier in BinDir.
	Applier Applier

	// Box outlives the disks: keys and notes. Nil: box.OpenFolder of Folder/tpm.
	Box box.Box
	// PublicDir holds what a machine needs to dial while STATE is locked, and no
	// secret: trust-DIGEST.yaml. Default: Folder/tpm.
	PublicDir string
	// Seed is the file of the fleet seed. Default: Folder/seed.json.
	Seed string
	// Network gives the hints on how to reach the hub, asked before each dial.
	// Nil: Folder/network.json, read once.
	Network func() Network
	// Rerouted yields a value each time that the way to the hub became another: the
	// machine dials at once. Nil: it dials when its patience is over.
	Rerouted <-chan struct{}

	Hostname string
	Serial   string // of the box, for people; "": unknown
	Hosted   bool   // in namespaces of a host that it shares: no quote, protection none
	Memory   int64  // bytes that the machine may use; 0: unknown
	OS       OS     // what runs it; zero when hosted
	// Platform is what an update of the OS needs. Nil: the OS is not ours to update.
	Platform *Platform
	// Upstreams are the name servers that the LAN named, asked every few seconds.
	// Nil: none.
	Upstreams func() []netip.Addr
	// Configure is told what the content that runs says of the box itself, such as
	// its interfaces, proxy, name and time servers. Nil: nobody is told.
	Configure func(site *fleet.Resolved, machine string)
	// RegistryPort and APIPort default to 5000 (loopback) and 7443 (every address).
	RegistryPort, APIPort int

	// Faults is what is wrong with the box; who owns it sets and clears. The
	// machine adds its own, shows them all and reports them. Nil: a list of its own.
	Faults *faults.List
	// Screen gets each picture of the console, whole, by one call of Write: text
	// and the code for a camera. Nil: only the file Folder/console is written.
	Screen io.Writer
	// LinkState is told each change of the link to the hub, one call at a time; it
	// must not wait for the machine. Nil: nobody is told.
	LinkState func(link.State)
	// SignedTime is told the newest signed time, at boot and when it rises. Nil:
	// nobody is told.
	SignedTime func(time.Time)
	// Trusted is told the recovery recipients of the trust that holds, at boot and
	// with each release, before anything else of it. Nil: nobody is told.
	Trusted func(recovery []string)
	// Pulse is called every few seconds as long as the machine's processes are
	// looked after: for a watchdog. Nil: nobody is told.
	Pulse func()
	// StopTime is how long all pods together may take to end when the machine
	// stops. 0: they end with the machine.
	StopTime time.Duration

	Log *slog.Logger
}

// OS is the OS image that runs the machine.
type OS struct {
	Version string
	Slot    string // a, b or stick
	Trial   string // phase of the trial that it is on; "" when it is blessed
}

// Network is network.json: unsigned hints on how to reach the hub. They can
// misroute, not misrule. A file that is not there gives no hints.
type Network struct {
	// Hubs replaces the address, host:port, that the hubs' URLs name.
	Hubs  []string `json:"hubs,omitempty"`
	Proxy string   `json:"proxy,omitempty"` // CONNECT proxy, http://host:port
}

// Machine is one running machine.
type Machine struct {
	config  Config
	log     *slog.Logger
	started time.Time

	box       box.Box
	identity  *link.Identity
	recipient string // age recipient; its key outlives the disks
	seed      release.Seed
	network   func() Network
	faults    *faults.List
	memory    *memory
	reporter  *reporter
	console   *console

	store      *images.Store
	registry   *images.Registry
	stager     *images.Stager
	containerd *images.Containerd
	pause      images.Image

	cluster *cluster
	applier Applier
	door    *door
	keeper  *link.Keeper
	content *content
	os      *osUpdate // nil: the OS is not ours to update

	group    *errgroup.Group // what runs until the end
	limits   *Limits         // nil unless the machine is locked
	opened   chan struct{}   // closed when a locked machine was opened
	stopping stopping
}

// phase is one line of the boot table. What boot cannot do without returns an error.
type phase struct {
	name string
	do   func(ctx context.Context) error
}

// Run boots the machine and runs it until ctx ends; then it stops what runs in
// order, within StopTime and the graces of its processes, and returns nil when
// all of it is down and on the disks.
func Run(ctx context.Context, config Config) error {
	m := newMachine(config)
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	group, work := errgroup.WithContext(work)
	m.group = group
	err := m.walk(ctx, work, []phase{
		{"identity", m.bootIdentity},
		{"seed", m.bootSeed},
		{"memory", m.bootMemory},
		{"images", m.bootImages},
		{"processes", m.bootProcesses},
		{"applier", m.bootApplier},
		{"update", m.bootUpdate},
		{"door", m.bootDoor},
		{"content", m.bootContent},
		{"uplink", m.bootUplink},
	})
	if err != nil {
		cancel()
		return errors.Join(err, group.Wait())
	}
	if ctx.Err() == nil {
		m.log.Info("booted", "machine", m.identity.ID(), "version", version.Version, "took", time.Since(m.started).Round(time.Millisecond))
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			m.Shutdown(context.WithoutCancel(ctx))
			cancel()
		case <-work.Done():
		}
		return nil
	})
	return group.Wait()
}

// walk goes through a boot table; what starts lives as long as work. It stops where
// ctx has ended: somebody asked for the end while the machine starts.
func (m *Machine) walk(ctx, work context.Context, table []phase) error {
	for _, p := range table {
		if ctx.Err() != nil {
			return nil
		}
		began := time.Now()
		if err := p.do(work); err != nil {
			return fmt.Errorf("boot phase %s: %w", p.name, err)
		}
		m.reporter.timed("boot/"+p.name, began)
	}
	return nil
}

// newMachine fills in defaults.
func newMachine(config Config) *Machine {
	m := &Machine{config: config, log: config.Log, faults: config.Faults, started: time.Now()}
	m.stopping.done, m.stopping.processesGone = make(chan struct{}), make(chan struct{})
	if m.log == nil {
		m.log = slog.Default()
	}
	if m.faults == nil {
		m.faults = faults.NewList(m.log)
	}
	if m.config.RegistryPort == 0 {
		m.config.RegistryPort = 5000
	}
	if m.config.APIPort == 0 {
		m.config.APIPort = 7443
	}
	if m.config.PublicDir == "" {
		m.config.PublicDir = filepath.Join(m.config.Folder, "tpm")
	}
	if m.config.Seed == "" {
		m.config.Seed = filepath.Join(m.config.Folder, "seed.json")
	}
	return m
}

func (m *Machine) bootIdentity(ctx context.Context) (err error) {
	if m.box = m.config.Box; m.box == nil {
		if m.box, err = box.OpenFolder(filepath.Join(m.config.Folder, "tpm")); err != nil {
			return err
		}
	}
	if m.identity, err = link.NewIdentity(m.box.Signer()); err != nil {
		return err
	}
	m.recipient = m.box.Recipient().Recipient().String()
	file := ""
	if m.config.Folder != "" {
		file = filepath.Join(m.config.Folder, "console")
	}
	m.console = newConsole(file, m.config.Screen)
	m.reporter = newReporter(m.console)
	m.reporter.update(func(r *wire.Report) { r.OS, r.Slot, r.Trial = m.config.OS.Version, m.config.OS.Slot, m.config.OS.Trial })
	m.console.identify(m.identity.ID())
	m.group.Go(func() error { m.tellFaults(ctx); return nil })
	m.group.Go(func() error { m.console.paint(ctx); return nil })
	if !m.config.Hosted {
		m.group.Go(func() error { m.watchAddresses(ctx); return nil })
	}
	return nil
}

// tellFaults shows and reports what is wrong with the box.
func (m *Machine) tellFaults(ctx context.Context) {
	for {
		changed := m.reporter.faults(m.faults)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// fault sets a fault where err is not nil and clears it where it is; it is shown
// and in the report when fault returns.
func (m *Machine) fault(err error, code faults.Code, args ...any) {
	m.faults.Turn(err, code, args...)
	m.reporter.faults(m.faults)
}

func (m *Machine) bootSeed(context.Context) error {
	if err := durable.ReadJSON(m.config.Seed, &m.seed); err != nil {
		return fmt.Errorf("read the fleet seed: %w", err)
	}
	if m.network = m.config.Network; m.network != nil {
		return nil
	}
	var hints Network
	err := durable.ReadJSON(filepath.Join(m.config.Folder, "network.json"), &hints)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the network hints: %w", err)
	}
	m.network = func() Network { return hints }
	return nil
}

func (m *Machine) bootMemory(context.Context) (err error) {
	state := ""
	if m.limits == nil {
		state = filepath.Join(m.config.StateDir, "release")
	}
	m.memory, err = recall(m.box, m.config.PublicDir, state, m.seed, m.identity.ID())
	if errors.Is(err, ErrForeignFleet) {
		m.fault(err, faults.ForeignFleet)
	}
	if err != nil {
		return err
	}
	m.tellTrust()
	if accepted, _ := m.memory.now(); accepted != nil {
		m.showRelease(accepted)
	}
	return nil
}

// tellTrust says what follows outside of memory from what it holds now.
func (m *Machine) tellTrust() {
	if m.memory.currentTrust() == nil {
		m.faults.Set(faults.New(faults.TrustLost))
	} else {
		m.faults.Clear(faults.TrustLost)
	}
	if floor := m.memory.floor(); m.config.SignedTime != nil && !floor.IsZero() {
		m.config.SignedTime(floor)
	}
	if t := m.memory.currentTrust(); t != nil && m.config.Trusted != nil && m.limits == nil {
		m.config.Trusted(t.Recovery)
	}
}

func (m *Machine) bootImages(ctx context.Context) (err error) {
	if m.store, err = images.OpenStore(filepath.Join(m.config.DataDir, "images"), 0); err != nil {
		return err
	}
	m.registry = &images.Registry{Store: m.store, Log: m.log}
	if err := m.serveRegistry(ctx); err != nil {
		return err
	}
	imported, err := images.Import(ctx, m.store, filepath.Join(m.config.BinDir, "pause.tar"))
	if err != nil {
		return err
	}
	if len(imported) != 1 {
		return fmt.Errorf("pause.tar holds %d images, want 1", len(imported))
	}
	m.pause = images.Image{Ref: kube.PauseImage, Digest: imported[0].Digest}
	if m.containerd, err = images.DialContainerd(filepath.Join(m.config.RunDir, "containerd/containerd.sock")); err != nil {
		return err
	}
	m.stager = &images.Stager{Store: m.store, Runtime: m.containerd, Log: m.log,
		Marker: filepath.Join(m.config.DataDir, "staged.json"), Root: m.config.DataDir}
	return m.registry.SetTable([]images.Image{m.pause})
}

func (m *Machine) bootProcesses(ctx context.Context) error {
	keys, err := pki.Open(filepath.Join(m.config.StateDir, "pki"), pki.Options{Floor: m.memory.floor()})
	if err != nil {
		return err
	}
	m.cluster = &cluster{
		keys: keys,
		paths: kube.Paths{
			Bin: m.config.BinDir, Run: m.config.RunDir, Config: filepath.Join(m.config.RunDir, "kube"),
			PKI: filepath.Join(m.config.StateDir, "pki"), Etcd: filepath.Join(m.config.StateDir, "etcd"), Data: m.config.DataDir,
		},
		supervisor: supervise.New(supervise.Config{CrashLoop: supervise.CrashLoop{Exits: 2, Window: 10 * time.Minute}, LogDir: filepath.Join(m.config.DataDir, "log/machined"), Log: m.log, OnExit: m.onExit}),
		log:        m.log,
	}
	m.runProcesses(ctx)
	m.group.Go(func() error { m.cluster.renewals(ctx); return nil })
	m.group.Go(func() error { m.watchDisks(ctx); return nil })
	return nil
}

// pulseEvery is well below the 10 s in which a watchdog wants to hear something.
const pulseEvery = 3 * time.Second

// pulse tells the watchdog that the supervisor's loop goes round. It goes on
// while the machine stops, until the last process is gone.
func (m *Machine) pulse(ctx context.Context) {
	for {
		if m.cluster.supervisor.Alive(ctx) != nil {
			return // it has ended: ctx does not
		}
		m.config.Pulse()
		select {
		case <-m.stopping.processesGone:
			return
		case <-time.After(pulseEvery):
		}
	}
}

// runProcesses keeps the processes running until ctx ends or the machine stops.
func (m *Machine) runProcesses(ctx context.Context) {
	pulsing := context.WithoutCancel(ctx) // it ends with the supervisor
	ctx, m.stopping.processes = context.WithCancel(ctx)
	m.group.Go(func() error {
		defer close(m.stopping.processesGone)
		return m.cluster.supervisor.Run(ctx)
	})
	if m.config.Pulse != nil {
		m.group.Go(func() error { m.pulse(pulsing); return nil })
	}
}

func (m *Machine) onExit(name string, e supervise.Exit) {
	if e.Expected {
		return
	}
	m.log.Warn("a process ended", "name", name, "exit", e.String(), "ran", e.Ran.Round(time.Millisecond), "output", e.Output)
	if name == controlPlane && e.Code == newerData {
		m.restoreEtcd()
	}
}

// crashed tells of a process that ends again and again, or does no longer.
func (m *Machine) crashed(name string, err error) { m.fault(err, faults.CrashLoops, name) }

func (m *Machine) bootContent(ctx context.Context) error {
	m.content = newContent(m)
	m.stager.Fetcher = m.fetcher()
	working, stop := context.WithCancel(ctx)
	m.stopping.content, m.stopping.contentGone = stop, make(chan struct{})
	m.group.Go(func() error {
		defer close(m.stopping.contentGone)
		return m.content.run(working)
	})
	m.group.Go(func() error { m.cluster.watch(working, m.crashed, m.content.again); return nil })
	m.group.Go(func() error { m.content.followUpstreams(working); return nil })
	return nil
}

// introduction is what the machine says of itself to whom it is a stranger.
func (m *Machine) introduction() ([]byte, error) {
	return wire.SignIntroduction(wire.Introduction{
		Fleet: m.seed.FleetID, Recipient: m.recipient, Protection: m.box.Protection(), Hostname: m.config.Hostname, Serial: m.config.Serial,
	}, m.identity)
}

// poll calls f until it returns nil or ctx ends, then returns f's last error.
func poll(ctx context.Context, every time.Duration, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(every):
		}
	}
}
