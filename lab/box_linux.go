package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/lab/vm"
	"github.com/holdfast-edge/holdfast/lab/vm/disk"
	"github.com/holdfast-edge/holdfast/lab/world"
)

const (
	boxPause   = time.Second      // before a machine that went off is switched on again
	boxPatient = 10 * time.Second // the same for one that does not start
	boxButton  = 60 * time.Second // for a guest to end by itself after its power button was pressed
	serialMost = 32 << 20         // bytes of console that are kept from earlier runs
)

// order is what the box is told through its control socket: one for each connection.
type order struct {
	Do   string `json:"do"` // power-cut, off, link, screenshot, reset, look
	Seed uint64 `json:"seed,omitempty"`
	Up   bool   `json:"up,omitempty"`
	File string `json:"file,omitempty"`
	Stay bool   `json:"stay,omitempty"` // off, until this process is ended
	// After is how many writes and flushes the first disk is still to see before the
	// power goes; Within when it goes at the latest. Where Size is not 0, only writes
	// to so many bytes at Off count.
	After  uint64        `json:"after,omitempty"`
	Off    int64         `json:"off,omitempty"`
	Size   int64         `json:"size,omitempty"`
	Within time.Duration `json:"within,omitempty"`
}

// outcome answers an order.
type outcome struct {
	Error string   `json:"error,omitempty"`
	Cut   disk.Cut `json:"cut"`
	Seen  bool     `json:"seen,omitempty"` // the changes that were waited for came
}

// awaitChanges waits until the disk saw what the order says, and tells whether it did.
func awaitChanges(ctx context.Context, v *vm.VM, o order) bool {
	seen := make(chan struct{})
	v.Disk(0).CutIn(o.Off, o.Size, o.After, func() { close(seen) })
	select {
	case <-seen:
		return true
	case <-v.Done():
	case <-ctx.Done():
	case <-time.After(o.Within):
	}
	return false
}

// box keeps one virtual machine under power.
type box struct {
	lab     Lab
	key     string
	world   *world.World
	log     *slog.Logger
	running chan *vm.VM // holds the machine while it runs: who takes it puts it back
	stay    atomic.Bool // off
}

// Box is the life of a virtual machine's outer process: it switches the machine
// on, and on again whenever it went off, until ctx ends. network is an inherited
// descriptor of the lab's network. Whatever kills this process kills the machine,
// as a power cut does: what its disks were not told to flush is lost.
func (l Lab) Box(ctx context.Context, key string, network int, log *slog.Logger) error {
	if err := flock.Shield(); err != nil {
		return err
	}
	w, err := openWorld(network)
	if err != nil {
		return err
	}
	b := &box{lab: l, key: key, world: w, log: log, running: make(chan *vm.VM, 1)}
	wanted, err := l.Wanted()
	if err != nil {
		return err
	}
	m, err := wanted.Find(key)
	if err != nil {
		return err
	}
	control, err := listenAt(l.control(*m))
	if err != nil {
		return err
	}
	defer control.Close()
	go b.listen(ctx, control)
	b.trouble(*m, nil)
	for ctx.Err() == nil && !b.stay.Load() {
		pause := boxPause
		if err := b.life(ctx); err != nil {
			log.Error("run a virtual machine", "machine", key, "err", err)
			b.trouble(*m, err)
			pause = boxPatient
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	<-ctx.Done()
	return nil
}

// life is one run of the machine, as lab.json wants it now.
func (b *box) life(ctx context.Context) error {
	w, err := b.lab.Wanted()
	if err != nil {
		return err
	}
	m, err := w.Find(b.key)
	if err != nil || !m.Run {
		return err
	}
	if err := b.lab.prepareDisks(*m); err != nil {
		return err
	}
	trim(b.lab.serial(*m))
	s, err := b.lab.spec(*m, b.world)
	if err != nil {
		return err
	}
	s.Log = b.log
	v, err := vm.Start(context.WithoutCancel(ctx), s)
	if err != nil {
		return err
	}
	b.trouble(*m, nil)
	b.log.Info("virtual machine on", "machine", b.key, "accelerator", m.Accel)
	if m.Unplugged {
		if err := v.SetLink(ctx, false); err != nil {
			b.log.Error("unplug the network", "machine", b.key, "err", err)
		}
	}
	b.running <- v
	select {
	case <-v.Done():
	case <-ctx.Done():
		b.end(v)
	}
	<-b.running
	b.log.Info("virtual machine off", "machine", b.key)
	return v.Wait()
}

// trouble says why the machine is not on, for Lab.Trouble; nil that it is, or that nobody has tried yet.
func (b *box) trouble(m Machine, why error) {
	err := os.Remove(b.lab.trouble(m))
	if why != nil {
		err = durable.WriteFile(b.lab.trouble(m), []byte(why.Error()+"\n"), 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.log.Error("say why a virtual machine is off", "machine", b.key, "err", err)
	}
}

// end presses the power button, as who leaves the shop does, and pulls the plug
// of a machine that takes too long. With the whole lab ending it is pulled at once.
func (b *box) end(v *vm.VM) {
	ctx, cancel := context.WithTimeout(context.Background(), boxButton)
	defer cancel()
	if w, err := b.lab.Wanted(); err == nil && !w.Stop {
		if err := v.PressButton(ctx); err != nil {
			b.log.Error("press the power button", "machine", b.key, "err", err)
		}
		select {
		case <-v.Done():
			return
		case <-ctx.Done():
			b.log.Warn("a virtual machine did not end when its power button was pressed", "machine", b.key, "waited", boxButton)
		}
	}
	if err := v.Stop(); err != nil {
		b.log.Error("switch a virtual machine off", "machine", b.key, "err", err)
	}
}

// trim begins a console anew that has become long.
func trim(path string) {
	if info, err := os.Stat(path); err == nil && info.Size() > serialMost {
		os.Rename(path, path+".1")
	}
}

// listen takes orders.
func (b *box) listen(ctx context.Context, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed at the end
		}
		go func() {
			defer c.Close()
			var o order
			if err := json.NewDecoder(c).Decode(&o); err != nil {
				return
			}
			var out outcome
			if err := b.obey(ctx, o, &out); err != nil {
				out.Error = err.Error()
			}
			json.NewEncoder(c).Encode(out)
		}()
	}
}

func (b *box) obey(ctx context.Context, o order, out *outcome) (err error) {
	var v *vm.VM
	select {
	case v = <-b.running:
		defer func() { b.running <- v }()
	case <-time.After(boxPause + boxPause/2): // it may be just between two runs
		return errors.New("the machine is off")
	}
	switch o.Do {
	case "power-cut":
		if o.Within > 0 {
			out.Seen = awaitChanges(ctx, v, o)
		}
		if o.Stay {
			b.stay.Store(true)
		}
		out.Cut, err = v.PowerCut(o.Seed)
	case "off":
		b.stay.Store(true)
		err = v.Stop()
	case "link":
		err = v.SetLink(ctx, o.Up)
	case "screenshot":
		err = v.Screenshot(ctx, o.File)
	case "reset":
		err = v.Reset(ctx)
	case "look":
	default:
		err = fmt.Errorf("%q is no order", o.Do)
	}
	return err
}

// near opens the folder of path and returns a short name for path by it: the
// address of a socket must not be longer than 107 bytes.
func near(path string) (string, *os.File, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), dir, nil
}

