//go:build site

package site

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab/labtest"
)

// host is what a lab could leave on this computer. Mounts and interfaces are
// compared whole; of the rest only what names this lab, since other labs may run beside it.
type host struct{ lines []string }

// look takes down how the host is. marks are texts that only this lab's things carry.
func look(t *testing.T, marks []string) host {
	t.Helper()
	var h host
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		h.lines = append(h.lines, "mount "+strings.TrimSpace(line))
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		h.lines = append(h.lines, "interface "+l.Name)
	}
	marked := func(what, text string) {
		if slices.ContainsFunc(marks, func(m string) bool { return m != "" && strings.Contains(text, m) }) {
			h.lines = append(h.lines, what+" "+text)
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range backing {
		text, _ := os.ReadFile(file)
		marked("loop device", file+" "+string(text))
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			marked("control group", path)
		}
		return nil
	})
	for pid := range everything() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if pid != os.Getpid() {
			marked("process", fmt.Sprintf("%d %s %s", pid, strings.ReplaceAll(string(line), "\x00", " "), groups))
		}
	}
	slices.Sort(h.lines)
	return h
}

// leavesNothing compares, and gives the kernel a moment to take things down.
func leavesNothing(t *testing.T, before host, marks []string) {
	t.Helper()
	labtest.Within(t, 5*time.Second, func() error {
		var new []string
		for _, line := range look(t, marks).lines {
			if !slices.Contains(before.lines, line) {
				new = append(new, line)
			}
		}
		if len(new) > 0 {
			return fmt.Errorf("left on this computer:\n%s", strings.Join(new, "\n"))
		}
		return nil
	})
}

// marks are the texts by which this lab's things are known: its folder, and
// the name of its machine among all labs of this host.
func (s *shop) marks(t *testing.T) []string {
	t.Helper()
	marks := []string{s.Lab.Dir}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.one(t, "outer").pid))
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Split(string(line), "\x00")
	i := slices.Index(args, "--name")
	if i < 0 || i+1 >= len(args) {
		t.Fatalf("the machine's process has no --name: %q", args)
	}
	return append(marks, args[i+1])
}
