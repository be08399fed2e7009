// Package fat writes a whole FAT32 file system, as an EFI system partition needs
// one, from files in memory.
//
// It promises the same bytes for the same files, long names, both allocation
// tables and a right count of free clusters, and that every cluster that no file
// uses is left unwritten, so that a sparse file stays sparse and an old
// partition needs no wiping first. [Mend] repairs what power cuts leave, and a
// damaged boot sector by its copy; [Locate] finds the bytes of a file, for who
// damages one on purpose. It leaves out reading and changing: a machine mounts its
// ESP by the kernel.
package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	sector      = 512
	reserved    = 32
	minClusters = 65525 // fewer, and readers take it for FAT16
	maxClusters = 0x0ffffff0
	endOfChain  = 0x0fffffff
	slotSize    = 32
	slotChars   = 13 // of a long name
	directory   = 0x10
	archive     = 0x20
	volume      = 0x08
	date        = 1<<5 | 1 // 1 January 1980, the first day that FAT knows
)

// Volume is what is written.
type Volume struct {
	Size   int64             // of the partition, in bytes
	Start  int64             // where the partition begins on its disk, in bytes
	Label  string            // at most 11 characters of A-Z, 0-9, - and _
	Serial uint32            // volume ID
	Files  map[string][]byte // by path with slashes; folders come by themselves
}

// Write writes the volume; its first byte goes to offset 0 of w. Timestamps are those of 1 January 1980.
func (v Volume) Write(w io.WriterAt) error {
	if err := v.check(); err != nil {
		return err
	}
	g, err := geometryOf(v.Size)
	if err != nil {
		return err
	}
	l := layer{geometry: g, table: make([]uint32, 2, 1024)}
	l.table[0], l.table[1] = 0x0ffffff8, endOfChain
	root := tree(v.Files)
	root.cluster = l.reserve(root.size(true))
	if err := l.place(root); err != nil {
		return err
	}
	if err := l.write(w, root, 0, v.Label); err != nil {
		return err
	}
	return v.writeHead(w, l)
}

func (v Volume) check() error {
	if len(v.Label) > 11 || strings.Trim(v.Label, upper+"-_") != "" {
		return fmt.Errorf("volume label %q: want at most 11 characters of A-Z, 0-9, - and _", v.Label)
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(v.Files)) {
		if path.Clean("/"+name) != "/"+name || name == "" {
			return fmt.Errorf("file %q: want a clean path such as EFI/BOOT/BOOTX64.EFI", name)
		}
		if int64(len(v.Files[name])) > 1<<32-1 {
			return fmt.Errorf("file %q: larger than 4 GiB", name)
		}
		for at := name; at != "."; at = path.Dir(at) {
			base := path.Base(at)
			if n := len(utf16.Encode([]rune(base))); n > 255 || strings.ContainsAny(base, "\\:*?\"<>|") || strings.TrimRight(base, ". ") != base || strings.ContainsFunc(base, func(r rune) bool { return r < ' ' }) {
				return fmt.Errorf("file %q: %q is no name on this file system", name, base)
			}
			fold := strings.ToUpper(at)
			if old, ok := seen[fold]; ok && (old != at || at == name) {
				return fmt.Errorf("files %q and %q: one name on this file system, or a file as folder", old, at)
			}
			seen[fold] = at
			if _, isFile := v.Files[at]; isFile && at != name {
				return fmt.Errorf("file %q: %q is a file and a folder", name, at)
			}
		}
	}
	return nil
}

// geometry is where the parts of the file system stand, in sectors.
type geometry struct {
	sectors, perCluster, tableSize, clusters int64
}

// geometryOf takes the largest clusters, of 4096 bytes at most, with which there are enough for FAT32.
func geometryOf(size int64) (geometry, error) {
	for per := int64(8); per >= 1; per /= 2 {
		g := geometry{sectors: size / sector, perCluster: per}
		// A table of n sectors has room for 128 n clusters; two of them and the clusters fill the partition.
		g.tableSize = (g.sectors - reserved + 2*per + 128*per + 1) / (128*per + 2)
		g.clusters = (g.sectors - reserved - 2*g.tableSize) / per
		if g.clusters >= minClusters+16 && g.clusters <= maxClusters && g.sectors < 1<<32 {
			return g, nil
		}
	}
	return geometry{}, fmt.Errorf("FAT32 on %d bytes: want between 34 MB and 2 TB", size)
}

func (g geometry) clusterSize() int64 { return g.perCluster * sector }

// offset is where a cluster stands, in bytes.
func (g geometry) offset(cluster uint32) int64 {
	return (reserved + 2*g.tableSize + int64(cluster-2)*g.perCluster) * sector
}

// node is a file or a folder.
type node struct {
	name     string
	data     []byte
	folder   bool
	children []*node // by name
	cluster  uint32
}

