// Package usage says who uses the memory of a machine: the kernel, our own
// programs one by one, and the pods together. It reads what the kernel counts
// when it is asked and keeps nothing. It leaves out what could be freed and is
// not: that is the difference between Available and what is free.
package usage

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-edge/holdfast/link/wire"
)

// Pods is the name of what runs in containers.
const Pods = "pods"

// Read asks the kernel: proc and sys are where those file systems are mounted.
// Processes that end meanwhile are left out.
func Read(proc, sys string) (wire.Memory, error) {
	info, err := fields(filepath.Join(proc, "meminfo"))
	if err != nil {
		return wire.Memory{}, err
	}
	m := wire.Memory{
		Total: info["MemTotal"], Available: info["MemAvailable"],
		Kernel: info["SUnreclaim"] + info["KernelStack"] + info["PageTables"] + info["Percpu"],
		Swap:   info["SwapTotal"], Swapped: info["SwapTotal"] - info["SwapFree"],
	}
	if m.Total <= 0 {
		return wire.Memory{}, fmt.Errorf("%s has no MemTotal", filepath.Join(proc, "meminfo"))
	}
	zrams, err := filepath.Glob(filepath.Join(sys, "block/zram*/mm_stat"))
	if err != nil {
		return wire.Memory{}, err
	}
	for _, name := range zrams { // orig_data_size compr_data_size mem_used_total ... (zram.rst of the kernel)
		if text, err := os.ReadFile(name); err == nil {
			if f := strings.Fields(string(text)); len(f) > 2 {
				used, _ := strconv.ParseInt(f[2], 10, 64)
				m.Compressed += used
			}
		}
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return wire.Memory{}, err
	}
	programs := map[string]*wire.Program{}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 31); err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		name, err := Name(dir)
		if err != nil || name == "" {
			continue // it ended, or is the kernel's own
		}
		sizes, err := fields(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue
		}
		p := programs[name]
		if p == nil {
			p = &wire.Program{Name: name}
			programs[name] = p
		}
		p.Processes++
		p.Anonymous += sizes["Pss_Anon"]
		p.Files += sizes["Pss_File"] + sizes["Pss_Shmem"]
		p.Swapped += sizes["SwapPss"]
	}
	m.Programs = []wire.Program{}
	for _, p := range programs {
		m.Programs = append(m.Programs, *p)
	}
	slices.SortFunc(m.Programs, func(a, b wire.Program) int {
		return cmp.Or(cmp.Compare(b.Anonymous+b.Files, a.Anonymous+a.Files), cmp.Compare(a.Name, b.Name))
	})
	return m, nil
}

// Name is the program that a process runs, by its folder in proc, with its first
// word where that is a verb; Pods of what runs in a pod; "" of a thread of the kernel.
func Name(dir string) (string, error) {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", err
	}
	group, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	words := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	if words[0] == "" {
		return "", nil
	}
	if strings.Contains(string(group), "kubepods") {
		return Pods, nil
	}
	name := filepath.Base(words[0])
	if len(words) > 1 && words[1] != "" && strings.Trim(words[1], "abcdefghijklmnopqrstuvwxyz-") == "" && words[1][0] != '-' {
		name += " " + words[1]
	}
	return name, nil
}

// fields reads lines like "MemTotal:  1024 kB" into bytes.
func fields(file string) (map[string]int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	m := map[string]int64{}
	for line := range strings.Lines(string(text)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || len(f) != 2 || f[1] != "kB" {
			continue
		}
		if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
			m[strings.TrimSpace(name)] += n << 10
		}
	}
	return m, nil
}
