// Command machined is what runs on a machine. Here are only the flags, the
// signals, one call and the exit code; package machine is the inside of it,
// package machine/hosted the namespaces that it lives in on an ordinary Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/machine"
	"github.com/holdfast-edge/holdfast/machine/hosted"
)

const usage = `machined runs a machine of a Holdfast fleet.

  machined hosted --root DIR ...   a machine in namespaces of this Linux host (root)
  machined version

DIR/machine holds what the machine is given: seed.json (from: holdfast seed),
network.json (optional hints), and what it keeps: tpm/, console.
`

func main() {
	if ran, err := other(); ran {
		fmt.Fprintln(os.Stderr, "machined:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "machined:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case "hosted":
		return runHosted(ctx, args[1:])
	case "inner":
		return runInner(ctx)
	case "version":
		fmt.Println("machined", version.Version)
		return nil
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("unknown verb %q", verb)
}

// runHosted is the outer process: it keeps the machine alive.
func runHosted(ctx context.Context, args []string) error {
	if err := flock.Shield(); err != nil {
		return err
	}
	var spec hosted.Spec
	var folder, address, gateway, keepLock, keep, worldFD string
	flags := flag.NewFlagSet("machined hosted", flag.ContinueOnError)
	flags.StringVar(&spec.Root, "root", "", "the machine's folder on this host (required)")
	flags.StringVar(&folder, "folder", "", "the machine's own folder, with its key and seed; default: ROOT/machine")
	flags.StringVar(&spec.Name, "name", "", "name, unique on this host, a DNS label (required)")
	flags.StringVar(&spec.Hostname, "hostname", "", "host name inside; default: name")
	flags.StringVar(&spec.Bin, "system", "", "folder with kube, containerd and the rest: bin/system (required)")
	flags.StringVar(&spec.Network.Bridge, "bridge", "", "bridge to attach eth0 to")
	flags.StringVar(&address, "address", "", "address of eth0 with its prefix length, such as 10.0.0.11/24")
	flags.StringVar(&gateway, "gateway", "", "default route")
	flags.StringVar(&worldFD, "network-fd", "", "inherited descriptor of the network namespace that the bridge is in; default: this host's")
	flags.Int64Var(&spec.Memory, "memory", 0, "bytes of memory that the machine may use; 0: all")
	flags.Int64Var(&spec.StateSize, "state-size", 0, "bytes of the STATE image")
	flags.Int64Var(&spec.DataSize, "data-size", 0, "bytes of the DATA image")
	flags.StringVar(&keepLock, "keep-lock", "", "lock file of a process that this one keeps alive")
	flags.StringVar(&keep, "keep", "", "command of that process, words parted by new lines")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if spec.Root == "" || spec.Name == "" || spec.Bin == "" {
		flags.Usage()
		return errors.New("--root, --name and --system are required")
	}
	if address != "" {
		prefix, err := netip.ParsePrefix(address)
		if err != nil {
			return fmt.Errorf("--address: %w", err)
		}
		spec.Network.Address = prefix
	}
	if gateway != "" {
		a, err := netip.ParseAddr(gateway)
		if err != nil {
			return fmt.Errorf("--gateway: %w", err)
		}
		spec.Network.Gateway = a
	}
	if worldFD != "" {
		fd, err := strconv.Atoi(worldFD)
		if err != nil {
			return fmt.Errorf("--network-fd: %w", err)
		}
		spec.Network.Namespace = os.NewFile(uintptr(fd), "network")
	}
	spec.Log = logger()
	spec.Env = append(spec.Env, "HOLDFAST_LOG="+os.Getenv("HOLDFAST_LOG"))
	if folder == "" {
		folder = filepath.Join(spec.Root, "machine")
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	spec.Binds = append(spec.Binds, hosted.Bind{Host: folder, Inside: "/machine", Writable: true})
	if keepLock != "" && keep != "" {
		go keepSibling(ctx, keepLock, flock.ParseCommand(keep), spec.Network.Namespace)
	}
	return hosted.Run(ctx, spec, []string{"inner"})
}

// keepSibling keeps another process of the lab alive, which in turn keeps this
// one. It hands on the network that they share.
func keepSibling(ctx context.Context, lock string, command []string, network *os.File) {
	sibling := flock.Sibling{Lock: lock, Command: command, Inherit: network, Flag: "--network-fd"}
	if err := sibling.Keep(ctx); err != nil && ctx.Err() == nil {
		slog.Error("keep the sibling alive", "lock", lock, "err", err)
	}
}

// stopTime is how long the pods of a hosted machine may take to end: with what
// its processes need after them it is less than the outer waits before it kills.
const stopTime = 10 * time.Second

// runInner is process 1 of the machine's namespaces.
func runInner(ctx context.Context) error {
	in, err := hosted.EnterInner()
	if err != nil {
		return err
	}
	return machine.Run(ctx, machine.Config{
		Folder: "/machine", StateDir: in.State, DataDir: in.Data, RunDir: "/run/holdfast", BinDir: "/opt/holdfast",
		Hostname: in.Hostname, Hosted: true, Memory: in.Memory, StopTime: stopTime,
		Log: logger(),
	})
}

// logger writes to standard error; HOLDFAST_LOG=debug says more.
func logger() *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(os.Getenv("HOLDFAST_LOG"))); err != nil {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
