package render

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// What one app version may hold. A manifest is text; who needs more than this
// has put something else into the folder.
const (
	maxFiles = 2000
	maxFile  = 4 << 20
	maxBytes = 32 << 20
)

const lockName = "images.lock"

// file is one file of an app version.
type file struct {
	path string // in the tree, for people
	name string // below the version folder
	data []byte
}

func fault(file string, line, column int, field, problem, fix string) error {
	if line > 0 && column == 0 {
		column = 1
	}
	return fleet.Faults{{File: file, Line: line, Column: column, Field: field, Problem: problem, Fix: fix}}
}

// join gathers faults, so that a person sees all of them at once. An error of
// another kind stands alone.
func join(errs ...error) error {
	var faults fleet.Faults
	for _, err := range errs {
		var f fleet.Faults
		switch {
		case err == nil:
		case errors.As(err, &f):
			faults = append(faults, f...)
		default:
			return err
		}
	}
	if len(faults) == 0 {
		return nil
	}
	slices.SortStableFunc(faults, func(a, b fleet.Fault) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column)
	})
	return slices.Compact(faults)
}

// readVersion reads the folder of an app version whole, in path order. What is
// neither a file nor a folder is refused: a symlink could point out of the
// folder, where a slice has nothing.
func readVersion(tree fs.FS, dir string) ([]file, error) {
	if err := refuseLinks(tree, dir); err != nil {
		return nil, err
	}
	var files []file
	total := 0
	err := fs.WalkDir(tree, dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p == dir && errors.Is(err, fs.ErrNotExist) {
				return fault(dir, 0, 0, "", "there is no such app version", "add the folder, or name a version that exists")
			}
			return fmt.Errorf("read app version %s: %w", dir, err)
		}
		if d.IsDir() {
			return nil
		}
		if err := refuseType(p, d.Type()); err != nil {
			return err
		}
		data, err := fs.ReadFile(tree, p)
		if err != nil {
			return fmt.Errorf("read %s: %w", p, err)
		}
		total += len(data)
		if len(files) >= maxFiles || len(data) > maxFile || total > maxBytes {
			return fault(p, 0, 0, "", fmt.Sprintf("the app version is too large: more than %d files, %d MiB in one or %d MiB in all", maxFiles, maxFile>>20, maxBytes>>20),
				"keep manifests only; data belongs in an image or a volume")
		}
		files = append(files, file{path: p, name: strings.TrimPrefix(p, dir+"/"), data: data})
		return nil
	})
	return files, err
}

// refuseLinks looks at each folder on the way: a link in the middle would lead
// out just as well.
func refuseLinks(tree fs.FS, dir string) error {
	p := ""
	for _, part := range strings.Split(dir, "/") {
		p = path.Join(p, part)
		info, err := fs.Lstat(tree, p)
		if err != nil {
			return nil // the walk names what is missing
		}
		if err := refuseType(p, info.Mode().Type()); err != nil {
			return err
		}
	}
	return nil
}

func refuseType(p string, t fs.FileMode) error {
	switch {
	case t&fs.ModeSymlink != 0:
		return fault(p, 0, 0, "", "is a symbolic link", "put the file itself here")
	case t != 0 && t != fs.ModeDir:
		return fault(p, 0, 0, "", "is neither a file nor a folder", "remove it")
	}
	return nil
}

func isManifest(name string) bool {
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
