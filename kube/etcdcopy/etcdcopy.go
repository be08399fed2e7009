//go:build linux

// Package etcdcopy keeps a copy of etcd's folder from the moment before a new
// minor of Kubernetes is tried, and puts it back where the old programs find data
// that they cannot read.
//
// A trial is held in the old dialect (kube.Options.Hold), so that the old programs
// go on with the data as it is, nothing lost. The copy is for the day on which that
// failed: a start that was not held, a fault of the hold. It costs what was written
// since it was taken, and [Restore] says how much that is.
//
//	Take      before the trial, etcd stopped    the copy is complete or not there
//	Restore   etcd of the old slot ended with 76   copy and newer data change places at once
//	Discard   the trial is over, the loss reported
//
// What it promises: each may be cut by a power failure at any instant and be called
// again. No instant has etcd's folder without data: an etcd that found it empty
// would start a cluster of its own and serve nothing as if that were all. A copy
// that does not bear the digests that were taken with it is not put back.
//
// What it leaves out: deciding (machine/update), snapshots of a running member, and
// sites of several control planes, where a member alone must not go back: there the
// others have the data, and it rejoins empty.
package etcdcopy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

const (
	member = "member"    // all of etcd's data, in its folder
	label  = "copy.json" // in member, of a copy: it moves with it
	format = 1
	// spare is what a copy leaves free on the file system.
	spare = 16 << 20
)

var (
	// ErrNone means that no copy is there, nor one put back.
	ErrNone = errors.New("no copy of etcd's data is there")
	// ErrDamaged means that the copy is not what was taken.
	ErrDamaged = errors.New("the copy of etcd's data is damaged")
	// ErrRuns means that an etcd has the data open.
	ErrRuns = errors.New("etcd runs on this data: stop the control plane first")
	// ErrNoRoom means that the file system has no room for a copy.
	ErrNoRoom = errors.New("no room for a copy of etcd's data")
)

// Note is what is known of a copy.
type Note struct {
	Format int       `json:"format"`
	Taken  time.Time `json:"taken"`
	// Minor of Kubernetes and Version of the OS that wrote the data.
	Minor   string `json:"minor"`
	Version string `json:"version"`
	Files   []File `json:"files"`
}

// File is one of a copy's, by its path below member.
type File struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Loss is what putting the copy back costs: whatever the API acknowledged between
// From and To. The newer data stays at Newer until Discard; the program that wrote
// it can read it.
type Loss struct {
	From, To       time.Time
	Minor, Version string // what runs on the data again
	Newer          string
}

