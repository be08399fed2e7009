package disks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// kind is what a partition, or the inside of an encrypted one, holds.
type kind int

const (
	kindNothing kind = iota // nothing that is known
	kindFAT
	kindEROFS
	kindExt4    // with the label that was asked for
	kindVolume  // a LUKS2 volume that this program made
	kindDamaged // a LUKS header of which no copy is whole
	kindOther   // something else, named in words
)

// signatures of what other people keep on disks. It need not be complete: what is not zero is not blank either.
var signatures = []struct {
	at   int64
	text string
	name string
}{
	{0, "XFSB", "an XFS file system"}, {0, "hsqs", "a squashfs file system"}, {3, "NTFS    ", "an NTFS file system"}, {3, "EXFAT   ", "an exFAT file system"},
	{512, "LABELONE", "an LVM physical volume"}, {1024, "\x10\x20\xf5\xf2", "an F2FS file system"}, {4086, "SWAPSPACE2", "a swap area"},
	{4096, "\xfc\x4e\x2b\xa9", "a RAID member"}, {32769, "CD001", "an ISO 9660 file system"}, {65600, "_BHRfS_M", "a Btrfs file system"},
	{0, "\xfc\x4e\x2b\xa9", "a RAID member"}, {4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "a bcache device"},
}

const (
	labelState = "holdfast-state"
	labelData  = "holdfast-data"
	subsystem  = "holdfast"
)

// readSome reads as much as there is.
func readSome(r io.ReaderAt, at int64, n int) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read at byte %d: %w", at, err)
	}
	return b[:got], nil
}

// probe tells what is in a partition. label is that of a file system or volume of ours. An error is one of reading: it says nothing of the content.
func probe(r luks.Device, label string) (kind, string, error) {
	if there, err := luks.Present(r); err != nil {
		return 0, "", err
	} else if there {
		v, err := luks.Open(r)
		switch {
		case err == nil && v.Label() == label && v.Subsystem() == subsystem:
			return kindVolume, "", nil
		case err == nil:
			return kindOther, "a LUKS volume", nil
		case errors.Is(err, luks.ErrDamaged):
			return kindDamaged, "", nil
		case errors.Is(err, luks.ErrFormat), errors.Is(err, luks.ErrNone):
			return kindOther, "a LUKS volume", nil
		}
		return 0, "", err
	}
	b, err := readSome(r, 0, 128<<10)
	if err != nil {
		return 0, "", err
	}
	at := func(i int, text string) bool { return len(b) >= i+len(text) && string(b[i:i+len(text)]) == text }
	switch {
	case at(1080, "\x53\xef"):
		if strings.TrimRight(string(b[1144:1160]), "\x00") == label && label != "" {
			return kindExt4, "", nil
		}
		return kindOther, "an ext file system", nil
	case at(1024, "\xe2\xe1\xf5\xe0"):
		return kindEROFS, "", nil
	case at(510, "\x55\xaa") && (at(82, "FAT32   ") || at(54, "FAT")):
		return kindFAT, "", nil
	}
	for _, s := range signatures {
		if at(int(s.at), s.text) {
			return kindOther, s.name, nil
		}
	}
	return kindNothing, "", nil
}

var ourParts = []string{osimage.PartESP, osimage.PartRootA, osimage.PartRootB, osimage.PartState, osimage.PartData}

// examine tells what a whole disk holds.
func examine(r luks.Device, size int64) (Holds, string, *gpt.Table, error) {
	t, err := gpt.Read(r, size)
	switch {
	case err == nil:
		holds, what := judge(t)
		return holds, what, t, nil
	case !errors.Is(err, gpt.ErrNone):
		return 0, "", nil, err
	}
	const edge = 1 << 20
	head, err := readSome(r, 0, edge)
	if err != nil {
		return 0, "", nil, err
	}
	tail, err := readSome(r, max(edge, size-edge), edge)
	if err != nil {
		return 0, "", nil, err
	}
	if begun(head) && zero(tail) {
		return Blank, "", nil, nil
	}
	if k, what, err := probe(r, ""); err != nil {
		return 0, "", nil, err
	} else if k == kindFAT {
		return Foreign, "a FAT file system", nil, nil
	} else if k == kindEROFS {
		return Foreign, "an EROFS file system", nil, nil
	} else if k == kindDamaged {
		return Foreign, "a damaged LUKS volume", nil, nil
	} else if what != "" {
		return Foreign, what, nil, nil
	}
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa {
		return Foreign, "a partition table of another kind, or a damaged one", nil, nil
	}
	return Foreign, "data of an unknown kind", nil, nil
}

func judge(t *gpt.Table) (Holds, string) {
	var names []string
	ours := false
	for _, p := range t.Partitions {
		if p.Type == (gpt.GUID{}) {
			continue
		}
		if p.Name == osimage.PartStickESP || p.Name == osimage.PartStickRoot {
			return Stick, ""
		}
		ours = ours || slices.Contains(ourParts, p.Name)
		names = append(names, fmt.Sprintf("%q", p.Name))
	}
	if ours {
		return Ours, ""
	}
	if len(names) == 0 {
		return Foreign, "an empty partition table"
	}
	return Foreign, "partitions " + strings.Join(names, ", ")
}

// begun tells a disk on which nothing stands but, maybe, a part of the first table that this program was writing when the power went.
func begun(head []byte) bool {
	const sector, entries = 512, 32 * 512
	if len(head) < sector*34 || !zero(head[2*sector+entries:]) {
		return false
	}
	mbr, header, list := head[:sector], head[sector:2*sector], head[2*sector:2*sector+entries]
	if !zero(mbr) && (!zero(mbr[:446]) || mbr[450] != 0xee || !zero(mbr[462:510])) {
		return false
	}
	if !zero(header) && string(header[:8]) != "EFI PART" {
		return false
	}
	for e := range slices.Chunk(list, 128) {
		if zero(e) {
			continue
		}
		var name [36]uint16
		binary.Decode(e[56:128], binary.LittleEndian, &name)
		n := slices.Index(name[:], 0)
		if n < 0 || !slices.Contains(ourParts, string(utf16.Decode(name[:n]))) {
			return false
		}
	}
	return true
}

var zeros [4096]byte

func zero(b []byte) bool {
	for part := range slices.Chunk(b, len(zeros)) {
		if !bytes.Equal(part, zeros[:len(part)]) {
			return false
		}
	}
	return true
}
