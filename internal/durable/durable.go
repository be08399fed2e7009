// Package durable replaces files and folders so that a crash or a power cut leaves the old content or the new, never half of either.
//
// It promises, for [WriteFile]: when it returns nil, the new content is on disk and stays there; when it returns an error, a reader finds the
// old content or the new one, whole. The steps are a temporary file in the same folder, write, fsync, rename over the target, fsync of the file by
// its new name, since FAT keeps beside the name where a file begins and ends, and fsync of the folder.
// A failed write removes its temporary file. A write that was cut by a crash leaves a file that [Clean] removes; the owner of a folder
// calls it once at start, before anything else writes there.
//
// On FAT a rename is several writes: a power cut within it, some milliseconds, may leave an empty file. Who reads one there takes it for none.
//
// It leaves out locking between writers (the last rename wins, whole) and what hardware does after it has acknowledged a flush.
package durable

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// mark is in the name of everything unfinished: `.<name>.durable-<random>`. Clean goes by it.
const mark = ".durable-"

// file is what a write needs of its temporary file.
type file interface {
	io.Writer
	Name() string
	Sync() error
	Chmod(fs.FileMode) error
	Close() error
}

// system is the rim of this package; tests put one in between whose steps fail.
type system struct {
	create   func(dir, pattern string) (file, error)
	rename   func(from, to string) error
	remove   func(path string) error
	syncFile func(path string) error
	syncDir  func(dir string) error
}

var disk = system{
	create:   func(dir, pattern string) (file, error) { return os.CreateTemp(dir, pattern) },
	rename:   os.Rename,
	remove:   os.Remove,
	syncFile: flush,
	syncDir:  flush,
}

// WriteFile replaces the file at path with data. The folder must exist.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	return disk.writeFile(path, data, perm)
}

func (s system) writeFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir, name := filepath.Split(filepath.Clean(path))
	if dir == "" {
		dir = "."
	}
	f, err := s.create(dir, "."+name+mark+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	renamed := false
	defer func() {
		if err != nil && !renamed {
			_ = s.remove(f.Name()) // what stays is harmless and Clean's
		}
	}()
	if err := fill(f, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// A crash before this line leaves the old file, after it the old or the new one, both whole.
	if err := s.rename(f.Name(), path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	renamed = true
	err = s.syncFile(path)
	if err == nil {
		err = s.syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: the new content is in place but may not outlive a power cut: %w", path, err)
	}
	return nil
}

// fill writes, flushes and closes; the first fault wins, and the file is closed in any case.
func fill(f file, data []byte, perm fs.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ReadJSON decodes the file at path into v. A key that v does not know, or anything after the value, is an error:
// these files are ours alone, so what is strange in them is damage or a newer program. A file that is not there is fs.ErrNotExist.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := DecodeJSON(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// DecodeJSON decodes what ReadJSON would have read.
func DecodeJSON(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// WriteJSON replaces the file at path with v as indented JSON.
func WriteJSON(path string, v any, perm fs.FileMode) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return WriteFile(path, append(data, '\n'), perm)
}

// MkdirAll makes path and the folders above it, and flushes each folder that gained one.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	if st, err := os.Stat(path); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("make folder %s: a file stands there", path)
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	if err := disk.syncDir(parent); err != nil {
		return fmt.Errorf("make folder %s: %w", path, err)
	}
	return nil
}

// Remove removes the file at path and flushes its folder. A file that is not there is no error.
func Remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = disk.syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// RemoveAll removes the folder (or file) at path with all in it, so that after a crash it is there whole or not at all:
// it is first renamed aside. A path that is not there is no error.
func RemoveAll(path string) error { return disk.removeAll(path) }

func (s system) removeAll(path string) error {
	path = filepath.Clean(path)
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// CreateTemp finds a free name; the folder then takes its place.
	f, err := s.create(dir, "."+name+mark+"*")
	if err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	aside := f.Name()
	_ = f.Close()
	if err := s.remove(aside); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := s.rename(path, aside); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := s.syncDir(dir); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// Clean removes from dir, but not from folders below it, what interrupted calls left. Nothing may write to dir meanwhile.
// A folder that is not there is no error.
func Clean(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean %s: %w", dir, err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), mark) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("clean %s: %w", dir, err)
		}
	}
	return nil
}
