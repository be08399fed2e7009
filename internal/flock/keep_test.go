package flock

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestKeepStartsAgainWhatWasKilledAndTwoKeepersStartOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var starts atomic.Int32
	start := func() (*exec.Cmd, error) {
		starts.Add(1)
		return exec.Command("sleep", "100"), nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	for range 2 {
		go func() { done <- Keep(ctx, path, start) }()
	}
	first := owner(t, path, 0)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := owner(t, path, first)
	if got := starts.Load(); got != 2 {
		t.Errorf("%d starts, want 2: two keepers must start one process", got)
	}
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Keep: %v, want the end of its context", err)
		}
	}
	if _, held, err := Owner(path); err != nil || !held {
		t.Errorf("held %v, %v: the process must outlive its keepers", held, err)
	}
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lock, err := Wait(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
}

func TestKeepStartsNothingUnwantedAndReportsAStartThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	asked := 0
	err := Keep(ctx, path, func() (*exec.Cmd, error) { asked++; return nil, nil })
	if !errors.Is(err, context.DeadlineExceeded) || asked < 2 {
		t.Errorf("asked %d times, %v; want to be asked again and again until the end", asked, err)
	}
	if err := Keep(t.Context(), path, func() (*exec.Cmd, error) { return exec.Command("/nowhere/to/be/found"), nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Keep: %v, want that the program is not there", err)
	}
}

// owner waits for an owner that is not the one given.
func owner(t *testing.T, path string, not int) int {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if pid, held, err := Owner(path); err == nil && held && pid != 0 && pid != not {
			return pid
		}
	}
	t.Fatalf("no new owner of %s", path)
	return 0
}

// TestKeepLeavesTheLockOfTheUnwantedFree is how somebody sees that a process has ended for good.
func TestKeepLeavesTheLockOfTheUnwantedFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Keep(ctx, path, func() (*exec.Cmd, error) { return nil, nil }) }()
	for i := range 20 {
		waiting, stop := context.WithTimeout(ctx, 5*time.Second)
		lock, err := Wait(waiting, path)
		stop()
		if err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		time.Sleep(5 * time.Millisecond) // the keeper now waits
		lock.Close()
	}
	cancel()
	<-done
}
