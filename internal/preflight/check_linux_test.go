package preflight

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PREFLIGHT_TEST_DIR"); dir != "" { // as another user
		fmt.Print(Check(context.Background(), Want{Dir: dir}))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	for _, pattern := range []string{dir + "/*", dir + "/.*", "/sys/fs/cgroup/*/holdfast-preflight*", "/sys/fs/cgroup/holdfast-preflight*", "/sys/module/*"} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	for _, name := range []string{"/proc/self/mountinfo", "/proc/sys/fs/inotify/max_user_instances", "/proc/sys/kernel/pid_max"} {
		data, _ := os.ReadFile(name)
		all = append(all, string(data))
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		all = append(all, l.Name)
	}
	return strings.Join(all, "\n")
}

// TestThisHost is run as root where everything is there, and leaves no trace.
func TestThisHost(t *testing.T) {
	dir := t.TempDir()
	before := snapshot(t, dir)
	began := time.Now()
	r := Check(t.Context(), Want{Machines: 2, Dir: dir + "/not/yet/there", Ports: []string{"127.0.0.1:0"}})
	if d := cmp.Diff(before, snapshot(t, dir)); d != "" {
		t.Errorf("the check left something: %s", d)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if !r.OK() || r.Fits < 2 {
		t.Errorf("this host does not do:\n%s", r)
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, b := range backing {
		if data, _ := os.ReadFile(b); strings.Contains(string(data), dir) {
			t.Errorf("loop device %s is left", b)
		}
	}
	t.Logf("\n%s", r)
}

func TestVirtualMachines(t *testing.T) {
	r := Check(t.Context(), Want{Virtual: true, Dir: t.TempDir()})
	if !r.OK() {
		t.Errorf("this host does not do:\n%s", r)
	}
	old := t.TempDir() // before the real one on the path
	if err := os.WriteFile(filepath.Join(old, QEMU), []byte("#!/bin/sh\necho QEMU emulator version 7.2.22\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", old+":"+os.Getenv("PATH"))
	r = Check(t.Context(), Want{Virtual: true, Dir: t.TempDir()})
	failed := r.Failed()
	if len(failed) != 1 || failed[0].Name != "qemu" || !strings.Contains(failed[0].Found, "7.2") || !strings.Contains(failed[0].Fix, "backports") {
		t.Errorf("with QEMU 7.2:\n%s", r)
	}
}

func TestWithoutRoot(t *testing.T) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp("", "preflight-test-") // the test's own folders are root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	f.Write(exe)
	f.Chmod(0o755)
	f.Close()
	cmd := exec.Command(f.Name())
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PREFLIGHT_TEST_DIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"LACK  root", "not tried without root", "next: " + asRoot, "ok    memory", "room for"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("without root it does not say %q:\n%s", want, out)
		}
	}
}

// made is a checker of a made-up system.
func made(t *testing.T, want Want, files map[string]string) *checker {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		var err error
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &checker{Report: &Report{Fits: 1000}, want: want.withDefaults(), proc: dir + "/proc", sys: dir + "/sys", modules: dir + "/modules", release: "4.19.0-20-amd64", root: true}
}

func TestLacks(t *testing.T) {
	for _, row := range []struct {
		name  string
		files map[string]string
		check func(*checker)
		found string
		fix   string
		fits  int
	}{
		{"no root", nil, func(c *checker) { c.root = false; c.try("x", "", "", nil) }, "not tried without root", "sudo", 1000},
		{"old kernel", nil, (*checker).kernel, "4.19.0-20-amd64", "newer kernel", 1000},
		{"inotify", map[string]string{"proc/sys/fs/inotify/max_user_instances": "20\n", "proc/7/fd/3": "-> anon_inode:inotify", "proc/7/fd/4": "-> /dev/null", "proc/8/fd/9": "-> anon_inode:inotify"},
			(*checker).inotify, "18 free: room for 1 machine", "sysctl fs.inotify.max_user_instances=512", 1},
		{"pids", map[string]string{"proc/sys/kernel/pid_max": "32768", "proc/sys/kernel/threads-max": "1000", "proc/loadavg": "0 0 0 1/950 77\n"},
			(*checker).pids, "50 free: room for 0 machines", "kernel.pid_max", 0},
		{"memory", map[string]string{"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 1024000 kB\n"}, (*checker).memory, "1000 MiB free: room for 1 machine", "fewer machines", 1},
		{"no proc", nil, (*checker).memory, "no such file", "mount /proc", 0},
		{"tool", nil, func(c *checker) { c.tool("mkfs.nosuch") }, "not found", debianPackages, 1000},
		{"disk", nil, func(c *checker) { c.want.Disk = 1 << 55; c.disk() }, "room for 0 machines", "choose another folder", 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := made(t, Want{Machines: 2, Dir: t.TempDir()}, row.files)
			row.check(c)
			failed := c.Failed()
			if len(failed) != 1 || !strings.Contains(failed[0].Found, row.found) || !strings.Contains(failed[0].Fix, row.fix) || c.Fits != row.fits {
				t.Errorf("got %+v, fits %d; want found %q, fix %q, fits %d", failed, c.Fits, row.found, row.fix, row.fits)
			}
		})
	}
	t.Run("port taken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c := made(t, Want{}, nil)
		c.ports([]string{l.Addr().String()})
		if f := c.Failed(); len(f) != 1 || !strings.Contains(f[0].Found, "in use") {
			t.Errorf("got %+v", f)
		}
	})
}

func TestModulesAreLeftAsleep(t *testing.T) {
	c := made(t, Want{}, map[string]string{
		"sys/module/overlay/refcnt": "0", "modules/modules.builtin": "kernel/fs/ext4/ext4.ko\n", "modules/modules.dep": "kernel/drivers/net/veth.ko.zst:\nkernel/net/bridge/bridge.ko: kernel/net/llc.ko\n"})
	for name, want := range map[string]state{"overlay": present, "ext4": present, "veth": asleep, "bridge": asleep, "loop": unknown} {
		if got := c.module(name); got != want {
			t.Errorf("%s: got %d, want %d", name, got, want)
		}
	}
	c.tryUnlessAsleep("x", "", "", []string{"overlay", "veth"}, func() error { t.Error("tried, which would load veth"); return nil })
	if !c.OK() || !strings.Contains(c.Items[0].Found, "veth") {
		t.Errorf("got %+v", c.Items)
	}
}

func TestAtLeast(t *testing.T) {
	for _, row := range []struct {
		version string
		want    bool
	}{{"1.0.1", true}, {"v1.0.6 (Lester Gooch #5)", true}, {"1.1", true}, {"2.0-rc1", true}, {"1.0.0", false}, {"0.9.8", false}, {"", false}, {"new", false}} {
		if got := atLeast(row.version, 1, 0, 1); got != row.want {
			t.Errorf("%q: got %v, want %v", row.version, got, row.want)
		}
	}
}
