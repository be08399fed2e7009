package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf16"
)

var (
	// ErrFormat is for what is no FAT32 as this package writes it.
	ErrFormat = errors.New("no FAT32 file system of the form that is repaired here")
	// ErrBeyond is for damage that leaves unsure which files there are.
	ErrBeyond = errors.New("damaged beyond what is repaired here")
)

// Disk is a partition.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

const (
	value    = 0x0fffffff // of a table's entry; the rest is kept as it is
	bad      = 0x0ffffff7
	clean    = 0x0c000000 // in entry 1: no power cut, no fault of reading
	dirtyAt  = 0x41       // in the boot sector; Linux' mark of a mounted volume
	copyAt   = 6 * sector // of the boot sector
	removed  = 0xe5
	maxDepth = 16
	maxFiles = 1 << 14
	maxTable = 1 << 22 // clusters: 16 MB of memory for each copy
)

// Mend repairs what power cuts do to a volume that is not mounted, and says what
// it did. Clusters that nothing leads to are free again; a file whose clusters are
// fewer than its size, or somebody else's, ends before; the second name of a rename
// that was cut in two goes, the one for which yields says so if it says so for one;
// both tables say the same, the count of free clusters is right and the marks of a
// power cut are gone. Of boot sector and copy that differ, the one by which less is
// damaged becomes the other.
//
// A file whose clusters are right, by the first table or by the second, is not
// touched, nor is anything where a folder is damaged: ErrBeyond. What is written
// goes from the names to the tables to the marks, so that after a power cut in it
// Mend goes on. It leaves out damaged folders and two different files of one name.
func Mend(d Disk, yields func(name string) bool) ([]string, error) {
	m, err := survey(d, yields)
	if err != nil {
		return nil, fmt.Errorf("repair FAT32: %w", err)
	}
	if err := m.write(); err != nil {
		return m.said, fmt.Errorf("repair FAT32: %w", err)
	}
	return m.said, nil
}

// survey plans the repair, by the boot sector or by its copy; nothing is written yet.
func survey(d Disk, yields func(string) bool) (*mender, error) {
	heads := make([]byte, copyAt+sector)
	if _, err := d.ReadAt(heads, 0); err != nil {
		return nil, err
	}
	m, err := plan(d, yields, 0)
	if alike(heads[:sector], heads[copyAt:]) {
		return m, err
	}
	copied, fault := plan(d, yields, copyAt)
	switch {
	case err != nil && fault != nil:
		return nil, err
	case err != nil, fault == nil && len(copied.said) < len(m.said):
		copied.say("the boot sector was damaged, and is written anew from its copy")
		copied.stale = []int64{0}
		return copied, nil
	}
	m.say("the copy of the boot sector was damaged, and is written anew")
	m.stale = []int64{copyAt}
	return m, nil
}

// Check says why Mend would not repair a volume: ErrFormat, ErrBeyond; nil where it
// would, or where nothing is to be repaired.
func Check(volume io.ReaderAt) error {
	_, err := survey(readOnly{volume}, func(string) bool { return false })
	return err
}

// alike tells whether two boot sectors say the same, but for the mark of a mounted volume.
func alike(a, b []byte) bool {
	return bytes.Equal(a[:dirtyAt], b[:dirtyAt]) && bytes.Equal(a[dirtyAt+1:], b[dirtyAt+1:])
}

func plan(d Disk, yields func(string) bool, headAt int64) (*mender, error) {
	m := &mender{d: d, yields: yields, headAt: headAt, cached: map[int64][]byte{}, edits: map[int64]bool{}, whole: map[uint32]*file{}}
	err := m.read()
	if err == nil {
		err = m.folder(m.root, "", 0)
	}
	if err != nil {
		return nil, err
	}
	m.resolve()
	return m, nil
}

type mender struct {
	geometry
	d      Disk
	yields func(string) bool
	said   []string

	headAt int64
	head   []byte  // boot sector
	stale  []int64 // where it is to be written, since something else stands there
	root   uint32
	raw    [2][]byte   // both tables as they are
	tables [2][]uint32 // as they are to be read
	next   []uint32    // the table to come; 0 where nobody has claimed a cluster

	files  []*file
	whole  map[uint32]*file // by first cluster
	cached map[int64][]byte // of folders, by offset
	edits  map[int64]bool   // sectors that changed
	rim    []int64          // edits in their order
}

// file is a directory entry of a file, with the long name before it.
type file struct {
	path        string
	first, size uint32
	slots       []int64 // the short one last
}

