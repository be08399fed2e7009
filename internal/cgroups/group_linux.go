package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// wanted are the version 2 controllers that a machine or a child is given where the host has them.
var wanted = []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}

// Group is one path in every hierarchy.
type Group struct {
	host *Host
	path string
}

// Limits of a group; zero means none.
type Limits struct {
	Memory int64   // bytes
	CPUs   float64 // processors' worth of time
	Pids   int     // processes and threads
}

// Group names the group at path, relative to where each hierarchy is mounted. It need not exist.
func (h *Host) Group(path string) *Group { return &Group{h, filepath.Clean("/" + path)} }

// Path of the group, from the root of every hierarchy.
func (g *Group) Path() string { return g.path }

func (g *Group) in(tree Hierarchy) string { return filepath.Join(tree.Mount, g.path) }

// Create makes the group, or takes it as it is, and sets its limits. What a killed earlier try left is completed.
func (g *Group) Create(l Limits) error {
	for _, tree := range g.host.Hierarchies {
		var err error
		if tree.Version == 2 {
			err = g.createV2(tree)
		} else {
			err = g.createV1(tree)
		}
		if err != nil {
			return fmt.Errorf("make cgroup %s: %w", g.in(tree), err)
		}
	}
	return g.limit(l)
}

// createV1 makes the folders top down; a cpuset must be filled before a process may enter.
func (g *Group) createV1(tree Hierarchy) error {
	dir := tree.Mount
	for part := range strings.SplitSeq(strings.Trim(g.path, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := mkdir(dir); err != nil {
			return err
		}
		if !slices.Contains(tree.Controllers, "cpuset") {
			continue
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(parent, dir, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// inherit copies a setting from the parent where the child has none.
func inherit(parent, child, file string) error {
	have, err := os.ReadFile(filepath.Join(child, file))
	if err != nil || strings.TrimSpace(string(have)) != "" {
		return err
	}
	want, err := os.ReadFile(filepath.Join(parent, file))
	if err != nil {
		return err
	}
	return write(filepath.Join(child, file), strings.TrimSpace(string(want)))
}

// createV2 makes the folders and hands the controllers down to the last but one, where that is this tree's business.
func (g *Group) createV2(tree Hierarchy) error {
	dir := tree.Mount
	for part := range strings.SplitSeq(strings.Trim(g.path, "/"), "/") {
		if g.host.Unified() {
			if err := Delegate(dir); err != nil {
				return err
			}
		}
		dir = filepath.Join(dir, part)
		if err := mkdir(dir); err != nil {
			return err
		}
	}
	return nil
}

// Delegate lets the children of a version 2 group use the wanted controllers that the group itself has. Only the true root may hold processes and hand
// controllers down at once: where the kernel refuses, the group's processes go into a leaf called "init" first, as container runtimes inside containers do.
func Delegate(dir string) error {
	have, err := fields(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, err := fields(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	var missing []string
	for _, c := range wanted {
		if slices.Contains(have, c) && !slices.Contains(on, c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	control := filepath.Join(dir, "cgroup.subtree_control")
	err = write(control, strings.Join(missing, " "))
	if errors.Is(err, unix.EBUSY) {
		if err := Empty(dir, filepath.Join(dir, "init")); err != nil {
			return err
		}
		err = write(control, strings.Join(missing, " "))
	}
	return err
}

// Empty moves the processes of a version 2 group into a leaf, which it makes. New processes may appear meanwhile: it goes on until there are none.
func Empty(dir, leaf string) error {
	if err := mkdir(leaf); err != nil {
		return err
	}
	for range 100 {
		pids, err := readPids(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			err := write(filepath.Join(leaf, "cgroup.procs"), strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("move process %d to %s: %w", pid, leaf, err)
			}
		}
	}
	return fmt.Errorf("empty cgroup %s: processes keep coming", dir)
}

func (g *Group) limit(l Limits) error {
	for _, tree := range g.host.Hierarchies {
		set := func(controller, file, value string) error {
			if !slices.Contains(tree.Controllers, controller) || (tree.Version == 2 && !g.host.Unified()) {
				return nil
			}
			if err := write(filepath.Join(g.in(tree), file), value); err != nil {
				return fmt.Errorf("limit cgroup %s: %w", g.path, err)
			}
			return nil
		}
		memory, cpu := "memory.limit_in_bytes", "cpu.cfs_quota_us"
		quota := strconv.Itoa(int(l.CPUs * 100_000))
		if tree.Version == 2 {
			memory, cpu, quota = "memory.max", "cpu.max", quota+" 100000"
		}
		if l.Memory > 0 {
			if err := set("memory", memory, strconv.FormatInt(l.Memory, 10)); err != nil {
				return err
			}
		}
		if l.CPUs > 0 {
			if err := set("cpu", cpu, quota); err != nil {
				return err
			}
		}
		if l.Pids > 0 {
			if err := set("pids", "pids.max", strconv.Itoa(l.Pids)); err != nil {
				return err
			}
		}
	}
	return nil
}

// Fork runs f, which is to fork, with the calling thread inside the version 1 groups, and brings the thread back. The caller has locked the thread.
// A thread that cannot be brought back is an error even where f went well: it must not fork anything else.
func (g *Group) Fork(f func() error) error {
	home, err := threadHome()
	if err != nil {
		return err
	}
	back := func() error {
		var errs []error
		for _, tree := range home.Hierarchies {
			if tree.Version == 1 {
				errs = append(errs, write(filepath.Join(tree.Mount, tree.Own, "tasks"), "0"))
			}
		}
		return errors.Join(errs...)
	}
	for _, tree := range g.host.Hierarchies {
		if tree.Version != 1 {
			continue
		}
		if err := write(filepath.Join(g.in(tree), "tasks"), "0"); err != nil {
			return errors.Join(fmt.Errorf("enter cgroup %s: %w", g.in(tree), err), back())
		}
	}
	return errors.Join(f(), back())
}

func threadHome() (*Host, error) {
	mounts, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	self, err := os.Open("/proc/thread-self/cgroup")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	return Read(mounts, self)
}

// Open returns the group's folder in the version 2 tree for clone3, or nil where there is none.
func (g *Group) Open() (*os.File, error) {
	for _, tree := range g.host.Hierarchies {
		if tree.Version == 2 {
			return os.Open(g.in(tree))
		}
	}
	return nil, nil
}

// Pids lists the processes of the group and of every group below it, in any hierarchy, sorted.
func (g *Group) Pids() []int {
	var all []int
	for _, tree := range g.host.Hierarchies {
		filepath.WalkDir(g.in(tree), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				pids, _ := readPids(filepath.Join(path, "cgroup.procs")) // gone in between: nobody is in it
				all = append(all, pids...)
			}
			return nil
		})
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Remove kills whatever is still in the group or below and removes all of it. It is no error when there is nothing.
func (g *Group) Remove(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := g.removeOnce()
		if err == nil {
			return nil
		}
		for _, pid := range g.Pids() {
			unix.Kill(pid, unix.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w (%w)", g.path, err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

func (g *Group) removeOnce() error {
	var errs []error
	for _, tree := range g.host.Hierarchies {
		var dirs []string
		filepath.WalkDir(g.in(tree), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) { // children come after their parents
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("%s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// RemoveIfEmpty removes the group, without anything below, where nobody uses it.
func (g *Group) RemoveIfEmpty() {
	for _, tree := range g.host.Hierarchies {
		unix.Rmdir(g.in(tree))
	}
}

func mkdir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// write never makes a file: in these file systems a missing one means a missing feature.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

func fields(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	return strings.Fields(string(data)), err
}

func readPids(path string) ([]int, error) {
	words, err := fields(path)
	pids := make([]int, 0, len(words))
	for _, w := range words {
		if pid, err := strconv.Atoi(w); err == nil && pid > 0 { // 0 is a process of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, err
}
