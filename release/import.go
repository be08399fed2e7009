package release

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Import hashes a folder as a SHA-256 Git repository would, and hands each object to add (nil to only hash). Objects come in no
// promised order, and one that occurs twice comes twice. It refuses what a slice could not carry: symlinks (ErrMode), submodules (ErrMode, shown as
// fs.ModeIrregular), names that lead elsewhere (ErrName), and what passes Limits (ErrOversized). Empty folders are left out, as in Git.
func Import(tree fs.FS, add func(id ObjectID, kind string, data []byte) error) (ObjectID, error) {
	im := importer{tree, add, DefaultLimits()}
	id, _, err := im.folder(".", 0)
	if err != nil {
		return ObjectID{}, fmt.Errorf("read the fleet's files: %w", err)
	}
	return id, nil
}

type importer struct {
	tree   fs.FS
	add    func(ObjectID, string, []byte) error
	limits Limits
}

func (im importer) folder(dir string, depth int) (id ObjectID, empty bool, err error) {
	if depth > im.limits.Depth {
		return id, false, fmt.Errorf("%s: %w: more than %d folders below each other", dir, ErrOversized, im.limits.Depth)
	}
	listing, err := fs.ReadDir(im.tree, dir)
	if err != nil {
		return id, false, err
	}
	var entries []Entry
	for _, d := range listing {
		e, skip, err := im.entry(path.Join(dir, d.Name()), d, depth)
		if err != nil {
			return id, false, err
		}
		if !skip {
			entries = append(entries, e)
		}
	}
	if len(entries) > im.limits.Entries {
		return id, false, fmt.Errorf("%s: %w: %d names, at most %d", dir, ErrOversized, len(entries), im.limits.Entries)
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.sortKey(), b.sortKey()) })
	if len(entries) == 0 && dir != "." {
		return id, true, nil
	}
	id, err = im.object(dir, KindTree, EncodeTree(entries))
	return id, false, err
}

func (im importer) entry(name string, d fs.DirEntry, depth int) (e Entry, skip bool, err error) {
	if err := checkName(d.Name()); err != nil {
		return e, false, fmt.Errorf("%s: %w", name, err)
	}
	e.Name = d.Name()
	switch d.Type() {
	case fs.ModeDir:
		e.Mode = ModeFolder
		e.ID, skip, err = im.folder(name, depth+1)
		return e, skip, err
	case 0:
	case fs.ModeSymlink:
		return e, false, fmt.Errorf("%s: %w: it is a symlink; put the file itself there", name, ErrMode)
	default:
		return e, false, fmt.Errorf("%s: %w: it is a submodule or a special file; put the files themselves there", name, ErrMode)
	}
	info, err := d.Info()
	if err != nil {
		return e, false, err
	}
	if info.Size() > int64(im.limits.Object) {
		return e, false, fmt.Errorf("%s: %w: %d bytes, at most %d; large things belong into app images", name, ErrOversized, info.Size(), im.limits.Object)
	}
	if e.Mode = ModeFile; info.Mode()&0o111 != 0 {
		e.Mode = ModeExec
	}
	data, err := fs.ReadFile(im.tree, name)
	if err != nil {
		return e, false, err
	}
	e.ID, err = im.object(name, KindBlob, data)
	return e, false, err
}

func (im importer) object(name, kind string, data []byte) (ObjectID, error) {
	if len(data) > im.limits.Object {
		return ObjectID{}, fmt.Errorf("%s: %w: %d bytes, at most %d", name, ErrOversized, len(data), im.limits.Object)
	}
	id := HashObject(kind, data)
	if im.add == nil {
		return id, nil
	}
	return id, im.add(id, kind, data)
}

// SkipTree, returned by the function that Walk calls, leaves out what is below that folder.
var SkipTree = errors.New("skip what is below this folder")

// Walk visits the folder root and everything below it, folders before what is in them, reading only folders. Each is verified.
// The path of root is ".".
func Walk(src Source, root ObjectID, visit func(path string, e Entry) error) error {
	return walk(src, ".", Entry{ModeFolder, ".", root}, 0, visit)
}

func walk(src Source, name string, e Entry, depth int, visit func(string, Entry) error) error {
	if depth > DefaultLimits().Depth+1 { // one more than folders: files in the deepest
		return fmt.Errorf("%s: %w: too many folders below each other", name, ErrOversized)
	}
	if err := visit(name, e); err != nil {
		if err == SkipTree {
			return nil
		}
		return err
	}
	if e.Mode != ModeFolder {
		return nil
	}
	data, err := fetch(src, e.ID, KindTree)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	entries, err := ParseTree(data)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, e := range entries {
		if err := walk(src, path.Join(name, e.Name), e, depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}