// read takes the volume's shape from the boot sector, and reads both tables.
func (m *mender) read() error {
	m.head = make([]byte, sector)
	if _, err := m.d.ReadAt(m.head, m.headAt); err != nil {
		return err
	}
	var b boot
	if err := binary.Read(bytes.NewReader(m.head), binary.LittleEndian, &b); err != nil {
		return err
	}
	per := int64(b.SectorsPerCluster)
	m.geometry = geometry{sectors: int64(b.Sectors), perCluster: per, tableSize: int64(b.TableSize)}
	if m.head[510] != 0x55 || m.head[511] != 0xaa || b.BytesPerSector != sector || per == 0 || per > 128 || per&(per-1) != 0 || b.Reserved != reserved ||
		b.Tables != 2 || b.RootEntries != 0 || b.Sectors16 != 0 || b.TableSize16 != 0 || b.Flags != 0 || b.Version != 0 || b.Information != 1 {
		return ErrFormat
	}
	m.clusters = (m.sectors - reserved - 2*m.tableSize) / per
	m.root = b.Root
	if m.clusters < minClusters || m.clusters > maxTable || m.clusters+2 > m.tableSize*sector/4 || m.tableSize*sector > 8*maxTable || !m.inside(m.root) {
		return ErrFormat
	}
	if _, err := m.d.ReadAt(make([]byte, 1), m.sectors*sector-1); err != nil {
		return fmt.Errorf("%w: it ends before its end: %w", ErrFormat, err)
	}
	var failed [2]error
	for i := range m.raw {
		m.raw[i] = make([]byte, m.tableSize*sector)
		_, failed[i] = m.d.ReadAt(m.raw[i], m.tableAt(i))
		if failed[i] == nil && m.raw[i][0] != b.Media {
			failed[i] = errors.New("it does not begin as one")
		}
		m.tables[i] = make([]uint32, m.clusters+2)
		for c := range m.tables[i] {
			m.tables[i][c] = binary.LittleEndian.Uint32(m.raw[i][4*c:])
		}
	}
	switch {
	case failed[0] != nil && failed[1] != nil:
		return fmt.Errorf("%w: both tables: %w, %w", ErrBeyond, failed[0], failed[1])
	case failed[0] != nil:
		m.tables[0] = m.tables[1]
	case failed[1] != nil:
		m.tables[1] = m.tables[0]
	}
	m.next = make([]uint32, m.clusters+2)
	copy(m.next, m.tables[0][:2])
	return nil
}

func (m *mender) tableAt(i int) int64 { return (reserved + int64(i)*m.tableSize) * sector }

func (m *mender) inside(c uint32) bool { return c >= 2 && int64(c) < m.clusters+2 }

// chain follows a table from first, up to most clusters, as far as it leads to
// clusters that nobody has; ended tells that it comes to its end there.
func (m *mender) chain(table []uint32, first uint32, most int64) (list []uint32, ended bool) {
	seen := map[uint32]bool{}
	for c := first; m.inside(c) && m.next[c] == 0 && !seen[c] && table[c]&value != 0; c = table[c] & value {
		if int64(len(list)) == most {
			return list, false
		}
		list, seen[c] = append(list, c), true
		if table[c]&value > bad {
			return list, true
		}
	}
	return list, false
}

// claim puts a chain into the table to come.
func (m *mender) claim(table, list []uint32) {
	for i, c := range list {
		keep := table[c] &^ value
		switch last := i == len(list)-1; {
		case !last:
			m.next[c] = keep | list[i+1]
		case table[c]&value > bad:
			m.next[c] = table[c]
		default:
			m.next[c] = keep | endOfChain
		}
	}
}

// longest is the chain by the table that says more, the first one where both end.
func (m *mender) longest(first uint32, most int64) (table, list []uint32) {
	list, ended := m.chain(m.tables[0], first, most)
	if other, whole := m.chain(m.tables[1], first, most); !ended && (whole || len(other) > len(list)) {
		return m.tables[1], other
	}
	return m.tables[0], list
}

