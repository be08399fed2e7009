package hosted

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/machine/supervise"
)

// The test binary is the machine's program (inner), and the outer process where that one is to be killed.
func TestMain(m *testing.M) {
	switch {
	case IsInner():
		os.Exit(agent())
	case os.Getenv("HOSTED_TEST_OUTER") != "":
		os.Exit(outerMain())
	}
	os.Exit(m.Run())
}

// agent runs scripts that it gets over HTTP, and tells that it was once more.
func agent() int {
	in, err := EnterInner()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go supervise.New(supervise.Config{}).Run(context.Background())
	f, err := os.OpenFile("/state/starts", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString("x")
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err == nil { // something to write back for whoever is killed
		err = os.WriteFile("/data/junk", bytes.Repeat([]byte("junk"), 100_000), 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	http.HandleFunc("/inner", func(w http.ResponseWriter, r *http.Request) { json.NewEncoder(w).Encode(in) })
	http.HandleFunc("/sh", func(w http.ResponseWriter, r *http.Request) {
		script, _ := io.ReadAll(r.Body)
		out, err := spawn.Run(r.Context(), nil, "sh", "-c", string(script))
		w.Write(out)
		if err != nil {
			fmt.Fprint(w, err)
		}
	})
	go http.ListenAndServe(":80", nil)
	if len(os.Args) > 1 && os.Args[1] == "deaf" {
		select {}
	}
	<-stop
	return 0
}

// outerSpec is what the outer process of a test is told.
type outerSpec struct{ Name, Root, Parent string }

func outerMain() int {
	var o outerSpec
	if err := json.Unmarshal([]byte(os.Getenv("HOSTED_TEST_OUTER")), &o); err != nil {
		panic(err)
	}
	spec := testSpec(o.Name, o.Root, o.Parent, os.NewFile(3, "world"))
	spec.Notify = func(e Event) { fmt.Println(e.Stage, e.PID) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, spec, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

const machineAddr = "10.77.0.11"

func testSpec(name, root, parent string, world *os.File) Spec {
	return Spec{
		Name: name, Root: root, StateSize: 64 << 20, DataSize: 128 << 20, Memory: 512 << 20, CPUs: 1, CgroupParent: parent,
		Network: Network{Namespace: world, Bridge: "br0", Address: netip.MustParsePrefix(machineAddr + "/24"), Gateway: netip.MustParseAddr("10.77.0.1"),
			DNS: []netip.Addr{netip.MustParseAddr("10.77.0.1")}},
	}
}

// place is where a test's machine lives, and knows what may not be left of it.
type place struct {
	t            *testing.T
	name, parent string
	root         string
	world        *os.File
}

var places int

func newPlace(t *testing.T) *place {
	t.Helper()
	places++
	p := &place{t: t, name: fmt.Sprintf("t%d-%d", os.Getpid(), places), parent: fmt.Sprintf("holdfast-test-%d-%d", os.Getpid(), places), root: t.TempDir()}
	var err error
	if p.world, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.world.Close() })
	h := p.handle()
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	addr, _ := netlink.ParseAddr("10.77.0.1/24")
	if err := errors.Join(h.AddrAdd(bridge, addr), h.LinkSetUp(bridge)); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *place) handle() *netlink.Handle {
	h, err := netlink.NewHandleAt(vnetns.NsHandle(p.world.Fd()))
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

func (p *place) spec() Spec { return testSpec(p.name, p.root, p.parent, p.world) }

// leftovers lists what is on the host of this machine.
func (p *place) leftovers() []string {
	var found []string
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, p.root) {
			found = append(found, "mount "+line)
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, b := range backing {
		if data, _ := os.ReadFile(b); strings.HasPrefix(string(data), p.root) {
			found = append(found, "loop device "+b+": "+string(data))
		}
	}
	host, err := cgroups.Detect()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, tree := range host.Hierarchies {
		if _, err := os.Stat(filepath.Join(tree.Mount, p.parent)); err == nil {
			found = append(found, "cgroup "+filepath.Join(tree.Mount, p.parent))
		}
	}
	h := p.handle()
	defer h.Close()
	links, _ := h.LinkList()
	for _, l := range links {
		if l.Type() == "veth" {
			found = append(found, "interface in the world "+l.Attrs().Name)
		}
	}
	names, _ := net.Interfaces()
	for _, l := range names {
		if l.Name == port(p.name) {
			found = append(found, "interface on the host "+l.Name)
		}
	}
	tmp, _ := filepath.Glob(p.root + "/*.tmp")
	return append(found, tmp...)
}

func (p *place) nothingLeft() {
	p.t.Helper()
	if found := p.leftovers(); len(found) > 0 {
		p.t.Errorf("left on the host: %q", found)
	}
	for _, image := range []string{"state.img", "data.img"} {
		if out, err := exec.Command("e2fsck", "-fn", filepath.Join(p.root, image)).CombinedOutput(); err != nil {
			p.t.Errorf("%s is damaged: %v\n%s", image, err, out)
		}
	}
}

// ask speaks HTTP with the machine over its LAN.
func (p *place) ask(path, body string) string {
	p.t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = netns.Do(p.world, func() error {
			c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", machineAddr+":80")
			return err
		})
		return c, err
	}}}
	resp, err := client.Post("http://machine"+path, "", strings.NewReader(body))
	for range 100 { // the agent listens a moment after it is ready
		if err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
		resp, err = client.Post("http://machine"+path, "", strings.NewReader(body))
	}
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// machine is a Run in this process.
type machine struct {
	events chan Event
	stop   func() error
}

func run(t *testing.T, spec Spec, argv ...string) *machine {
	t.Helper()
	m := &machine{events: make(chan Event, 100)}
	spec.Notify = func(e Event) { m.events <- e }
	spec.Log = slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	var done error
	var end sync.WaitGroup
	end.Go(func() { done = Run(ctx, spec, argv) })
	m.stop = func() error { cancel(); end.Wait(); return done }
	t.Cleanup(func() { m.stop() })
	return m
}

func (m *machine) until(t *testing.T, stage Stage) Event {
	t.Helper()
	for {
		select {
		case e := <-m.events:
			if e.Stage == stage {
				return e
			}
			if e.Err != nil {
				t.Logf("%s: %v", e.Stage, e.Err)
			}
		case <-time.After(60 * time.Second):
			t.Fatalf("the machine is never %s", stage)
		}
	}
}

func TestMachineOfItsOwn(t *testing.T) {
	p := newPlace(t)
	bin := t.TempDir()
	if err := os.WriteFile(bin+"/tool", []byte("#!/bin/sh\necho a tool\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := p.spec()
	spec.Hostname, spec.Bin = "till-1", bin
	folder := t.TempDir()
	if err := os.WriteFile(folder+"/key", []byte("a key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Binds = []Bind{{Host: folder, Inside: "/machine", Writable: true}, {Host: folder + "/key", Inside: "/etc/one/file"}}
	settings := hostSettings(t)
	m := run(t, spec)
	t.Logf("ready after %v with images to make", m.until(t, Ready).Took)

	for _, row := range []struct{ name, script, want string }{
		{"host name", "hostname; cat /etc/hostname", "till-1\ntill-1"},
		{"process 1", "cat /proc/1/comm | cut -c1-6; ls -d /proc/[0-9]* | wc -l | xargs test 8 -gt && echo few", "hosted\nfew"},
		{"programs", "tool; touch /opt/holdfast/x 2>&1 | grep -o 'Read-only.*'", "a tool\nRead-only file system"},
		{"writable bind", "cat /machine/key; echo seen > /machine/from-inside && echo written", "a key\nwritten"},
		{"file bind", "cat /etc/one/file; echo x > /etc/one/file || true", "a key"},
		{"host read-only", "touch /usr/x 2>&1 | grep -o 'Read-only.*'", "Read-only file system"},
		{"no host files", "ls /home /work /host 2>&1 | grep -c 'No such'", "3"},
		{"network", "ip -4 -o addr show | awk '{print $2, $4}'; ip route | head -1 | xargs; cat /etc/resolv.conf", "lo 127.0.0.1/8\neth0 " + machineAddr + "/24\ndefault via 10.77.0.1 dev eth0\nnameserver 10.77.0.1"},
		{"forwarding", "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/rp_filter", "1\n0"},
		{"network settings are its own", "echo 12345 > /proc/sys/net/ipv4/ip_local_reserved_ports; cat /proc/sys/net/ipv4/ip_local_reserved_ports", "12345"},
		{"global settings are files", "echo 0 > /proc/sys/vm/overcommit_memory; echo 99 > /proc/sys/kernel/panic; cat /proc/sys/vm/overcommit_memory /proc/sys/kernel/panic", "0\n99"},
		{"other settings are out of reach", "echo 1 > /proc/sys/vm/swappiness; echo 1 > /sys/kernel/mm/transparent_hugepage/enabled; echo done", "done"},
		{"memory", "grep MemTotal /proc/meminfo | xargs; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true", "MemTotal: 524288 kB\n536870912"},
		{"cgroup is the root", "grep -v ':/init$' /proc/self/cgroup | grep -vc ':/$'", "0\nrun sh: exit status 1:"},
		{"cgroups can be made", "cd /sys/fs/cgroup; test -d memory && cd memory; mkdir pod && rmdir pod && echo made", "made"},
		{"devices", "ls /dev | xargs; head -c 4 /dev/zero | wc -c; test -c /dev/kmsg && echo log", "fd full fuse kmsg mqueue net null ptmx pts random shm stderr stdin stdout tty urandom zero\n4\nlog"},
		{"shared mounts", "for d in /var/lib/kubelet /data /; do findmnt -no PROPAGATION $d; done", "shared\nshared\nshared"},
		{"images", "for d in /state /data /var/lib/kubelet /var/lib/containerd /var/log /run /; do findmnt -no FSTYPE $d; done | xargs", "ext4 ext4 ext4 ext4 ext4 tmpfs tmpfs"},
		{"overlay", "cd /data; mkdir -p l u w m; mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && touch m/x && ls u && umount m", "x"},
		{"packet filter", "nft 'add table ip t; add chain ip t c { type nat hook prerouting priority 0 ; }' && nft list tables && nft delete table ip t", "table ip t"},
		{"machine id", "wc -c < /etc/machine-id; cmp /etc/machine-id /state/machine-id && echo kept", "33\nkept"},
		{"ballast", "stat -c %s /state/ballast | xargs test 1000000 -lt && echo ballast", "ballast"},
		{"orphans are buried", "(sh -c 'sleep 0.1 &'); sleep 4; cat /proc/[0-9]*/stat | grep -c ' Z '", "0\nrun sh: exit status 1:"},
		{"started once", "cat /state/starts", "x"},
	} {
		if got := p.ask("/sh", row.script); got != row.want {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
	if runtime.NumCPU() > 1 {
		if got := p.ask("/sh", "ls -d /sys/devices/system/cpu/cpu[0-9]* | xargs; cat /sys/devices/system/cpu/online; ls /sys/devices/system/node | wc -l; test -d /sys/devices/system/cpu/cpu0/topology && echo topology"); got != "/sys/devices/system/cpu/cpu0\n0-0\n0\ntopology" {
			t.Errorf("processors: got %q", got)
		}
	}
	var in Inner
	if err := json.Unmarshal([]byte(p.ask("/inner", "")), &in); err != nil {
		t.Fatal(err)
	}
	if in.Name != p.name || in.Memory != 512<<20 || in.CPUs != 1 || in.Address != machineAddr {
		t.Errorf("the inner knows %+v", in)
	}
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	p.nothingLeft()
	if after := hostSettings(t); after != settings {
		t.Errorf("the host's settings changed:\n%s\n%s", settings, after)
	}
}

// hostSettings are the global settings that a machine might change.
func hostSettings(t *testing.T) string {
	t.Helper()
	var all []string
	names := []string{"vm/swappiness"}
	for name := range settingFiles {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		data, _ := os.ReadFile("/proc/sys/" + name)
		all = append(all, name+"="+strings.TrimSpace(string(data)))
	}
	thp, _ := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	return strings.Join(append(all, string(thp)), " ")
}

// TestReadyFast is a budget: images are there, so only namespaces, mounts and the network are made. The best of five counts, on a machine that others use too.
func TestReadyFast(t *testing.T) {
	p := newPlace(t)
	best := time.Hour
	for range 6 {
		m := run(t, p.spec())
		best = min(best, m.until(t, Ready).Took)
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ready after %v", best)
	if best > 150*time.Millisecond {
		t.Errorf("ready after %v, want at most 150 ms", best)
	}
}

// TestVersion2Alone runs a machine as on a host with cgroups of version 2 alone, as far as the controllers of this host's version 2 tree go.
func TestVersion2Alone(t *testing.T) {
	host, err := cgroups.Detect()
	if err != nil {
		t.Fatal(err)
	}
	tree := host.Hierarchies[0]
	if tree.Version != 2 {
		t.Fatal("no version 2 tree is mounted here; mount one at /sys/fs/cgroup/unified")
	}
	control := tree.Mount + "/cgroup.subtree_control"
	before, err := os.ReadFile(control)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range tree.Controllers {
			if !slices.Contains(strings.Fields(string(before)), c) {
				os.WriteFile(control, []byte("-"+c), 0)
			}
		}
	})
	p := newPlace(t)
	spec := p.spec()
	spec.unified = !host.Unified()
	m := run(t, spec)
	m.until(t, Ready)
	for _, row := range []struct{ name, script, want string }{
		{"kind", "findmnt -no FSTYPE /sys/fs/cgroup", "cgroup2"},
		{"process 1 is in a leaf", "grep ^0: /proc/1/cgroup; wc -l < /sys/fs/cgroup/cgroup.procs", "0::/init\n0"},
		{"controllers are handed down", "cd /sys/fs/cgroup; for c in $(cat cgroup.controllers); do case $c in cpuset|cpu|io|memory|hugetlb|pids) grep -qw $c cgroup.subtree_control || echo $c;; esac; done", ""},
		{"groups can be made and entered", "cd /sys/fs/cgroup; mkdir -p pods/a; sh -c 'echo 0 > pods/a/cgroup.procs; grep ^0: /proc/self/cgroup'; rmdir pods/a pods", "0::/pods/a"},
	} {
		if got := p.ask("/sh", row.script); got != row.want {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	p.nothingLeft()
}

// TestLoopDeviceKeepsTheLock is what rules out a second mount of an image: the lock is held until the device is gone, whoever closed whatever.
func TestLoopDeviceKeepsTheLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	f, err := openImage(t.Context(), path, "T", 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	loop, err := attachLoop(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if held, err := flock.Held(path); err != nil || !held {
		t.Errorf("with the device there: held %v, %v", held, err)
	}
	loop.Close() // the last user: the device goes
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := flock.Wait(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestKilledInnerComesBack(t *testing.T) {
	p := newPlace(t)
	m := run(t, p.spec())
	for n := range 3 {
		e := m.until(t, Ready)
		if got := len(p.ask("/sh", "cat /state/starts")); got != n+1 {
			t.Errorf("life %d has seen %d starts", n+1, got)
		}
		syscall.Kill(e.PID, syscall.SIGKILL)
		if e := m.until(t, Ended); e.Err == nil || !strings.Contains(e.Err.Error(), "killed") {
			t.Errorf("the end is told as %v", e.Err)
		}
	}
	m.until(t, Ready)
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	p.nothingLeft()
}

func TestDeafMachineIsKilled(t *testing.T) {
	p := newPlace(t)
	spec := p.spec()
	spec.Grace = 300 * time.Millisecond
	m := run(t, spec, "deaf")
	m.until(t, Ready)
	began := time.Now()
	if err := m.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
	p.nothingLeft()
}

func TestRefusals(t *testing.T) {
	p := newPlace(t)
	for _, row := range []struct {
		name   string
		change func(*Spec)
		want   string
	}{
		{"name", func(s *Spec) { s.Name = "No Label" }, "is no DNS label"},
		{"host name", func(s *Spec) { s.Hostname = "a.b" }, "is no DNS label"},
		{"relative folder", func(s *Spec) { s.Root = "here" }, "not an absolute path"},
		{"tiny images", func(s *Spec) { s.StateSize = 1 << 20 }, "need at least"},
		{"no address", func(s *Spec) { s.Network.Address = netip.Prefix{} }, "an address is needed"},
		{"relative bind", func(s *Spec) { s.Binds = []Bind{{Host: "/usr", Inside: "usr"}} }, "absolute paths are needed"},
		{"negative memory", func(s *Spec) { s.Memory = -1 }, "must not be negative"},
	} {
		t.Run(row.name, func(t *testing.T) {
			spec := p.spec()
			row.change(&spec)
			if err := Run(t.Context(), spec, nil); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
	t.Run("not inner", func(t *testing.T) {
		if _, err := EnterInner(); !errors.Is(err, ErrNotInner) {
			t.Errorf("got %v, want ErrNotInner", err)
		}
	})
	t.Run("running already", func(t *testing.T) {
		lock, err := flock.TryLock(p.root + "/lock")
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if err := Run(t.Context(), p.spec(), nil); !errors.Is(err, ErrRunning) {
			t.Errorf("Run: got %v, want ErrRunning", err)
		}
		if err := Clean(p.spec()); !errors.Is(err, ErrRunning) {
			t.Errorf("Clean: got %v, want ErrRunning", err)
		}
	})
}

// TestErrorsAreTold has a bridge that is not there, and a folder that is not there.
func TestErrorsAreTold(t *testing.T) {
	p := newPlace(t)
	spec := p.spec()
	spec.Network.Bridge = "none"
	m := run(t, spec)
	m.until(t, Ended)
	m.stop()
	p.nothingLeft()
	spec = p.spec()
	spec.Bin = "/no/such/folder"
	m = run(t, spec)
	if e := m.until(t, Ended); e.Err == nil || !strings.Contains(e.Err.Error(), "/no/such/folder") {
		t.Errorf("got %v", e.Err)
	}
	m.stop()
	p.nothingLeft()
}

// TestKillAnythingAnytime kills outer and inner at random instants, mkfs included, and starts over what is left. In the end the machine runs, its disks are
// whole, everything it synced is there, and nothing is left.
func TestKillAnythingAnytime(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("HOLDFAST_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := newPlace(t)
	lives := 0
	for range 40 {
		if r.IntN(5) == 0 {
			clear := []string{"state.img", "data.img"}[r.IntN(2)]
			if clear == "state.img" {
				lives = 0
			}
			p.waitFree()
			os.Remove(filepath.Join(p.root, clear)) // so that mkfs is among the killed
		}
		o := p.startOuter()
		if r.IntN(3) == 0 {
			o.kill(time.Duration(r.IntN(100)) * time.Millisecond)
			continue
		}
		pid := o.until(Ready)
		lives = max(lives, len(p.ask("/sh", "cat /state/starts")))
		if r.IntN(2) == 0 {
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			syscall.Kill(pid, syscall.SIGKILL)
			if r.IntN(2) == 0 {
				o.until(Ready)
			}
		}
		o.kill(time.Duration(r.IntN(30)) * time.Millisecond)
	}
	o := p.startOuter()
	o.until(Ready)
	if got := len(p.ask("/sh", "cat /state/starts")); got <= lives {
		t.Errorf("STATE has %d starts, %d were seen before", got, lives)
	}
	o.cmd.Process.Signal(syscall.SIGTERM)
	if err := o.cmd.Wait(); err != nil {
		t.Errorf("the outer's end: %v", err)
	}
	p.nothingLeft()
}

// TestCleanAfterAKill kills the outer and lets Clean do what it could not.
func TestCleanAfterAKill(t *testing.T) {
	p := newPlace(t)
	o := p.startOuter()
	o.until(Ready)
	o.kill(0)
	if err := Clean(p.spec()); err != nil {
		t.Fatal(err)
	}
	p.nothingLeft()
}

// waitFree waits for the images' loop devices to go, as a person who removes files by hand would have to.
func (p *place) waitFree() {
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	if err := waitReleased(ctx, p.root); err != nil {
		p.t.Fatal(err)
	}
}

// outerProcess is a Run in a process of its own.
type outerProcess struct {
	p      *place
	cmd    *exec.Cmd
	stages chan string
}

func (p *place) startOuter() *outerProcess {
	p.t.Helper()
	spec, _ := json.Marshal(outerSpec{p.name, p.root, p.parent})
	o := &outerProcess{p: p, cmd: exec.Command(os.Args[0]), stages: make(chan string, 1000)}
	o.cmd.Env = append(os.Environ(), "HOSTED_TEST_OUTER="+string(spec))
	o.cmd.ExtraFiles = []*os.File{p.world}
	r, w, err := os.Pipe()
	if err != nil {
		p.t.Fatal(err)
	}
	o.cmd.Stdout = w
	logFile, err := os.OpenFile(p.root+"/outer.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer logFile.Close()
	o.cmd.Stderr = logFile
	if err := o.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	w.Close()
	go func() {
		defer close(o.stages)
		defer r.Close()
		for {
			var stage string
			var pid int
			if _, err := fmt.Fscanln(r, &stage, &pid); err != nil {
				return
			}
			o.stages <- fmt.Sprint(stage, " ", pid)
		}
	}()
	p.t.Cleanup(func() { o.cmd.Process.Kill(); o.cmd.Wait() })
	return o
}

func (o *outerProcess) until(want Stage) (pid int) {
	o.p.t.Helper()
	late := time.After(90 * time.Second)
	for {
		select {
		case line, ok := <-o.stages:
			if !ok {
				log, _ := os.ReadFile(o.p.root + "/outer.log")
				o.p.t.Fatalf("the outer process ended:\n%s", log)
			}
			var stage string
			fmt.Sscan(line, &stage, &pid)
			if stage == string(want) {
				return pid
			}
		case <-late:
			log, _ := os.ReadFile(o.p.root + "/outer.log")
			o.p.t.Fatalf("the machine is never %s:\n%s", want, log)
		}
	}
}

func (o *outerProcess) kill(after time.Duration) {
	time.Sleep(after)
	o.cmd.Process.Kill()
	o.cmd.Wait()
}
