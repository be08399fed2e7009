package hosted

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
)

// ErrNotInner is returned by EnterInner in a process that Run did not start.
var ErrNotInner = errors.New("this process was not started by a hosted machine's outer process")

// Inner is a machine as its own process 1 sees it.
type Inner struct {
	Name     string
	Hostname string
	Address  string // of eth0; empty: no network
	Memory   int64  // bytes that the machine may use; kubelet sees no more
	CPUs     int    // processors that the machine may use; kubelet sees no more
	State    string // folder on STATE
	Data     string // folder on DATA
	Ballast  string // file on STATE to remove first when STATE is full
}

// IsInner tells whether this process is to call EnterInner.
func IsInner() bool { return os.Getenv(innerEnv) != "" }

// EnterInner makes the process the machine's process 1. It is called first thing, before any child is started. From then on the process ends when the outer
// does. An error is told to the outer too; the process is then to end.
func EnterInner() (*Inner, error) {
	if !IsInner() {
		return nil, ErrNotInner
	}
	os.Unsetenv(innerEnv)
	for _, fd := range []int{ordersFD, answersFD, stateFD, dataFD} {
		unix.CloseOnExec(fd)
	}
	answers := os.NewFile(answersFD, "answers")
	defer answers.Close()
	in, err := enter()
	if err != nil {
		fmt.Fprintln(answers, strings.ReplaceAll(err.Error(), "\n", "; "))
		return nil, fmt.Errorf("set up the hosted machine: %w", err)
	}
	io.WriteString(answers, "ready\n")
	return in, nil
}

func enter() (*Inner, error) {
	if os.Getpid() != 1 {
		return nil, fmt.Errorf("process 1 of a namespace is needed, this is %d", os.Getpid())
	}
	lines := bufio.NewReader(os.NewFile(ordersFD, "orders"))
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	var o orders
	if err := json.Unmarshal(line, &o); err != nil {
		return nil, fmt.Errorf("read orders: %w", err)
	}
	if err := build(&o); err != nil {
		return nil, err
	}
	if err := furnish(&o); err != nil {
		return nil, err
	}
	if _, err := lines.ReadString('\n'); err != nil {
		return nil, fmt.Errorf("wait for the network: %w", err)
	}
	go func() { // the parent death signal does the same; this also covers a parent that died before the signal was asked for
		io.Copy(io.Discard, lines)
		os.Exit(1)
	}()
	os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0) // else it is called "exe"; nothing depends on it
	return describe(&o)
}

// describe fills in what the machine may use and what it sees.
func describe(o *orders) (*Inner, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, err
	}
	total := int64(info.Totalram) * int64(info.Unit)
	in := &Inner{Name: o.Name, Hostname: o.Hostname, Address: o.Address, Memory: total, CPUs: hostCPUs(), State: "/state", Data: "/data", Ballast: ballastFile}
	if o.Memory > 0 && o.Memory < total {
		in.Memory = o.Memory
	}
	if o.CPUs > 0 && o.CPUs < in.CPUs {
		in.CPUs = o.CPUs
	}
	return in, nil
}

// build makes the machine's own tree of mounts and moves there.
func build(o *orders) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := o.Mount
	if err := mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=256m"); err != nil {
		return err
	}
	for _, step := range []func(*orders, string) error{bindHost, mountDisks, mountKernel, mountCgroups, makeDevices} {
		if err := step(o, root); err != nil {
			return err
		}
	}
	return pivot(root)
}

// hostFolders hold programs and their libraries. Where they are links (merged /usr) the links are made.
var hostFolders = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostFiles are what programs of the host need of its /etc.
var hostFiles = []string{"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/protocols", "/etc/services", "/etc/localtime"}

