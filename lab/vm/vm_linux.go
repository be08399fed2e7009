package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/lab/vm/disk"
)

// wires are the ends of socket pairs that QEMU gets.
type wires struct {
	qmp, tpm *os.File
	disks    []*os.File
}

func (w wires) close() {
	for _, f := range append([]*os.File{w.qmp, w.tpm}, w.disks...) {
		if f != nil {
			f.Close()
		}
	}
}

// files are what a command inherits.
type files struct{ list []*os.File }

// add returns the number of f in the child.
func (f *files) add(file *os.File) string {
	f.list = append(f.list, file)
	return strconv.Itoa(2 + len(f.list))
}

// VM is a machine under power.
type VM struct {
	spec   Spec
	qmp    *qmp
	qemu   *exec.Cmd
	swtpm  *exec.Cmd
	disks  []*disk.Disk
	serial int64 // where in serial.log this run begins
	killed atomic.Bool
	done   chan struct{}
	err    error // of the run; after done

	mu     sync.Mutex // guards what follows
	events []Event
	heard  chan struct{} // closed at the next event
}

// Start puts power to the machine. When ctx ends the machine is switched off, its
// disks keeping what they hold; nothing of it is left when Wait returns.
func Start(ctx context.Context, s Spec) (*VM, error) {
	if s.Tap != nil {
		defer s.Tap.Close() // QEMU has a copy of it
	}
	s = s.withDefaults()
	if err := s.validate(); err != nil {
		return nil, fmt.Errorf("virtual machine %s: %w", s.Name, err)
	}
	if err := ready(ctx, s); err != nil {
		return nil, err
	}
	v := &VM{spec: s, done: make(chan struct{}), heard: make(chan struct{})}
	if err := v.start(ctx); err != nil {
		return nil, fmt.Errorf("start the virtual machine %s: %w", s.Name, err)
	}
	return v, nil
}

func (v *VM) path(name string) string { return filepath.Join(v.spec.Dir, name) }

func (v *VM) start(ctx context.Context) (err error) {
	for _, dir := range []string{v.spec.Dir, v.spec.TPM} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	lock, err := v.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close() // QEMU and the TPM hold it
	if err := v.firmware(); err != nil {
		return err
	}
	var w wires
	defer func() { w.close() }()
	defer func() {
		if err != nil {
			v.abandon()
		}
	}()
	if w.tpm, err = v.startTPM(lock.File()); err != nil {
		return err
	}
	for _, d := range v.spec.Disks {
		end, err := v.serve(d)
		if err != nil {
			return err
		}
		w.disks = append(w.disks, end)
	}
	var monitor *os.File
	if monitor, w.qmp, err = pair("qmp"); err != nil {
		return err
	}
	conn, err := net.FileConn(monitor)
	monitor.Close()
	if err != nil {
		return err
	}
	v.qmp = &qmp{conn: conn, hear: v.hear, waiting: map[int]chan answer{}}
	if err := v.startQEMU(w, lock.File()); err != nil {
		conn.Close()
		return err
	}
	w.close() // so that an end of QEMU is seen
	w = wires{}
	go v.qmp.listen()
	go v.wait(ctx)
	if _, err := v.qmp.do(ctx, "qmp_capabilities", nil); err != nil {
		v.off(0)
		<-v.done
		return errors.Join(v.lastWords(), err)
	}
	return nil
}

// lock waits until an earlier run of the machine is gone: what was killed takes a moment to die.
func (v *VM) lock(ctx context.Context) (*flock.Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	l, err := flock.Wait(ctx, v.path("lock"))
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("it is already running: %w", err)
	}
	return l, err
}

