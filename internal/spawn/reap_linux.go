package spawn

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a dead child that nobody announced is left alone: a courtesy to libraries that start processes without this package.
const patience = 2 * time.Second

// Reap buries orphans until ctx ends. It is for process 1 and for subreapers; elsewhere it finds nothing to do.
func Reap(ctx context.Context) {
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	defer signal.Stop(deaths)
	dead := map[int]time.Time{} // unknown dead children and when each was first seen
	for {
		var again <-chan time.Time
		if reapOnce(dead, time.Now()) {
			again = time.After(patience / 4)
		}
		select {
		case <-ctx.Done():
			return
		case <-deaths:
			time.Sleep(coalesce)
		case <-again:
		}
	}
}

// coalesce bounds how often a crowd of dying children makes Reap look.
const coalesce = 100 * time.Millisecond

// reapOnce buries those that have waited long enough and tells whether others still wait.
func reapOnce(dead map[int]time.Time, now time.Time) (more bool) {
	mu.Lock() // no child is born meanwhile
	defer mu.Unlock()
	seen := map[int]bool{}
	for _, pid := range children() {
		if known[pid] || !isDead(pid) {
			continue
		}
		seen[pid] = true
		if first, ok := dead[pid]; !ok {
			dead[pid] = now
		} else if now.Sub(first) >= patience {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			delete(seen, pid)
		}
	}
	for pid := range dead {
		if !seen[pid] {
			delete(dead, pid)
		}
	}
	return len(dead) > 0
}

// isDead asks without taking the exit code.
func isDead(pid int) bool {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			// With WNOHANG success also means "alive"; then the kernel leaves the structure zero.
			return err == nil && *(*int32)(unsafe.Pointer(&info)) == int32(unix.SIGCHLD)
		}
	}
}

// children lists this process's children: each thread's list where the kernel keeps them, else by a walk over all processes.
func children() []int {
	var pids []int
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for word := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	if len(lists) > 0 {
		return pids
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	self := strconv.Itoa(os.Getpid())
	for _, stat := range stats {
		data, _ := os.ReadFile(stat)
		text := string(data)
		rest := text[strings.LastIndexByte(text, ')')+1:] // after the name, which may hold anything
		if f := strings.Fields(rest); len(f) > 1 && f[1] == self {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			pids = append(pids, pid)
		}
	}
	return pids
}
