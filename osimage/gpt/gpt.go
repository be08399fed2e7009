// Package gpt reads and writes GUID partition tables of disks with sectors of
// 512 bytes: a protective MBR, the primary table and its backup at the end.
//
// It promises that a power cut between any two sectors of [Table.Write] leaves a
// table that [Read] finds, the old one or the new one, as long as there was a
// valid one before. The kernel reads a backup only when its command line says
// `gpt`; firmware repairs the primary table by itself. Disks with sectors of
// 4096 bytes, and tables with other than 128-byte entries, are left out.
package gpt

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/holdfast-edge/holdfast/osimage"
)

const (
	// Sector is the unit of addresses in a table.
	Sector = 512

	entries      = 128
	entrySize    = 128
	tableSectors = entries * entrySize / Sector
	headerSize   = 92
	firstUsable  = 2 + tableSectors
	alignment    = osimage.Alignment / Sector
)

// Types of partitions.
var (
	TypeESP   = MustParseGUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
	TypeLinux = MustParseGUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
	TypeLUKS  = MustParseGUID("CA7D7CCB-63ED-4C53-861C-1742536059CC")
)

// ErrNone is returned by Read for a disk on which neither table is valid. It
// does not say that the disk is empty: other formats exist.
var ErrNone = errors.New("no valid partition table")

// ErrNoRoom is returned by Add when no gap is large enough.
var ErrNoRoom = errors.New("no room on the disk")

// GUID is in the order of the disk: its first three fields are little-endian.
type GUID [16]byte

// ParseGUID reads the usual spelling, in either case.
func ParseGUID(s string) (GUID, error) {
	var g GUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != 16 || len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("GUID %q: want a form like C12A7328-F81F-11D2-BA4B-00A0C93EC93B", s)
	}
	return swap(GUID(b)), nil
}

// MustParseGUID is ParseGUID for constants.
func MustParseGUID(s string) GUID {
	g, err := ParseGUID(s)
	if err != nil {
		panic(err)
	}
	return g
}

// Derive makes a GUID (version 8) from names, the same for the same names.
func Derive(names ...string) GUID {
	h := sha256.Sum256([]byte(strings.Join(names, "\x00")))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80
	return swap(GUID(h[:16]))
}

func swap(g GUID) GUID {
	slices.Reverse(g[0:4])
	slices.Reverse(g[4:6])
	slices.Reverse(g[6:8])
	return g
}

