// Command init is process 1 of the initramfs: it loads the modules that stand
// beside it, finds the root file system whose hash the signed command line
// names, puts dm-verity between that and itself, moves there and becomes its
// /sbin/init. It promises that nothing of the root is used unverified, that
// whatever fails ends in a reboot, which the boot counter counts, and that a root
// that is damaged does not restart the machine for ever where another one is
// whole. It mounts nothing writable of any disk and speaks to no network.
package main

import (
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/metal/modules"
	"github.com/holdfast-edge/holdfast/osimage"
)

// patience is how long a disk may take to appear.
const patience = 10 * time.Second

// linger is how long the reason of a failed boot stands on the console.
const linger = 2 * time.Second

// boot is what the phases hand to one another.
type boot struct {
	said    osimage.Boot // BootFile, so far
	drivers *modules.Loader
	verity  osimage.Verity
	entry   string                                            // that the boot loader took; "" without one
	choose  func(matches func(partition) (bool, error)) error // the root, among what is there
	device  string                                            // the verified root
}

// phases of this stage. Each must succeed.
var phases = []struct {
	name string
	do   func(*boot) error
}{
	{"mounts", (*boot).mounts},
	{"modules", (*boot).modules},
	{"watchdog", (*boot).watchdog},
	{"root", (*boot).find},
	{"proof", (*boot).prove},
	{"verity", (*boot).open},
	{"handover", (*boot).handOver},
}

func main() {
	b := &boot{}
	b.timed("kernel", 0)
	for _, p := range phases {
		began := now()
		if err := p.do(b); err != nil {
			giveUp(p.name, err)
		}
		b.timed(p.name, began)
	}
	if err := b.leave(); err != nil {
		giveUp("exec", err)
	}
}

// timed notes how long a phase took, and says so.
func (b *boot) timed(name string, began time.Duration) {
	took := now() - began
	b.said.Phases = append(b.said.Phases, osimage.Phase{Name: name, MS: took.Milliseconds()})
	say("<5>", "init: "+name+" "+strconv.FormatInt(took.Milliseconds(), 10)+" ms")
}

// now is the time since the kernel's start.
func now() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &t)
	return time.Duration(t.Nano())
}

// log is the kernel's log, from where lines come to the consoles; nil before
// there is a /dev. It stays open, since /dev moves.
var log *os.File

// early is what was to be said before.
var early []string

func say(level, text string) {
	early = append(early, level+"holdfast: "+text)
	if log == nil {
		f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
		if err != nil {
			return
		}
		log = f
	}
	for _, line := range early {
		log.WriteString(line + "\n")
	}
	early = nil
}

// giveUp says what went wrong and ends: the kernel panics when its process 1
// does, and reboots. A boot that is counted falls back to the other slot.
func giveUp(phase string, err error) {
	text := "init: boot phase " + phase + ": " + err.Error() + "; the machine reboots"
	say("<3>", text)
	if log == nil { // not even a kernel log
		os.Stderr.WriteString("holdfast: " + text + "\n")
	}
	time.Sleep(linger)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1)
}

var errNoRoot = errors.New("no partition holds the root that the command line names")
