package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/metal/efivar"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// unsettled is how many boots in a row may end early before the root is read
// whole: one more than an OS on trial has tries, so that its counter decides first.
const unsettled = 4

// prove counts this boot, and looks whether it is the root that ends them. A
// block that is not what was signed restarts the machine without a word; so where
// boots do not last, the whole root is read before it is used. If it is damaged,
// the other slot's takes its place where it is the same one; else the boot loader
// is asked for the other slot's OS. Where neither helps the boot goes on as it
// would without this: to a restart, until somebody comes with a stick.
func (b *boot) prove() error {
	if b.said.Slot != "a" && b.said.Slot != "b" {
		return nil // a stick
	}
	tally, err := efivar.CountBoot(efivar.Dir)
	if err != nil {
		say("<4>", "init: count this boot: "+err.Error())
	}
	b.said.Damaged = tally.Damaged
	if tally.Damaged == b.said.Slot && b.choose(b.elsewhere(b.matches)) == nil {
		b.said.Damaged = tally.Damaged
		say("<5>", "init: slot "+tally.Damaged+" is damaged, slot "+b.said.Slot+" holds the same root")
	}
	if tally.Boots < unsettled {
		return nil
	}
	say("<5>", fmt.Sprintf("init: %d boots in a row did not last: the root is read whole", tally.Boots))
	stop := feed()
	defer stop()
	bad := b.said
	fault := b.whole(partition{device: bad.Root})
	keep := efivar.Tally{Boots: 1, Damaged: tally.Damaged} // this boot, and again after as many more
	if fault != nil {
		say("<3>", fmt.Sprintf("init: the root of slot %s is damaged: %v", bad.Slot, fault))
		err := b.choose(b.elsewhere(func(p partition) (bool, error) {
			is, err := b.matches(p)
			return is && b.whole(p) == nil, err
		}))
		other, known := otherEntry(b.entry)
		keep.Damaged = bad.Slot
		switch {
		case err == nil:
			b.said.Damaged = bad.Slot
			say("<5>", "init: slot "+b.said.Slot+" holds the same root, whole: it is used")
		case known:
			keep.Boots = 0
			err := efivar.WriteTally(efivar.Dir, keep)
			if err = errors.Join(err, efivar.BootOnce(efivar.Dir, other)); err == nil {
				return errors.New("the boot loader is asked for " + other)
			}
			say("<3>", "init: "+err.Error())
		}
	}
	if err := efivar.WriteTally(efivar.Dir, keep); err != nil {
		say("<4>", "init: "+err.Error())
	}
	return nil
}

// elsewhere matches what matches does, but for the partition that was chosen.
func (b *boot) elsewhere(matches func(partition) (bool, error)) func(partition) (bool, error) {
	not := b.said.Root
	return func(p partition) (bool, error) {
		if p.device == not {
			return false, nil
		}
		return matches(p)
	}
}

// whole reads a root and its hash tree.
func (b *boot) whole(p partition) error {
	f, err := os.Open("/dev/" + p.device)
	if err != nil {
		return err
	}
	defer f.Close()
	return verity.Check(f, b.verity)
}

// otherEntry is the boot entry of the slot that entry is not of; only where both
// have proved themselves, since trials are for the loader's counter to end.
func otherEntry(entry string) (string, bool) {
	const a, b = "holdfast-a.efi", "holdfast-b.efi"
	switch entry {
	case a:
		return b, true
	case b:
		return a, true
	}
	return "", false
}

// feed keeps the watchdog quiet until stop, or for as long as reading a root may
// take on a slow disk.
func feed() (stop func()) {
	done := make(chan struct{})
	go func() {
		for range 12 {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Second):
			}
			if w, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0); err == nil {
				unix.IoctlGetInt(int(w.Fd()), unix.WDIOC_KEEPALIVE)
				w.Close()
			}
		}
	}()
	return func() { close(done) }
}
