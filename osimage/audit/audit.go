// Package audit asks of every file in the root of an OS image whether it may be
// there: no shell, no interpreter, no script, nothing that gives rights, no device,
// nothing that others may write to, and no program that is not named here with its
// path. It reads the root and nothing else, so it holds for a root that somebody
// else built, too, and it promises to name all faults at once. Why a program is
// there stands in the manifest; this package leaves that out.
package audit

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
)

// Programs are all that may be executed in a root, libraries apart. Whoever adds
// one to the OS image has to add it here, where somebody reads it.
var Programs = []string{
	"usr/bin/mount", "usr/bin/umount",
	"usr/lib/holdfast/applier", "usr/lib/holdfast/cni/host-local", "usr/lib/holdfast/cni/loopback", "usr/lib/holdfast/cni/portmap", "usr/lib/holdfast/cni/ptp",
	"usr/lib/holdfast/containerd", "usr/lib/holdfast/containerd-shim-runc-v2", "usr/lib/holdfast/coredns",
	"usr/lib/holdfast/kube", "usr/lib/holdfast/machined", "usr/lib/holdfast/runc",
	"usr/sbin/e2fsck", "usr/sbin/mke2fs", "usr/sbin/nft",
}

// interpreter is the name of a program that does what its input says. By the name
// alone a file is refused, whatever is in it: there may be no link of that name either.
var interpreter = regexp.MustCompile(`^(sh|(ba|da|a|z|k|mk|c|tc|fi|r|rba|y)sh|busybox|toybox|[gmn]?awk|sed|ed|vim?|perl|lua|luajit|tclsh|expect|node|php|ruby|guile|jq|gdb|python|pip|` +
	`env|xargs|find|chroot|nsenter|unshare|setsid|sudo|doas|su|login|a?getty|sulogin|sshd?|telnetd?|dropbear|socat|nc|ncat|curl|wget|gcc|cc|ld|make)(-?[0-9][.0-9]*)?$`)

// library is where shared libraries lie, and the loader, which the kernel executes.
var library = regexp.MustCompile(`^usr/lib/[a-z0-9_]+-linux-gnu/[^/]+\.so[.0-9]*$`)

// Report is what a root has.
type Report struct {
	Programs  []string // by path, in order
	Libraries []string
	Files     int   // folders apart
	Bytes     int64 // of them
	Faults    []string
}

// Root walks a root file system. An error means that it could not be read.
func Root(root fs.FS) (*Report, error) {
	r := &Report{}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return r.look(root, name, info)
	})
	if err != nil {
		return nil, err
	}
	for _, name := range Programs {
		if !slices.Contains(r.Programs, name) {
			r.fault("%s is missing, or no program", name)
		}
	}
	return r, nil
}

func (r *Report) fault(format string, a ...any) {
	r.Faults = append(r.Faults, fmt.Sprintf(format, a...))
}

func (r *Report) look(root fs.FS, name string, info fs.FileInfo) error {
	mode := info.Mode()
	if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		r.fault("%s gives rights: mode %v", name, mode)
	}
	if x, ok := info.(interface{ GetXattr(string) (string, bool) }); ok {
		if _, ok := x.GetXattr("security.capability"); ok {
			r.fault("%s gives capabilities", name)
		}
	}
	if mode&fs.ModeSymlink == 0 && mode.Perm()&0o022 != 0 {
		r.fault("%s may be written to: mode %v", name, mode)
	}
	if mode.IsDir() {
		return nil
	}
	r.Files++
	if interpreter.MatchString(path.Base(name)) {
		r.fault("%s has the name of an interpreter", name)
	}
	if mode&fs.ModeSymlink != 0 {
		return nil // what it leads to is looked at where it lies
	}
	if !mode.IsRegular() {
		r.fault("%s is neither file, folder nor link: mode %v", name, mode)
		return nil
	}
	r.Bytes += info.Size()
	head, err := begin(root, name)
	if err != nil {
		return err
	}
	r.regular(name, mode, head)
	return nil
}

func (r *Report) regular(name string, mode fs.FileMode, head string) {
	executable := mode.Perm()&0o111 != 0
	switch {
	case len(head) > 1 && head[:2] == "#!":
		r.fault("%s is a script", name)
	case head != elf.ELFMAG:
		if executable {
			r.fault("%s may be executed and is no program", name)
		}
	case path.Ext(name) == ".ko": // the kernel's, which takes it by its signature
		if executable {
			r.fault("%s is a kernel module and may be executed", name)
		}
	case library.MatchString(name):
		r.Libraries = append(r.Libraries, name)
	default: // also without the bit: whoever has a loader could start it
		r.Programs = append(r.Programs, name)
		if !slices.Contains(Programs, name) {
			r.fault("%s is a program, and nobody said what for", name)
		} else if !executable {
			r.fault("%s is a program that may not be executed", name)
		}
	}
}

// begin reads what tells a file's kind.
func begin(root fs.FS, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	head := make([]byte, len(elf.ELFMAG))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return string(head[:n]), nil
}
