package spawn

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be a parent that starts a child and waits to be killed.
func TestMain(m *testing.M) {
	if os.Getenv("SPAWN_TEST_PARENT") != "" {
		cmd := exec.Command("sleep", "100")
		if err := Start(cmd, nil); err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strconv.Itoa(cmd.Process.Pid) + "\n")
		Wait(cmd)
	}
	os.Exit(m.Run())
}

func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	text := string(data)
	return !strings.HasPrefix(text[strings.LastIndexByte(text, ')')+1:], " Z")
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestChildDiesWithItsParent(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SPAWN_TEST_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if !alive(child) {
		t.Fatal("the child is not there")
	}
	cmd.Process.Kill()
	cmd.Wait()
	eventually(t, "the child died", func() bool { return !alive(child) })
}

// TestChildOutlivesThreads is why one thread forks: the parent death signal means the thread, and goroutines may end theirs.
func TestChildOutlivesThreads(t *testing.T) {
	var cmd *exec.Cmd
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		cmd = exec.Command("sleep", "100")
		if err := Start(cmd, nil); err != nil {
			t.Error(err)
		}
	}()
	<-ended
	time.Sleep(50 * time.Millisecond)
	if !alive(cmd.Process.Pid) {
		t.Error("the child died with a thread")
	}
	cmd.Process.Kill()
	Wait(cmd)
}

// TestReapStealsNothing buries many orphans while children of every kind are waited for, at once and late.
func TestReapStealsNothing(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var reaper sync.WaitGroup
	reaper.Go(func() { Reap(ctx) })
	defer reaper.Wait()
	defer cancel()

	late := exec.Command("sh", "-c", "exit 7")
	if err := Start(late, nil); err != nil {
		t.Fatal(err)
	}
	var orphans []int
	for range 10 { // a shell that leaves a child behind; its number comes out first
		out, err := Run(ctx, nil, "sh", "-c", "sleep 0.1 >/dev/null 2>&1 & echo $!")
		if err != nil {
			t.Fatal(err)
		}
		pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
		orphans = append(orphans, pid)
	}
	for i := range 30 {
		want := i % 3
		cmd := exec.Command("sh", "-c", "exit "+strconv.Itoa(want))
		wait := cmd.Wait
		if i%2 == 0 {
			if err := Start(cmd, nil); err != nil {
				t.Fatal(err)
			}
			wait = func() error { return Wait(cmd) }
		} else if err := cmd.Start(); err != nil { // a library that knows nothing of this package
			t.Fatal(err)
		}
		wait()
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("child %d: got exit code %d, want %d", i, got, want)
		}
	}
	for _, pid := range orphans {
		eventually(t, "orphan "+strconv.Itoa(pid)+" was buried", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
	}
	Wait(late)
	if got := late.ProcessState.ExitCode(); got != 7 {
		t.Errorf("the child waited for late: got exit code %d, want 7", got)
	}
}

func TestRunTellsLastWords(t *testing.T) {
	_, err := Run(t.Context(), nil, "sh", "-c", "echo no such thing >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "no such thing") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
	if _, err := Run(t.Context(), nil, "/no/such/program"); err == nil || !strings.Contains(err.Error(), "start /no/such/program") {
		t.Errorf("got %v", err)
	}
	if out, err := Run(t.Context(), []byte("hello"), "cat"); err != nil || string(out) != "hello" {
		t.Errorf("got %q, %v", out, err)
	}
}
