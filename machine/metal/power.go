package metal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// action is how the machine's run ends.
type action string

const (
	reboot action = "reboot"
	off    action = "power off"
)

// power takes the first request to end.
type power struct {
	asked chan struct{} // closed by the first request

	mu     sync.Mutex // guards what follows
	action action
	reason string
}

func newPower() *power { return &power{asked: make(chan struct{})} }

// request asks for the end; later ones than the first change nothing.
func (p *power) request(a action, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.action != "" {
		return
	}
	p.action, p.reason = a, reason
	close(p.asked)
}

func (p *power) requested() (action, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.action, p.reason
}

// Bounds of despair: a failed boot stands on the screen for a while, and failed
// boots do not follow each other faster than this after the kernel's start.
const (
	shortest = 60 * time.Second
	standing = 10 * time.Second
)

// lingerFor is how long a failure is shown when it comes so late after the kernel's start.
func lingerFor(sinceKernel time.Duration) time.Duration {
	return max(standing, shortest-sinceKernel)
}

// despair says what ended the boot or the run, waits and asks for a reboot. The
// log has the whole error; the screen the code, and a sentence that fits.
func (m *metal) despair(err error) {
	wait := lingerFor(sinceKernel())
	m.ring.say(levelError, err.Error())
	picture := lastPicture(err, wait)
	if m.screen != nil {
		m.screen.Write([]byte(picture))
	} else {
		m.ring.notices().Write([]byte(picture))
	}
	select {
	case <-m.power.asked:
	case <-time.After(wait):
	}
	m.power.request(reboot, "it failed")
}

// lastPicture is what a machine shows that cannot go on.
func lastPicture(err error, wait time.Duration) string {
	text := err.Error()
	var f *failure
	if errors.As(err, &f) {
		text = f.fault.String()
	}
	return fmt.Sprintf("Holdfast\n\n  fault     %s\n            the machine reboots in %d seconds\n", text, int(wait.Seconds()))
}

// grace is how long processes that machine.Run left have between the two signals;
// lastTimeout is the watchdog's on the way into the next boot.
const (
	grace       = 3 * time.Second
	lastTimeout = 3 * time.Minute
)

// down takes the machine down, when machine.Run has returned and ctx has ended.
// It goes on whatever fails: the machine must not stop half-way.
func (m *metal) down() error {
	action, reason := m.power.requested()
	if action == "" {
		action = reboot
	}
	m.ring.say(levelNotice, fmt.Sprintf("down: %s (%s)", action, reason))
	m.dog.SetTimeout(lastTimeout) // what hangs from here on is reset
	m.background.Wait()
	killAll()
	unix.Sync()
	if err := m.letGo(); err != nil {
		m.ring.say(levelWarn, "down: "+err.Error())
	}
	unix.Sync()
	command := unix.LINUX_REBOOT_CMD_RESTART
	if action == off {
		command = unix.LINUX_REBOOT_CMD_POWER_OFF
		m.dog.Disarm()
	} else {
		m.dog.Leave()
	}
	m.ring.say(levelNotice, fmt.Sprintf("down: now, %d ms after the kernel", sinceKernel().Milliseconds()))
	if err := unix.Reboot(command); err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	select {} // the kernel takes over
}

// killAll ends every other process: politely, then for good.
func killAll() {
	unix.Kill(-1, unix.SIGTERM)
	for end := time.Now().Add(grace); time.Now().Before(end) && others(); {
		time.Sleep(50 * time.Millisecond)
	}
	unix.Kill(-1, unix.SIGKILL)
	for end := time.Now().Add(grace); time.Now().Before(end) && others(); {
		time.Sleep(50 * time.Millisecond)
	}
}

// others buries the dead and tells whether processes besides this one and the
// kernel's are left.
func others() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 || err != nil {
			break
		}
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	return slices.ContainsFunc(stats, func(file string) bool {
		text, err := os.ReadFile(file)
		return err == nil && foreign(string(text))
	})
}

// kernelParent is the process that all of the kernel's own are children of.
const kernelParent = "2"

// foreign tells by a line of /proc/PID/stat whether a process is neither this
// one, nor the kernel's, nor dead.
func foreign(stat string) bool {
	pid, _, _ := strings.Cut(stat, " ")
	rest := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // after the name, which may hold anything
	if len(rest) < 2 {
		return false
	}
	return pid != "1" && pid != kernelParent && rest[1] != kernelParent && rest[0] != "Z" && rest[0] != "X"
}

// letGo unmounts what lies on disks, those of others first, and closes the disks.
// What does not go is made read-only, so that it is clean.
func (m *metal) letGo() error {
	var faults []error
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	closeBelow(stateDir, dataDir)
	for _, at := range toUnmount(string(text)) {
		if err := unix.Unmount(at, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			faults = append(faults, makeReadOnly(at, err))
		}
	}
	if m.disks == nil {
		return errors.Join(faults...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := m.disks.Close(ctx); err != nil {
		for _, at := range []string{dataDir, stateDir} {
			faults = append(faults, makeReadOnly(at, err))
		}
	}
	return errors.Join(faults...)
}

// makeReadOnly is for what is still used; why is the error of unmounting it.
func makeReadOnly(at string, why error) error {
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: no longer mounted
		return fmt.Errorf("%s neither unmounted (%w) nor made read-only (%w)", at, why, err)
	}
	return nil
}

// closeBelow closes the files that this process itself has open below folders,
// logs of processes for one: nothing of it works any more that would mind.
func closeBelow(folders ...string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		fd, bad := strconv.Atoi(e.Name())
		if err != nil || bad != nil {
			continue
		}
		if slices.ContainsFunc(folders, func(f string) bool { return strings.HasPrefix(target, f+"/") }) {
			unix.Close(fd)
		}
	}
}

// Without a disk of ours below them, or the root: file systems by kind, and the
// machine's own in memory by place; those of pods lie on what is to go.
var without = []string{"proc", "sysfs", "devtmpfs", "erofs", "cgroup2", "securityfs", "bpf", "pstore", "devpts", "mqueue", "efivarfs", "rootfs"}

var inMemory = []string{"/tmp", "/var", "/run", "/dev/shm"}

// toUnmount lists the mount points of mountinfo(5) to unmount, in order. STATE and
// DATA are not among them: package disks closes them.
func toUnmount(mountinfo string) []string {
	var list []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-")
		if dash < 5 || dash+1 >= len(fields) {
			continue
		}
		if kind := fields[dash+1]; slices.Contains(without, kind) || (kind == "tmpfs" && slices.Contains(inMemory, fields[4])) || fields[4] == stateDir || fields[4] == dataDir {
			continue
		}
		list = append(list, unescape(fields[4]))
	}
	slices.Reverse(list)
	return list
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
