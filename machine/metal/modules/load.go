// Package modules loads kernel modules as they lie in the OS image: by name or
// alias, with what they need, in the order that an index made at build time
// gives (osimage/kmod); for hardware that is there or comes later; and as the
// kernel's own helper in place of modprobe. Compressed files go to the kernel as
// they are. Each is tried once. It never unloads a module.
package modules

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/osimage/kmod"
)

// Loader loads modules of one folder. Its methods may be called at once from
// several goroutines.
type Loader struct {
	index  kmod.Index
	insert func(file string) error // tests put another in

	mu   sync.Mutex // guards what follows
	done map[string]*attempt
}

// attempt is the one try to load a module; others wait for it.
type attempt struct {
	over chan struct{}
	err  error
}

// Open reads the index of a folder.
func Open(dir string) (*Loader, error) {
	data, err := os.ReadFile(filepath.Join(dir, kmod.FileName))
	if err != nil {
		return nil, fmt.Errorf("read the index of kernel modules: %w", err)
	}
	var x kmod.Index
	if err := json.Unmarshal(data, &x); err != nil {
		return nil, fmt.Errorf("read the index of kernel modules in %s: %w", dir, err)
	}
	return newLoader(x, func(file string) error { return insert(filepath.Join(dir, file)) }), nil
}

func newLoader(x kmod.Index, insert func(string) error) *Loader {
	return &Loader{index: x, insert: insert, done: map[string]*attempt{}}
}

// Kernel is the version of the kernel that the modules are for.
func (l *Loader) Kernel() string { return l.index.Kernel }

// Listed are the modules that the index says to load in any case, in order.
func (l *Loader) Listed() []string { return l.index.Load }

// atOnce is how many modules load at the same time: some wait for their hardware,
// and the boot goes on beside them.
const atOnce = 2

// Load loads modules by name or alias, each after what it needs, several at the
// same time. All are tried; the error names those that did not load. What they
// only would have liked to have before them (softdep) may fail.
func (l *Loader) Load(names ...string) error {
	faults := make([]error, len(names))
	var group sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i, name := range names {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := l.load(name); err != nil {
				faults[i] = fmt.Errorf("load kernel module %s: %w", name, err)
			}
		})
	}
	group.Wait()
	return errors.Join(faults...)
}

func (l *Loader) load(name string) error {
	order, err := l.index.Resolve(name)
	if err != nil {
		return err
	}
	var before error
	for i, n := range order {
		err := l.once(n)
		if err == nil {
			continue
		}
		if i == len(order)-1 {
			return errors.Join(err, before)
		}
		before = errors.Join(before, err)
	}
	return nil
}

// Need is Load of those among the names that the OS image has: for what one of
// several drivers does, by the architecture.
func (l *Loader) Need(names ...string) error {
	return l.Load(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !l.Has(n) })...)
}

// Has tells whether the OS image has the module, as a file or in the kernel.
func (l *Loader) Has(name string) bool {
	_, err := l.index.Resolve(name)
	return err == nil
}

// once inserts a module unless that was tried before.
func (l *Loader) once(name string) error {
	l.mu.Lock()
	a, ok := l.done[name]
	if !ok {
		a = &attempt{over: make(chan struct{})}
		l.done[name] = a
	}
	l.mu.Unlock()
	if ok {
		<-a.over
		return a.err
	}
	a.err = l.insert(l.index.Modules[name].File)
	close(a.over)
	return a.err
}

// compressed is MODULE_INIT_COMPRESSED_FILE: the kernel decompresses.
const compressed = 4

// insert hands a file to the kernel. One that is there already is no fault.
func insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = compressed
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "finit_module", Path: path, Err: err}
	}
	return nil
}
