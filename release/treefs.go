package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// TreeFS shows the folder root as a file system. Every object is hashed when it is read. A name that its (verified) folder does not list
// is fs.ErrNotExist; one whose object src does not have is ErrObjectMissing, one with other bytes ErrAltered.
func TreeFS(src Source, root ObjectID) fs.FS { return newTreeFS(src, root) }

type treeFS struct {
	src  Source
	root Entry

	mu      sync.Mutex
	folders map[ObjectID][]Entry // guarded by mu; verified
	fault   error                // guarded by mu; the first object that was missing or altered
}

func newTreeFS(src Source, root ObjectID) *treeFS {
	return &treeFS{src: src, root: Entry{ModeFolder, ".", root}, folders: map[ObjectID][]Entry{}}
}

func (t *treeFS) folder(id ObjectID) ([]Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if entries, ok := t.folders[id]; ok {
		return entries, nil
	}
	data, err := fetch(t.src, id, KindTree)
	var entries []Entry
	if err == nil {
		entries, err = ParseTree(data)
	}
	if err != nil {
		t.noteLocked(err)
		return nil, err
	}
	t.folders[id] = entries
	return entries, nil
}

func (t *treeFS) file(e Entry) ([]byte, error) {
	data, err := fetch(t.src, e.ID, KindBlob)
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.noteLocked(err)
	}
	return data, err
}

func (t *treeFS) noteLocked(err error) {
	if t.fault == nil {
		t.fault = err
	}
}

// firstFault is what callers that turn errors into text have swallowed.
func (t *treeFS) firstFault() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.fault
}

func (t *treeFS) find(op, name string) (Entry, error) {
	if !fs.ValidPath(name) {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	e, err := t.descend(name)
	if err != nil {
		return Entry{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return e, nil
}

func (t *treeFS) descend(name string) (Entry, error) {
	at := t.root
	if name == "." {
		return at, nil
	}
	parts := strings.Split(name, "/")
	if limit := DefaultLimits().Depth + 1; len(parts) > limit {
		return at, fmt.Errorf("%w: more than %d folders below each other", ErrOversized, limit)
	}
	for _, part := range parts {
		if at.Mode != ModeFolder {
			return at, fs.ErrNotExist
		}
		entries, err := t.folder(at.ID)
		if err != nil {
			return at, err
		}
		e, ok := lookup(entries, part)
		if !ok {
			return at, fs.ErrNotExist
		}
		at = e
	}
	return at, nil
}

// lookup finds a name as a file or as a folder; Git's order has two places for it.
func lookup(entries []Entry, name string) (Entry, bool) {
	for _, key := range []string{name, name + "/"} {
		i, ok := slices.BinarySearchFunc(entries, key, func(e Entry, key string) int { return strings.Compare(e.sortKey(), key) })
		if ok {
			return entries[i], true
		}
	}
	return Entry{}, false
}

// Open is fs.FS.
func (t *treeFS) Open(name string) (fs.File, error) {
	e, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	if e.Mode == ModeFolder {
		list, err := t.ReadDir(name)
		if err != nil {
			return nil, err
		}
		return &openFolder{info{e, 0}, list}, nil
	}
	data, err := t.file(e)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &openBlob{info{e, int64(len(data))}, bytes.NewReader(data)}, nil
}

// ReadFile is fs.ReadFileFS.
func (t *treeFS) ReadFile(name string) ([]byte, error) {
	e, err := t.find("read", name)
	if err != nil {
		return nil, err
	}
	if e.Mode == ModeFolder {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is a folder")}
	}
	data, err := t.file(e)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return bytes.Clone(data), nil
}

// ReadDir is fs.ReadDirFS.
func (t *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := t.find("list", name)
	if err != nil {
		return nil, err
	}
	if e.Mode != ModeFolder {
		return nil, &fs.PathError{Op: "list", Path: name, Err: errors.New("is no folder")}
	}
	entries, err := t.folder(e.ID)
	if err != nil {
		return nil, &fs.PathError{Op: "list", Path: name, Err: err}
	}
	list := make([]fs.DirEntry, len(entries))
	for i, e := range entries {
		list[i] = dirEntry{t, e}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

// Stat is fs.StatFS.
func (t *treeFS) Stat(name string) (fs.FileInfo, error) {
	e, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	i, err := dirEntry{t, e}.Info()
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	return i, nil
}

// dirEntry is a name in a listing; its object may be missing.
type dirEntry struct {
	t *treeFS
	e Entry
}

func (d dirEntry) Name() string      { return d.e.Name }
func (d dirEntry) IsDir() bool       { return d.e.Mode == ModeFolder }
func (d dirEntry) Type() fs.FileMode { return info{e: d.e}.Mode().Type() }
func (d dirEntry) String() string    { return fs.FormatDirEntry(d) }
func (d dirEntry) Info() (fs.FileInfo, error) {
	if d.IsDir() {
		return info{d.e, 0}, nil
	}
	data, err := d.t.file(d.e) // the size stands nowhere else
	return info{d.e, int64(len(data))}, err
}

type info struct {
	e    Entry
	size int64
}

func (i info) Name() string       { return i.e.Name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.e.Mode == ModeFolder }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	switch i.e.Mode {
	case ModeFolder:
		return fs.ModeDir | 0o755
	case ModeExec:
		return 0o755
	}
	return 0o644
}

type openBlob struct {
	info
	r *bytes.Reader
}

func (f *openBlob) Stat() (fs.FileInfo, error)              { return f.info, nil }
func (f *openBlob) Close() error                            { return nil }
func (f *openBlob) Read(p []byte) (int, error)              { return f.r.Read(p) }
func (f *openBlob) Seek(off int64, from int) (int64, error) { return f.r.Seek(off, from) }
func (f *openBlob) ReadAt(p []byte, off int64) (int, error) { return f.r.ReadAt(p, off) }

type openFolder struct {
	info
	rest []fs.DirEntry
}

func (f *openFolder) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFolder) Close() error               { return nil }
func (f *openFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: f.e.Name, Err: errors.New("is a folder")}
}

func (f *openFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(f.rest) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(f.rest) {
		n = len(f.rest)
	}
	out := f.rest[:n:n]
	f.rest = f.rest[n:]
	return out, nil
}
