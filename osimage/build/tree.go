package build

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
)

// ours is the origin of what is made here.
const ours = "holdfast"

// entry is a file, link or folder of the root. Everything belongs to root; a
// file has mode 0644, or 0755 when it is a program. There is no other mode.
type entry struct {
	path string // without a slash in front
	dir  bool
	link string // target of a symbolic link
	data []byte
	host string // file of this computer instead of data
	why  string // what runs it: set for programs, and only for them
	lib  bool   // a shared library or loader: executable so that the kernel may start the loader
	from string // "debian:nftables 1.1.3-1", "holdfast", ...
}

func (e entry) program() bool { return e.why != "" || e.lib }

func (e entry) mode() fs.FileMode {
	if e.dir || e.program() {
		return 0o755
	}
	return 0o644
}

func (e entry) open() (io.ReadCloser, error) {
	if e.host == "" {
		return io.NopCloser(strings.NewReader(string(e.data))), nil
	}
	return os.Open(e.host)
}

// tree is a root that is put together.
type tree struct{ entries map[string]entry }

func newTree() *tree { return &tree{entries: map[string]entry{}} }

// add puts an entry in, with the folders above it; a later one replaces an earlier one.
func (t *tree) add(e entry) {
	for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
		if _, ok := t.entries[dir]; !ok {
			t.entries[dir] = entry{path: dir, dir: true, from: ours}
		}
	}
	t.entries[e.path] = e
}

// change is what drills use: files that are other than they should be.
func (t *tree) change(replace map[string][]byte, remove []string) error {
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(replace)) {
		if !fs.ValidPath(name) || name == "." {
			faults = append(faults, fmt.Errorf("replace %q: no path below the root", name))
			continue
		}
		e := t.entries[name]
		if e.dir {
			faults = append(faults, fmt.Errorf("replace %q: it is a folder", name))
			continue
		}
		if e.why == "" && bytes.HasPrefix(replace[name], []byte("\x7fELF")) {
			e.why = "for a drill"
		}
		t.add(entry{path: name, data: replace[name], why: e.why, lib: e.lib, from: "replaced"})
	}
	for _, name := range remove {
		if e, ok := t.entries[name]; !ok || e.dir {
			faults = append(faults, fmt.Errorf("remove %q: the root has no such file", name))
			continue
		}
		delete(t.entries, name)
	}
	return errors.Join(faults...)
}

// sorted lists the entries in the order in which they are written: folders before what is in them.
func (t *tree) sorted() []entry {
	return slices.SortedFunc(maps.Values(t.entries), func(a, b entry) int { return cmp.Compare(a.path, b.path) })
}

// writeErofs writes the tree as an EROFS file system, uncompressed, and returns
// its files for the manifest. All times are built, so that inodes carry none.
func (t *tree) writeErofs(out *os.File, built time.Time, temp string) ([]RootFile, error) {
	w := erofs.Create(out, erofs.WithBuildTime(uint64(built.Unix()), 0), erofs.WithTempDir(temp))
	if err := errors.Join(w.Mkdir("/", 0o755), w.Chtimes("/", built, built)); err != nil {
		return nil, err
	}
	var files []RootFile
	for _, e := range t.sorted() {
		f, err := writeEntry(w, e, built)
		if err != nil {
			return nil, fmt.Errorf("write %s to the root: %w", e.path, err)
		}
		if !e.dir {
			files = append(files, f)
		}
	}
	return files, w.Close()
}

func writeEntry(w *erofs.Writer, e entry, built time.Time) (RootFile, error) {
	name := "/" + e.path
	f := RootFile{Path: e.path, From: e.from, Why: e.why, Link: e.link}
	switch {
	case e.dir:
		return f, errors.Join(w.Mkdir(name, e.mode()), w.Chtimes(name, built, built))
	case e.link != "":
		return f, errors.Join(w.Symlink(e.link, name), w.Chtimes(name, built, built))
	}
	in, err := e.open()
	if err != nil {
		return f, err
	}
	defer in.Close()
	out, err := w.Create(name)
	if err != nil {
		return f, err
	}
	sum := sha256.New()
	if f.Size, err = io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return f, err
	}
	f.SHA256, f.Program = hex.EncodeToString(sum.Sum(nil)), e.program()
	return f, errors.Join(out.Chmod(e.mode()), out.Close(), w.Chtimes(name, built, built))
}
