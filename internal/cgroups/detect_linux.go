package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Hierarchy is one mounted tree of control groups.
type Hierarchy struct {
	Version     int      // 1 or 2
	Name        string   // as a mount option: "cpu,cpuacct", "name=systemd"; empty for version 2
	Controllers []string // what it controls; empty for a named one
	Mount       string   // where it is mounted
	Own         string   // the group that the reader of /proc/self/cgroup is in, relative to the mount
}

// Host is what a machine offers. The first hierarchy is version 2 where there is one.
type Host struct{ Hierarchies []Hierarchy }

// ErrNone says that no control group file system is mounted.
var ErrNone = errors.New("no cgroup file system is mounted")

// Detect reads the hierarchies that this process sees.
func Detect() (*Host, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	self, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	return Read(mounts, self)
}

// Read makes a Host of the text of /proc/PID/mountinfo and /proc/PID/cgroup. The controllers of a version 2 tree are read from its mount.
func Read(mountinfo, membership io.Reader) (*Host, error) {
	var h Host
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		tree, root, ok := parseMount(lines.Text())
		if !ok || slices.ContainsFunc(h.Hierarchies, func(x Hierarchy) bool { return x.Version == tree.Version && x.Name == tree.Name }) {
			continue // a second mount of the same tree, in a container's view for example
		}
		tree.Own = root // until membership is read: where the mount begins
		h.Hierarchies = append(h.Hierarchies, tree)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	if len(h.Hierarchies) == 0 {
		return nil, ErrNone
	}
	if err := h.readMembership(membership); err != nil {
		return nil, err
	}
	slices.SortStableFunc(h.Hierarchies, func(a, b Hierarchy) int { return b.Version - a.Version })
	return &h, nil
}

// parseMount reads one line: 36 35 98:0 ROOT MOUNT OPTIONS [tags...] - TYPE SOURCE SUPER-OPTIONS.
func parseMount(line string) (tree Hierarchy, root string, ok bool) {
	before, after, found := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !found || len(fields) < 6 || len(rest) < 3 {
		return tree, "", false
	}
	tree.Mount, root = unescape(fields[4]), unescape(fields[3])
	switch rest[0] {
	case "cgroup2":
		tree.Version = 2
		data, _ := os.ReadFile(filepath.Join(tree.Mount, "cgroup.controllers"))
		tree.Controllers = strings.Fields(string(data))
	case "cgroup":
		tree.Version = 1
		tree.Name, tree.Controllers = parseOptions(rest[2])
	default:
		return tree, "", false
	}
	return tree, root, true
}

// parseOptions picks controllers and the hierarchy's name out of a version 1 tree's options.
func parseOptions(options string) (name string, controllers []string) {
	for o := range strings.SplitSeq(options, ",") {
		switch {
		case strings.HasPrefix(o, "name="):
			return o, nil
		case slices.Contains([]string{"rw", "ro", "none", "xattr", "clone_children", "cpuset_v2_mode", "noprefix", "seclabel"}, o), strings.Contains(o, "="):
		default:
			controllers = append(controllers, o)
		}
	}
	slices.Sort(controllers)
	return strings.Join(controllers, ","), controllers
}

// readMembership sets Own from lines of ID:CONTROLLERS:PATH.
func (h *Host) readMembership(r io.Reader) error {
	own := map[string]string{}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			return fmt.Errorf("read cgroup membership: %q is not ID:CONTROLLERS:PATH", lines.Text())
		}
		names := strings.Split(parts[1], ",")
		slices.Sort(names)
		own[strings.Join(names, ",")] = parts[2]
	}
	for i := range h.Hierarchies {
		tree := &h.Hierarchies[i]
		rel, err := filepath.Rel(tree.Own, own[tree.Name])
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			rel = "." // the mount shows another part of the tree
		}
		tree.Own = rel
	}
	return lines.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Unified tells whether the host uses version 2 alone.
func (h *Host) Unified() bool {
	return !slices.ContainsFunc(h.Hierarchies, func(x Hierarchy) bool { return x.Version == 1 && len(x.Controllers) > 0 })
}

// Controllers lists what can be controlled, sorted. A host of both versions counts what containers can use: its version 1 side.
func (h *Host) Controllers() []string {
	var all []string
	for _, tree := range h.Hierarchies {
		if tree.Version == 1 || h.Unified() {
			all = append(all, tree.Controllers...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