func (l Loss) String() string {
	if !l.To.After(l.From) {
		return fmt.Sprintf("etcd's data of %s is back (Kubernetes %s, OS %s); nothing was written after it", stamp(l.From), l.Minor, l.Version)
	}
	return fmt.Sprintf("etcd's data of %s is back (Kubernetes %s, OS %s); what the API took between then and %s (%s) is lost; apps and settings of the release are not, they are applied again; the newer data is kept at %s",
		stamp(l.From), l.Minor, l.Version, stamp(l.To), l.To.Sub(l.From).Round(time.Second), l.Newer)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Take copies the data of the etcd folder dir to the folder to, on the same file
// system, in place of what stands there. etcd must not run. note needs Taken, Minor
// and Version.
//
// It is called once per trial: a copy made in the midst of one is a copy of what the
// trial wrote.
func Take(dir, to string, note Note) error { return disk{}.take(dir, to, note) }

// Find is the note of the copy at to; ErrNone where there is none.
func Find(to string) (Note, error) { return readNote(filepath.Join(to, member)) }

// Restore puts the copy at to in the place of dir's data, once, however often it is
// called. etcd must not run.
func Restore(dir, to string) (Loss, error) { return disk{}.restore(dir, to) }

// Discard removes the copy, or what it was put in the place of.
func Discard(dir, to string) error { return disk{}.discard(dir, to) }

// disk is the rim. Tests let it be cut: step stands before and after each change.
type disk struct {
	step func(what string) error
}

func (d disk) do(what string, f func() error) error {
	if d.step == nil {
		return f()
	}
	if err := d.step("before " + what); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	return d.step("after " + what)
}

func (d disk) take(dir, to string, note Note) (err error) {
	defer wrap(&err, "copy etcd's data in "+dir+" to "+to)
	release, err := claim(dir)
	if err != nil {
		return err
	}
	defer release()
	// What was put back once is the data now, and has been reported.
	if err := d.do("unlabel", func() error { return durable.Remove(filepath.Join(dir, member, label)) }); err != nil {
		return err
	}
	part := to + ".part"
	for _, old := range []string{to, part} {
		if err := d.do("remove "+filepath.Base(old), func() error { return durable.RemoveAll(old) }); err != nil {
			return err
		}
	}
	if err := d.fill(filepath.Join(dir, member), filepath.Join(part, member), &note); err != nil {
		if d.step == nil { // a cut leaves it, as the power would
			err = errors.Join(err, durable.RemoveAll(part))
		}
		return err
	}
	if err := d.do("publish", func() error { return os.Rename(part, to) }); err != nil {
		return err
	}
	return d.do("sync parent", func() error { return syncDir(filepath.Dir(to)) })
}

// fill copies the tree, flushes it and labels it last.
func (d disk) fill(from, to string, note *Note) error {
	if err := d.do("make folder", func() error { return os.MkdirAll(to, 0o700) }); err != nil {
		return err
	}
	files, folders, need, err := list(from)
	if err != nil {
		return err
	}
	for _, f := range folders {
		if err := d.do("make folder "+f, func() error { return os.MkdirAll(filepath.Join(to, f), 0o700) }); err != nil {
			return err
		}
	}
	if err := room(from, to, files, need); err != nil {
		return err
	}
	note.Format, note.Files = format, nil
	for _, f := range files {
		sum, size, err := d.copyFile(filepath.Join(from, f), filepath.Join(to, f))
		if err != nil {
			return err
		}
		note.Files = append(note.Files, File{Path: f, Size: size, SHA256: sum})
	}
	for i := len(folders) - 1; i >= 0; i-- {
		if err := d.do("sync "+folders[i], func() error { return syncDir(filepath.Join(to, folders[i])) }); err != nil {
			return err
		}
	}
	if err := d.do("label", func() error { return durable.WriteJSON(filepath.Join(to, label), note, 0o600) }); err != nil {
		return err
	}
	return d.do("sync copy", func() error { return syncDir(filepath.Dir(to)) })
}

// list is what etcd needs again, in a fixed order: all but preallocated segments
// that it makes anew, and labels. need is the room that the files take.
func list(from string) (files, folders []string, need int64, err error) {
	err = filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			folders = append(folders, rel)
			return nil
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is neither file nor folder: this is no folder of etcd's", path)
		case strings.HasSuffix(rel, ".tmp"), rel == label:
			return nil
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		files, need = append(files, rel), need+st.Blocks*512
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("%s holds no data", from)
	}
	return files, folders, need, err
}

