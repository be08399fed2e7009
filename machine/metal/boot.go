package metal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/machine"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/metal/clock"
	"github.com/holdfast-edge/holdfast/machine/metal/disks"
	"github.com/holdfast-edge/holdfast/machine/metal/efivar"
	"github.com/holdfast-edge/holdfast/machine/metal/harden"
	"github.com/holdfast-edge/holdfast/machine/metal/modules"
	"github.com/holdfast-edge/holdfast/machine/metal/network"
	"github.com/holdfast-edge/holdfast/machine/metal/screen"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/machine/metal/watchdog"
	"github.com/holdfast-edge/holdfast/machine/update"
	"github.com/holdfast-edge/holdfast/osimage"
)

// metal is what the phases hand to one another.
type metal struct {
	ring    *ring
	log     *slog.Logger
	started time.Duration // after the kernel
	booted  osimage.Boot  // what cmd/init said, then our phases too
	way     string        // the firmware's boot option that was taken; "" is unknown
	faults  *faults.List
	power   *power

	dog     *watchdog.Dog
	pulse   watchdog.Pulse // of the machine's supervisor
	modules *modules.Loader
	listed  chan error // the modules that are loaded meanwhile
	screen  *screen.Screen

	public  string // folder for what is no secret and outlives STATE
	tpm     *tpm.TPM
	box     box.Box                                      // nil until there is a place for one
	disks   *disks.Disks                                 // nil while they are not open
	limits  *machine.Limits                              // why the machine cannot run, if it cannot
	reopen  func(context.Context, *fleet.DiskRule) error // tries the disk again, by another rule; nil where that is no use
	asks    bool                                         // a release may say which disk
	clock   *clock.Clock
	network *network.Manager

	rerouted chan struct{} // holds one wish of the network to dial anew

	background sync.WaitGroup // ends with ctx
}

// phase is a line of the boot table. An error ends the boot; it is shown with the
// phase's code, unless it brings its own.
type phase struct {
	name string
	do   func(*metal, context.Context) error
	code faults.Code // its sentence takes the error
}

// phases in their order.
var phases = []phase{
	{"mounts", (*metal).bootMounts, faults.BootMounts},
	{"watchdog", (*metal).bootWatchdog, faults.BootWatchdog},
	{"settings", (*metal).bootSettings, faults.BootSettings},
	{"screen", (*metal).bootScreen, faults.BootScreen},
	{"devices", (*metal).bootDevices, faults.BootDevices},
	{"button", (*metal).bootButton, faults.BootButton},
	{"esp", (*metal).bootESP, faults.BootESP},
	{"clock", (*metal).bootClock, faults.BootClock},
	{"tpm", (*metal).bootTPM, faults.NoTPM},
	{"disks", (*metal).bootDisks, faults.BootDisks},
	{"network", (*metal).bootNetwork, faults.BootNetwork},
	{"modules", (*metal).bootModules, faults.BootModules},
}

// IsMetal tells whether this process is process 1 of an OS image.
func IsMetal() bool {
	if os.Getpid() != 1 {
		return false
	}
	_, err := os.Stat(osimage.BootFile)
	return err == nil
}

// Main boots the machine, runs it and takes it down when somebody asks for that.
// It returns only when not even that worked: the kernel then panics and reboots.
func Main() error {
	// Signals of terminals and of processes with rights are no way to stop a machine.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	r := openRing()
	m := &metal{ring: r, log: r.logger(), started: sinceKernel(), faults: faults.NewList(r.logger()), power: newPower(), rerouted: make(chan struct{}, 1)}
	slog.SetDefault(m.log)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	err := m.boot(ctx)
	if err == nil {
		err = m.run(ctx)
	}
	if err != nil {
		m.despair(err)
	} else {
		m.tally(efivar.Settle) // an end in order
	}
	stop()
	return m.down()
}

