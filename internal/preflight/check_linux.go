package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// checker is one run. Its paths are those of the system, or of a made one in tests.
type checker struct {
	*Report
	want    Want
	proc    string
	sys     string
	modules string // /lib/modules/RELEASE
	release string
	root    bool
}

// Check looks at everything and returns what it saw. It takes well under a second.
func Check(ctx context.Context, w Want) *Report {
	var name unix.Utsname
	unix.Uname(&name)
	release := unix.ByteSliceToString(name.Release[:])
	c := &checker{Report: &Report{Fits: math.MaxInt}, want: w.withDefaults(), proc: "/proc", sys: "/sys",
		modules: "/lib/modules/" + release, release: release, root: os.Geteuid() == 0}
	c.rights()
	c.kernel()
	if c.want.Virtual {
		c.network()
		c.virtual(ctx)
	} else {
		c.hosted(ctx)
	}
	c.memory()
	c.disk()
	c.ports(c.want.Ports)
	return c.Report
}

// hosted looks at what hosted machines share with this computer.
func (c *checker) hosted(ctx context.Context) {
	c.namespaces(ctx)
	c.cgroups()
	c.tools(ctx)
	c.disks(ctx)
	c.network()
	c.packetFilter(ctx)
	c.inotify()
	c.pids()
}

const asRoot = "run the same command with sudo"

func (c *checker) rights() {
	c.add(Item{Name: "root", OK: c.root, Found: fmt.Sprintf("user %d", os.Geteuid()), Need: "user 0", Fix: asRoot})
}

var leadingVersion = regexp.MustCompile(`^v?(\d+)\.(\d+)(?:\.(\d+))?`)

// atLeast compares the leading numbers of a version.
func atLeast(version string, want ...int) bool {
	m := leadingVersion.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	var have []int
	for _, s := range m[1:] {
		n, _ := strconv.Atoi(s) // a missing one is 0
		have = append(have, n)
	}
	return slices.Compare(have, want) >= 0
}

func (c *checker) kernel() {
	c.add(Item{Name: "kernel", OK: atLeast(c.release, 5, 8), Found: c.release, Need: "5.8 or newer", Fix: "use a newer kernel (Debian 11, Ubuntu 22.04 or newer have one)"})
}

// try runs a part that needs root. Without root it is reported as unknown, which is not good enough.
func (c *checker) try(name, need, fix string, f func() error) {
	item := Item{Name: name, OK: true, Found: "works", Need: need, Fix: fix}
	if !c.root {
		item.OK, item.Found, item.Fix = false, "not tried without root", asRoot
	} else if err := f(); err != nil {
		item.OK, item.Found = false, err.Error()
	}
	c.add(item)
}

// Module states.
type state int

const (
	present state = iota // loaded, or part of the kernel
	asleep               // there, and loaded by the kernel itself when first used
	unknown              // no list of modules: trying shows
)

// module tells how a feature of the kernel is there.
func (c *checker) module(name string) state {
	if _, err := os.Stat(filepath.Join(c.sys, "module", name)); err == nil {
		return present
	}
	listed := func(file string) bool {
		data, _ := os.ReadFile(filepath.Join(c.modules, file))
		return strings.Contains(string(data), "/"+name+".ko")
	}
	switch {
	case listed("modules.builtin"):
		return present
	case listed("modules.dep"):
		return asleep
	}
	return unknown
}

// sleeping returns those of the modules whose trying would load them.
func (c *checker) sleeping(names ...string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return c.module(n) != asleep })
}

// tryUnlessAsleep is try for features that may be modules not yet loaded: they are good, and left asleep.
func (c *checker) tryUnlessAsleep(name, need, fix string, modules []string, f func() error) {
	if asleep := c.sleeping(modules...); len(asleep) > 0 {
		c.add(Item{Name: name, OK: true, Found: "not tried: modules " + strings.Join(asleep, ", ") + " are there and not yet loaded", Need: need})
		return
	}
	c.try(name, need, fix, f)
}