// String is in lower case, as the kernel and udev write it.
func (g GUID) String() string {
	b := swap(g)
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Table is what a disk's table says.
type Table struct {
	ID         GUID
	Size       int64       // bytes of the disk; the backup stands at its end
	Partitions []Partition // by number, the first one is 1; unused ones have a zero Type
}

// Partition is an entry. First and Last are sectors, both inside.
type Partition struct {
	Type, ID    GUID
	Name        string
	First, Last uint64
	Attributes  uint64
}

// Offset is where the partition begins, in bytes.
func (p Partition) Offset() int64 { return int64(p.First) * Sector }

// Size is the partition's length in bytes.
func (p Partition) Size() int64 { return int64(p.Last-p.First+1) * Sector }

// Find returns the number of the only partition of that name, or 0.
func (t *Table) Find(name string) int {
	found := 0
	for i, p := range t.Partitions {
		if p.Type != (GUID{}) && p.Name == name {
			if found != 0 {
				return 0
			}
			found = i + 1
		}
	}
	return found
}

// Add puts a partition of size bytes, rounded up to the alignment, into the
// first gap that is large enough; 0 takes the whole of the largest gap. It
// returns the partition's number. First and Last of p are ignored.
func (t *Table) Add(p Partition, size int64) (int, error) {
	if p.Type == (GUID{}) || p.ID == (GUID{}) || size < 0 {
		return 0, fmt.Errorf("add partition %q of %d bytes: want a type, an ID and a size", p.Name, size)
	}
	want := (uint64(size) + osimage.Alignment - 1) / osimage.Alignment * alignment
	var best gap
	for _, g := range t.gaps() {
		if want == 0 && g.sectors > best.sectors || want > 0 && g.sectors >= want && best.sectors == 0 {
			best = g
		}
	}
	if best.sectors == 0 {
		return 0, fmt.Errorf("add partition %q of %d bytes: %w", p.Name, size, ErrNoRoom)
	}
	if want == 0 {
		want = best.sectors
	}
	p.First, p.Last = best.first, best.first+want-1
	number := len(t.Partitions) + 1
	for i, old := range t.Partitions {
		if old.Type == (GUID{}) {
			number = i + 1
			break
		}
	}
	changed := *t
	changed.Partitions = slices.Clone(t.Partitions)
	if number > len(changed.Partitions) {
		changed.Partitions = append(changed.Partitions, p)
	} else {
		changed.Partitions[number-1] = p
	}
	if err := changed.validate(); err != nil {
		return 0, fmt.Errorf("add partition %q: %w", p.Name, err)
	}
	*t = changed
	return number, nil
}

type gap struct{ first, sectors uint64 }

// gaps returns the free room in whole units of the alignment, in order of the disk.
func (t *Table) gaps() []gap {
	used := slices.DeleteFunc(slices.Clone(t.Partitions), func(p Partition) bool { return p.Type == (GUID{}) })
	slices.SortFunc(used, func(a, b Partition) int { return int(int64(a.First) - int64(b.First)) })
	used = append(used, Partition{First: t.lastUsable() + 1})
	var out []gap
	at := uint64(firstUsable)
	for _, p := range used {
		first, end := (at+alignment-1)/alignment*alignment, p.First/alignment*alignment
		if first < end {
			out = append(out, gap{first, end - first})
		}
		at = max(at, p.Last+1)
	}
	return out
}

func (t *Table) sectors() uint64    { return uint64(t.Size) / Sector }
func (t *Table) lastUsable() uint64 { return t.sectors() - tableSectors - 2 }

// validate returns the first thing that makes the table one that nobody may use.
func (t *Table) validate() error {
	if t.Size < 2*osimage.Alignment || t.Size > 1<<62 {
		return fmt.Errorf("a disk of %d bytes: too small for a table, or absurd", t.Size)
	}
	if len(t.Partitions) > entries {
		return fmt.Errorf("%d partitions: %d is the most", len(t.Partitions), entries)
	}
	for i, p := range t.Partitions {
		if p.Type == (GUID{}) {
			continue
		}
		if p.First < firstUsable || p.Last > t.lastUsable() || p.First > p.Last {
			return fmt.Errorf("partition %d: sectors %d to %d: want them between %d and %d", i+1, p.First, p.Last, firstUsable, t.lastUsable())
		}
		if len(utf16.Encode([]rune(p.Name))) > 36 {
			return fmt.Errorf("partition %d: name %q: longer than 36 characters", i+1, p.Name)
		}
		for j, q := range t.Partitions[:i] {
			if q.Type != (GUID{}) && p.First <= q.Last && q.First <= p.Last {
				return fmt.Errorf("partitions %d and %d overlap", j+1, i+1)
			}
			if q.Type != (GUID{}) && q.ID == p.ID {
				return fmt.Errorf("partitions %d and %d have the same ID %v", j+1, i+1, p.ID)
			}
		}
	}
	return nil
}

// Read returns the primary table of a disk of size bytes, else the backup. The
// table has the disk's present size, so that a table of a disk that has grown
// needs no more than a Write.
func Read(r io.ReaderAt, size int64) (*Table, error) {
	if size < 2*osimage.Alignment {
		return nil, fmt.Errorf("disk of %d bytes: %w", size, ErrNone)
	}
	t, errPrimary := readCopy(r, size, 1)
	if errPrimary == nil {
		return t, nil
	}
	t, errBackup := readCopy(r, size, uint64(size)/Sector-1)
	if errBackup == nil {
		return t, nil
	}
	for _, err := range []error{errPrimary, errBackup} {
		if !errors.Is(err, ErrNone) {
			return nil, err // of reading: nobody may conclude that the disk is empty
		}
	}
	return nil, fmt.Errorf("primary: %w; backup: %w", errPrimary, errBackup)
}

// readCopy reads the table whose header is at sector lba. Every error but one of reading is ErrNone.
func readCopy(r io.ReaderAt, size int64, lba uint64) (*Table, error) {
	b := make([]byte, Sector)
	if _, err := r.ReadAt(b, int64(lba)*Sector); err != nil {
		return nil, fmt.Errorf("read sector %d: %w", lba, err)
	}
	h, err := parseHeader(b, lba, uint64(size)/Sector)
	if err != nil {
		return nil, fmt.Errorf("sector %d: %w: %w", lba, err, ErrNone)
	}
	array := make([]byte, int(h.Count)*entrySize)
	if _, err := r.ReadAt(array, int64(h.Entries)*Sector); err != nil {
		return nil, fmt.Errorf("read entries at sector %d: %w", h.Entries, err)
	}
	if crc32.ChecksumIEEE(array) != h.EntriesCRC {
		return nil, fmt.Errorf("sector %d: its entries have another checksum: %w", lba, ErrNone)
	}
	t := &Table{ID: h.Disk, Size: size / Sector * Sector, Partitions: parseEntries(array)}
	if err := t.validate(); err != nil {
		return nil, fmt.Errorf("sector %d: %w: %w", lba, err, ErrNone)
	}
	return t, nil
}

// header is a GPT header as it stands on disk.
type header struct {
	Signature               [8]byte
	Revision, Size          uint32
	CRC, _                  uint32
	Self, Other             uint64
	FirstUsable, LastUsable uint64
	Disk                    GUID
	Entries                 uint64
	Count, EntrySize        uint32
	EntriesCRC              uint32
}

var signature = [8]byte([]byte("EFI PART"))

const revision = 0x00010000

func parseHeader(b []byte, lba, sectors uint64) (header, error) {
	var h header
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil || h.Signature != signature {
		return h, errors.New("no header of a partition table")
	}
	if h.Revision != revision || h.Size < headerSize || int(h.Size) > len(b) {
		return h, fmt.Errorf("header of revision %#x with %d bytes: unknown", h.Revision, h.Size)
	}
	sum := slices.Clone(b[:h.Size])
	clear(sum[16:20])
	switch {
	case crc32.ChecksumIEEE(sum) != h.CRC:
		return h, errors.New("the header has another checksum")
	case h.Self != lba:
		return h, fmt.Errorf("the header belongs to sector %d", h.Self)
	case h.EntrySize != entrySize || h.Count == 0 || h.Count > entries:
		return h, fmt.Errorf("%d entries of %d bytes: want at most %d of %d", h.Count, h.EntrySize, entries, entrySize)
	case h.Entries < 2 || h.Entries > sectors-tableSectors:
		return h, fmt.Errorf("entries at sector %d of %d", h.Entries, sectors)
	}
	return h, nil
}

// entry is a partition as it stands on disk.
type entry struct {
	Type, ID                GUID
	First, Last, Attributes uint64
	Name                    [36]uint16
}

func parseEntries(array []byte) []Partition {
	var out []Partition
	used := 0
	for ; len(array) > 0; array = array[entrySize:] {
		var e entry
		if _, err := binary.Decode(array, binary.LittleEndian, &e); err != nil {
			panic(err) // of a fixed size
		}
		if e.Type == (GUID{}) {
			out = append(out, Partition{})
			continue
		}
		name := e.Name[:]
		if i := slices.Index(name, 0); i >= 0 {
			name = name[:i]
		}
		out = append(out, Partition{e.Type, e.ID, string(utf16.Decode(name)), e.First, e.Last, e.Attributes})
		used = len(out)
	}
	return out[:used]
}

// Disk is what Write needs; an *os.File is one.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Write puts the table on the disk: one copy, a sync, the other copy, a sync.
// The copy that is written first is the one whose loss leaves a valid other: the
// backup while the primary is valid, else the primary. A backup in the midst of
// a disk that has grown is left where it is; nothing reads it any more.
func (t *Table) Write(d Disk) error {
	if err := t.validate(); err != nil {
		return fmt.Errorf("write a partition table: %w", err)
	}
	array := t.encodeEntries()
	last := t.sectors() - 1
	backup := []write{{(last - tableSectors) * Sector, array}, {last * Sector, t.encodeHeader(array, last, 1, last-tableSectors)}}
	primary := []write{{2 * Sector, array}, {Sector, t.encodeHeader(array, 1, last, 2)}, {0, t.protective(d)}}
	copies := [][]write{backup, primary}
	if _, err := readCopy(d, t.Size, 1); err != nil {
		copies = [][]write{primary, backup}
	}
	for _, c := range copies {
		for _, w := range c {
			if _, err := d.WriteAt(w.data, int64(w.at)); err != nil {
				return fmt.Errorf("write a partition table at byte %d: %w", w.at, err)
			}
		}
		if err := d.Sync(); err != nil {
			return fmt.Errorf("write a partition table: %w", err)
		}
	}
	return nil
}

type write struct {
	at   uint64
	data []byte
}

func (t *Table) encodeEntries() []byte {
	out := make([]byte, 0, entries*entrySize)
	for _, p := range t.Partitions {
		e := entry{Type: p.Type, ID: p.ID, First: p.First, Last: p.Last, Attributes: p.Attributes}
		if p.Type == (GUID{}) {
			e = entry{}
		} else {
			copy(e.Name[:], utf16.Encode([]rune(p.Name)))
		}
		out = encode(out, e)
	}
	return out[:entries*entrySize]
}

func (t *Table) encodeHeader(array []byte, self, other, at uint64) []byte {
	h := header{Signature: signature, Revision: revision, Size: headerSize, Self: self, Other: other,
		FirstUsable: firstUsable, LastUsable: t.lastUsable(), Disk: t.ID, Entries: at,
		Count: entries, EntrySize: entrySize, EntriesCRC: crc32.ChecksumIEEE(array)}
	h.CRC = crc32.ChecksumIEEE(encode(nil, h))
	return encode(make([]byte, 0, Sector), h)[:Sector]
}

// protective is an MBR with one partition over the whole disk. Boot code that is there stays.
func (t *Table) protective(d io.ReaderAt) []byte {
	b := make([]byte, Sector)
	if _, err := d.ReadAt(b[:440], 0); err != nil {
		clear(b)
	}
	copy(b[446:], []byte{0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	binary.LittleEndian.PutUint32(b[458:], uint32(min(t.sectors()-1, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func encode(to []byte, v any) []byte {
	out, err := binary.Append(to, binary.LittleEndian, v)
	if err != nil {
		panic(err) // the types have fixed sizes
	}
	return out
}
