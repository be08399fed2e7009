// Package kmod is the index of the kernel modules in an OS image: which file a
// module is, what must be loaded before it, which names the kernel asks for it
// by. The builder writes it, the initramfs and the machine read it. It promises
// an order in which every load succeeds, and to load nothing twice. It does no
// input or output and stays small, as the initramfs carries it; reading modules
// themselves is package modinfo's.
package kmod

import (
	"errors"
	"sort"
	"strings"
)

// FileName is the index's name, in the folder that its file names begin at.
const FileName = "modules.json"

// ErrUnknown is returned for a name that is no module, alias or built-in of the index.
var ErrUnknown = errors.New("no such kernel module")

// Index is FileName: the modules of one kernel that an OS image carries.
type Index struct {
	Kernel  string            `json:"kernel"`  // version, as uname -r says it
	Load    []string          `json:"load"`    // modules to load at boot, in this order
	Modules map[string]Module `json:"modules"` // by normalised name
	BuiltIn []string          `json:"builtIn"` // normalised names of what the kernel has without a file, sorted
}

// Module is a file of the index.
type Module struct {
	File    string   `json:"file"`              // relative to the index
	Deps    []string `json:"deps,omitempty"`    // all that must be loaded before, in this order
	Aliases []string `json:"aliases,omitempty"` // shell patterns, as in modules.alias
}

// Name is the normalised name of a module or of its file: the kernel takes - and _ for the same.
func Name(file string) string {
	name := file[strings.LastIndexByte(file, '/')+1:]
	if i := strings.Index(name, ".ko"); i >= 0 {
		name = name[:i]
	}
	return strings.ReplaceAll(name, "-", "_")
}

// Resolve lists the modules to load for a name or alias, dependencies first,
// each once. What is built in needs nothing; what is unknown is ErrUnknown.
func (x *Index) Resolve(name string) ([]string, error) {
	n := Name(name)
	if _, ok := x.Modules[n]; ok {
		return x.order([]string{n}), nil
	}
	if x.builtIn(n) {
		return nil, nil
	}
	if found := x.Match(name); len(found) > 0 {
		return x.order(found), nil
	}
	return nil, ErrUnknown
}

// Order lists what Load asks for with all dependencies, in the order of loading.
func (x *Index) Order() []string { return x.order(x.Load) }

func (x *Index) order(names []string) []string {
	var list []string
	seen := map[string]bool{}
	add := func(n string) {
		if _, ok := x.Modules[n]; ok && !seen[n] {
			seen[n] = true
			list = append(list, n)
		}
	}
	for _, n := range names {
		for _, d := range x.Modules[n].Deps {
			add(d)
		}
		add(n)
	}
	return list
}

// Match lists the modules with an alias that alias matches, sorted.
func (x *Index) Match(alias string) []string {
	var found []string
	for n, m := range x.Modules {
		for _, pattern := range m.Aliases {
			if Match(pattern, alias) {
				found = append(found, n)
				break
			}
		}
	}
	sort.Strings(found)
	return found
}

func (x *Index) builtIn(name string) bool {
	i := sort.SearchStrings(x.BuiltIn, name)
	return i < len(x.BuiltIn) && x.BuiltIn[i] == name
}

// Match is fnmatch(3) as depmod's patterns need it: *, ? and [a-z], where a
// slash is a character like others and - and _ are the same outside brackets.
func Match(pattern, name string) bool {
	// The last * seen, and the place in name that it has swallowed up to.
	star, back := -1, 0
	p, n := 0, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			star, back = p, n
			p++
			continue
		}
		if width, ok := one(pattern[p:], name[n]); ok {
			p += width
			n++
			continue
		}
		if star < 0 {
			return false
		}
		back++
		p, n = star+1, back
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// one matches one character and says how much of the pattern stands for it.
func one(pattern string, c byte) (int, bool) {
	if pattern == "" {
		return 0, false
	}
	switch pattern[0] {
	case '?':
		return 1, true
	case '[':
		end := strings.IndexByte(pattern, ']')
		if end < 0 {
			return 1, c == '['
		}
		set := pattern[1:end]
		not := strings.HasPrefix(set, "!") || strings.HasPrefix(set, "^")
		if not {
			set = set[1:]
		}
		in := false
		for i := 0; i < len(set); i++ {
			if i+2 < len(set) && set[i+1] == '-' {
				in = in || set[i] <= c && c <= set[i+2]
				i += 2
				continue
			}
			in = in || set[i] == c
		}
		return end + 1, in != not
	}
	return 1, fold(pattern[0]) == fold(c)
}

func fold(c byte) byte {
	if c == '-' {
		return '_'
	}
	return c
}
