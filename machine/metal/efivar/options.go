package efivar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// global is the vendor of the firmware's own variables (UEFI 2.10, section 3.3).
const global = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// Option is something that the firmware can start: a program on a partition. The
// firmware tries its options in an order of its own keeping, and the next one
// where one does not start or comes back with an error.
type Option struct {
	Name      string // shown in the firmware's menu, and what an option is known by here
	Partition Partition
	File      string // from the partition's root, with slashes
	Once      bool   // at the next boot, before all others, and never again
}

// Partition is where the firmware finds a program, by a GUID partition table.
type Partition struct {
	Number        uint32 // counted from 1
	First, Blocks uint64 // in the disk's blocks
	ID            [16]byte
}

// Bits and node types of boot options (UEFI 2.10, sections 3.1.3, 10.3.5.1 and 10.3.5.4).
const (
	active                   = 1
	mediaPath, endPath       = 4, 0x7f
	hardDrive, filePath      = 1, 4
	wholeEnd                 = 0xff
	tableGPT, signatureGUID  = 2, 2
	optionHeader, nodeHeader = 6, 4
)

// encode is the option as a variable, without attributes.
func (o Option) encode() []byte {
	path := node(hardDrive, func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint32(b, o.Partition.Number)
		b = binary.LittleEndian.AppendUint64(b, o.Partition.First)
		b = binary.LittleEndian.AppendUint64(b, o.Partition.Blocks)
		b = append(b, o.Partition.ID[:]...)
		return append(b, tableGPT, signatureGUID)
	})
	path = append(path, node(filePath, func(b []byte) []byte {
		return append(b, encode(strings.ReplaceAll("/"+o.File, "/", `\`))...)
	})...)
	path = append(path, endPath, wholeEnd, nodeHeader, 0)
	data := binary.LittleEndian.AppendUint32(nil, active)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(path)))
	data = append(data, encode(o.Name)...)
	return append(data, path...)
}

func node(kind byte, fill func([]byte) []byte) []byte {
	b := fill([]byte{mediaPath, kind, 0, 0})
	binary.LittleEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// nameOf is the name of an option; empty of one that has none.
func nameOf(data []byte) string {
	if len(data) < optionHeader {
		return ""
	}
	return decode(data[optionHeader:])
}

var optionRE = regexp.MustCompile(`^Boot([0-9A-F]{4})-` + global + `$`)

func optionName(n uint16) string { return fmt.Sprintf("Boot%04X", n) }

// options are all that the firmware has, by number.
func options(dir string) (map[uint16][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the firmware's boot options: %w", err)
	}
	all := map[uint16][]byte{}
	for _, e := range entries {
		m := optionRE.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		n, _ := strconv.ParseUint(m[1], 16, 16)
		data, err := read(dir, optionName(uint16(n)), global)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errSize): // gone, or another's that we leave alone
			data = nil
		case err != nil:
			return nil, err
		}
		all[uint16(n)] = data
	}
	return all, nil
}

// Started is the name of the option by which the firmware started the machine;
// empty where it does not say.
func Started(dir string) (string, error) {
	data, err := read(dir, "BootCurrent", global)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil || len(data) != 2 {
		return "", err
	}
	option, err := read(dir, optionName(binary.LittleEndian.Uint16(data)), global)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errSize) {
		return "", nil
	}
	return nameOf(option), err
}

// SetOptions makes want the firmware's last options, in this order, behind all
// others, which stay as they are; one that is to be started once has no place in the
// order, and becomes BootNext (UEFI 2.10, section 3.3). Options whose name begins
// with prefix and which are not wanted go. What is right already is not written: the
// firmware's memory wears out. Options come before the order that names them, so that
// a power cut leaves none that is named and missing. changed says whether anything
// was written.
func SetOptions(dir, prefix string, want []Option) (changed bool, err error) {
	all, err := options(dir)
	if err != nil {
		return false, err
	}
	order, err := readOrder(dir)
	if err != nil {
		return false, err
	}
	ours := map[string]uint16{}
	var surplus []uint16
	for _, n := range slices.Sorted(maps.Keys(all)) {
		name := nameOf(all[n])
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		_, twice := ours[name]
		if wanted := slices.ContainsFunc(want, func(o Option) bool { return o.Name == name }); !wanted || twice {
			surplus = append(surplus, n)
			continue
		}
		ours[name] = n
	}
	var last []uint16
	for _, o := range want {
		n, there := ours[o.Name]
		if !there {
			n = free(all)
		}
		if data := o.encode(); !there || !bytes.Equal(all[n], data) {
			changed = true
			if err := write(dir, optionName(n), global, data); err != nil {
				return changed, err
			}
			all[n] = data
		}
		if !o.Once {
			last = append(last, n)
		} else if next := binary.LittleEndian.AppendUint16(nil, n); !isNext(dir, next) {
			changed = true
			if err := write(dir, "BootNext", global, next); err != nil {
				return changed, err
			}
		}
	}
	first := slices.DeleteFunc(slices.Clone(order), func(n uint16) bool { return slices.Contains(last, n) || slices.Contains(surplus, n) })
	if now := append(first, last...); !slices.Equal(now, order) {
		changed = true
		if err := writeOrder(dir, now); err != nil {
			return changed, err
		}
	}
	for _, n := range surplus {
		changed = true
		if err := remove(dir, optionName(n), global); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

// isNext tells whether the firmware starts that option next.
func isNext(dir string, option []byte) bool {
	data, err := read(dir, "BootNext", global)
	return err == nil && bytes.Equal(data, option)
}

// free is the lowest number that no option has.
func free(all map[uint16][]byte) uint16 {
	for n := uint16(0); ; n++ {
		if _, taken := all[n]; !taken {
			return n
		}
	}
}

func readOrder(dir string) (order []uint16, err error) {
	data, err := read(dir, "BootOrder", global)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for ; err == nil && len(data) >= 2; data = data[2:] {
		order = append(order, binary.LittleEndian.Uint16(data))
	}
	return order, err
}

func writeOrder(dir string, order []uint16) error {
	var data []byte
	for _, n := range order {
		data = binary.LittleEndian.AppendUint16(data, n)
	}
	return write(dir, "BootOrder", global, data)
}
