package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/machine/hosted"
)

// lookEvery is how often the keeper reads lab.json again.
const lookEvery = 200 * time.Millisecond

// keeper makes lab.json true: it keeps the hub and every machine alive.
type keeper struct {
	lab   Lab
	world *world.World
	log   *slog.Logger

	wg   sync.WaitGroup
	mu   sync.Mutex // guards what follows
	last *Wanted
	kept map[string]bool
	dhcp map[string]bool // LANs with a server
}

// Keep is the life of the keeper process: it returns when the lab is to end and
// everything in it has ended, or when ctx ends, and then leaves all as it is.
// network is an inherited descriptor of the lab's network, or below 0 to make one.
func (l Lab) Keep(ctx context.Context, network int, log *slog.Logger) error {
	if err := flock.Shield(); err != nil {
		return err
	}
	w, err := openWorld(network)
	if err != nil {
		return err
	}
	k := &keeper{lab: l, world: w, log: log, kept: map[string]bool{}, dhcp: map[string]bool{}}
	defer k.wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		wanted, err := l.Wanted()
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			log.Error("the lab's wishes cannot be read, the old ones hold", "err", err)
		case wanted.Stop:
			cancel()
			return k.stopAll(wanted)
		default:
			k.look(ctx, wanted)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// openWorld uses the inherited network, or makes one when fd is below 0.
func openWorld(fd int) (*world.World, error) {
	if fd < 0 {
		return world.New()
	}
	return world.Open(os.NewFile(uintptr(fd), "network"))
}

// inherit is a copy of the network's descriptor for a child, to be closed here.
func (k *keeper) inherit() (*os.File, error) {
	fd, err := syscall.Dup(int(k.world.File().Fd()))
	if err != nil {
		return nil, fmt.Errorf("copy the network's descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), "network"), nil
}

// look starts a guard for what is new, and ends what is no longer wanted.
func (k *keeper) look(ctx context.Context, w *Wanted) {
	k.mu.Lock()
	k.last = w
	k.mu.Unlock()
	k.keep(ctx, k.lab.hub(), w.Hub.Run, k.startHub)
	for _, m := range w.Machines {
		key := m.Key()
		if m.Virtual() && m.Run {
			k.serveDHCP(ctx, m)
		}
		k.keep(ctx, k.lab.machine(m), m.Run, func() (*exec.Cmd, error) { return k.startMachine(key) })
	}
}

func (k *keeper) keep(ctx context.Context, u unit, run bool, start func() (*exec.Cmd, error)) {
	if !run {
		if err := terminate(u); err != nil {
			k.log.Error("end a process", "unit", u.name, "err", err)
		}
	}
	k.mu.Lock()
	known := k.kept[u.name]
	k.kept[u.name] = true
	k.mu.Unlock()
	if known {
		return
	}
	k.wg.Go(func() {
		for {
			err := flock.Keep(ctx, u.lock, start)
			if ctx.Err() != nil {
				return
			}
			k.log.Error("keep a process alive", "unit", u.name, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
}

func (k *keeper) wanted() *Wanted {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// startHub returns the hub's command, with one listener on the host's loopback
// for people and one inside the lab's network for machines.
func (k *keeper) startHub() (*exec.Cmd, error) {
	w := k.wanted()
	if !w.Hub.Run {
		return nil, nil
	}
	outside, err := net.Listen("tcp", w.Hub.Address)
	if err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	inside, err := world.ListenIn(k.world.File(), HubAddress)
	if err != nil {
		outside.Close()
		return nil, fmt.Errorf("hub: %w", err)
	}
	cmd, err := command(k.lab.hub(), w.Holdfast, "hub", "serve", "--data", k.lab.HubDir(), "--fleet", w.Fleet,
		"--key", k.lab.path("hub.key"), "--seed", k.lab.path("seed.json"), "--metrics-open", "--network-fd", "5",
		"--keep-lock", k.lab.keeper().lock, "--keep", flock.CommandLine(k.lab.keeperCommand(w)...))
	if err != nil {
		return nil, err
	}
	for i, l := range []net.Listener{outside, inside} {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			return nil, fmt.Errorf("hub: %w", err)
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		cmd.Args = append(cmd.Args, "--listen-fd", strconv.Itoa(3+i))
		l.Close()
	}
	network, err := k.inherit()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, network)
	return cmd, nil
}

// keeperCommand is the keeper itself.
func (l Lab) keeperCommand(w *Wanted) []string {
	return []string{w.Holdfast, "lab", "keeper", "--dir", l.Dir}
}

// startMachine returns the command of a machine's outer process.
func (k *keeper) startMachine(key string) (*exec.Cmd, error) {
	w := k.wanted()
	m, err := w.Find(key)
	if err != nil || !m.Run {
		return nil, nil
	}
	if err := k.world.AddLAN(m.lan(), netip.PrefixFrom(m.Gateway(), 24)); err != nil {
		return nil, fmt.Errorf("machine %s: %w", key, err)
	}
	if m.Virtual() {
		return k.startBox(w, *m)
	}
	return k.inWorld(w, *m, w.Machined, "hosted",
		"--root", k.lab.MachineDir(*m), "--folder", m.Folder, "--name", k.lab.hostName(*m), "--hostname", m.Name, "--system", w.System,
		"--bridge", world.Bridge(m.lan()), "--address", m.Address().String()+"/24", "--gateway", m.Gateway().String(),
		"--memory", strconv.FormatInt(m.Memory, 10),
		"--state-size", strconv.FormatInt(m.State, 10), "--data-size", strconv.FormatInt(m.Data, 10))
}

// inWorld returns the command of a process that a machine lives in: it gets the
// network of the lab, and starts a keeper anew that was killed.
func (k *keeper) inWorld(w *Wanted, m Machine, program string, args ...string) (*exec.Cmd, error) {
	args = append(args, "--network-fd", "3", "--keep-lock", k.lab.keeper().lock, "--keep", flock.CommandLine(k.lab.keeperCommand(w)...))
	cmd, err := command(k.lab.machine(m), program, args...)
	if err != nil {
		return nil, err
	}
	network, err := k.inherit()
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, network)
	return cmd, nil
}

// hostName is the machine's name among all labs of this host: a DNS label.
func (l Lab) hostName(m Machine) string {
	sum := sha256.Sum256([]byte(l.Dir + "/" + m.Key()))
	return "lab-" + hex.EncodeToString(sum[:5])
}

// command is a process of the lab: in a session of its own, its output in its log.
func command(u unit, program string, args ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(u.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", u.name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// stopAll ends the machines and then the hub, so that last reports are heard.
func (k *keeper) stopAll(w *Wanted) error {
	ctx := context.Background()
	var wg sync.WaitGroup
	for _, m := range w.Machines {
		wg.Go(func() {
			if err := end(ctx, k.lab.machine(m)); err != nil {
				k.log.Error("end a machine", "machine", m.Key(), "err", err)
			}
		})
	}
	wg.Wait()
	return end(ctx, k.lab.hub())
}

func end(ctx context.Context, u unit) error {
	if err := terminate(u); err != nil {
		return err
	}
	return gone(ctx, u)
}

// Start makes sure that a keeper runs; it returns at once.
func (l Lab) Start(w *Wanted) error {
	if err := os.MkdirAll(l.path("machines"), 0o700); err != nil {
		return err
	}
	lock, err := flock.TryLock(l.keeper().lock)
	if errors.Is(err, flock.ErrHeld) {
		return nil
	}
	if err != nil {
		return err
	}
	// What outlived a keeper holds a network that a new keeper does not know: it begins again.
	for _, u := range append(l.machines(w), l.hub()) {
		if err := end(context.Background(), u); err != nil {
			lock.Close()
			return err
		}
	}
	keeper := l.keeperCommand(w)
	cmd, err := command(l.keeper(), keeper[0], keeper[1:]...)
	if err != nil {
		lock.Close()
		return err
	}
	return lock.Start(cmd)
}

// clean removes what machines that were killed left on this computer: empty
// control groups, loop devices that the kernel has yet to let go of.
func (l Lab) clean(w *Wanted) error {
	var faults []error
	for _, m := range w.Machines {
		if _, err := os.Stat(l.MachineDir(m)); err != nil || m.Virtual() {
			continue // it never ran, or leaves nothing
		}
		faults = append(faults, hosted.Clean(hosted.Spec{Name: l.hostName(m), Root: l.MachineDir(m)}))
	}
	return errors.Join(faults...)
}

// terminate asks a unit's process to end, if it lives.
func terminate(u unit) error { return signal(u, syscall.SIGTERM) }

// Kill ends a process of the lab without asking it; what keeps it starts it again.
func (l Lab) Kill(name string) error {
	w, err := l.Wanted()
	if err != nil {
		return err
	}
	switch name {
	case "hub":
		return signal(l.hub(), syscall.SIGKILL)
	case "keeper":
		return signal(l.keeper(), syscall.SIGKILL)
	}
	m, err := w.Find(name)
	if err != nil {
		return err
	}
	return signal(l.machine(*m), syscall.SIGKILL)
}

func signal(u unit, s syscall.Signal) error {
	pid, held, err := flock.Owner(u.lock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !held || pid == 0 {
		return err
	}
	if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s (process %d): %w", s, u.name, pid, err)
	}
	return nil
}

// Switch stops or starts the hub or a machine, and waits until it is so.
func (l Lab) Switch(ctx context.Context, name string, run bool) error {
	w, err := l.Wanted()
	if err != nil {
		return err
	}
	u := l.hub()
	if name == "hub" {
		w.Hub.Run = run
	} else {
		m, err := w.Find(name)
		if err != nil {
			return err
		}
		m.Run = run
		u = l.machine(*m)
	}
	if err := l.Want(w); err != nil {
		return err
	}
	if !run {
		return gone(ctx, u)
	}
	return alive(ctx, u)
}

// alive waits until somebody holds the lock of u.
func alive(ctx context.Context, u unit) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, held, err := flock.Owner(u.lock)
		if err != nil || held {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not start (its log: %s)", u.name, u.log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
