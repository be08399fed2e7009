package efivar

import (
	"errors"
	"io/fs"
	"math"
)

// Tally is what outlives a restart that nobody could announce.
type Tally struct {
	Boots   int    // in a row that did not last
	Damaged string // slot, a or b, whose root is not what was signed; "" none that is known
}

const tallyName = "HoldfastBoots"

// ReadTally is the tally as it is; a zero one without firmware. What cannot be
// understood counts for nothing: it is written anew.
func ReadTally(dir string) (Tally, error) {
	data, err := read(dir, tallyName, holdfast)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errSize):
		return Tally{}, nil
	case err != nil:
		return Tally{}, err
	case len(data) != 2:
		return Tally{}, nil
	}
	t := Tally{Boots: int(data[0])}
	if data[1] == 'a' || data[1] == 'b' {
		t.Damaged = string(data[1:])
	}
	return t, nil
}

// WriteTally replaces the tally. fs.ErrNotExist: there is no firmware.
func WriteTally(dir string, t Tally) error {
	if t == (Tally{}) {
		return remove(dir, tallyName, holdfast)
	}
	slot := byte('-')
	if t.Damaged != "" {
		slot = t.Damaged[0]
	}
	return write(dir, tallyName, holdfast, []byte{byte(min(t.Boots, math.MaxUint8)), slot})
}

// CountBoot counts the boot that begins, and returns the tally of those before.
func CountBoot(dir string) (Tally, error) {
	t, err := ReadTally(dir)
	if err != nil {
		return t, err
	}
	err = WriteTally(dir, Tally{Boots: t.Boots + 1, Damaged: t.Damaged})
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	return t, err
}

// Settle strikes the boots off: this one lasts, or ends in order.
func Settle(dir string) error {
	t, err := ReadTally(dir)
	if err != nil || t.Boots == 0 {
		return err
	}
	return WriteTally(dir, Tally{Damaged: t.Damaged})
}

// Mended forgets the damage.
func Mended(dir string) error {
	t, err := ReadTally(dir)
	if err != nil || t.Damaged == "" {
		return err
	}
	return WriteTally(dir, Tally{Boots: t.Boots})
}
