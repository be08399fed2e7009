package metal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage/fat"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	runDir     = "/run/holdfast"
	espDir     = "/efi"
	stateDir   = "/state"
	dataDir    = "/data"
)

const (
	quiet = unix.MS_NOSUID | unix.MS_NODEV
	inert = quiet | unix.MS_NOEXEC
)

// A mountPoint is a file system without a disk.
type mountPoint struct {
	kind, at string
	flags    uintptr
	options  string
	optional bool // a kernel without it is no fault
}

// mountPoints are mounted in this order; cmd/init brought dev, proc, sys and run.
var mountPoints = []mountPoint{
	{"cgroup2", cgroupRoot, inert, "nsdelegate,memory_recursiveprot", false},
	{"securityfs", "/sys/kernel/security", inert, "", true},
	{"bpf", "/sys/fs/bpf", inert, "mode=700", true},
	{"pstore", "/sys/fs/pstore", inert, "", true},
	{"tmpfs", "/tmp", quiet, "mode=1777,size=20%", false},
	{"tmpfs", "/var", quiet, "mode=755,size=5%", false},
	{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=620,ptmxmode=000", false},
	{"tmpfs", "/dev/shm", quiet, "mode=1777,size=20%", false},
	{"mqueue", "/dev/mqueue", inert, "", true},
}

// folders and links are what programs expect below the mounts.
var (
	folders = map[string]fs.FileMode{
		"/dev/pts": 0o755, "/dev/shm": 0o755, "/dev/mqueue": 0o755,
	}
	laterFolders = map[string]fs.FileMode{
		"/var/tmp": 0o777 | fs.ModeSticky, "/var/lib/cni": 0o755, "/var/lib/containerd": 0o711, "/var/lib/kubelet": 0o700, "/var/log": 0o755,
		runDir: 0o755,
	}
	links = map[string]string{
		"/var/run": "/run", "/var/lock": "/run",
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2",
	}
)

// mountAll makes the world that programs expect, as far as it needs no disk.
func mountAll() error {
	if err := makeFolders(folders); err != nil {
		return err
	}
	for _, m := range mountPoints {
		err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.options)
		if err != nil && !(m.optional && (errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT))) {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	if err := makeFolders(laterFolders); err != nil {
		return err
	}
	for name, target := range links {
		if err := os.Symlink(target, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// kubelet and containers hand mounts to each other.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return groups()
}

func makeFolders(list map[string]fs.FileMode) error {
	for dir, mode := range list {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return nil
}

// groups hands all controllers down, and puts this process in a group of its own,
// so that one sees what it uses.
func groups() error {
	if err := cgroups.Delegate(cgroupRoot); err != nil {
		return fmt.Errorf("hand cgroup controllers down: %w", err)
	}
	own := cgroupRoot + "/machined"
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(own+"/cgroup.procs", []byte("1"), 0); err != nil {
		return fmt.Errorf("enter cgroup machined: %w", err)
	}
	return nil
}

// mountESP mounts the boot partition for kept files and for updates. A damaged
// one stays writable: an update that was cut off must be mended.
func mountESP(device string) error {
	mendESP(device)
	err := unix.Mount("/dev/"+device, espDir, "vfat", inert|unix.MS_NOATIME, "umask=0077,errors=continue,flush")
	if err != nil {
		return fmt.Errorf("mount the boot partition %s: %w", device, err)
	}
	return nil
}

// mendESP repairs what a power cut left of the boot partition: Linux never clears
// its mark, and an update that was cut off would keep its room for ever. What is
// not repaired is mounted as it is.
func mendESP(device string) {
	f, err := os.OpenFile("/dev/"+device, os.O_RDWR, 0)
	if err == nil {
		var said []string
		said, err = fat.Mend(f, unfinished)
		for _, s := range said {
			slog.Info("boot partition repaired", "what", s)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		slog.Warn("the boot partition is not repaired", "err", err)
	}
}

// unfinished tells names that a file has before it gets its own: of a rename that
// the power cut in two, the other one stays.
func unfinished(name string) bool {
	return slices.ContainsFunc([]string{".durable-", ".new", ".tmp", ".fix"}, func(part string) bool { return strings.Contains(name, part) })
}

// lasting are folders on DATA that programs expect elsewhere.
var lasting = map[string]string{
	dataDir + "/containerd": "/var/lib/containerd",
	dataDir + "/kubelet":    "/var/lib/kubelet",
	dataDir + "/log":        "/var/log",
}

// bindLasting puts what must last at its usual place, once DATA is there.
func bindLasting() error {
	for from, to := range lasting {
		if err := os.MkdirAll(from, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", from, to, err)
		}
	}
	return nil
}

// writeNames makes the files that the root's /etc has links to.
func writeNames(hostname string) error {
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	for name, text := range map[string]string{
		"hostname": hostname + "\n",
		"hosts":    "127.0.0.1 localhost " + hostname + "\n::1 localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(runDir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// keepMachineID writes the machine's ID, which lasts as long as STATE. It is
// random and names the machine to no one but its own programs.
func keepMachineID() error {
	const kept = stateDir + "/machine-id"
	text, err := os.ReadFile(kept)
	if err != nil || len(strings.TrimSpace(string(text))) != 32 {
		raw := make([]byte, 16)
		rand.Read(raw)
		text = []byte(hex.EncodeToString(raw) + "\n")
		if err := durable.WriteFile(kept, text, 0o444); err != nil {
			return err
		}
	}
	return os.WriteFile(runDir+"/machine-id", text, 0o444)
}