func (c *checker) namespaces(ctx context.Context) {
	const fix = "use a kernel with all namespaces; inside a container run it privileged"
	c.try("namespaces", "mount, pid, network, uts, ipc and cgroup namespaces", fix, func() error {
		cmd := exec.CommandContext(ctx, "true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Unshareflags: unix.CLONE_NEWCGROUP}
		if err := spawn.Start(cmd, nil); err != nil {
			return err
		}
		return spawn.Wait(cmd)
	})
}

// neededControllers, by what kubelet and runc ask for.
func neededControllers(unified bool) []string {
	if unified {
		return []string{"cpu", "cpuset", "memory", "pids"}
	}
	return []string{"cpu", "cpuacct", "cpuset", "devices", "memory", "pids"}
}

func (c *checker) cgroups() {
	need := "a cgroup file system with controllers"
	fix := "mount the cgroup file systems; on old systems add cgroup_enable=memory to the kernel's command line"
	host, err := cgroups.Detect()
	if err != nil {
		c.add(Item{Name: "cgroups", Found: err.Error(), Need: need, Fix: fix})
		return
	}
	wanted := neededControllers(host.Unified())
	need += " " + strings.Join(wanted, ", ")
	version := "version 1"
	if host.Unified() {
		version = "version 2"
	}
	missing := slices.DeleteFunc(slices.Clone(wanted), func(n string) bool { return slices.Contains(host.Controllers(), n) })
	if len(missing) > 0 {
		c.add(Item{Name: "cgroups", Found: version + " without " + strings.Join(missing, ", "), Need: need, Fix: fix})
		return
	}
	c.try("cgroups", need, "run outside of a container, or with a writable /sys/fs/cgroup", func() error {
		for _, tree := range host.Hierarchies {
			dir := filepath.Join(tree.Mount, fmt.Sprintf("holdfast-preflight-%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			if err := os.Remove(dir); err != nil {
				return err
			}
		}
		return nil
	})
	c.Items[len(c.Items)-1].Found = version + ": " + c.Items[len(c.Items)-1].Found
}

const debianPackages = "apt-get install nftables e2fsprogs mount"

func (c *checker) tools(ctx context.Context) {
	for _, tool := range []string{"mkfs.ext4", "mount", "umount"} {
		c.tool(tool)
	}
	item := c.tool("nft")
	if !item.OK {
		return
	}
	out, err := exec.CommandContext(ctx, "nft", "--version").Output()
	_, version, _ := strings.Cut(string(out), " ") // nftables v1.0.6 (Lester Gooch #5)
	item.Found = strings.TrimSpace(version)
	item.Need = "nft 1.0.1 or newer"
	if err != nil || !atLeast(version, 1, 0, 1) {
		item.OK, item.Fix = false, "install a newer nftables; kube-proxy needs 1.0.1"
	}
}

// tool looks for a program where machines will look: they see the host's /usr and /sbin.
func (c *checker) tool(name string) *Item {
	item := Item{Name: name, Need: "the program " + name, Found: "not found", Fix: debianPackages}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 {
			item.OK, item.Found = true, filepath.Join(dir, name)
			break
		}
	}
	c.add(item)
	return &c.Items[len(c.Items)-1]
}

// diskScript mounts a small image through a loop device and an overlay on it, in a mount namespace that ends with it.
const diskScript = `set -e
mount --make-rprivate /
mount -o loop "$1/image" "$1/m"
cd "$1/m"
mkdir lower upper work merged
echo x > lower/a
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
echo y >> merged/a
test "$(cat lower/a)" = x
`

func (c *checker) disks(ctx context.Context) {
	const need = "loop devices, ext4 and overlayfs on files in this folder"
	const fix = "choose a folder on a local disk; use a kernel with loop, ext4 and overlay; inside a container run it privileged with /dev"
	c.tryUnlessAsleep("disk images", need, fix, []string{"loop", "ext4", "overlay"}, func() error {
		if _, err := os.Stat("/dev/loop-control"); err != nil {
			return err
		}
		dir, err := os.MkdirTemp(nearest(c.want.Dir), ".holdfast-preflight-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := os.Mkdir(dir+"/m", 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(dir+"/image", nil, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(dir+"/image", 8<<20); err != nil {
			return err
		}
		if _, err := spawn.Run(ctx, nil, "mkfs.ext4", "-q", "-F", dir+"/image"); err != nil {
			return err
		}
		return inNamespaces(ctx, unix.CLONE_NEWNS, nil, "sh", "-c", diskScript, "sh", dir)
	})
}

// inNamespaces runs a program in new namespaces; its first words are the error's.
func inNamespaces(ctx context.Context, flags uintptr, stdin *os.File, name string, args ...string) error {
	var words strings.Builder
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &words
	if stdin != nil { // a nil file in an interface is not nil
		cmd.Stdin = stdin
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := spawn.Start(cmd, nil); err != nil {
		return err
	}
	if err := spawn.Wait(cmd); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(words.String()), "\n")
		return fmt.Errorf("%w: %s", err, first)
	}
	return nil
}

// nearest is the first folder on the way up that exists.
func nearest(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "."
	}
	for dir != "/" {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			break
		}
		dir = filepath.Dir(dir)
	}
	return dir
}

func (c *checker) network() {
	const need = "veth pairs and bridges"
	c.tryUnlessAsleep("virtual network", need, "use a kernel with veth and bridge", []string{"veth", "bridge"}, func() error {
		ns, err := netns.New()
		if err != nil {
			return err
		}
		defer ns.Close()
		h, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		bridge, veth := netlink.NewLinkAttrs(), netlink.NewLinkAttrs()
		bridge.Name, veth.Name = "b", "v"
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
			return fmt.Errorf("make a bridge: %w", err)
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: veth, PeerName: "w"}); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return nil
	})
}

