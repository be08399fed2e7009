// Package flock tells who is alive by lock files: a process holds a lock for as long as it lives, and whoever waits for that lock learns of its death at once.
//
// The kernel drops the lock with the last descriptor of the file, however the process ends, so there is nothing stale to clean up and no process id to
// mistrust. A descriptor that a child inherits keeps the lock: that is used on purpose where a lock must outlive its taker. The file itself stays behind and
// means nothing. Not for network file systems, and not for mutual exclusion between goroutines of one process that share a Lock.
package flock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrHeld is returned by TryLock when somebody else holds the lock.
var ErrHeld = errors.New("the lock is held by another process")

// Lock is a held lock.
type Lock struct{ file *os.File }

// TryLock takes the lock file at path, making it if need be. It returns ErrHeld when another holds it.
func TryLock(path string) (*Lock, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := try(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{f}, nil
}

// Wait takes the lock file at path as soon as nobody holds it. It returns early only when ctx ends.
//
// A blocked flock cannot be interrupted without ending its thread, so Wait asks again at short intervals: the wait costs one system call each.
func Wait(ctx context.Context, path string) (*Lock, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := WaitFile(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{f}, nil
}

// Held tells whether somebody holds the lock file at path. A file that is not there is not held.
func Held(path string) (bool, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	l, err := TryLock(path)
	if errors.Is(err, ErrHeld) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, l.Close()
}

// WaitFile takes the lock of an open file as soon as nobody else holds it.
func WaitFile(ctx context.Context, f *os.File) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := try(f)
		if !errors.Is(err, ErrHeld) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrHeld, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// File is the open lock file. A child that inherits it holds the lock too.
func (l *Lock) File() *os.File { return l.file }

// Close gives the lock up, unless a child inherited it.
func (l *Lock) Close() error { return l.file.Close() }

func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	return f, nil
}