// firmware sees to the file of firmware variables, and to where the console begins.
func (v *VM) firmware() error {
	if info, err := os.Stat(v.path("serial.log")); err == nil {
		v.serial = info.Size()
	}
	if v.spec.Kernel != nil {
		return nil
	}
	if _, err := os.Stat(v.path("vars.fd")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	from := boards[v.spec.Architecture].vars
	if v.spec.Keys != "" {
		from = v.spec.Keys
	}
	return Copy(v.path("vars.fd"), from, 0)
}

// pair makes a socket pair: our end, and that of a child.
func pair(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// startTPM returns QEMU's end of the line to the TPM.
func (v *VM) startTPM(lock *os.File) (*os.File, error) {
	if v.spec.TPM == "" {
		return nil, nil
	}
	qemus, tpms, err := pair("tpm")
	if err != nil {
		return nil, err
	}
	defer tpms.Close()
	log, err := os.OpenFile(v.path("tpm.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var inherit files
	v.swtpm = exec.Command(SWTPM, "socket", "--tpm2", "--tpmstate", "dir="+v.spec.TPM, "--ctrl", "type=unixio,clientfd="+inherit.add(tpms), "--terminate")
	inherit.add(lock)
	v.swtpm.ExtraFiles = inherit.list
	v.swtpm.Stdout, v.swtpm.Stderr = log, log
	if err := spawn.Start(v.swtpm, nil); err != nil {
		v.swtpm = nil
		return nil, errors.Join(err, qemus.Close())
	}
	return qemus, nil
}

// serve opens a disk and returns QEMU's end of the line to it.
func (v *VM) serve(d Disk) (*os.File, error) {
	opened, err := disk.Open(d.File)
	if err != nil {
		return nil, err
	}
	v.disks = append(v.disks, opened)
	ours, qemus, err := pair("disk")
	if err != nil {
		return nil, err
	}
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, errors.Join(err, qemus.Close())
	}
	go func() { // it ends with QEMU, or with this machine's power
		if err := opened.Serve(conn); err != nil {
			v.spec.Log.Error("serve a disk", "machine", v.spec.Name, "disk", d.File, "err", err)
		}
		conn.Close()
	}()
	return qemus, nil
}

func (v *VM) startQEMU(w wires, lock *os.File) error {
	log, err := os.OpenFile(v.path("qemu.log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	a := v.spec.describe(v.path("vars.fd"), v.path("serial.log"), w)
	a.files.add(lock)
	v.qemu = exec.Command(boards[v.spec.Architecture].qemu, a.list...)
	v.qemu.ExtraFiles = a.files.list
	v.qemu.Stdout, v.qemu.Stderr = log, log
	return spawn.Start(v.qemu, nil)
}

// abandon undoes a start that failed before QEMU ran.
func (v *VM) abandon() {
	if v.swtpm != nil {
		v.swtpm.Process.Kill()
		spawn.Wait(v.swtpm)
	}
	for _, d := range v.disks {
		d.Close()
	}
}

// wait sees the run to its end.
func (v *VM) wait(ctx context.Context) {
	defer close(v.done)
	stop := context.AfterFunc(ctx, func() { v.qemu.Process.Signal(unix.SIGTERM) }) // it flushes its disks
	defer stop()
	err := spawn.Wait(v.qemu)
	if v.killed.Load() {
		err = nil
	}
	v.qmp.conn.Close()
	if v.swtpm != nil { // it ends with QEMU; one that hangs must not keep its state locked
		timer := time.AfterFunc(5*time.Second, func() { v.swtpm.Process.Kill() })
		spawn.Wait(v.swtpm)
		timer.Stop()
	}
	for _, d := range v.disks {
		err = errors.Join(err, d.Close())
	}
	if err != nil {
		v.err = fmt.Errorf("virtual machine %s: %w", v.spec.Name, errors.Join(err, v.lastWords()))
	}
}

// lastWords is what QEMU complained about.
func (v *VM) lastWords() error {
	b, err := os.ReadFile(v.path("qemu.log"))
	text := strings.TrimSpace(string(b))
	if err != nil || text == "" {
		return err
	}
	return errors.New(text[max(0, len(text)-400):])
}

// Done is closed when the machine is off and nothing of it runs.
func (v *VM) Done() <-chan struct{} { return v.done }

// Wait waits until the machine is off. A machine that switched itself off, or that
// was switched off by Stop, is no error.
func (v *VM) Wait() error { <-v.done; return v.err }

// PID is the process of the machine, for looking at what it takes.
func (v *VM) PID() int { return v.qemu.Process.Pid }

// Disk is the machine's n-th disk.
func (v *VM) Disk(n int) *disk.Disk { return v.disks[n] }

// PowerCut takes the power away at once: from all disks at the same instant, which
// lose what was not flushed (all of it with seed 0, a part that the seed decides
// with another), then from the rest. It returns when nothing of the machine runs.
func (v *VM) PowerCut(seed uint64) (disk.Cut, error) {
	c, err := disk.PowerCut(seed, v.disks...)
	v.kill()
	<-v.done
	return c, err
}

// off ends QEMU without asking the guest.
func (v *VM) off(patience time.Duration) {
	if patience > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		v.qmp.do(ctx, "quit", nil)
		select {
		case <-v.done:
			return
		case <-ctx.Done():
		}
	}
	v.kill()
}

func (v *VM) kill() {
	v.killed.Store(true)
	v.qemu.Process.Kill()
}

// Stop switches the machine off. The guest is not told, but its disks lose
// nothing of what it wrote.
func (v *VM) Stop() error {
	v.off(10 * time.Second)
	return v.Wait()
}

// PressButton presses the power button for a moment, which asks the guest to end.
func (v *VM) PressButton(ctx context.Context) error {
	_, err := v.qmp.do(ctx, "system_powerdown", nil)
	return err
}

// Reset presses the reset button: the guest begins again, its disks keep their power.
func (v *VM) Reset(ctx context.Context) error {
	_, err := v.qmp.do(ctx, "system_reset", nil)
	return err
}

// SetLink plugs the network cable in or out.
func (v *VM) SetLink(ctx context.Context, up bool) error {
	if v.spec.Tap == nil {
		return errors.New("the machine has no network")
	}
	_, err := v.qmp.do(ctx, "set_link", map[string]any{"name": "port1", "up": up})
	return err
}

// Screenshot writes what the screen shows to a PNG file.
func (v *VM) Screenshot(ctx context.Context, file string) error {
	abs, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	_, err = v.qmp.do(ctx, "screendump", map[string]any{"filename": abs, "format": "png"})
	return err
}

func (v *VM) hear(e Event) {
	v.spec.Log.Debug("event of a virtual machine", "machine", v.spec.Name, "event", e.Name)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.events = append(v.events, e)
	close(v.heard)
	v.heard = make(chan struct{})
}

// WaitEvent waits until QEMU has told of n events of the name since the start.
func (v *VM) WaitEvent(ctx context.Context, name string, n int) error {
	for {
		v.mu.Lock()
		seen, heard := 0, v.heard
		for _, e := range v.events {
			if e.Name == name {
				seen++
			}
		}
		v.mu.Unlock()
		if seen >= n {
			return nil
		}
		select {
		case <-heard:
		case <-v.done:
			return fmt.Errorf("wait for event %s: %w", name, errGone)
		case <-ctx.Done():
			return fmt.Errorf("wait for event %s: %w", name, ctx.Err())
		}
	}
}

// Console is what the machine said on its serial console since it was started.
func (v *VM) Console() string {
	f, err := os.Open(v.path("serial.log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.NewSectionReader(f, v.serial, 64<<20))
	return string(b)
}

// WaitConsole waits until the console shows text.
func (v *VM) WaitConsole(ctx context.Context, text string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for over := false; ; {
		if strings.Contains(v.Console(), text) {
			return nil
		}
		if over {
			return fmt.Errorf("wait for %q on the console: %w", text, errGone)
		}
		select {
		case <-tick.C:
		case <-v.done:
			over = true // what it said last is looked at once more
		case <-ctx.Done():
			return fmt.Errorf("wait for %q on the console: %w", text, ctx.Err())
		}
	}
}