// folder walks a folder and what is below it; its clusters are claimed at once.
func (m *mender) folder(first uint32, name string, depth int) error {
	table, list := m.longest(first, m.clusters)
	if len(list) == 0 || depth > maxDepth {
		return fmt.Errorf("%w: folder %q", ErrBeyond, name)
	}
	m.claim(table, list)
	var at []int64 // its slots
	for _, c := range list {
		cluster := make([]byte, m.clusterSize())
		if _, err := m.d.ReadAt(cluster, m.offset(c)); err != nil {
			return err
		}
		for i := int64(0); i < m.perCluster; i++ {
			m.cached[m.offset(c)+i*sector] = cluster[i*sector:][:sector]
		}
		for i := int64(0); i < m.clusterSize(); i += slotSize {
			at = append(at, m.offset(c)+i)
		}
	}
	if name != "" {
		for i, dots := range []string{".          ", "..         "} {
			if !bytes.HasPrefix(m.slot(at[i]), []byte(dots)) {
				return fmt.Errorf("%w: folder %q does not begin as one", ErrBeyond, name)
			}
		}
		at = at[2:]
	}
	var l longName
	for _, a := range at {
		b := m.slot(a)
		if b[0] == 0 {
			break
		}
		if b[0] != removed && b[11] == 0x0f {
			m.orphans(l.add(a, b))
			continue
		}
		text, slots, left := l.take(b)
		m.orphans(left)
		if b[0] == removed || b[11]&volume != 0 {
			continue
		}
		f := &file{path: path.Join(name, text), slots: append(slots, a), size: binary.LittleEndian.Uint32(b[28:]),
			first: uint32(binary.LittleEndian.Uint16(b[20:]))<<16 | uint32(binary.LittleEndian.Uint16(b[26:]))}
		if b[11]&directory == 0 {
			if m.files = append(m.files, f); len(m.files) > maxFiles {
				return fmt.Errorf("%w: more than %d files", ErrBeyond, maxFiles)
			}
			continue
		}
		if _, list := m.longest(f.first, 1); len(list) == 0 { // it was made, or removed, when the power went
			m.say("folder %s had no content and is gone", f.path)
			m.remove(f)
			continue
		}
		if err := m.folder(f.first, f.path, depth+1); err != nil {
			return err
		}
	}
	m.orphans(l.slots)
	return nil
}

// longName gathers the pieces of a long name.
type longName struct {
	slots []int64
	text  []uint16
	order byte // of the newest piece
	sum   byte
}

// add takes a piece, and returns slots that belong to nothing.
func (l *longName) add(at int64, b []byte) (left []int64) {
	order := b[0] &^ 0x40
	if b[0]&0x40 != 0 {
		left = l.slots
		*l = longName{order: order, sum: b[13]}
	} else if order != l.order-1 || b[13] != l.sum || len(l.slots) == 0 {
		left = append(l.slots, at)
		*l = longName{}
		return left
	}
	if order == 0 || order > 20 {
		left = append(append(left, l.slots...), at)
		*l = longName{}
		return left
	}
	var piece []uint16
	for _, part := range [][]byte{b[1:11], b[14:26], b[28:32]} {
		for i := 0; i < len(part); i += 2 {
			piece = append(piece, binary.LittleEndian.Uint16(part[i:]))
		}
	}
	l.slots, l.text, l.order = append(l.slots, at), append(piece, l.text...), order
	return left
}