func bindHost(o *orders, root string) error {
	for _, path := range append(slices.Clone(hostFolders), hostFiles...) {
		info, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
				return err
			}
			if err := os.Symlink(target, root+path); err != nil {
				return err
			}
			continue
		}
		if err := bind(root, Bind{Host: path, Inside: path}); err != nil {
			return err
		}
	}
	binds := o.Binds
	if o.Bin != "" {
		binds = append([]Bind{{Host: o.Bin, Inside: "/opt/holdfast"}}, binds...)
	}
	for _, b := range binds {
		if err := bind(root, b); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a file or folder at another place, which it makes.
func bind(root string, b Bind) error {
	to := root + b.Inside
	info, err := os.Stat(b.Host)
	if err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if _, missing := os.Stat(to); missing != nil {
		err = touch(to, "")
	}
	if err != nil {
		return err
	}
	if err := mount(b.Host, to, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_NODEV)
	if !b.Writable {
		flags |= unix.MS_RDONLY
	}
	return mount("", to, "", flags, "")
}

// mountDisks mounts STATE and DATA and puts what must last at its usual place.
func mountDisks(o *orders, root string) error {
	// Inode tables are zero already in a new sparse file: initializing them would only fill the host's disk. Discard gives deleted data back to it.
	if err := mountImage(stateFD, root+"/state", "noinit_itable"); err != nil {
		return fmt.Errorf("STATE: %w", err)
	}
	if err := mountImage(dataFD, root+"/data", "noinit_itable,discard"); err != nil {
		return fmt.Errorf("DATA: %w", err)
	}
	for from, to := range map[string]string{"/data/containerd": "/var/lib/containerd", "/data/kubelet": "/var/lib/kubelet", "/data/log": "/var/log"} {
		if err := os.MkdirAll(root+from, 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(root+to, 0o755); err != nil {
			return err
		}
		if err := mount(root+from, root+to, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// mountImage mounts an image by way of a loop device that goes away with the mount.
func mountImage(fd int, at, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	loop, err := attachLoop(fd)
	if err != nil {
		return err
	}
	defer loop.Close() // the mount holds it
	unix.Close(fd)     // the loop device holds it
	return mount(loop.Name(), at, "ext4", unix.MS_NOATIME|unix.MS_NOSUID|unix.MS_NODEV, options)
}

func attachLoop(fd int) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	for range 64 { // others may take the number that we were told is free
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", number), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(fd)}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO // one page cache, not two; the kernel does without where it must
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up loop device: %w", err)
		}
	}
	return nil, errors.New("find a free loop device: others were always faster")
}

// settingFiles are global kernel settings that kubelet insists on writing, with the values that it wants: it finds them as they should be, and what it writes
// stays in the machine.
var settingFiles = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
	"kernel/core_pattern":       "core",
}

// mountKernel mounts proc and sys so that the machine sees its own processes and network, and cannot turn the host's knobs by accident.
func mountKernel(o *orders, root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, dir := range []string{"/proc", "/sys"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
	}
	if err := mount("proc", root+"/proc", "proc", flags, ""); err != nil {
		return err
	}
	if err := mount("sysfs", root+"/sys", "sysfs", flags, ""); err != nil {
		return err
	}
	if err := mount("", root+"/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return err
	}
	settings := root + "/proc/sys"
	if err := mount(settings, settings, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount(settings+"/net", settings+"/net", "", unix.MS_BIND, ""); err != nil { // these are the machine's own
		return err
	}
	if err := mount("", settings, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return err
	}
	if err := bind(root, Bind{Host: root + "/proc/sysrq-trigger", Inside: "/proc/sysrq-trigger"}); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for name, value := range settingFiles {
		if err := cover(root, settings+"/"+name, value+"\n"); err != nil {
			return err
		}
	}
	if o.Memory > 0 {
		if err := cover(root, root+"/proc/meminfo", meminfo(o.Memory)); err != nil {
			return err
		}
	}
	return boundCPUs(o, root)
}

// cover binds a plain file of the machine's own over a kernel file, where there is one.
func cover(root, path, text string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	file := root + "/.covers/" + strings.ReplaceAll(strings.TrimPrefix(path, root+"/"), "/", "_")
	if err := touch(file, text); err != nil {
		return err
	}
	return mount(file, path, "", unix.MS_BIND, "")
}

// meminfo is what kubelet reads its capacity from. Use is counted by the cgroup and not from here.
func meminfo(bytes int64) string {
	kb := bytes / 1024
	return fmt.Sprintf("MemTotal:       %8d kB\nMemFree:        %8d kB\nMemAvailable:   %8d kB\nBuffers:               0 kB\nCached:                0 kB\nSwapCached:            0 kB\nActive:                0 kB\nInactive:              0 kB\nSwapTotal:             0 kB\nSwapFree:              0 kB\n", kb, kb, kb)
}

func hostCPUs() int { return runtime.NumCPU() }

// boundCPUs shows the first CPUs only, as processors without memory nodes: kubelet counts them there. Which ones do the work is the scheduler's business:
// the cgroup bounds how much.
func boundCPUs(o *orders, root string) error {
	const all = "/sys/devices/system/cpu"
	if o.CPUs == 0 || o.CPUs >= hostCPUs() {
		return nil
	}
	stage := root + "/.cpus"
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64k"); err != nil {
		return err
	}
	dirs, err := filepath.Glob(all + "/cpu[0-9]*")
	if err != nil {
		return err
	}
	for i := range min(o.CPUs, len(dirs)) {
		name := fmt.Sprintf("/cpu%d", i)
		if err := os.MkdirAll(stage+name, 0o755); err != nil {
			return err
		}
		if err := mount(root+all+name, stage+name, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, name := range []string{"online", "possible", "present"} {
		if err := touch(stage+"/"+name, fmt.Sprintf("0-%d\n", o.CPUs-1)); err != nil {
			return err
		}
	}
	if err := mount(stage, root+all, "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	os.Remove(stage)
	nodes := root + "/sys/devices/system/node"
	if _, err := os.Stat(nodes); err != nil {
		return nil
	}
	return mount("tmpfs", nodes, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "size=4k")
}

// mountCgroups shows the machine its own control group as the root of every hierarchy.
func mountCgroups(o *orders, root string) error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	at := root + "/sys/fs/cgroup"
	if o.Unified {
		if err := mount("cgroup2", at, "cgroup2", flags, ""); err != nil {
			return err
		}
		// The machine's root group is not the kernel's: it may hand controllers down only once no process is in it. Runtimes expect them handed down.
		if err := cgroups.Empty(at, at+"/init"); err != nil {
			return err
		}
		return cgroups.Delegate(at)
	}
	host, err := cgroups.Detect()
	if err != nil {
		return err
	}
	if err := mount("tmpfs", at, "tmpfs", flags, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, tree := range host.Hierarchies {
		if tree.Version != 1 {
			continue
		}
		options, name := tree.Name, strings.TrimPrefix(tree.Name, "name=")
		if len(tree.Controllers) == 0 {
			options = "none," + tree.Name
		}
		if err := os.Mkdir(at+"/"+name, 0o755); err != nil {
			return err
		}
		if err := mount("cgroup", at+"/"+name, "cgroup", flags, options); err != nil {
			return err
		}
		for _, c := range tree.Controllers {
			if len(tree.Controllers) > 1 {
				if err := os.Symlink(name, at+"/"+c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// devices of a machine: those that every program expects, and those that containers may be given. The kernel log is the host's; kubelet does not start without.
var devices = []struct {
	name         string
	major, minor uint32
	mode         uint32
}{
	{"null", 1, 3, 0o666}, {"zero", 1, 5, 0o666}, {"full", 1, 7, 0o666}, {"random", 1, 8, 0o666}, {"urandom", 1, 9, 0o666}, {"kmsg", 1, 11, 0o644},
	{"tty", 5, 0, 0o666}, {"fuse", 10, 229, 0o666}, {"net/tun", 10, 200, 0o666},
}

func makeDevices(_ *orders, root string) error {
	dev := root + "/dev"
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return err
	}
	for _, dir := range []string{"/net", "/pts", "/shm", "/mqueue"} {
		if err := os.Mkdir(dev+dir, 0o755); err != nil {
			return err
		}
	}
	for _, d := range devices {
		path := dev + "/" + d.name
		err := unix.Mknod(path, unix.S_IFCHR|d.mode, int(unix.Mkdev(d.major, d.minor)))
		if errors.Is(err, unix.EPERM) { // inside somebody's container
			if _, missing := os.Stat("/dev/" + d.name); missing != nil {
				continue
			}
			if err = touch(path, ""); err == nil {
				err = unix.Mount("/dev/"+d.name, path, "", unix.MS_BIND, "")
			}
		}
		if err != nil {
			return fmt.Errorf("make device %s: %w", d.name, err)
		}
		os.Chmod(path, os.FileMode(d.mode)) // past the umask
	}
	for name, target := range map[string]string{"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, dev+"/"+name); err != nil {
			return err
		}
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := mount("devpts", dev+"/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return err
	}
	if err := mount("tmpfs", dev+"/shm", "tmpfs", flags|unix.MS_NODEV, "mode=1777,size=64m"); err != nil {
		return err
	}
	return mount("mqueue", dev+"/mqueue", "mqueue", flags|unix.MS_NODEV, "")
}

// pivot makes root the root and lets go of the host's.
func pivot(root string) error {
	if err := os.Mkdir(root+"/.host", 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(root, root+"/.host"); err != nil {
		return fmt.Errorf("pivot to the new root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/.host", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	return os.Remove("/.host")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s%s on %s: %w", kind, source, target, err)
	}
	return nil
}

// touch makes a file, and its folder, inside the new root.
func touch(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
