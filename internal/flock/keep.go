package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Bounds of the pause that Keep makes before it starts a process that ended soon after its start.
const (
	keepPauseLeast = 100 * time.Millisecond
	keepPauseMost  = 10 * time.Second
	keepSettled    = 15 * time.Second // a process that lived this long begins again with the least pause
)

// Keep keeps one process alive: whenever nobody holds the lock at path, it
// takes the lock, calls start, and hands the lock over by inheritance, so that
// the lock is free again exactly when the process and all that inherited the
// lock are gone. Any number of processes may keep the same path: one of them
// wins, the others go on waiting; so two processes can keep each other.
//
// start returns a command that is not yet started, or nil when the process is
// not wanted just now; Keep adds the lock to its ExtraFiles, closes in this
// process all of them and the file of its output once it runs, and writes its
// process id into the lock file. Keep returns when ctx ends, or with the error
// of start; the process goes on living.
func Keep(ctx context.Context, path string, start func() (*exec.Cmd, error)) error {
	pause := time.Duration(0)
	var began time.Time
	for {
		lock, err := Wait(ctx, path) // free: the process is gone, or was never there
		if err != nil {
			return err
		}
		if time.Since(began) > keepSettled {
			pause = 0
		}
		if pause > 0 && !sleep(ctx, pause) { // still holding the lock, so that no other keeper is quicker
			lock.Close()
			return ctx.Err()
		}
		began = time.Now()
		running, err := handOver(lock, start)
		if err != nil {
			return err
		}
		if !running { // not wanted: the lock is left free, for whoever waits to see that nobody is there
			if !sleep(ctx, keepPauseLeast) {
				return ctx.Err()
			}
			continue
		}
		pause = min(max(2*pause, keepPauseLeast), keepPauseMost)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// handOver starts the process with the lock, and lets the lock go either way.
func handOver(lock *Lock, start func() (*exec.Cmd, error)) (running bool, err error) {
	cmd, err := start()
	if err != nil || cmd == nil {
		lock.Close()
		return false, err
	}
	return true, lock.Start(cmd)
}

// Start starts a process that holds the lock from now on, and lets go of it
// here. The process id is written into the lock file for Owner.
func (l *Lock) Start(cmd *exec.Cmd) error {
	defer l.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, l.File())
	defer closeFiles(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go cmd.Wait() // reaps it; what it ended with is in its own log
	return writeOwner(l.File(), cmd.Process.Pid)
}

func closeFiles(cmd *exec.Cmd) {
	for _, f := range cmd.ExtraFiles[:len(cmd.ExtraFiles)-1] {
		f.Close()
	}
	if f, ok := cmd.Stdout.(*os.File); ok {
		f.Close()
	}
}

func writeOwner(f *os.File, pid int) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write the owner of %s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(pid)+"\n"), 0); err != nil {
		return fmt.Errorf("write the owner of %s: %w", f.Name(), err)
	}
	return nil
}

// Owner is the process id that Keep wrote into the lock file at path, and
// whether somebody holds the lock. The id means nothing when nobody does.
func Owner(path string) (pid int, held bool, err error) {
	held, err = Held(path)
	if err != nil || !held {
		return 0, held, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, held, fmt.Errorf("read the owner of %s: %w", path, err)
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, held, nil // the taker has not written its id yet
	}
	return pid, held, nil
}
