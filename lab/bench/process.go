package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// process is one process as /proc shows it.
type process struct {
	pid, parent int
	name        string
	ticks       float64 // user and system time, in hundredths of a second
}

// processes reads all processes of this computer. What ends meanwhile is left out.
func processes() map[int]process {
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if p, ok := readProcess(dir); ok {
			all[p.pid] = p
		}
	}
	return all
}

func readProcess(dir string) (process, bool) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return process{}, false
	}
	p, ok := parseStat(string(stat))
	if !ok {
		return process{}, false
	}
	line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	p.name = called(p.name, strings.Split(strings.TrimRight(string(line), "\x00"), "\x00"))
	return p, true
}

// parseStat reads /proc/PID/stat; the name in it may hold blanks and brackets.
func parseStat(stat string) (process, bool) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 13 {
		return process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(stat[:open]))
	parent, err2 := strconv.Atoi(fields[1])
	user, err3 := strconv.ParseFloat(fields[11], 64)
	system, err4 := strconv.ParseFloat(fields[12], 64)
	return process{pid, parent, stat[open+1 : end], user + system}, err == nil && err2 == nil && err3 == nil && err4 == nil
}

// called is the name that a reader knows a process by: the program, and its verb
// where one program plays several parts.
func called(comm string, args []string) string {
	if len(args) == 0 || args[0] == "" {
		return comm
	}
	name := filepath.Base(args[0])
	if name == "exe" { // a program that started itself again
		name = comm
	}
	if (name == "kube" || name == "machined") && len(args) > 1 && !strings.HasPrefix(args[1], "-") {
		name += " " + args[1]
	}
	return strings.TrimSuffix(name, ":")
}

// below lists pid's descendants, without itself.
func below(all map[int]process, pid int) []process {
	var list []process
	for _, p := range all {
		for up, depth := p.parent, 0; up > 0 && depth < 64; up, depth = all[up].parent, depth+1 {
			if up == pid {
				list = append(list, p)
				break
			}
		}
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(a.pid, b.pid) })
	return list
}

// renamed gives what runs in pods the name of what it is for us: the app's own
// programs may be called anything.
func renamed(list []process, all map[int]process) []process {
	for i, p := range list {
		if strings.HasPrefix(all[p.parent].name, "containerd-shim") && p.name != "pause" {
			list[i].name = "apps' containers"
		}
	}
	return list
}

// memory is what a process holds, in bytes.
type memory struct{ rss, pss, anonymous float64 }

func (m memory) plus(o memory) memory {
	return memory{m.rss + o.rss, m.pss + o.pss, m.anonymous + o.anonymous}
}

func (m memory) String() string {
	return fmt.Sprintf("%s MiB anonymous, %s PSS, %s RSS", mib(m.anonymous), mib(m.pss), mib(m.rss))
}

func memoryOf(pid int) (memory, error) {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	return parseRollup(string(rollup)), err
}

func parseRollup(rollup string) (m memory) {
	for line := range strings.Lines(rollup) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "Rss:":
			m.rss = kib * 1024
		case "Pss:":
			m.pss = kib * 1024
		case "Anonymous:":
			m.anonymous = kib * 1024
		}
	}
	return m
}

// written counts the bytes that went to the disk images below dir since they
// were attached: what the machine wrote with all that its file systems added.
func written(dir string) (state, data uint64, err error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return 0, 0, err
	}
	found := false
	for _, file := range files {
		image, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(image), dir+"/") {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Dir(file)), "stat"))
		if err != nil {
			return 0, 0, err
		}
		fields := strings.Fields(string(stat))
		if len(fields) < 7 {
			return 0, 0, fmt.Errorf("%s: too few fields", file)
		}
		sectors, err := strconv.ParseUint(fields[6], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		found = true
		if strings.HasPrefix(filepath.Base(string(image)), "state") {
			state += 512 * sectors
		} else {
			data += 512 * sectors
		}
	}
	if !found {
		return 0, 0, fmt.Errorf("no loop device has an image below %s", dir)
	}
	return state, data, nil
}
