package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// MaxFile bounds one file of a tree. A fleet repo holds manifests, not images.
const MaxFile = 64 << 20

// Tree is one folder of one commit as a file system. Listings are read at once; contents when they are asked for, or all at once by Preload.
// A symlink shows as fs.ModeSymlink (its content is its target), a submodule as fs.ModeIrregular; the bits for reading
// and executing are those that Git keeps. It must be closed, and ends with the context that it was made with.
type Tree struct {
	repo *Repo
	ctx  context.Context // of the tree's process, as exec.CommandContext keeps it
	name string          // for errors: revision and folder
	dirs map[string][]fs.DirEntry
	ents map[string]*entry
	all  []*entry // the blobs, in path order

	mu     sync.Mutex
	b      *batch // guarded by mu; made by the first read
	closed bool   // guarded by mu
}

type entry struct {
	name string // last part of the path
	mode fs.FileMode
	id   string
	size int64

	data []byte // nil until Preload; guarded by Tree.mu
}

// Tree opens the folder root ("." or a slash-separated path) of a revision.
func (r *Repo) Tree(ctx context.Context, rev, root string) (*Tree, error) {
	if !fs.ValidPath(root) {
		return nil, fmt.Errorf("read folder %q of %s: not a path inside the repository; write it as a/b", root, rev)
	}
	commit, err := r.Resolve(ctx, rev)
	if err != nil {
		return nil, err
	}
	t := &Tree{repo: r, ctx: ctx, name: rev, dirs: map[string][]fs.DirEntry{}, ents: map[string]*entry{}}
	treeish := commit + "^{tree}"
	if root != "." {
		treeish, t.name = commit+":"+root, rev+":"+root
		kind, err := r.run(ctx, nil, "cat-file", "-t", treeish)
		if err != nil || strings.TrimSpace(string(kind)) != "tree" {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("read folder %q of %s: %w", root, rev, context.Cause(ctx))
			}
			return nil, fmt.Errorf("read folder %q of %s in %s: %w: the commit has no such folder", root, rev, r.top, ErrNoRevision)
		}
	}
	out, err := r.run(ctx, nil, "ls-tree", "-r", "-t", "-l", "-z", "--full-tree", treeish)
	if err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", t.name, r.top, err)
	}
	if err := t.fill(out); err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", t.name, r.top, err)
	}
	return t, nil
}

// fill reads lines "<mode> <kind> <id> <size>\t<path>\0".
func (t *Tree) fill(listing []byte) error {
	t.ents["."] = &entry{name: ".", mode: fs.ModeDir | 0o755}
	t.dirs["."] = nil
	for len(listing) > 0 {
		line, rest, ok := bytes.Cut(listing, []byte{0})
		meta, file, tab := strings.Cut(string(line), "\t")
		f := strings.Fields(meta)
		if !ok || !tab || len(f) != 4 {
			return fmt.Errorf("unexpected line %q", line)
		}
		listing = rest
		e := &entry{name: path.Base(file), id: f[2]}
		switch f[0] {
		case "040000":
			e.mode = fs.ModeDir | 0o755
			t.dirs[file] = nil
		case "120000":
			e.mode = fs.ModeSymlink | 0o777
		case "160000":
			e.mode = fs.ModeIrregular
		case "100755":
			e.mode = 0o755
		default: // 100644, and 100664 of very old repositories
			e.mode = 0o644
		}
		if f[1] == "blob" {
			size, err := strconv.ParseInt(f[3], 10, 64)
			if err != nil {
				return fmt.Errorf("unexpected line %q", line)
			}
			e.size = size
			t.all = append(t.all, e)
		}
		t.ents[file] = e
		dir := path.Dir(file)
		t.dirs[dir] = append(t.dirs[dir], info{e})
	}
	for _, d := range t.dirs {
		sort.Slice(d, func(i, j int) bool { return d[i].Name() < d[j].Name() })
	}
	return nil
}

