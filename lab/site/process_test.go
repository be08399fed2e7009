//go:build site

package site

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// process is a process of the lab.
type process struct {
	pid, parent int
	kind        string // keeper, hub, outer, inner, containerd, control-plane, node, coredns, shim, pause, app
}

func (p process) String() string { return fmt.Sprintf("%s (%d)", p.kind, p.pid) }

// processes lists the processes of the lab: its units and everything below them.
func (s *shop) processes() ([]process, error) {
	units, err := s.Lab.Units()
	if err != nil {
		return nil, err
	}
	kinds := map[int]string{}
	for _, u := range units {
		if u.Alive && u.PID != 0 {
			kinds[u.PID] = u.Name
			if u.Name != "keeper" && u.Name != "hub" {
				kinds[u.PID] = "outer"
			}
		}
	}
	all := everything()
	var list []process
	for _, p := range all {
		if kinds[p.pid] != "" {
			list = append(list, process{p.pid, p.parent, kinds[p.pid]})
		} else if up := ancestor(all, p, kinds); up == "outer" {
			p.kind = kindOf(p, kinds)
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b process) int { return a.pid - b.pid })
	return list, nil
}

// ancestor is the kind of the unit that p is below.
func ancestor(all map[int]process, p process, kinds map[int]string) string {
	for depth := 0; p.parent > 1 && depth < 32; depth++ {
		if kind := kinds[p.parent]; kind != "" {
			return kind
		}
		p = all[p.parent]
	}
	return ""
}

// everything reads all processes of this computer that are not zombies.
func everything() map[int]process {
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		end := strings.LastIndexByte(string(stat), ')')
		fields := strings.Fields(string(stat[end+1:]))
		if end < 0 || len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		parent, _ := strconv.Atoi(fields[1])
		all[pid] = process{pid: pid, parent: parent}
	}
	return all
}

// kindOf tells what a process inside the machine is.
func kindOf(p process, units map[int]string) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
	name := filepath.Base(args[0])
	switch {
	case units[p.parent] == "outer":
		return "inner"
	case name == "kube" && len(args) > 1:
		return args[1]
	case name == "containerd-shim-runc-v2":
		return "shim"
	case name == "containerd", name == "coredns", name == "pause", name == "applier" && len(args) > 1 && args[1] == "run":
		return name
	case strings.HasPrefix(name, "hello"), name == "1.0.0", name == "1.1.0":
		return "app"
	}
	return "other " + name // what comes and goes: runc, nft
}

// counts tells how many processes of each lasting kind there are.
func (s *shop) counts() (map[string]int, error) {
	all, err := s.processes()
	counts := map[string]int{}
	for _, p := range all {
		if !strings.HasPrefix(p.kind, "other ") {
			counts[p.kind]++
		}
	}
	return counts, err
}

// victims groups the processes by kind, so that each kind is as likely to die as any other.
func (s *shop) victims(t *testing.T) map[string][]process {
	t.Helper()
	all, err := s.processes()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string][]process{}
	for _, p := range all {
		if !strings.HasPrefix(p.kind, "other ") {
			kinds[p.kind] = append(kinds[p.kind], p)
		}
	}
	return kinds
}

// victim chooses a process at random.
func (s *shop) victim(t *testing.T) process {
	t.Helper()
	kinds := s.victims(t)
	names := slices.Sorted(maps.Keys(kinds))
	list := kinds[names[s.random.IntN(len(names))]]
	return list[s.random.IntN(len(list))]
}

// one is the only process of its kind.
func (s *shop) one(t *testing.T, kind string) process {
	t.Helper()
	list := s.victims(t)[kind]
	if len(list) != 1 {
		t.Fatalf("%d processes are %s, want 1", len(list), kind)
	}
	return list[0]
}

// kill ends processes at once, unasked.
func kill(t *testing.T, list ...process) {
	t.Helper()
	for _, p := range list {
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatalf("kill %v: %v", p, err)
		}
	}
}

// inMachine opens the machine's network.
func (s *shop) inMachine() (*os.File, error) {
	all, err := s.processes()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(p process) bool { return p.kind == "inner" })
	if i < 0 {
		return nil, errors.New("the machine has no inner process")
	}
	return netns.Of(all[i].pid)
}
