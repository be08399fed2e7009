//go:build system && linux

package bringup_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// measure prints what each process costs at rest, after a pause and one GET of
// /openapi/v2.
func measure(t *testing.T, m *machine, pause time.Duration) {
	m.mustKubectl(t, "", "get", "--raw", "/openapi/v2")
	defer compacted(t, m, pause)
	time.Sleep(pause - time.Minute)
	pids := shims(livePids(m))
	before := map[string]float64{}
	for name, pid := range pids {
		before[name] = cpuSeconds(pid)
	}
	began := time.Now()
	time.Sleep(time.Minute)
	span := time.Since(began).Seconds()
	t.Logf("%v after ready:", pause)
	t.Logf("%-24s %9s %9s %9s %7s %7s %7s", "process", "anon MiB", "PSS MiB", "RSS MiB", "CPU %", "fds", "inotify")
	for _, name := range sortedKeys(pids) {
		anon, pss, rss := memory(pids[name])
		fds, inotify := descriptors(pids[name])
		t.Logf("%-24s %9.1f %9.1f %9.1f %7.2f %7d %7d", name, anon, pss, rss, 100*(cpuSeconds(pids[name])-before[name])/span, fds, inotify)
	}
}

// compacted asks for the first revision of all. The API server compacts every five
// minutes, and finds out by the endpoints of its etcd clients that it should:
// clients of an embedded member have some only because we see to it.
func compacted(t *testing.T, m *machine, pause time.Duration) {
	if pause < 11*time.Minute {
		return
	}
	out, err := m.kubectl("", "get", "--raw", "/api/v1/namespaces?resourceVersion=2&resourceVersionMatch=Exact")
	if err == nil || !strings.Contains(out, "too old") && !strings.Contains(out, "compacted") {
		t.Errorf("after %v the first revision is still there: %v: %.200s", pause, err, out)
	}
}

// shims adds the container shims.
func shims(pids map[string]int) map[string]int {
	all, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, file := range all {
		name, _ := os.ReadFile(file)
		if n := strings.TrimSpace(string(name)); strings.HasPrefix(n, "containerd-shim") || n == "web" || n == "pause" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids[fmt.Sprintf("%s (%d)", n, pid)] = pid
		}
	}
	return pids
}

func memory(pid int) (anon, pss, rss float64) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(f[1], 64)
		switch f[0] {
		case "Anonymous:":
			anon = kb / 1024
		case "Pss:":
			pss = kb / 1024
		case "Rss:":
			rss = kb / 1024
		}
	}
	return anon, pss, rss
}

func cpuSeconds(pid int) float64 {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(f[11], 64)
	sys, _ := strconv.ParseFloat(f[12], 64)
	return (user + sys) / 100
}

func descriptors(pid int) (all, inotify int) {
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); to == "anon_inode:inotify" {
			inotify++
		}
	}
	return len(fds), inotify
}