func tree(files map[string][]byte) *node {
	root := &node{folder: true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		at := root
		parts := strings.Split(name, "/")
		for i, part := range parts {
			n := slices.IndexFunc(at.children, func(c *node) bool { return c.name == part })
			if n < 0 {
				n = len(at.children)
				at.children = append(at.children, &node{name: part, folder: i < len(parts)-1})
			}
			at = at.children[n]
		}
		at.data = files[name]
	}
	return root
}

// size is how many bytes the node takes in clusters.
func (n *node) size(root bool) int64 {
	if !n.folder {
		return int64(len(n.data))
	}
	slots := 2 // . and ..
	if root {
		slots = 1 // the label
	}
	for i, c := range n.children {
		slots += 1 + longSlots(c.name, n.shortName(i))
	}
	return int64(slots) * slotSize
}

// layer places nodes on clusters.
type layer struct {
	geometry
	table []uint32
}

// reserve chains enough clusters for size bytes and returns the first; 0 for none.
func (l *layer) reserve(size int64) uint32 {
	if size == 0 {
		return 0
	}
	first := uint32(len(l.table))
	n := (size + l.clusterSize() - 1) / l.clusterSize()
	for i := int64(1); i < n; i++ {
		l.table = append(l.table, uint32(len(l.table))+1)
	}
	l.table = append(l.table, endOfChain)
	return first
}

func (l *layer) place(n *node) error {
	for _, c := range n.children {
		c.cluster = l.reserve(c.size(false))
		if int64(len(l.table)) > l.clusters+2 {
			return fmt.Errorf("the files do not fit into %d clusters of %d bytes", l.clusters, l.clusterSize())
		}
		if err := l.place(c); err != nil {
			return err
		}
	}
	return nil
}

// write writes the content of n and of what is below it; parent is 0 for the root and what is in it.
func (l *layer) write(w io.WriterAt, n *node, parent uint32, label string) error {
	data := n.data
	if n.folder {
		data = n.encode(parent, label)
	}
	if len(data) > 0 {
		data = append(data[:len(data):len(data)], make([]byte, -int64(len(data))&(l.clusterSize()-1))...)
		if _, err := w.WriteAt(data, l.offset(n.cluster)); err != nil {
			return fmt.Errorf("write %q: %w", n.name, err)
		}
	}
	self := n.cluster
	if n.name == "" {
		self = 0 // the root's children name it by 0
	}
	for _, c := range n.children {
		if err := l.write(w, c, self, ""); err != nil {
			return err
		}
	}
	return nil
}

// slot is a directory entry.
type slot struct {
	Name                  [11]byte
	Attributes, _, Tenths byte
	CTime, CDate, ADate   uint16
	ClusterHigh           uint16
	MTime, MDate          uint16
	ClusterLow            uint16
	Size                  uint32
}

func newSlot(name [11]byte, attributes byte, cluster uint32, size int) slot {
	return slot{Name: name, Attributes: attributes, CDate: date, ADate: date, MDate: date,
		ClusterHigh: uint16(cluster >> 16), ClusterLow: uint16(cluster), Size: uint32(size)}
}

func (n *node) encode(parent uint32, label string) []byte {
	var out []byte
	if n.name == "" {
		if label == "" {
			label = "NO NAME"
		}
		out = encode(out, newSlot([11]byte([]byte(fmt.Sprintf("%-11s", label))), volume, 0, 0))
	} else {
		out = encode(out, newSlot([11]byte([]byte(".          ")), directory, n.cluster, 0))
		out = encode(out, newSlot([11]byte([]byte("..         ")), directory, parent, 0))
	}
	for i, c := range n.children {
		short := n.shortName(i)
		out = append(out, encodeLong(c.name, short)...)
		attributes, size := byte(archive), len(c.data)
		if c.folder {
			attributes, size = directory, 0
		}
		out = encode(out, newSlot(short, attributes, c.cluster, size))
	}
	return out
}

const upper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// plain returns the name of 8 and 3 characters that needs no long name.
func plain(name string) (short [11]byte, ok bool) {
	base, extension, dot := strings.Cut(name, ".")
	if len(base) == 0 || len(base) > 8 || len(extension) > 3 || dot && extension == "" || strings.Trim(base+extension, upper+"-_") != "" {
		return short, false
	}
	return [11]byte([]byte(fmt.Sprintf("%-8s%-3s", base, extension))), true
}

// shortName of child i: its own, or one that no other child has, made of its number.
func (n *node) shortName(i int) [11]byte {
	if short, ok := plain(n.children[i].name); ok {
		return short
	}
	keep := func(s string, most int) string {
		s = strings.Map(func(r rune) rune {
			if strings.ContainsRune(upper, r) {
				return r
			}
			return -1
		}, strings.ToUpper(s))
		return s[:min(most, len(s))]
	}
	base, extension := n.children[i].name, ""
	if at := strings.LastIndexByte(base, '.'); at > 0 {
		base, extension = base[:at], base[at+1:]
	}
	tail := fmt.Sprintf("~%d", i+1) // ~ is in no plain name, and the number in no other
	return [11]byte([]byte(fmt.Sprintf("%-8s%-3s", keep(base, 8-len(tail))+tail, keep(extension, 3))))
}

