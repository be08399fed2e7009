package spawn

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
)

var (
	requests = make(chan func()) // to the one thread that forks
	once     sync.Once

	mu    sync.Mutex       // held over fork and entry into known, so that Reap never sees a child that is not yet known
	known = map[int]bool{} // children that somebody will wait for
)

// Start starts cmd in the group, which may be nil. The child gets SIGKILL when this process ends, however it ends. Wait must follow.
func Start(cmd *exec.Cmd, group *cgroups.Group) error {
	once.Do(func() {
		go func() {
			runtime.LockOSThread() // for ever
			for f := range requests {
				f()
			}
		}()
	})
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	done := make(chan error)
	requests <- func() { done <- start(cmd, group) }
	return <-done
}

func start(cmd *exec.Cmd, group *cgroups.Group) error {
	fork := func() error {
		mu.Lock()
		defer mu.Unlock()
		if err := cmd.Start(); err != nil {
			return err
		}
		known[cmd.Process.Pid] = true
		return nil
	}
	if group == nil {
		return fork()
	}
	dir, err := group.Open()
	if err != nil {
		return fmt.Errorf("open cgroup %s: %w", group.Path(), err)
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := group.Fork(fork); err != nil {
		if cmd.Process != nil { // born, but this thread is lost in the child's group
			cmd.Process.Kill()
			Wait(cmd)
		}
		return err
	}
	return nil
}

// Wait waits for a child that Start started, exactly like cmd.Wait.
func Wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	mu.Lock()
	delete(known, cmd.Process.Pid)
	mu.Unlock()
	return err
}

// Run runs a program to its end and returns what it wrote. The error of a failed one ends with its last words.
func Run(ctx context.Context, stdin []byte, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, fault bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &fault
	if err := Start(cmd, nil); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if err := Wait(cmd); err != nil {
		words := strings.TrimSpace(fault.String())
		return out.Bytes(), fmt.Errorf("run %s: %w: %s", name, err, words[max(0, len(words)-400):])
	}
	return out.Bytes(), nil
}
