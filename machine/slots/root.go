package slots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// Target is the data of a root partition while it is written.
type Target interface {
	io.ReaderAt
	io.WriterAt
}

// WriteRoot has fill write the data of a root file system into the slot's
// partition, adds the hash tree, flushes, and reads the whole back. Content that
// does not have v's root hash is ErrContent. fill finds what an interrupted
// attempt left, and may go on from it.
func (s *Slots) WriteRoot(ctx context.Context, slot Slot, v osimage.Verity, fill func(Target) error) error {
	fail := func(err error) error {
		return fmt.Errorf("write the root of slot %s to %s: %w", slot, s.Roots[slot], err)
	}
	if slot == s.Slot {
		return fail(ErrRunning)
	}
	if e, ok, err := s.Entry(slot); err != nil || ok {
		return fail(errors.Join(err, inUse(e, ok)))
	}
	f, err := os.OpenFile(s.Roots[slot], os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	if err := write(ctx, f, v, fill); err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	if err := f.Close(); err != nil {
		return fail(err)
	}
	return nil
}

func inUse(e Entry, ok bool) error {
	if !ok {
		return nil
	}
	return fmt.Errorf("%w by %s: discard it first", ErrBootable, e.File)
}

func write(ctx context.Context, f *os.File, v osimage.Verity, fill func(Target) error) error {
	room, err := f.Seek(0, io.SeekEnd) // a block device has no size of a file
	if err != nil {
		return err
	}
	data := int64(v.DataBlocks) * osimage.VerityBlock
	if v.DataBlocks == 0 || v.DataBlocks > uint64(room)/osimage.VerityBlock || data+verity.TreeSize(data) > room {
		return fmt.Errorf("it has %d bytes, and %d blocks with their hash tree do not fit", room, v.DataBlocks)
	}
	if err := fill(region{f, data}); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	tree, got, err := verity.Make(io.NewSectionReader(f, 0, data), data, v.Salt)
	if err != nil {
		return err
	}
	if got != v {
		return fmt.Errorf("%w: its root hash is %x, want %x", ErrContent, got.RootHash, v.RootHash)
	}
	if _, err := f.WriteAt(tree, data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	forget(f)
	if err := verity.Check(f, v); err != nil {
		return fmt.Errorf("%w: read back: %w", ErrContent, err)
	}
	return nil
}

// HoldsRoot reads a slot's partition and says whether it holds the root that v
// names, whole.
func (s *Slots) HoldsRoot(slot Slot, v osimage.Verity) (bool, error) {
	f, err := os.Open(s.Roots[slot])
	if err != nil {
		return false, fmt.Errorf("read the root of slot %s: %w", slot, err)
	}
	defer f.Close()
	err = verity.Check(f, v)
	if errors.Is(err, verity.ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the root of slot %s: %w", slot, err)
	}
	return true, nil
}

// OpenRoot opens the root partition of a slot for reading.
func (s *Slots) OpenRoot(slot Slot) (*os.File, error) { return os.Open(s.Roots[slot]) }

// region bounds what fill may touch.
type region struct {
	f    *os.File
	size int64
}

var errOutside = errors.New("outside of the partition's data")

func (r region) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > r.size {
		return 0, errOutside
	}
	return r.f.ReadAt(p, off)
}

func (r region) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > r.size {
		return 0, errOutside
	}
	return r.f.WriteAt(p, off)
}
