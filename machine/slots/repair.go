package slots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/holdfast-edge/holdfast/osimage"
	image "github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// FirstUKI is what a UKI is called on a disk that was just made, and on a stick.
const FirstUKI = "holdfast-a.efi"

// Stick is the OS image that a machine runs from while it repairs its disk: that of
// a stick, or the one in the slot that runs.
type Stick struct {
	Verity osimage.Verity
	Root   io.ReaderAt // the partition, data and hash tree
	UKI    []byte
	Loader []byte // the boot loader
}

// device is a root partition.
type device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// Repair makes the boot slots of a disk whole again, and says what it did. It is
// for a machine that runs from a stick: none of them runs.
//
// A slot that is to boot the stick's own OS gets back what differs, root and UKI,
// under the name that it has, so that a trial stays a trial. One with another OS
// whose root, or whose UKI, is not what was signed can be made whole by nobody
// here: its UKI is removed, so that the loader does not try it. Where nothing is
// left to boot, slot a gets the stick's OS. What is sound is not touched: which OS
// runs is for releases to say. A boot loader that is not what was signed becomes its
// copy, or the stick's. After a power cut the same call goes on.
func Repair(ctx context.Context, esp string, roots map[Slot]string, from Stick) ([]string, error) {
	s := &Slots{Config: Config{ESP: esp, Roots: roots}, disk: onESP(path.Join(esp, Folder)), inspect: inspect}
	r := &repair{Slots: s, from: from, open: func(slot Slot) (device, error) { return os.OpenFile(roots[slot], os.O_RDWR, 0) }}
	err := makeFolders(esp)
	if err == nil {
		err = r.run(ctx)
	}
	if err == nil {
		err = r.loader()
	}
	if err != nil {
		return r.said, fmt.Errorf("repair the boot slots: %w", err)
	}
	return r.said, nil
}

func (r *repair) loader() error {
	w, err := r.Ways(WaysConfig{})
	if err != nil {
		return err
	}
	_, said, err := w.mend(r.from.Loader)
	r.said = append(r.said, said...)
	return err
}

type repair struct {
	*Slots
	from Stick
	open func(Slot) (device, error)
	said []string
}

func (r *repair) say(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *repair) run(ctx context.Context) error {
	own, err := r.inspect(bytes.NewReader(r.from.UKI), int64(len(r.from.UKI)))
	if err != nil {
		return fmt.Errorf("the stick's: %w", err)
	}
	if own.Verity != r.from.Verity {
		return errors.New("the stick's UKI names another root than the one that runs")
	}
	names, err := r.disk.list()
	if err != nil {
		return err
	}
	sound := 0
	var lost []string
	for _, name := range names {
		slot, _, ok := parseName(name)
		if !ok {
			continue
		}
		why, err := r.entry(ctx, slot, name)
		if err != nil {
			return fmt.Errorf("slot %s: %w", slot, err)
		}
		if why == "" {
			sound++
			continue
		}
		r.say("slot %s is not booted any more: %s", slot, why)
		lost = append(lost, name)
	}
	for _, name := range lost {
		if err := r.disk.remove(name); err != nil {
			return err
		}
	}
	if len(lost) > 0 {
		if err := r.disk.sync(); err != nil {
			return err
		}
	}
	if sound > 0 {
		return nil
	}
	r.say("slot %s was written anew from the stick: nothing else could be booted", A)
	if _, err := r.mend(ctx, A); err != nil {
		return err
	}
	return r.place(A, FirstUKI)
}

// entry looks at one UKI and repairs what the stick can repair. why is not empty
// where the slot stays unsound.
func (r *repair) entry(ctx context.Context, slot Slot, name string) (why string, err error) {
	e, err := r.read(name)
	if err != nil {
		return fmt.Sprintf("its UKI is none: %v", err), nil
	}
	text, err := r.whole(name)
	if err != nil {
		return "", err
	}
	if e.Verity != r.from.Verity {
		if !image.Intact(text) {
			return "its UKI is not what was signed", nil
		}
		return r.otherRoot(slot, e.Verity)
	}
	changed, err := r.mend(ctx, slot)
	if err != nil {
		return "", err
	}
	if changed {
		r.say("the root of slot %s was written anew from the stick: it was not what its UKI names", slot)
	}
	if bytes.Equal(text, r.from.UKI) {
		return "", nil
	}
	r.say("the UKI of slot %s was written anew from the stick", slot)
	return "", r.place(slot, name)
}

func (r *repair) whole(name string) ([]byte, error) {
	f, size, err := r.disk.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.NewSectionReader(f, 0, size))
}

func (r *repair) otherRoot(slot Slot, v osimage.Verity) (why string, err error) {
	f, err := r.open(slot)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err = verity.Check(f, v); errors.Is(err, verity.ErrCorrupt) {
		return "its root is not what its UKI names", nil
	}
	return "", err
}

// place writes the sound UKI, the stick's or that of the other slot, and gives it its name when it is on the disk as a whole.
func (r *repair) place(slot Slot, name string) error {
	if err := r.stage(slot, bytes.NewReader(r.from.UKI), sha256.Sum256(r.from.UKI)); err != nil {
		return fmt.Errorf("write the UKI of slot %s: %w", slot, err)
	}
	if err := r.disk.rename(hidden(slot), name); err != nil {
		return err
	}
	return r.disk.sync()
}

// mend writes those blocks of a root that are not the stick's, reads the whole
// back and tells whether there were any. Blocks that are right are right for good,
// so that a power cut costs nothing.
func (r *repair) mend(ctx context.Context, slot Slot) (changed bool, err error) {
	f, err := r.open(slot)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data := int64(r.from.Verity.DataBlocks) * osimage.VerityBlock
	size := data + verity.TreeSize(data)
	want, got := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(want)) {
		if err := ctx.Err(); err != nil {
			return changed, err
		}
		want, got := want[:min(int64(len(want)), size-at)], got[:min(int64(len(got)), size-at)]
		if _, err := r.from.Root.ReadAt(want, at); err != nil {
			return changed, fmt.Errorf("read the stick's root at byte %d: %w", at, err)
		}
		// What cannot be read is written: a disk gives a broken block a new place then.
		if _, err := f.ReadAt(got, at); err == nil && bytes.Equal(got, want) {
			continue
		}
		changed = true
		if _, err := f.WriteAt(want, at); err != nil {
			return changed, fmt.Errorf("write the root at byte %d: %w", at, err)
		}
	}
	if !changed {
		return false, nil
	}
	if err := f.Sync(); err != nil {
		return true, err
	}
	if file, ok := f.(*os.File); ok {
		forget(file)
	}
	if err := verity.Check(f, r.from.Verity); err != nil {
		return true, fmt.Errorf("%w: read back: %w", ErrContent, err)
	}
	return true, nil
}
