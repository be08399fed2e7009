package disks

import (
	"fmt"

	"github.com/holdfast-edge/holdfast/osimage"
)

// Slots as boot.json has them.
const (
	slotA     = "a"
	slotB     = "b"
	slotStick = "stick"
)

// inventory is what next decides by: what is on the disk, and what this boot has opened of it so far.
type inventory struct {
	stick   bool // booted from a stick
	sealed  bool // there is a TPM: STATE and DATA are encrypted
	wipe    bool // the rule allows to erase what is not ours
	table   bool // the disk has a table with all of our partitions
	foreign bool // the disk holds what is not ours
	kernel  bool // the kernel knows the partitions as they are in the table
	root    kind // of root-a
	esp     kind
	state   volume
	data    volume
}

// volume is STATE or DATA.
type volume struct {
	outer   kind   // what is in the partition
	what    string // kindOther, in words
	key     keyState
	mapped  bool // the kernel shows the inside
	inner   kind // what is inside, when mapped
	mounted bool
}

// keyState is what is known of the key of an encrypted volume.
type keyState int

const (
	keyUntried keyState = iota
	keyRight            // it opened, and it is the volume that this machine made
	keyForeign          // it opened, and it is another; or it is certain that nothing will ever open it
)

// step is one thing to do. What a power cut leaves of any of them, next takes up again.
type step int

const (
	done step = iota
	makeTable
	tellKernel
	copyRoot
	copyESP
	formatState
	openState
	mapState
	makeStateFS
	mountState
	formatData
	openData
	mapData
	makeDataFS
	mountData
)

var stepNames = [...]string{"done", "make partitions", "tell the kernel of partitions", "copy the root", "copy the boot partition",
	"format STATE", "open STATE", "map STATE", "make a file system on STATE", "mount STATE",
	"format DATA", "open DATA", "map DATA", "make a file system on DATA", "mount DATA"}

func (s step) String() string { return stepNames[s] }

// next is the next step and why it is to be done, or why nothing may be.
func next(v inventory) (step, string, error) {
	switch {
	case v.foreign && !v.wipe:
		return done, "", ErrForeign
	case v.foreign:
		return makeTable, "the rule allows to erase it", nil
	case !v.table:
		return makeTable, "partitions are missing", nil
	case !v.kernel:
		return tellKernel, "", nil
	case v.stick && v.root != kindEROFS:
		return copyRoot, "the disk has none", nil
	case v.stick && v.esp != kindFAT:
		return copyESP, "the disk has none that is sound", nil // last: with it the firmware can boot the disk
	}
	for _, w := range []struct {
		volume
		name                        string
		format, open, dm, fs, mount step
	}{
		{v.state, osimage.PartState, formatState, openState, mapState, makeStateFS, mountState},
		{v.data, osimage.PartData, formatData, openData, mapData, makeDataFS, mountData},
	} {
		if w.mounted {
			continue
		}
		var s step
		var why string
		var err error
		if v.sealed {
			s, why, err = nextSealed(w.volume, v.wipe, w.format, w.open, w.dm, w.fs, w.mount)
		} else {
			s, why, err = nextPlain(w.volume, v.wipe, w.fs, w.mount)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", w.name, err)
		}
		return s, why, err
	}
	return done, "", nil
}

func nextSealed(w volume, wipe bool, format, open, dm, fs, mount step) (step, string, error) {
	switch w.outer {
	case kindNothing:
		return format, "it held nothing", nil
	case kindDamaged:
		return format, "both copies of its header were damaged, so that nothing can open it any more", nil
	case kindVolume:
	case kindExt4: // ours, of a time without a TPM: wipe is for what is not ours
		return done, "", ErrForeign
	default:
		if wipe {
			return format, "the rule allows to erase it", nil
		}
		return done, "", ErrForeign
	}
	switch {
	case w.key == keyUntried:
		return open, "", nil
	case w.key == keyForeign:
		return format, "it was not the one that this machine remembers, and was not read", nil
	case !w.mapped:
		return dm, "", nil
	case w.inner != kindExt4:
		return fs, "", nil
	}
	return mount, "", nil
}

func nextPlain(w volume, wipe bool, fs, mount step) (step, string, error) {
	switch w.outer {
	case kindExt4:
		return mount, "", nil
	case kindNothing:
		return fs, "it held nothing", nil
	case kindVolume:
		return done, "", ErrLocked // it is encrypted, and there is no TPM; it is ours, and wipe is for what is not
	case kindDamaged:
		if !wipe {
			return done, "", ErrLocked
		}
	case kindOther, kindFAT, kindEROFS:
		if !wipe {
			return done, "", ErrForeign
		}
	}
	return fs, "the rule allows to erase it", nil
}
