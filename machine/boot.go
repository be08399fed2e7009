package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/pki"
	"github.com/holdfast-edge/holdfast/machine/supervise"
	"github.com/holdfast-edge/holdfast/release"
)

// Config says where the machine finds itself.
type Config struct {
	// Folder holds what outlives the disks and what was put there before the
	// first start: seed.json, network.json, tpm/ (identity, anchor), console.
	Folder   string
	StateDir string // survives reboots, no pod can write there
	DataDir  string // images, volumes, logs
	RunDir   string // empty at each boot
	BinDir   string // the programs of bin/system and pause.tar

	Hostname string
	Hosted   bool  // in namespaces of a host that it shares: no quote, protection none
	Memory   int64 // bytes that the machine may use; 0: unknown
	// RegistryPort and APIPort default to 5000 (loopback) and 7443 (every address).
	RegistryPort, APIPort int
	Log                   *slog.Logger
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

	identity  *link.Identity
	recipient string // age recipient; its key outlives the disks
	seed      release.Seed
	network   Network
	memory    *memory
	reporter  *reporter
	console   *console

	store      *images.Store
	registry   *images.Registry
	stager     *images.Stager
	containerd *images.Containerd
	pause      images.Image

	cluster *cluster
	door    *door
	keeper  *link.Keeper
	content *content

	group *errgroup.Group // what runs until the end
}

// phase is one line of the boot table. What boot cannot do without returns an error.
type phase struct {
	name string
	do   func(ctx context.Context) error
}

// Run boots the machine and runs it until ctx ends.
func Run(ctx context.Context, config Config) error {
	m := &Machine{config: config, log: config.Log, started: time.Now()}
	if m.log == nil {
		m.log = slog.Default()
	}
	if m.config.RegistryPort == 0 {
		m.config.RegistryPort = 5000
	}
	if m.config.APIPort == 0 {
		m.config.APIPort = 7443
	}
	group, ctx := errgroup.WithContext(ctx)
	m.group = group
	for _, p := range []phase{
		{"identity", m.bootIdentity},
		{"seed", m.bootSeed},
		{"memory", m.bootMemory},
		{"images", m.bootImages},
		{"processes", m.bootProcesses},
		{"door", m.bootDoor},
		{"content", m.bootContent},
		{"uplink", m.bootUplink},
	} {
		began := time.Now()
		if err := p.do(ctx); err != nil {
			return fmt.Errorf("boot phase %s: %w", p.name, err)
		}
		m.reporter.timed("boot/"+p.name, began)
	}
	m.log.Info("booted", "machine", m.identity.ID(), "version", version.Version, "took", time.Since(m.started).Round(time.Millisecond))
	return group.Wait()
}

func (m *Machine) bootIdentity(context.Context) error {
	tpm := filepath.Join(m.config.Folder, "tpm")
	if err := durable.MkdirAll(tpm, 0o700); err != nil {
		return err
	}
	key, err := link.LoadOrCreateKey(filepath.Join(tpm, "identity.key"))
	if err != nil {
		return err
	}
	if m.identity, err = link.NewIdentity(key); err != nil {
		return err
	}
	if m.recipient, err = loadRecipient(filepath.Join(tpm, "recipient.key")); err != nil {
		return err
	}
	m.console = newConsole(filepath.Join(m.config.Folder, "console"))
	m.reporter = newReporter(m.console)
	m.console.identify(m.identity.ID())
	return nil
}

// loadRecipient makes or reads the age identity to which the site's secrets are encrypted.
func loadRecipient(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return "", err
		}
		return id.Recipient().String(), durable.WriteFile(path, []byte(id.String()+"\n"), 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("read the recipient key: %w", err)
	}
	id, err := age.ParseX25519Identity(string(trimSpace(b)))
	if err != nil {
		return "", fmt.Errorf("read the recipient key %s: %w", path, err)
	}
	return id.Recipient().String(), nil
}

func (m *Machine) bootSeed(context.Context) error {
	if err := durable.ReadJSON(filepath.Join(m.config.Folder, "seed.json"), &m.seed); err != nil {
		return fmt.Errorf("read the fleet seed: %w", err)
	}
	err := durable.ReadJSON(filepath.Join(m.config.Folder, "network.json"), &m.network)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the network hints: %w", err)
	}
	return nil
}

func (m *Machine) bootMemory(context.Context) (err error) {
	m.memory, err = recall(filepath.Join(m.config.Folder, "tpm"), filepath.Join(m.config.StateDir, "release"), m.seed, m.identity.ID())
	return err
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
	m.group.Go(func() error { return m.cluster.supervisor.Run(ctx) })
	m.group.Go(func() error { m.cluster.renewals(ctx); return nil })
	m.group.Go(func() error { m.watchDisks(ctx); return nil })
	return nil
}

func (m *Machine) onExit(name string, e supervise.Exit) {
	if e.Expected {
		return
	}
	m.log.Warn("a process ended", "name", name, "exit", e.String(), "ran", e.Ran.Round(time.Millisecond), "output", e.Output)
}

func (m *Machine) bootContent(ctx context.Context) error {
	m.content = newContent(m)
	m.stager.Fetcher = m.fetcher()
	m.group.Go(func() error { return m.content.run(ctx) })
	m.group.Go(func() error { m.cluster.watch(ctx, m.reporter.condition, m.content.again); return nil })
	return nil
}

// introduction is what the machine says of itself to whom it is a stranger.
func (m *Machine) introduction() ([]byte, error) {
	return wire.SignIntroduction(wire.Introduction{
		Fleet: m.seed.FleetID, Recipient: m.recipient, Protection: m.protection(), Hostname: m.config.Hostname,
	}, m.identity)
}

func (m *Machine) protection() string { return "none" } // a key in a file, until the OS image brings the TPM

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

// once guards something that several workers may find missing.
type once[T any] struct {
	mu    sync.Mutex
	value T
	made  bool
}

func (o *once[T]) get(make func() (T, error)) (T, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.made {
		return o.value, nil
	}
	v, err := make()
	if err == nil {
		o.value, o.made = v, true
	}
	return v, err
}
