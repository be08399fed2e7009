package slots

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// disk is the rim: the folder of the UKIs, operation by operation. Tests put one
// in between that loses power.
type disk interface {
	list() ([]string, error)
	open(name string) (file, int64, error)
	// write makes or replaces a file and flushes its bytes; not its name.
	write(name string, r io.Reader) error
	rename(from, to string) error
	remove(name string) error
	// sync flushes the folder and the tables that it rests on.
	sync() error
}

type file interface {
	io.ReaderAt
	io.Closer
}

// onESP is the folder on a mounted ESP.
type onESP string

func (d onESP) path(name string) string { return filepath.Join(string(d), name) }

func (d onESP) list() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (d onESP) open(name string) (file, int64, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

func (d onESP) write(name string, r io.Reader) error {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, r, make([]byte, 256<<10))
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		forget(f) // what is read back comes from the disk
	}
	return errors.Join(err, f.Close())
}

func (d onESP) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

func (d onESP) remove(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (d onESP) sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), syncFS(f), f.Close())
}