// take ends the name at a short entry and begins the next one.
func (l *longName) take(short []byte) (name string, slots, left []int64) {
	defer func() { *l = longName{} }()
	var sum byte
	for _, c := range short[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if l.order != 1 || l.sum != sum || short[0] == removed || short[11]&volume != 0 {
		name = strings.TrimRight(string(short[:8]), " ")
		if extension := strings.TrimRight(string(short[8:11]), " "); extension != "" {
			name += "." + extension
		}
		return name, nil, l.slots
	}
	if end := slices.Index(l.text, 0); end >= 0 {
		l.text = l.text[:end]
	}
	return string(utf16.Decode(l.text)), l.slots, nil
}

func (m *mender) slot(at int64) []byte {
	return m.cached[at&^(sector-1)][at&(sector-1):][:slotSize]
}

// edit gives a slot to be changed.
func (m *mender) edit(at int64) []byte {
	if s := at &^ (sector - 1); !m.edits[s] {
		m.edits[s] = true
		m.rim = append(m.rim, s)
	}
	return m.slot(at)
}

func (m *mender) orphans(slots []int64) {
	for _, at := range slots {
		m.edit(at)[0] = removed
	}
	if len(slots) > 0 {
		m.say("a part of a name that no file has is gone")
	}
}

// remove takes a name away: the short one first, since without it the rest is no name.
func (m *mender) remove(f *file) {
	for _, at := range slices.Backward(f.slots) {
		m.edit(at)[0] = removed
	}
}

func (m *mender) say(format string, args ...any) {
	m.said = append(m.said, fmt.Sprintf(format, args...))
}

// resolve decides for each file which clusters it has. Those that are right come first.
func (m *mender) resolve() {
	var rest []*file
	for _, f := range m.files {
		if m.twin(f) {
			continue
		}
		if f.size == 0 && f.first == 0 {
			continue
		}
		done := false
		for _, table := range m.tables {
			if list, ended := m.chain(table, f.first, m.need(f)); !done && ended && int64(len(list)) == m.need(f) {
				m.claim(table, list)
				m.whole[f.first], done = f, true
			}
		}
		if !done {
			rest = append(rest, f)
		}
	}
	for _, f := range rest {
		if m.twin(f) {
			continue
		}
		table, list := m.longest(f.first, m.need(f))
		m.claim(table, list)
		size, first := min(int64(f.size), int64(len(list))*m.clusterSize()), f.first
		if len(list) == 0 {
			first = 0
		} else {
			m.whole[f.first] = f
		}
		if size == int64(f.size) && first == f.first {
			continue // it had clusters behind its end
		}
		m.say("file %s ended in the middle: %d bytes of %d are left", f.path, size, f.size)
		f.size = uint32(size)
		b := m.edit(f.slots[len(f.slots)-1])
		binary.LittleEndian.PutUint32(b[28:], f.size)
		binary.LittleEndian.PutUint16(b[20:], uint16(first>>16))
		binary.LittleEndian.PutUint16(b[26:], uint16(first))
	}
}

// need is how many clusters the file should have.
func (m *mender) need(f *file) int64 {
	return (int64(f.size) + m.clusterSize() - 1) / m.clusterSize()
}

// twin finds the other name of a file whose rename was cut in two, and leaves one.
func (m *mender) twin(f *file) bool {
	old := m.whole[f.first]
	if old == nil || old.size != f.size {
		return false
	}
	goes, stays := f, old
	if m.yields != nil && m.yields(path.Base(old.path)) && !m.yields(path.Base(f.path)) {
		goes, stays = old, f
		m.whole[f.first] = f
	}
	m.say("%s was also called %s", stays.path, goes.path)
	m.remove(goes)
	return true
}

// write writes what differs: names, first table, second, and then the marks.
func (m *mender) write() error {
	for _, at := range m.rim {
		if _, err := m.d.WriteAt(m.cached[at], at); err != nil {
			return err
		}
	}
	if len(m.rim) > 0 {
		if err := m.d.Sync(); err != nil {
			return err
		}
	}
	free, first, freed := m.count()
	if freed > 0 {
		m.say("%d clusters that no file had are free again", freed)
	}
	for i := range m.raw {
		if err := m.writeTable(i); err != nil {
			return err
		}
	}
	return m.writeMarks(free, first)
}

// count ends the table to come: what nobody has claimed is free, or bad.
func (m *mender) count() (free int64, first int, freed int) {
	for c := 2; c < len(m.next); c++ {
		if m.next[c] != 0 {
			continue
		}
		now := m.tables[0][c]
		if now&value == bad {
			m.next[c] = now
			continue
		}
		if now&value != 0 {
			freed++
		}
		if first == 0 {
			first = c
		}
		free++
		m.next[c] = now &^ value
	}
	return free, first, freed
}

func (m *mender) writeTable(i int) error {
	want := slices.Clone(m.raw[i])
	for c, v := range m.next {
		binary.LittleEndian.PutUint32(want[4*c:], v)
	}
	changed := false
	for at := int64(0); at < int64(len(want)); at += sector {
		if bytes.Equal(want[at:][:sector], m.raw[i][at:][:sector]) {
			continue
		}
		changed = true
		if _, err := m.d.WriteAt(want[at:][:sector], m.tableAt(i)+at); err != nil {
			return err
		}
	}
	m.raw[i] = want
	if !changed {
		return nil
	}
	return m.d.Sync()
}

// writeMarks says that all is well, once it is.
func (m *mender) writeMarks(free int64, first int) error {
	writes := map[int64][]byte{}
	info := make([]byte, sector)
	if _, err := m.d.ReadAt(info, sector); err != nil {
		return err
	}
	le := binary.LittleEndian
	if want := information(free, max(first, 2)); le.Uint32(info) != le.Uint32(want) || le.Uint32(info[484:]) != le.Uint32(want[484:]) || info[510] != 0x55 || info[511] != 0xaa || le.Uint32(info[488:]) != uint32(free) {
		m.say("the count of free clusters was wrong")
		writes[sector] = want
	}
	marked := m.head[dirtyAt]&3 != 0
	if marked {
		m.head[dirtyAt] &^= 3
		writes[0] = m.head
	}
	for i := range m.raw {
		if one := le.Uint32(m.raw[i][4:]); one&clean != clean {
			marked = true
			le.PutUint32(m.raw[i][4:], one|clean)
			writes[m.tableAt(i)] = m.raw[i][:sector]
		}
	}
	if marked {
		m.say("it was not unmounted")
	}
	for _, at := range m.stale {
		writes[at] = m.head
	}
	if len(writes) == 0 {
		return nil
	}
	for _, at := range slices.Backward(slices.Sorted(maps.Keys(writes))) { // the boot sector last
		if _, err := m.d.WriteAt(writes[at], at); err != nil {
			return err
		}
	}
	return m.d.Sync()
}
