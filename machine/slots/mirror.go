package slots

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"

	image "github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// Mirror makes the idle slot a copy of the one that runs: what the machine boots
// when a block of its root is damaged. Its entry is put last, so that the same slot
// goes on being booted; one that names the same root already stays as it is, and
// only blocks that are wrong are written. Anything else that the idle slot held is
// gone. A running slot that is itself damaged is ErrContent, and nothing is written.
// After a power cut the same call goes on; until its end the idle slot is not booted
// unless it was before.
func (s *Slots) Mirror(ctx context.Context) error {
	return s.mirror(ctx, func(slot Slot) (device, error) {
		if slot == s.Slot {
			return os.Open(s.Roots[slot])
		}
		return os.OpenFile(s.Roots[slot], os.O_RDWR, 0)
	})
}

func (s *Slots) mirror(ctx context.Context, open func(Slot) (device, error)) error {
	fail := func(err error) error {
		return fmt.Errorf("copy slot %s to slot %s: %w", s.Slot, s.Idle(), err)
	}
	self, ok, err := s.Entry(s.Slot)
	if err != nil {
		return fail(err)
	}
	other, there, err := s.Entry(s.Idle())
	if err != nil {
		return fail(err)
	}
	switch {
	case ok && self.Count.Counted:
		return fail(fmt.Errorf("%s is on trial, or put last", self.File))
	case !ok && there: // the root that runs was booted by the UKI of the other slot
		self = other
	case !ok:
		return fail(fs.ErrNotExist)
	}
	own, err := open(s.Slot)
	if err != nil {
		return fail(err)
	}
	defer own.Close()
	if err := verity.Check(own, self.Verity); err != nil {
		return fail(fmt.Errorf("%w: the root: %w", ErrContent, err))
	}
	r := &repair{Slots: s, from: Stick{Verity: self.Verity, Root: own}, open: open}
	if r.from.UKI, err = r.whole(self.File); err != nil {
		return fail(err)
	}
	if !image.Intact(r.from.UKI) {
		return fail(fmt.Errorf("%w: %s is not what was signed", ErrContent, self.File))
	}
	same := there && other.Verity == self.Verity
	if !same {
		if err := s.Discard(s.Idle()); err != nil {
			return fail(err)
		}
	}
	if _, err := r.mend(ctx, s.Idle()); err != nil {
		return fail(err)
	}
	if f, ok := own.(*os.File); ok {
		forget(f)
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if same {
		if text, err := r.whole(other.File); err != nil || bytes.Equal(text, r.from.UKI) {
			return err
		}
		if err := s.Discard(s.Idle()); err != nil {
			return fail(err)
		}
	}
	if err := r.place(s.Idle(), fileName(s.Idle(), Count{Counted: true})); err != nil {
		return fail(err)
	}
	return nil
}