// room refuses what would fill the disk on which etcd itself has to write, unless
// the file system can share the blocks.
func room(from, to string, files []string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(to, &st); err != nil {
		return fmt.Errorf("ask for the room on %s: %w", to, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if need+spare <= free {
		return nil
	}
	probe := filepath.Join(to, ".probe")
	defer os.Remove(probe)
	if f, err := os.OpenFile(probe, os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
		defer f.Close()
		if src, err := os.Open(filepath.Join(from, files[0])); err == nil {
			defer src.Close()
			if unix.IoctlFileClone(int(f.Fd()), int(src.Fd())) == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: it takes %d MiB, %d MiB must stay free, %d MiB are: make room on STATE and try again",
		ErrNoRoom, need>>20, spare>>20, free>>20)
}

// copyFile copies one file, sharing its blocks where the file system can. Hard
// links would not do: etcd writes into its files in place.
func (d disk) copyFile(from, to string) (sum string, size int64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return "", 0, err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	h := sha256.New()
	err = d.do("copy "+filepath.Base(from), func() error {
		if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
			size, err = io.Copy(h, src)
			return err
		}
		size, err = copySparse(dst, src, h)
		return err
	})
	if err == nil {
		err = d.do("sync "+filepath.Base(from), dst.Sync)
	}
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// copySparse leaves holes where src has zeros: most of a log segment is.
func copySparse(dst *os.File, src io.Reader, h hash.Hash) (size int64, err error) {
	b := make([]byte, 64<<10)
	zeros := make([]byte, len(b))
	for {
		n, err := io.ReadFull(src, b)
		h.Write(b[:n])
		if !bytes.Equal(b[:n], zeros[:n]) {
			if _, err := dst.WriteAt(b[:n], size); err != nil {
				return size, err
			}
		}
		size += int64(n)
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return size, dst.Truncate(size)
		default:
			return size, err
		}
	}
}

func (d disk) restore(dir, to string) (loss Loss, err error) {
	defer wrap(&err, "put the copy of etcd's data at "+to+" back to "+dir)
	current, copied := filepath.Join(dir, member), filepath.Join(to, member)
	note, err := readNote(copied)
	if errors.Is(err, ErrNone) {
		// The label moves with the data: it has been put back already.
		if note, err = readNote(current); err != nil {
			return Loss{}, err
		}
		return lossOf(note, copied)
	}
	if err != nil {
		return Loss{}, err
	}
	if err := verify(copied, note); err != nil {
		return Loss{}, err
	}
	switch _, err := os.Lstat(current); {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.do("move", func() error { return os.Rename(copied, current) }); err != nil {
			return Loss{}, err
		}
	case err != nil:
		return Loss{}, err
	default:
		release, err := claim(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Loss{}, err
		}
		if release != nil {
			defer release()
		}
		// One that was put back earlier has its label still if nobody discarded it.
		if err := d.do("unlabel", func() error { return durable.Remove(filepath.Join(current, label)) }); err != nil {
			return Loss{}, err
		}
		err = d.do("exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, copied, unix.AT_FDCWD, current, unix.RENAME_EXCHANGE)
		})
		if err != nil {
			return Loss{}, fmt.Errorf("exchange %s and %s: %w", copied, current, err)
		}
	}
	for _, folder := range []string{dir, to} {
		if err := d.do("sync "+filepath.Base(folder), func() error { return syncDir(folder) }); err != nil {
			return Loss{}, err
		}
	}
	return lossOf(note, copied)
}

// lossOf looks at the newer data, which lies where the copy was.
func lossOf(note Note, newer string) (Loss, error) {
	l := Loss{From: note.Taken, To: note.Taken, Minor: note.Minor, Version: note.Version, Newer: newer}
	err := filepath.WalkDir(newer, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.ModTime().After(l.To) {
			l.To = info.ModTime()
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Loss{}, err
	}
	return l, nil
}

func (d disk) discard(dir, to string) (err error) {
	defer wrap(&err, "discard the copy of etcd's data at "+to)
	// A copy without its label is none; so neither half of this can mislead.
	for _, f := range []string{filepath.Join(dir, member, label), filepath.Join(to, member, label)} {
		if err := d.do("unlabel", func() error { return durable.Remove(f) }); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, f := range []string{to, to + ".part"} {
		if err := d.do("remove", func() error { return durable.RemoveAll(f) }); err != nil {
			return err
		}
	}
	return nil
}

func readNote(folder string) (Note, error) {
	var n Note
	err := durable.ReadJSON(filepath.Join(folder, label), &n)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return n, ErrNone
	case err != nil:
		return n, fmt.Errorf("%w: %w", ErrDamaged, err)
	case n.Format != format:
		return n, fmt.Errorf("%w: format %d, this program knows %d", ErrDamaged, n.Format, format)
	case len(n.Files) == 0:
		return n, fmt.Errorf("%w: it names no files", ErrDamaged)
	}
	return n, nil
}

// verify reads the whole copy: what it replaces can be read by some program.
func verify(folder string, n Note) error {
	for _, f := range n.Files {
		if !filepath.IsLocal(f.Path) {
			return fmt.Errorf("%w: it names %q", ErrDamaged, f.Path)
		}
		file, err := os.Open(filepath.Join(folder, f.Path))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, f.Path)
		}
		if err != nil {
			return err
		}
		h := sha256.New()
		size, err := io.Copy(h, file)
		file.Close()
		if err != nil {
			return err
		}
		if got := hex.EncodeToString(h.Sum(nil)); size != f.Size || got != f.SHA256 {
			return fmt.Errorf("%w: %s has %d bytes of digest %s, not %d of %s", ErrDamaged, f.Path, size, got, f.Size, f.SHA256)
		}
	}
	return nil
}

// claim keeps etcd out for the time being, by its own lock on the database.
func claim(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, member, "snap", "db"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { f.Close() }, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrRuns
	}
	return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
}

func wrap(err *error, what string) {
	if *err != nil {
		*err = fmt.Errorf("%s: %w", what, *err)
	}
}

// syncDir flushes a folder: the names in it are its content.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
