package supervise

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
)

// really runs real children; the test ends when the supervisor has ended.
func really(t *testing.T, c Config, children ...Child) *Supervisor {
	t.Helper()
	s := New(c)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := s.Apply(ctx, children); err != nil {
		t.Fatal(err)
	}
	return s
}

func waitFor(t *testing.T, s *Supervisor, what string, f func([]Status) bool) []Status {
	t.Helper()
	late := time.After(30 * time.Second)
	for {
		changed := s.Changed()
		st := s.Status()
		if f(st) {
			return st
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("never: %s: %+v", what, st)
		}
	}
}

func shell(name, script string) Child {
	return Child{Name: name, Path: "/bin/sh", Args: []string{"-c", script}}
}

func TestKilledChildComesBack(t *testing.T) {
	c := shell("a", "echo I am alive; exec sleep 100")
	s := really(t, Config{Backoff: Backoff{Min: 10 * time.Millisecond}}, c)
	first := waitFor(t, s, "running", func(st []Status) bool { return len(st) == 1 && st[0].State == Running })[0].PID
	for n := range 3 {
		waitForOutput(t, first)
		syscall.Kill(first, syscall.SIGKILL)
		st := waitFor(t, s, "running again", func(st []Status) bool { return st[0].State == Running && st[0].PID != first })[0]
		if st.LastExit.Signal != "SIGKILL" || st.Crashes != n+1 || !slices.Equal(st.LastExit.Output, []string{"I am alive"}) {
			t.Errorf("after kill %d: %+v %+v", n+1, st, st.LastExit)
		}
		first = st.PID
	}
}

// waitForOutput waits until the shell has become sleep: what it says it says before.
func waitForOutput(t *testing.T, pid int) {
	t.Helper()
	for range 2000 {
		if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.TrimSpace(string(data)) == "sleep" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the child never slept")
}

func TestExitCodesAndLastWords(t *testing.T) {
	s := really(t, Config{Backoff: Backoff{Min: time.Hour, Max: time.Hour}}, shell("bad", "seq 1 50; echo at last >&2; exit 3"), Child{Name: "missing", Path: "/no/such/program"})
	st := waitFor(t, s, "both pause", func(st []Status) bool { return len(st) == 2 && st[0].State == Pausing && st[1].State == Pausing })
	out := st[0].LastExit.Output
	if st[0].LastExit.Code != 3 || len(out) != keptLines || out[keptLines-1] != "at last" || out[0] != "32" {
		t.Errorf("bad: %+v", st[0].LastExit)
	}
	if !strings.Contains(st[1].LastExit.Reason, "/no/such/program") {
		t.Errorf("missing: %+v", st[1].LastExit)
	}
}

// TestHeirsLiveOn is the shim's case: a grandchild holds the pipe, and neither delays the end of the child nor dies of it.
func TestHeirsLiveOn(t *testing.T) {
	dir := t.TempDir()
	script := fmt.Sprintf(`(while sleep 0.05; do echo beat; done) & echo $! > %s/heir; sleep 0.2; exit 1`, dir)
	s := really(t, Config{LogDir: dir, Backoff: Backoff{Min: time.Hour, Max: time.Hour}}, shell("runtime", script))
	st := waitFor(t, s, "pausing", func(st []Status) bool { return len(st) == 1 && st[0].State == Pausing })
	if st[0].LastExit.Ran > 5*time.Second {
		t.Errorf("the heir held up the child's end: %v", st[0].LastExit)
	}
	var heir int
	data, err := os.ReadFile(dir + "/heir")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscan(string(data), &heir)
	defer syscall.Kill(heir, syscall.SIGKILL)
	before, _ := os.Stat(dir + "/runtime.log")
	for range 1000 {
		if now, _ := os.Stat(dir + "/runtime.log"); now.Size() > before.Size() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the heir is no longer heard")
}

func TestLogsAreBounded(t *testing.T) {
	dir := t.TempDir()
	dir += "/made/on/demand"
	c := Config{LogDir: dir, LogSize: 10_000, LogFiles: 2, Backoff: Backoff{Min: time.Hour, Max: time.Hour}}
	s := really(t, c, shell("chatty", "seq 1 20000"))
	waitFor(t, s, "pausing", func(st []Status) bool { return len(st) == 1 && st[0].State == Pausing })
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if info, _ := os.Stat(f); info.Size() > 2*16<<10 { // one read of the pipe may be larger than the limit
			t.Errorf("%s has %d bytes", f, info.Size())
		}
	}
	last, _ := os.ReadFile(dir + "/chatty.log")
	if !strings.HasSuffix(string(last), "19999\n20000\n") {
		t.Error("the newest file lacks the last lines")
	}
}

func TestFullDiskCostsNoChild(t *testing.T) {
	s := really(t, Config{LogDir: "/dev/null/no-folder", Backoff: Backoff{Min: time.Hour, Max: time.Hour}}, shell("a", "seq 1 50000; exit 4"))
	st := waitFor(t, s, "ended", func(st []Status) bool { return len(st) == 1 && st[0].State == Pausing })
	if st[0].LastExit.Code != 4 {
		t.Errorf("got %+v", st[0].LastExit)
	}
}

func TestOwnCgroupAndScore(t *testing.T) {
	host, err := cgroups.Detect()
	if err != nil {
		t.Fatal(err)
	}
	parent := fmt.Sprintf("holdfast-test-supervise-%d", os.Getpid())
	t.Cleanup(func() { host.Group(parent).Remove(context.Background()) })
	c := shell("a", "cat /proc/self/cgroup; sleep 0.3; cat /proc/self/oom_score_adj; exit 1")
	c.Cgroup, c.OOMScoreAdj = "system/a", 500
	s := really(t, Config{Cgroup: parent, Backoff: Backoff{Min: time.Hour, Max: time.Hour}}, c)
	st := waitFor(t, s, "ended", func(st []Status) bool { return len(st) == 1 && st[0].State == Pausing })
	out := st[0].LastExit.Output
	if len(out) < 2 || out[len(out)-1] != "500" {
		t.Fatalf("output: %q", out)
	}
	for _, line := range out[:len(out)-1] {
		if !strings.HasSuffix(line, parent+"/system/a") {
			t.Errorf("outside its group: %s", line)
		}
	}
}

func TestDeafChildIsKilled(t *testing.T) {
	c := shell("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done")
	c.Grace = 100 * time.Millisecond
	s := really(t, Config{}, c)
	st := waitFor(t, s, "running", func(st []Status) bool { return len(st) == 1 && st[0].State == Running })
	time.Sleep(100 * time.Millisecond) // for the trap
	s.Restart(t.Context(), "deaf")
	st = waitFor(t, s, "again", func(x []Status) bool { return x[0].State == Running && x[0].PID != st[0].PID })
	if !st[0].LastExit.Expected || st[0].Crashes != 0 {
		t.Errorf("got %+v %+v", st[0], st[0].LastExit)
	}
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte("a\nb\n"), []byte("c"))
	f.Add([]byte(strings.Repeat("x", 3000)), []byte("\n\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var one, two output
		one.done, two.done = make(chan struct{}), make(chan struct{})
		close(one.done)
		close(two.done)
		one.keep(append(slices.Clone(a), b...))
		two.keep(a)
		two.keep(b)
		x, y := one.last(0), two.last(0)
		if !slices.Equal(x, y) {
			t.Errorf("cut differently: %q %q", x, y)
		}
		if len(x) > keptLines+1 {
			t.Errorf("%d lines", len(x))
		}
		for _, l := range x {
			if len(l) > keptWidth {
				t.Errorf("a line of %d bytes", len(l))
			}
		}
	})
}