func longSlots(name string, short [11]byte) int {
	if s, ok := plain(name); ok && s == short {
		return 0
	}
	return (len(utf16.Encode([]rune(name))) + slotChars - 1) / slotChars
}

// long is a piece of a long name.
type long struct {
	Order            byte
	A                [5]uint16
	Attributes, Type byte
	Sum              byte
	B                [6]uint16
	Cluster          uint16
	C                [2]uint16
}

func encodeLong(name string, short [11]byte) []byte {
	n := longSlots(name, short)
	chars := utf16.Encode([]rune(name))
	if len(chars)%slotChars != 0 {
		chars = append(chars, 0)
	}
	for len(chars)%slotChars != 0 {
		chars = append(chars, 0xffff)
	}
	var sum byte
	for _, c := range short {
		sum = sum>>1 | sum<<7
		sum += c
	}
	var out []byte
	for i := n; i >= 1; i-- {
		piece := chars[(i-1)*slotChars:]
		s := long{Order: byte(i), Attributes: 0x0f, Sum: sum}
		if i == n {
			s.Order |= 0x40
		}
		copy(s.A[:], piece)
		copy(s.B[:], piece[5:])
		copy(s.C[:], piece[11:])
		out = encode(out, s)
	}
	return out
}

// writeHead writes boot sectors and tables, after all else.
func (v Volume) writeHead(w io.WriterAt, l layer) error {
	free := l.clusters + 2 - int64(len(l.table))
	if free < 0 {
		return fmt.Errorf("the files do not fit into %d clusters of %d bytes", l.clusters, l.clusterSize())
	}
	table := make([]byte, 0, l.tableSize*sector)
	for _, next := range l.table {
		table = binary.LittleEndian.AppendUint32(table, next)
	}
	table = table[:l.tableSize*sector]
	head := make([]byte, reserved*sector)
	for _, at := range []int64{0, 6} { // the boot sector, its information sector, and a copy of both
		copy(head[at*sector:], v.bootSector(l.geometry))
		copy(head[(at+1)*sector:], information(free, len(l.table)))
	}
	for _, part := range []struct {
		at   int64
		data []byte
	}{{(reserved + l.tableSize) * sector, table}, {reserved * sector, table}, {0, head}} {
		if _, err := w.WriteAt(part.data, part.at); err != nil {
			return fmt.Errorf("write FAT32 structures: %w", err)
		}
	}
	return nil
}

type boot struct {
	Jump                      [3]byte
	OEM                       [8]byte
	BytesPerSector            uint16
	SectorsPerCluster         byte
	Reserved                  uint16
	Tables                    byte
	RootEntries, Sectors16    uint16
	Media                     byte
	TableSize16, Track, Heads uint16
	Hidden, Sectors           uint32
	TableSize                 uint32
	Flags, Version            uint16
	Root                      uint32
	Information, Backup       uint16
	_                         [12]byte
	Drive, _, Extended        byte
	Serial                    uint32
	Label                     [11]byte
	Type                      [8]byte
}

func (v Volume) bootSector(g geometry) []byte {
	label := v.Label
	if label == "" {
		label = "NO NAME"
	}
	b := boot{Jump: [3]byte{0xeb, 0x58, 0x90}, OEM: [8]byte([]byte("HOLDFAST")), BytesPerSector: sector,
		SectorsPerCluster: byte(g.perCluster), Reserved: reserved, Tables: 2, Media: 0xf8, Track: 32, Heads: 64,
		Hidden: uint32(v.Start / sector), Sectors: uint32(g.sectors), TableSize: uint32(g.tableSize), Root: 2,
		Information: 1, Backup: 6, Drive: 0x80, Extended: 0x29, Serial: v.Serial,
		Label: [11]byte([]byte(fmt.Sprintf("%-11s", label))), Type: [8]byte([]byte("FAT32   "))}
	out := encode(make([]byte, 0, sector), b)[:sector]
	out[0x5a], out[0x5b] = 0xeb, 0xfe // who boots it by BIOS waits for ever
	out[510], out[511] = 0x55, 0xaa
	return out
}

func information(free int64, next int) []byte {
	out := make([]byte, sector)
	le := binary.LittleEndian
	le.PutUint32(out, 0x41615252)
	le.PutUint32(out[484:], 0x61417272)
	le.PutUint32(out[488:], uint32(free))
	le.PutUint32(out[492:], uint32(next))
	out[510], out[511] = 0x55, 0xaa
	return out
}

func encode(to []byte, v any) []byte {
	out, err := binary.Append(to, binary.LittleEndian, v)
	if err != nil {
		panic(err) // the types have fixed sizes
	}
	return out
}
