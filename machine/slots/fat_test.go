package slots

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// fat is a FAT folder that loses power. Its rules are harsher than the kernel's:
// of what was not synced any part may have reached the disk, the two halves of a
// rename one by one; removed clusters are handed out again at the next write,
// whoever else still points at them; a file that was being written holds a part.
type fat struct {
	now, disk map[string]*inode
	pending   []change
	left      int // operations until the power goes; -1: it does not
	dead      bool
}

type inode struct {
	data  []byte
	freed bool
}

// change is an entry of the folder that is not on the disk yet.
type change struct {
	name string
	to   *inode // nil: removed
}

var (
	errPower = errors.New("the power went")
	garbage  = []byte("\x00garbage")
)

func newFAT(files map[string]string) *fat {
	d := &fat{now: map[string]*inode{}, left: -1}
	for name, data := range files {
		d.now[name] = &inode{data: []byte(data)}
	}
	d.disk = maps.Clone(d.now)
	return d
}

// op counts an operation; cut says that the power goes during it.
func (d *fat) op() (cut bool, err error) {
	if d.dead {
		return false, errPower
	}
	if d.left == 0 {
		d.dead = true
		return true, nil
	}
	if d.left > 0 {
		d.left--
	}
	return false, nil
}

// reboot is the folder after the power came back; of what was pending that part
// arrived whose bit is set in mask.
func (d *fat) reboot(mask int) {
	for i, c := range d.pending {
		if mask>>i&1 == 0 {
			continue
		}
		if c.to == nil {
			delete(d.disk, c.name)
		} else {
			d.disk[c.name] = c.to
		}
	}
	d.now, d.pending, d.dead, d.left = maps.Clone(d.disk), nil, false, -1
}

func (d *fat) list() ([]string, error) {
	if d.dead {
		return nil, errPower
	}
	return slices.Sorted(maps.Keys(d.now)), nil
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func (d *fat) open(name string) (file, int64, error) {
	if d.dead {
		return nil, 0, errPower
	}
	i, ok := d.now[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return memFile{bytes.NewReader(bytes.Clone(i.data))}, int64(len(i.data)), nil
}

func (d *fat) write(name string, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	cut, err := d.op()
	if err != nil {
		return err
	}
	for _, i := range d.all() {
		if i.freed {
			i.data = garbage
		}
	}
	i, ok := d.now[name]
	if !ok {
		i = &inode{}
		d.now[name] = i
		d.pending = append(d.pending, change{name, i})
	}
	i.data, i.freed = data, false
	if cut {
		i.data = data[:len(data)/2]
		return errPower
	}
	return nil
}

// all is every file that any name, on the disk or not, leads to.
func (d *fat) all() []*inode {
	list := slices.Concat(slices.Collect(maps.Values(d.now)), slices.Collect(maps.Values(d.disk)))
	for _, c := range d.pending {
		if c.to != nil {
			list = append(list, c.to)
		}
	}
	return list
}

func (d *fat) rename(from, to string) error {
	cut, err := d.op()
	if err != nil {
		return err
	}
	i, ok := d.now[from]
	if !ok {
		return fs.ErrNotExist
	}
	if old := d.now[to]; old != nil && old != i {
		old.freed = true
	}
	d.now[to] = i
	delete(d.now, from)
	d.pending = append(d.pending, change{to, i}, change{from, nil})
	if cut {
		return errPower
	}
	return nil
}

func (d *fat) remove(name string) error {
	cut, err := d.op()
	if err != nil {
		return err
	}
	if i, ok := d.now[name]; ok {
		i.freed = true
		delete(d.now, name)
		d.pending = append(d.pending, change{name, nil})
	}
	if cut {
		return errPower
	}
	return nil
}

func (d *fat) sync() error {
	cut, err := d.op()
	if err != nil {
		return err
	}
	if cut {
		return errPower
	}
	d.disk, d.pending = maps.Clone(d.now), nil
	return nil
}

// boot is the boot loader: it takes the first entry and counts. The firmware's
// own rename is whole here.
func (d *fat) boot(s *Slots) (Entry, error) {
	entries, err := s.Entries()
	if err != nil {
		return Entry{}, err
	}
	if len(entries) == 0 {
		return Entry{}, errors.New("nothing to boot")
	}
	e := entries[0]
	next := e
	next.Count = e.Count.next()
	next.File = fileName(e.Slot, next.Count)
	if next.File != e.File {
		d.now[next.File] = d.now[e.File]
		delete(d.now, e.File)
		d.disk = maps.Clone(d.now)
	}
	return next, nil
}

// uki is a file that inspectText takes for a UKI.
func uki(version string) string { return "uki " + version + strings.Repeat(".", 64) + "end" }

func inspectText(r io.ReaderAt, size int64) (Entry, error) {
	data, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil {
		return Entry{}, err
	}
	text, ok := strings.CutPrefix(string(data), "uki ")
	version, rest, ok2 := strings.Cut(text, "..")
	if !ok || !ok2 || !strings.HasSuffix(rest, "end") {
		return Entry{}, fmt.Errorf("no UKI: %.20q", data)
	}
	return Entry{Version: version, sortKey: "holdfast"}, nil
}

func on(d *fat, running Slot) *Slots {
	return &Slots{Config: Config{ESP: "/efi", Slot: running}, disk: d, inspect: inspectText}
}