// rules are of the kinds that kube-proxy, port mapping and our own filter use.
const rules = `table ip holdfast-preflight {
	set ips { type ipv4_addr . inet_proto . inet_service; flags timeout; timeout 1h; }
	map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.0.0.1 . tcp . 80 : goto service } }
	chain service { numgen random mod 2 vmap { 0 : goto endpoint, 1 : goto endpoint }; }
	chain endpoint { ip saddr 10.0.0.2 meta mark set mark or 0x4000; update @ips { ip saddr . meta l4proto . th dport }; meta l4proto tcp dnat to 10.0.0.2:8080; }
	chain prerouting { type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @services; fib daddr type local accept; }
	chain postrouting { type nat hook postrouting priority srcnat; meta mark and 0x4000 != 0 masquerade fully-random; }
	chain forward { type filter hook forward priority filter; ct state established,related accept; ct state new limit rate 5/second reject with icmp type host-unreachable; }
}
`

func (c *checker) packetFilter(ctx context.Context) {
	modules := []string{"nf_tables", "nf_conntrack", "nf_nat", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_numgen", "nft_fib", "nft_fib_ipv4", "nft_limit", "nft_reject", "nft_reject_ipv4"}
	c.tryUnlessAsleep("packet filter", "nf_tables with NAT in a network namespace", "use a kernel with CONFIG_NF_TABLES and its NAT, fib, numgen and reject parts", modules, func() error {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = w.WriteString(rules) // far less than a pipe holds
		if err := errors.Join(err, w.Close()); err != nil {
			return err
		}
		return inNamespaces(ctx, unix.CLONE_NEWNET, r, "nft", "-f", "-")
	})
}

// number reads a file with one number.
func (c *checker) number(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

func (c *checker) unreadable(name string, err error) {
	c.Fits = 0
	c.add(Item{Name: name, Found: err.Error(), Need: "to be readable", Fix: "mount /proc"})
}

// inotify counts this user's instances; without root those of other users' processes stay unseen, which are not ours anyway.
func (c *checker) inotify() {
	limit, err := c.number(c.proc + "/sys/fs/inotify/max_user_instances")
	if err != nil {
		c.unreadable("inotify instances", err)
		return
	}
	used := c.inotifyInUse()
	want := used + int64(c.want.Machines)*inotifyPerMachine
	c.room("inotify instances", limit-used, inotifyPerMachine, c.want.Machines, count, fmt.Sprintf("sysctl fs.inotify.max_user_instances=%d (until the next boot; /etc/sysctl.d keeps it)", max(512, want)))
}

func (c *checker) inotifyInUse() (n int64) {
	procs, _ := filepath.Glob(c.proc + "/[0-9]*")
	for _, p := range procs {
		info, err := os.Stat(p)
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != uint32(os.Geteuid()) {
			continue
		}
		fds, _ := os.ReadDir(p + "/fd") // ended meanwhile, or not ours to read
		for _, fd := range fds {
			if target, _ := os.Readlink(filepath.Join(p, "fd", fd.Name())); strings.HasSuffix(target, "inotify") {
				n++
			}
		}
	}
	return n
}

// pids takes the smaller of the two limits; threads count against both.
func (c *checker) pids() {
	limit := int64(math.MaxInt64)
	for _, file := range []string{"pid_max", "threads-max"} {
		n, err := c.number(c.proc + "/sys/kernel/" + file)
		if err != nil {
			c.unreadable("processes", err)
			return
		}
		limit = min(limit, n)
	}
	data, err := os.ReadFile(c.proc + "/loadavg") // 0.1 0.2 0.3 RUNNING/ALL LAST
	var all int64
	if f := strings.Fields(string(data)); err == nil && len(f) > 3 {
		_, total, _ := strings.Cut(f[3], "/")
		all, err = strconv.ParseInt(total, 10, 64)
	}
	if err != nil {
		c.unreadable("processes", err)
		return
	}
	c.room("processes", limit-all, pidsPerMachine, c.want.Machines, count, "sysctl kernel.pid_max=4194304")
}

func (c *checker) memory() {
	data, err := os.ReadFile(c.proc + "/meminfo")
	if err != nil {
		c.unreadable("memory", err)
		return
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemAvailable:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			c.room("memory", kb*1024, c.want.Memory, c.want.Machines, size, "end other programs, add memory, or run fewer machines")
			return
		}
	}
	c.unreadable("memory", errors.New("meminfo has no MemAvailable"))
}

func (c *checker) disk() {
	dir := nearest(c.want.Dir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		c.unreadable("disk", &fs.PathError{Op: "statfs", Path: dir, Err: err})
		return
	}
	c.room("disk", int64(st.Bavail)*st.Bsize, c.want.Disk, c.want.Machines, size, "free space in "+dir+" or choose another folder")
}
