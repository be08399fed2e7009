package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/hub"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/release"
)

func (e *env) hubVerb() *cobra.Command {
	cmd := &cobra.Command{Use: "hub", Short: "run a hub", GroupID: "run", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(e.hubServe(), e.hubKey())
	return cmd
}

// hubOptions are the flags of hub serve.
type hubOptions struct {
	data, key, seed, listen string
	listenFD                []int
	remote, addressFile     string
	poll                    time.Duration
	metricsOpen, json       bool
	keepLock, keep          string // of the lab: see flock.Sibling
	networkFD               int
}

func (e *env) hubServe() *cobra.Command {
	var o hubOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "store releases and images, serve machines and operators, on one port",
		Long: `Serve runs a hub until it is told to end. A hub is a courier: it holds one of the two
hub keys that trust.yaml pins, and nothing that a machine obeys. Everything in --data can
be lost: releases come again from Git or with the next push, images from where they were
pushed, reports as machines redial.

Get the key with holdfast hub key, and the seed with holdfast seed.`,
		Example: `  holdfast hub serve --data /var/lib/holdfast-hub --key hub.key --seed seed.json \
    --listen :443 --git https://git.example.com/shops.git`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return e.runHubServe(c.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.data, "data", "hub", "folder for everything that the hub keeps")
	flags.StringVar(&o.key, "key", "hub.key", "private hub key (PEM), one that trust.yaml pins")
	flags.StringVar(&o.seed, "seed", "seed.json", "the fleet's seed; made from the fleet repo named by --fleet when it is not there")
	flags.StringVar(&o.listen, "listen", ":8443", "address to listen on")
	flags.IntSliceVar(&o.listenFD, "listen-fd", nil, "inherited listening sockets, instead of --listen")
	flags.StringVar(&o.remote, "git", "", "Git remote to poll for tags release/*")
	flags.DurationVar(&o.poll, "poll-every", time.Minute, "how often to poll it")
	flags.BoolVar(&o.metricsOpen, "metrics-open", false, "let anybody read /metrics; default: this host, and operators who may read")
	flags.StringVar(&o.addressFile, "address-file", "", "file to write host:port into while the hub listens; with --listen :0 the only way to know")
	flags.BoolVar(&o.json, "log-json", false, "write the log as JSON")
	flags.StringVar(&o.keepLock, "keep-lock", "", "lock file of a process that this one keeps alive")
	flags.StringVar(&o.keep, "keep", "", "command of that process, words parted by new lines")
	flags.IntVar(&o.networkFD, "network-fd", -1, "inherited descriptor that is handed on to it")
	for _, name := range []string{"listen-fd", "keep-lock", "keep", "network-fd"} {
		flags.MarkHidden(name)
	}
	return cmd
}

func (e *env) runHubServe(ctx context.Context, o hubOptions) error {
	if err := flock.Shield(); err != nil {
		return err
	}
	config := hub.Config{Addr: o.listen, DataDir: o.data, GitRemote: o.remote, PollEvery: o.poll, MetricsOpen: o.metricsOpen, Version: version.Version}
	config.Log = slog.New(slog.NewTextHandler(e.err, nil))
	if o.json {
		config.Log = slog.New(slog.NewJSONHandler(e.err, nil))
	}
	var err error
	if config.Seed, err = e.seedFrom(o.seed); err != nil {
		return err
	}
	if _, err := os.Stat(o.key); errors.Is(err, os.ErrNotExist) {
		return hint(fmt.Errorf("no hub key at %s", o.key), "holdfast hub key --recovery FILE -O %s takes it out of the fleet repo", o.key)
	}
	key, err := link.LoadOrCreateKey(o.key)
	if err != nil {
		return err
	}
	if config.Identity, err = link.NewIdentity(key); err != nil {
		return err
	}
	for _, fd := range o.listenFD {
		f := os.NewFile(uintptr(fd), "listener")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("--listen-fd %d: %w", fd, err)
		}
		config.Listeners = append(config.Listeners, l)
	}
	h, err := hub.New(config)
	if errors.Is(err, syscall.EADDRINUSE) {
		return hint(err, "see what has the port (ss -ltnp), or listen elsewhere with --listen")
	}
	if err != nil {
		return err
	}
	e.keepSibling(ctx, o, config.Log)
	return e.runHub(ctx, h, o.addressFile)
}

// runHub tells where the hub listens, then serves.
func (e *env) runHub(ctx context.Context, h *hub.Hub, addressFile string) error {
	var lines strings.Builder
	for _, a := range h.Addrs() {
		fmt.Fprintln(&lines, a)
	}
	if addressFile != "" {
		if err := durable.WriteFile(addressFile, []byte(lines.String()), 0o644); err != nil {
			return errors.Join(err, stopped(ctx, h))
		}
		defer os.Remove(addressFile)
	}
	e.printf("%s", lines.String())
	return h.Run(ctx)
}

// stopped gives back what a hub that will not serve holds.
func stopped(ctx context.Context, h *hub.Hub) error {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	return h.Run(ended)
}

// seedFrom reads a seed file, or makes the seed from the fleet repo at hand.
func (e *env) seedFrom(file string) (release.Seed, error) {
	var seed release.Seed
	err := durable.ReadJSON(file, &seed)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return seed, err
	}
	seed, err = e.makeSeed()
	if err != nil {
		return seed, hint(fmt.Errorf("no seed at %s, and none can be made: %w", file, err), "holdfast seed -C FLEET > %s", file)
	}
	return seed, nil
}

func (e *env) makeSeed() (release.Seed, error) {
	dir, err := e.fleetDir()
	if err != nil {
		return release.Seed{}, err
	}
	f, err := load(workTree(dir))
	if err != nil {
		return release.Seed{}, err
	}
	trust, err := os.ReadFile(filepath.Join(dir, "trust.yaml"))
	if err != nil {
		return release.Seed{}, err
	}
	seed := release.Seed{FleetID: f.ID, Fleet: f.Name, Trust: trust}
	for _, h := range f.Hubs {
		seed.Hubs = append(seed.Hubs, h.URL)
	}
	return seed, nil
}

func (e *env) seed() *cobra.Command {
	return &cobra.Command{
		Use:     "seed",
		Short:   "print what a new machine or hub must know of the fleet",
		GroupID: "sites",
		Long: `Seed prints the fleet's seed as JSON: its ID, trust.yaml and the hubs. It is no secret, and
whoever gives a machine a seed decides whose it is. A hosted machine finds it at
DIR/machine/seed.json, a hub by --seed.`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			seed, err := e.makeSeed()
			if err != nil {
				return err
			}
			return e.printJSON(seed)
		},
	}
}
