// Package modinfo reads what kernel modules say of themselves and makes the
// index of a picked set (package kmod), as depmod does for whole trees. It
// promises that whatever a picked module needs is picked as well, in an order
// that loads, with soft dependencies that are named by an alias resolved to
// modules. It runs where OS images are built; it leaves out symbol versions, which
// Debian's dependency lists already rest on.
package modinfo

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/holdfast-edge/holdfast/osimage/kmod"
)

// Info is what a module says of itself. Names of modules are normalised.
type Info struct {
	File     string   `json:"file"`
	Depends  []string `json:"depends,omitempty"`  // must be loaded before
	Pre      []string `json:"pre,omitempty"`      // should be loaded before, if there: names or aliases
	Post     []string `json:"post,omitempty"`     // should be at hand after
	Aliases  []string `json:"aliases,omitempty"`  // shell patterns
	Firmware []string `json:"firmware,omitempty"` // files that it may ask for
}

// moduleMax bounds an unpacked module; the largest of Debian has some 20 MB.
const moduleMax = 128 << 20

// Parse reads a .ko, .ko.xz or .ko.zst.
func Parse(file string, data []byte) (Info, error) {
	info := Info{File: file}
	data, err := Unpack(file, data)
	if err != nil {
		return info, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	section, err := modinfoOf(data)
	if err != nil {
		return info, fmt.Errorf("read kernel module %s: %w", file, err)
	}
	for entry := range strings.SplitSeq(string(section), "\x00") {
		key, value, ok := strings.Cut(entry, "=")
		if !ok {
			continue
		}
		switch key {
		case "depends":
			for d := range strings.SplitSeq(value, ",") {
				if d != "" {
					info.Depends = append(info.Depends, kmod.Name(d))
				}
			}
		case "softdep":
			info.soft(value)
		case "alias":
			info.Aliases = append(info.Aliases, value)
		case "firmware":
			info.Firmware = append(info.Firmware, value)
		}
	}
	slices.Sort(info.Aliases)
	info.Aliases = slices.Compact(info.Aliases)
	return info, nil
}

func (i *Info) soft(value string) {
	var to *[]string
	for word := range strings.FieldsSeq(value) {
		switch {
		case word == "pre:":
			to = &i.Pre
		case word == "post:":
			to = &i.Post
		case to != nil:
			*to = append(*to, word)
		}
	}
}

// Unpack is a module as the kernel has it in memory. Its signature, at the end, stays.
func Unpack(file string, data []byte) ([]byte, error) {
	var r io.Reader
	var err error
	switch {
	case strings.HasSuffix(file, ".xz"):
		r, err = xz.ReaderConfig{DictCap: 8 << 20}.NewReader(bytes.NewReader(data))
	case strings.HasSuffix(file, ".zst"):
		r, err = zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(moduleMax))
	default:
		return data, nil
	}
	if err != nil {
		return nil, err
	}
	data, err = io.ReadAll(io.LimitReader(r, moduleMax))
	if err == nil && len(data) == moduleMax {
		err = fmt.Errorf("unpacks to more than %d bytes", moduleMax)
	}
	return data, err
}

func modinfoOf(data []byte) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	return section.Data()
}

// Set is the modules of a kernel by normalised name.
type Set struct {
	Kernel  string          `json:"kernel"`
	Modules map[string]Info `json:"modules"`
	BuiltIn []string        `json:"builtIn"` // sorted
}

// BuiltIn reads modules.builtin: one path in a line.
func BuiltIn(data []byte) []string {
	var list []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, kmod.Name(line))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Pick makes the index of the modules load, which are to be loaded at boot in
// this order, and also, which only have to be there, with all that they need.
// A name with a question mark behind it may be missing; the kernels of
// architectures and flavours differ.
func (s *Set) Pick(load, also []string) (*kmod.Index, error) {
	x := &kmod.Index{Kernel: s.Kernel, Load: []string{}, Modules: map[string]kmod.Module{}, BuiltIn: s.BuiltIn}
	p := picker{set: s, index: x, deps: map[string][]string{}}
	var faults []error
	for i, name := range slices.Concat(load, also) {
		n, optional := strings.CutSuffix(name, "?")
		n = kmod.Name(n)
		switch _, ok := s.Modules[n]; {
		case ok:
			p.need(n)
			if i < len(load) {
				x.Load = append(x.Load, n)
			}
		case !optional && !s.builtIn(n):
			faults = append(faults, fmt.Errorf("the kernel %s has no module %s", s.Kernel, n))
		}
	}
	return x, errors.Join(faults...)
}

func (s *Set) builtIn(name string) bool {
	_, ok := slices.BinarySearch(s.BuiltIn, name)
	return ok
}

// picker walks dependencies.
type picker struct {
	set   *Set
	index *kmod.Index
	deps  map[string][]string // of what was walked; nil while it is walked, which ends circles of soft dependencies
}

// need picks n with all that it needs, and returns what must be loaded before it, in order.
func (p *picker) need(n string) []string {
	if deps, seen := p.deps[n]; seen {
		return deps
	}
	p.deps[n] = nil
	info := p.set.Modules[n]
	var deps []string
	seen := map[string]bool{n: true}
	add := func(d string) {
		for _, d := range append(slices.Clone(p.need(d)), d) {
			if !seen[d] {
				seen[d] = true
				deps = append(deps, d)
			}
		}
	}
	for _, soft := range info.Pre {
		for _, d := range p.set.resolve(soft) {
			add(d)
		}
	}
	for _, d := range info.Depends {
		if _, ok := p.set.Modules[d]; ok {
			add(d)
		}
	}
	p.deps[n] = deps
	p.index.Modules[n] = kmod.Module{File: info.File, Deps: deps, Aliases: info.Aliases}
	for _, soft := range info.Post {
		for _, d := range p.set.resolve(soft) {
			p.need(d)
		}
	}
	return deps
}

// resolve finds the module that a soft dependency means: it may be named by an
// alias. "crc32c" is one, and without crc32c_generic erofs does not load on
// Debian's generic kernel. The generic one of several is taken: it loads on any processor.
func (s *Set) resolve(soft string) []string {
	n := kmod.Name(soft)
	if _, ok := s.Modules[n]; ok {
		return []string{n}
	}
	if s.builtIn(n) {
		return nil
	}
	var found []string
	for name, info := range s.Modules {
		if slices.ContainsFunc(info.Aliases, func(pattern string) bool { return kmod.Match(pattern, soft) }) {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	for _, name := range found {
		if strings.HasSuffix(name, "_generic") {
			return []string{name}
		}
	}
	return found
}
