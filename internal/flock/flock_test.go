package flock

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestMain lets the test binary be the process that holds a lock until it is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv("FLOCK_TEST_HOLD"); path != "" {
		if _, err := TryLock(path); err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("held\n")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func holder(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FLOCK_TEST_HOLD="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	return cmd
}

func TestDeathIsSeenAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	cmd := holder(t, path)
	if _, err := TryLock(path); !errors.Is(err, ErrHeld) {
		t.Fatalf("TryLock while another process lives: got %v, want ErrHeld", err)
	}
	if held, err := Held(path); err != nil || !held {
		t.Fatalf("Held: got %v, %v", held, err)
	}
	died := make(chan time.Time, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		died <- time.Now()
		cmd.Process.Kill()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	l, err := Wait(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if took := time.Since(<-died); took > 2*time.Second {
		t.Errorf("the death was seen after %v", took)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder(t, path)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Wait(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the context's error", err)
	}
}

func TestHeldByNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if held, err := Held(path); held || err != nil {
		t.Fatalf("no file: got %v, %v", held, err)
	}
	l, err := TryLock(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if held, err := Held(path); held || err != nil {
		t.Fatalf("file left behind: got %v, %v", held, err)
	}
}