func listenAt(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	name, dir, err := near(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // by then the name stands for something else
	return l, nil
}

func dialAt(ctx context.Context, path string) (net.Conn, error) {
	name, dir, err := near(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return new(net.Dialer).DialContext(ctx, "unix", name)
}

// order gives an order to the box of a machine.
func (l Lab) order(ctx context.Context, m Machine, o order) (outcome, error) {
	var out outcome
	fail := func(err error) (outcome, error) { return out, fmt.Errorf("%s of machine %s: %w", o.Do, m.Key(), err) }
	if _, held, err := flock.Owner(l.machine(m).lock); err != nil {
		return fail(err)
	} else if !held {
		return fail(errors.New("the machine is off"))
	}
	c, err := dialAt(ctx, l.control(m))
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := json.NewEncoder(c).Encode(o); err != nil {
		return fail(err)
	}
	if err := json.NewDecoder(c).Decode(&out); err != nil {
		return fail(errors.Join(err, ctx.Err()))
	}
	if out.Error != "" {
		return fail(errors.New(out.Error))
	}
	return out, nil
}

// PowerCut takes a virtual machine's power away, with what its disks had not been
// told to flush: all of that with seed 0, else a part that the seed decides. It
// comes back at once, unless it is to stay off.
func (l Lab) PowerCut(ctx context.Context, name string, seed uint64, stayOff bool) (disk.Cut, error) {
	_, m, err := l.virtual(name, "a power that can be cut with what is not flushed (holdfast lab kill ends the machine)")
	if err != nil {
		return disk.Cut{}, err
	}
	out, err := l.order(ctx, *m, order{Do: "power-cut", Seed: seed, Stay: stayOff})
	if err == nil && stayOff {
		err = l.Switch(ctx, m.Key(), false)
	}
	return out.Cut, err
}

// PowerCutAfter takes the power away when the first disk has seen so many more
// writes and flushes, which names an instant better than a clock can, or when
// within is over. It tells whether the disk saw them.
func (l Lab) PowerCutAfter(ctx context.Context, name string, seed, changes uint64, within time.Duration) (disk.Cut, bool, error) {
	return l.PowerCutIn(ctx, name, seed, 0, 0, changes, within)
}

// PowerCutIn is PowerCutAfter where only writes count that touch the size bytes at
// off of the first disk: a partition, so that the instant is one of what is done there.
func (l Lab) PowerCutIn(ctx context.Context, name string, seed uint64, off, size int64, changes uint64, within time.Duration) (disk.Cut, bool, error) {
	_, m, err := l.virtual(name, "a power that can be cut")
	if err != nil {
		return disk.Cut{}, false, err
	}
	out, err := l.order(ctx, *m, order{Do: "power-cut", Seed: seed, After: changes, Off: off, Size: size, Within: within})
	return out.Cut, out.Seen, err
}

// Powered tells whether a virtual machine is on just now.
func (l Lab) Powered(ctx context.Context, m Machine) bool {
	_, err := l.order(ctx, m, order{Do: "look"})
	return err == nil
}

// SetLink plugs a virtual machine's network cable in or out. It stays so.
func (l Lab) SetLink(ctx context.Context, name string, up bool) error {
	w, m, err := l.virtual(name, "a cable to unplug")
	if err != nil {
		return err
	}
	m.Unplugged = !up
	if err := l.Want(w); err != nil {
		return err
	}
	if !m.Run {
		return nil
	}
	_, err = l.order(ctx, *m, order{Do: "link", Up: up})
	return err
}

// Screenshot writes what a virtual machine's screen shows to a PNG file.
func (l Lab) Screenshot(ctx context.Context, name, file string) error {
	_, m, err := l.virtual(name, "a screen")
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	_, err = l.order(ctx, *m, order{Do: "screenshot", File: abs})
	return err
}

// whileOff pulls a machine's plug, does something to it, and switches it on again if it was on.
func (l Lab) whileOff(ctx context.Context, m Machine, do func() error) error {
	if m.Run {
		l.order(ctx, m, order{Do: "off"}) // one that is off has no plug to pull; the next line sees to the rest
		if err := l.Switch(ctx, m.Key(), false); err != nil {
			return err
		}
	}
	if err := do(); err != nil {
		return err
	}
	if m.Run {
		return l.Switch(ctx, m.Key(), true)
	}
	return nil
}

// PullDisk takes a disk out of a virtual machine and puts a blank one in its place.
// It returns the file of the pulled one. With stick the OS image on a stick is
// plugged in, from which the machine installs itself.
func (l Lab) PullDisk(ctx context.Context, name string, n int, stick bool) (string, error) {
	_, m, err := l.virtual(name, "disks to pull")
	if err != nil {
		return "", err
	}
	if n < 0 || n >= len(m.Disks) {
		return "", fmt.Errorf("machine %s has no disk %d: it has 0 to %d", m.Key(), n, len(m.Disks)-1)
	}
	pulled := aside(l.disk(*m, n))
	return pulled, l.whileOff(ctx, *m, func() error {
		if err := os.Rename(l.disk(*m, n), pulled); err != nil {
			return err
		}
		if err := vm.Blank(l.disk(*m, n), m.Disks[n]); err != nil {
			return err
		}
		if stick {
			return l.plugStick(m.Key(), true)
		}
		return nil
	})
}

// SetStick plugs the OS image on a stick in or out of a virtual machine, which is off meanwhile.
func (l Lab) SetStick(ctx context.Context, name string, in bool) error {
	_, m, err := l.virtual(name, "a socket for a stick")
	if err != nil {
		return err
	}
	return l.whileOff(ctx, *m, func() error { return l.plugStick(m.Key(), in) })
}

func (l Lab) plugStick(key string, in bool) error {
	w, err := l.Wanted()
	if err != nil {
		return err
	}
	m, err := w.Find(key)
	if err != nil {
		return err
	}
	if _, err := os.Stat(l.stick(*m)); in && errors.Is(err, fs.ErrNotExist) {
		if err := l.osDisk(*m, l.stick(*m), 0, true); err != nil {
			return err
		}
	}
	m.Stick = in
	return l.Want(w)
}

// SwapTPM puts another TPM into a virtual machine: a new one, or the one that was
// there before the last swap. It returns the folder of the one taken out.
func (l Lab) SwapTPM(ctx context.Context, name string, back bool) (string, error) {
	_, m, err := l.virtual(name, "a TPM to swap")
	if err != nil {
		return "", err
	}
	former := m.tpm() + ".out"
	if _, err := os.Stat(former); back && err != nil {
		return "", fmt.Errorf("no TPM was taken out of machine %s: %w", m.Key(), err)
	}
	out := aside(m.tpm())
	if !back {
		out = former
	}
	return out, l.whileOff(ctx, *m, func() error {
		if !back {
			if err := os.Rename(former, aside(m.tpm())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Rename(m.tpm(), out); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if back {
			return os.Rename(former, m.tpm())
		}
		return nil
	})
}

// aside is a new name beside path.
func aside(path string) string {
	return fmt.Sprintf("%s.%s-%04x", strings.TrimSuffix(path, ".raw"), time.Now().UTC().Format("20060102-150405"), rand.IntN(1<<16))
}
