package cgroups

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReadVersion1WithVersion2Beside(t *testing.T) {
	mounts := `22 27 0:21 / /proc rw - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /no\040such/unified rw - cgroup2 cgroup2 rw,nsdelegate
`
	self := "4:memory:/session/7\n2:name=systemd:/\n1:cpuacct,cpu:/a\n0::/\n"
	h, err := Read(strings.NewReader(mounts), strings.NewReader(self))
	if err != nil {
		t.Fatal(err)
	}
	want := []Hierarchy{
		{Version: 2, Mount: "/no such/unified", Own: "."},
		{Version: 1, Name: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}, Mount: "/sys/fs/cgroup/cpu,cpuacct", Own: "a"},
		{Version: 1, Name: "memory", Controllers: []string{"memory"}, Mount: "/sys/fs/cgroup/memory", Own: "session/7"},
		{Version: 1, Name: "name=systemd", Mount: "/sys/fs/cgroup/systemd", Own: "."},
	}
	if d := cmp.Diff(want, h.Hierarchies, cmp.Comparer(func(a, b []string) bool { return strings.Join(a, " ") == strings.Join(b, " ") })); d != "" {
		t.Error(d)
	}
	if h.Unified() {
		t.Error("a host with version 1 controllers counts as unified")
	}
	if d := cmp.Diff([]string{"cpu", "cpuacct", "memory"}, h.Controllers()); d != "" {
		t.Error(d)
	}
}

// fakeUnified is a folder that looks like a version 2 tree, as far as plain files can.
func fakeUnified(t *testing.T, controllers string) (string, *Host) {
	t.Helper()
	root := t.TempDir()
	fakeGroup(t, root, controllers)
	mounts := fmt.Sprintf("26 20 0:23 / %s rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", root)
	h, err := Read(strings.NewReader(mounts), strings.NewReader("0::/user.slice\n"))
	if err != nil {
		t.Fatal(err)
	}
	return root, h
}

func fakeGroup(t *testing.T, dir, controllers string) {
	t.Helper()
	os.MkdirAll(dir, 0o755)
	for name, text := range map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": "cpu\n", "cgroup.procs": "", "memory.max": "", "cpu.max": "", "pids.max": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnifiedHandsControllersDown(t *testing.T) {
	root, h := fakeUnified(t, "cpuset cpu io memory pids rdma misc")
	if !h.Unified() {
		t.Fatal("a host with version 2 alone is not unified")
	}
	fakeGroup(t, filepath.Join(root, "holdfast"), "cpuset cpu memory pids")
	fakeGroup(t, filepath.Join(root, "holdfast/m1"), "cpuset cpu memory pids")
	if err := h.Group("holdfast/m1").Create(Limits{Memory: 1 << 30, CPUs: 1.5, Pids: 100}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cgroup.subtree_control":             "+cpuset +io +memory +pids",
		"holdfast/cgroup.subtree_control":    "+cpuset +memory +pids",
		"holdfast/m1/cgroup.subtree_control": "cpu\n", // the leaf's own is for whoever lives there
		"holdfast/m1/memory.max":             "1073741824",
		"holdfast/m1/cpu.max":                "150000 100000",
		"holdfast/m1/pids.max":               "100",
	} {
		got, err := os.ReadFile(filepath.Join(root, file))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q (%v), want %q", file, got, err, want)
		}
	}
}

func TestNoHierarchies(t *testing.T) {
	if _, err := Read(strings.NewReader("22 27 0:21 / /proc rw - proc proc rw\n"), strings.NewReader("")); err != ErrNone {
		t.Fatalf("got %v, want ErrNone", err)
	}
}

// TestChildIsBornInside makes a real group and looks at the child's own view, in every hierarchy, then removes all with the child in it.
func TestChildIsBornInside(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("holdfast-test-%d", os.Getpid())
	g := h.Group(name + "/child")
	t.Cleanup(func() { h.Group(name).Remove(context.Background()) })
	if err := g.Create(Limits{Memory: 64 << 20, Pids: 10}); err != nil {
		t.Fatal(err)
	}
	if err := g.Create(Limits{Memory: 32 << 20}); err != nil {
		t.Fatalf("second time: %v", err)
	}
	dir, err := g.Open()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat", "/proc/self/cgroup", "-")
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	var out strings.Builder
	cmd.Stdout = &out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	before := threadCgroups(t)
	runtime.LockOSThread()
	err = g.Fork(cmd.Start)
	after := threadCgroups(t)
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("the thread came back elsewhere:\n%s\n%s", before, after)
	}
	if got := g.Pids(); len(got) != 1 || got[0] != cmd.Process.Pid {
		t.Errorf("the group holds %v, want the child %d", got, cmd.Process.Pid)
	}
	stdin.Close()
	cmd.Wait()
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, name+"/child") {
			t.Errorf("the child was born outside: %s", line)
		}
	}
}

func threadCgroups(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRemoveKillsWhatIsLeft(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	g := h.Group(fmt.Sprintf("holdfast-test-kill-%d", os.Getpid()))
	inner := h.Group(g.Path() + "/a/b")
	if err := inner.Create(Limits{}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "100")
	runtime.LockOSThread()
	err = inner.Fork(cmd.Start)
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	go cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for _, tree := range h.Hierarchies {
		if _, err := os.Stat(g.in(tree)); err == nil {
			t.Errorf("%s is still there", g.in(tree))
		}
	}
	if err := g.Remove(ctx); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

// TestEmptyMovesIntoALeaf runs where a version 2 tree is mounted, with or without controllers.
func TestEmptyMovesIntoALeaf(t *testing.T) {
	h, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	tree := h.Hierarchies[0]
	if tree.Version != 2 {
		t.Fatal("no version 2 tree is mounted here; mount one at /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(tree.Mount, fmt.Sprintf("holdfast-test-leaf-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("sleep", "100")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait(); os.Remove(dir + "/init"); os.Remove(dir) }()
	if err := Empty(dir, dir+"/init"); err != nil {
		t.Fatal(err)
	}
	if pids, err := readPids(dir + "/init/cgroup.procs"); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("the leaf holds %v (%v), want %d", pids, err, cmd.Process.Pid)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "1:cpu:/a\n")
	f.Add("41 31 0:38 /x /u rw - cgroup2 cgroup2 rw\n", "0::/x/y\n")
	f.Fuzz(func(t *testing.T, mounts, self string) {
		h, err := Read(strings.NewReader(mounts), strings.NewReader(self))
		if err != nil {
			return
		}
		for _, tree := range h.Hierarchies {
			if tree.Own == ".." || strings.HasPrefix(tree.Own, "../") {
				t.Errorf("own group %q leaves the mount", tree.Own)
			}
		}
	})
}