// Preload reads every file of the tree in one pass, which for thousands of small files is several times quicker than one by one.
func (t *Tree) Preload() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, err := t.batch()
	if err != nil {
		return fmt.Errorf("read %s: %w", t.name, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return fmt.Errorf("read %s: %w", t.name, b.broken)
	}
	asked := make(chan error, 1)
	go func() { // git blocks when nobody reads its answers, so questions need their own goroutine; it ends with git's input
		var ids bytes.Buffer
		for _, e := range t.all {
			ids.WriteString(e.id)
			ids.WriteByte('\n')
		}
		_, err := b.in.Write(ids.Bytes())
		asked <- err
	}()
	var fault error
	for _, e := range t.all {
		_, data, err := b.answer(e.id, MaxFile)
		if b.broken != nil {
			fault = b.broken
			_ = b.in.Close()
			break
		}
		if err != nil && fault == nil {
			fault = err // go on: the answers that follow must be taken off the pipe
		}
		e.data = data
	}
	if err := <-asked; fault == nil && err != nil {
		fault = b.fail(err)
	}
	if fault != nil {
		return fmt.Errorf("read %s: %w", t.name, fault)
	}
	return nil
}

// batch makes the process at the first need. The caller holds mu.
func (t *Tree) batch() (*batch, error) {
	if t.closed {
		return nil, fs.ErrClosed
	}
	if t.b == nil {
		b, err := t.repo.newBatch(t.ctx)
		if err != nil {
			return nil, err
		}
		t.b = b
	}
	return t.b, nil
}

func (t *Tree) blob(e *entry) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e.data != nil {
		return e.data, nil
	}
	b, err := t.batch()
	if err != nil {
		return nil, err
	}
	_, data, err := b.read(e.id, MaxFile)
	return data, err
}

// Close ends the process behind the tree. Files that were not read can no longer be.
func (t *Tree) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.b != nil {
		t.b.close()
		t.b = nil
	}
	return nil
}

func (t *Tree) find(op, name string) (*entry, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	e := t.ents[name]
	if e == nil {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
	}
	return e, nil
}

// Open is fs.FS.
func (t *Tree) Open(name string) (fs.File, error) {
	e, err := t.find("open", name)
	if err != nil {
		return nil, err
	}
	if e.mode.IsDir() {
		return &openDir{info{e}, t.dirs[name]}, nil
	}
	data, err := t.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &openFile{info{e}, bytes.NewReader(data)}, nil
}

// ReadFile is fs.ReadFileFS.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	e, err := t.find("read", name)
	if err != nil {
		return nil, err
	}
	if e.mode.IsDir() || e.mode&fs.ModeIrregular != 0 {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("is no file")}
	}
	data, err := t.blob(e)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: t.name + ":" + name, Err: err}
	}
	return bytes.Clone(data), nil
}

// ReadDir is fs.ReadDirFS.
func (t *Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	e, err := t.find("list", name)
	if err != nil {
		return nil, err
	}
	if !e.mode.IsDir() {
		return nil, &fs.PathError{Op: "list", Path: name, Err: errors.New("is no folder")}
	}
	return append([]fs.DirEntry(nil), t.dirs[name]...), nil
}

// Stat is fs.StatFS.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	e, err := t.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{e}, nil
}

// ID is Git's own id of a file or folder: equal ids mean equal content, which saves reading it twice.
func (t *Tree) ID(name string) (string, error) {
	e, err := t.find("stat", name)
	if err != nil {
		return "", err
	}
	return e.id, nil
}

// info is both fs.FileInfo and fs.DirEntry of an entry.
type info struct{ e *entry }

func (i info) Name() string               { return i.e.name }
func (i info) Size() int64                { return i.e.size }
func (i info) Mode() fs.FileMode          { return i.e.mode }
func (i info) Type() fs.FileMode          { return i.e.mode.Type() }
func (i info) ModTime() time.Time         { return time.Time{} }
func (i info) IsDir() bool                { return i.e.mode.IsDir() }
func (i info) Sys() any                   { return nil }
func (i info) Info() (fs.FileInfo, error) { return i, nil }
func (i info) String() string             { return fs.FormatFileInfo(i) }

type openFile struct {
	info
	*bytes.Reader
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Size() int64                { return f.info.Size() }
func (f *openFile) Close() error               { return nil }

type openDir struct {
	info
	rest []fs.DirEntry
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.e.name, Err: errors.New("is a folder")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(d.rest) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(d.rest) {
		n = len(d.rest)
	}
	out := d.rest[:n]
	d.rest = d.rest[n:]
	return append([]fs.DirEntry(nil), out...), nil
}