// boot goes through the table.
func (m *metal) boot(ctx context.Context) error {
	text, err := os.ReadFile(osimage.BootFile)
	if err != nil {
		return fmt.Errorf("read how the machine booted: %w", err)
	}
	if err := json.Unmarshal(text, &m.booted); err != nil {
		return fmt.Errorf("read how the machine booted: %w", err)
	}
	m.background.Go(func() { spawn.Reap(ctx) })
	for _, p := range phases {
		began := sinceKernel()
		if err := p.do(m, ctx); err != nil {
			return failed(faults.New(p.code, err), fmt.Errorf("boot phase %s: %w", p.name, err))
		}
		took := (sinceKernel() - began).Milliseconds()
		m.booted.Phases = append(m.booted.Phases, osimage.Phase{Name: p.name, MS: took})
		m.ring.say(levelNotice, fmt.Sprintf("boot: %s %d ms", p.name, took))
	}
	m.ring.say(levelNotice, fmt.Sprintf("boot: machined runs, %d ms after it was started, %d ms after the kernel", (sinceKernel()-m.started).Milliseconds(), sinceKernel().Milliseconds()))
	return nil
}

// sinceKernel is the time since the kernel's start.
func sinceKernel() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

func (m *metal) bootMounts(context.Context) error {
	unix.Umask(0o022)
	if err := mountAll(); err != nil {
		return err
	}
	if err := harden.Limits(); err != nil {
		return err
	}
	if err := writeNames(hostname); err != nil {
		return err
	}
	return nil
}

// patience is how long the machine's own loop may be silent before the watchdog
// is no longer fed; timeout how long it then takes.
const (
	watchdogPatience = 2 * time.Minute
	watchdogTimeout  = time.Minute
)

func (m *metal) bootWatchdog(ctx context.Context) (err error) {
	if err := modules.EnableHelper(false); err != nil { // until bootModules
		return err
	}
	if m.modules, err = modules.Open(modules.Folder()); err != nil {
		return err
	}
	if m.dog, err = watchdog.Open("/dev/watchdog", watchdogTimeout); err != nil {
		return err
	}
	if m.dog == nil && m.modules.Has("softdog") { // no hardware: the kernel at least watches processes
		if err := m.modules.Load("softdog"); err != nil {
			m.log.Warn("no watchdog", "err", err)
		}
		if m.dog, err = watchdog.Open("/dev/watchdog", watchdogTimeout); err != nil {
			return err
		}
	}
	if m.dog == nil {
		m.faults.Set(faults.New(faults.NoWatchdog))
	}
	m.background.Go(func() {
		pulses := map[string]*watchdog.Pulse{"supervisor": &m.pulse}
		err := m.dog.Keep(ctx, watchdogPatience, pulses, func(part string) {
			m.ring.say(levelError, "the "+part+" does not turn any more: the watchdog is not fed")
		})
		if err != nil {
			m.log.Error("watchdog", "err", err)
		}
	})
	return nil
}

func (m *metal) bootSettings(context.Context) error {
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	if err := harden.Apply("/proc/sys", harden.Settings()); err != nil {
		return err
	}
	return netns.Up("lo")
}

// refresh is how often the screen is drawn anew: a driver that starts clears it.
const refresh = 30 * time.Second

func (m *metal) bootScreen(ctx context.Context) error {
	glass, err := screen.OpenGlass()
	if err != nil {
		m.log.Warn("no screen", "err", err) // nobody stands before most machines
	}
	m.screen = screen.New(glass, m.ring.notices())
	m.background.Go(func() { m.screen.Refresh(ctx.Done(), refresh) })
	return nil
}

// bootDevices loads drivers for what is there and listens for what comes. What
// the index lists besides, the packet filter's parts for one, loads meanwhile,
// and then memory is compressed.
func (m *metal) bootDevices(ctx context.Context) error {
	events, err := modules.Subscribe()
	if err != nil {
		return err
	}
	tell := func(err error) { m.log.Warn("driver not loaded", "err", err) }
	if err := m.modules.Coldplug("/sys"); err != nil {
		tell(err)
	}
	m.background.Go(func() {
		if err := events.Load(ctx, m.modules, tell); err != nil {
			m.log.Error("later devices get no driver", "err", err)
		}
	})
	m.listed = make(chan error, 1)
	m.background.Go(func() {
		err := m.modules.Load(m.modules.Listed()...)
		m.compress()
		m.listed <- err
	})
	return nil
}

// bootModules waits for what the index lists. One that does not load is told and
// no more: what needs it will say so, and most that is listed is not used by all.
func (m *metal) bootModules(ctx context.Context) error {
	select {
	case err := <-m.listed:
		if err != nil {
			m.log.Warn("kernel modules not loaded", "err", err)
		}
		return modules.EnableHelper(true)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errRequested ends machine.Run when somebody asked for the end.
var errRequested = errors.New("the machine is asked to stop")

// run runs the machine until somebody asks for its end, which is no error.
func (m *metal) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.background.Go(func() {
		select {
		case <-m.power.asked:
			cancel(errRequested)
		case <-ctx.Done():
		}
	})
	if err := m.standIn(); err != nil {
		return err
	}
	var low *update.FloorError
	if err := update.CheckFloor(m.box, osRelease("IMAGE_VERSION")); errors.As(err, &low) {
		if err := m.limit(err, faults.New(faults.OSTooOld, low.Version, low.Floor)); err != nil {
			return err
		}
	} else if err != nil {
		return failed(faults.New(faults.BootFailed, "the version floor", err), err)
	}
	if m.limits != nil {
		if err := m.runLimited(ctx); err != nil {
			return m.ended(ctx, err)
		}
	}
	return m.ended(ctx, machine.Run(ctx, m.config()))
}

// ended tells an end that was asked for, which is no error, from others.
func (m *metal) ended(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errRequested) {
		return nil
	}
	if err == nil {
		err = errors.New("it ended by itself")
	}
	return failed(runFault(err), fmt.Errorf("run the machine: %w", err))
}

// failure is what ends a boot or a run, with what people look up.
type failure struct {
	fault faults.Fault
	error
}

func (f *failure) Unwrap() error { return f.error }

// failed adds the fault that err is, unless something closer to it has said one.
func failed(f faults.Fault, err error) error {
	var closer *failure
	if errors.As(err, &closer) {
		f = closer.fault
	}
	return &failure{f, err}
}

// runFault is the fault of a machine that ended: its boot table is in words of the same form.
func runFault(err error) faults.Fault {
	if rest, ok := strings.CutPrefix(err.Error(), "boot phase "); ok {
		phase, why, _ := strings.Cut(rest, ": ")
		return faults.New(faults.BootFailed, phase, why)
	}
	return faults.New(faults.BootFailed, "work", err)
}

// config is what the machine is told of where it is.
func (m *metal) config() machine.Config {
	var info unix.Sysinfo_t
	unix.Sysinfo(&info) // cannot fail with a good pointer; 0 is unknown
	return machine.Config{
		StateDir: stateDir, DataDir: dataDir, RunDir: runDir, BinDir: "/usr/lib/holdfast",
		Box: m.box, PublicDir: m.public, Seed: seedFile, Network: m.hints, Rerouted: m.rerouted,
		Hostname: hostname, Serial: serialNumber(),
		Memory:   int64(info.Totalram) * int64(info.Unit),
		OS:       machine.OS{Version: osRelease("IMAGE_VERSION"), Slot: m.booted.Slot},
		Platform: m.platform(), Upstreams: m.upstreams, Configure: m.configure,
		Faults: m.faults, Screen: m.screen, LinkState: m.contact, SignedTime: m.clock.Signed, Trusted: m.trusted, Pulse: m.pulse.Beat,
		StopTime: stopTime, Log: m.log,
	}
}

// hostname is every machine's until it has a name of its own in Kubernetes.
const hostname = "holdfast"

// serialNumber is the box's, as its maker wrote it into the firmware.
func serialNumber() string {
	text, err := os.ReadFile("/sys/class/dmi/id/product_serial")
	if err != nil {
		return "" // not every board says
	}
	return strings.TrimSpace(string(text))
}

// osRelease is a field of os-release, which the OS image's builder wrote.
func osRelease(field string) string {
	text, err := os.ReadFile("/usr/lib/os-release")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

// stopTime is how long pods may take to end.
const stopTime = 60 * time.Second
