package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"index/suffixarray"
	"io"
	"sort"
)

// suffixes is the suffix array of data. The standard library makes it in linear
// time and shows it to nobody, but writes it: its serial form, which stays readable
// from version to version, is read here as it comes.
func suffixes(data []byte) ([]int32, error) {
	if len(data) == 0 {
		return nil, nil
	}
	p := &saveReader{skip: binary.MaxVarintLen64 + len(data), sa: make([]int32, 0, len(data))}
	if err := suffixarray.New(data).Write(p); err != nil {
		return nil, fmt.Errorf("suffix array: %w", err)
	}
	if len(p.sa) != len(data) {
		return nil, fmt.Errorf("suffix array: %d places of %d bytes", len(p.sa), len(data))
	}
	return p.sa, nil
}

// saveReader is what suffixarray.Index.Write writes to: the length and the data,
// which are skipped, then blocks of numbers behind their size.
type saveReader struct {
	skip int
	sa   []int32
	buf  []byte
}

func (s *saveReader) Write(p []byte) (int, error) {
	n := len(p)
	if k := min(s.skip, len(p)); k > 0 {
		p, s.skip = p[k:], s.skip-k
	}
	s.buf = append(s.buf, p...)
	for len(s.buf) >= binary.MaxVarintLen64 {
		size, k := binary.Varint(s.buf)
		if k <= 0 || size < binary.MaxVarintLen64 {
			return 0, errors.New("its form is not known")
		}
		if int64(len(s.buf)) < size {
			break
		}
		for block := s.buf[binary.MaxVarintLen64:size]; len(block) > 0; {
			v, k := binary.Uvarint(block)
			if k <= 0 {
				return 0, errors.New("its form is not known")
			}
			block = block[k:]
			s.sa = append(s.sa, int32(v))
		}
		s.buf = append(s.buf[:0], s.buf[size:]...)
	}
	return n, nil
}

var _ io.Writer = (*saveReader)(nil)

// matcher finds the bytes of one old file in new ones. It may be used from several
// goroutines.
type matcher struct {
	old    []byte
	sa     []int32
	starts []int32 // in sa, of the suffixes that begin with these three bytes; nil: not worth it
}

func newMatcher(old []byte) (*matcher, error) {
	m := &matcher{old: old}
	var err error
	if m.sa, err = suffixes(old); err != nil || len(old) < 1<<20 {
		return m, err
	}
	m.starts = make([]int32, 1<<24+2)
	for i := range old {
		m.starts[first(old[i:])+1]++
	}
	for i := range m.starts[1:] {
		m.starts[i+1] += m.starts[i]
	}
	return m, nil
}

// first is the number that the first three bytes are; where one ends before, zeros
// follow, which keeps the order.
func first(b []byte) int {
	n := 0
	for i := range 3 {
		n <<= 8
		if i < len(b) {
			n |= int(b[i])
		}
	}
	return n
}

// searched is how much of what is sought decides where it is found.
const searched = 1 << 10

// longest finds the longest piece of old that s begins with.
func (m *matcher) longest(s []byte) (at, n int) {
	key := s[:min(len(s), searched)]
	from, to := 0, len(m.sa)
	if m.starts != nil && len(key) >= 3 {
		from, to = int(m.starts[first(key)]), int(m.starts[first(key)+1])
	}
	i := from + sort.Search(to-from, func(i int) bool {
		old := m.old[m.sa[from+i]:]
		return bytes.Compare(old[:min(len(old), len(key))], key) >= 0
	})
	for _, j := range []int{i, i - 1} {
		if j < 0 || j >= len(m.sa) {
			continue
		}
		if k := common(m.old[m.sa[j]:], s); k > n {
			at, n = int(m.sa[j]), k
		}
	}
	return at, n
}

func common(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n && binary.LittleEndian.Uint64(a[i:]) == binary.LittleEndian.Uint64(b[i:]); i += 8 {
	}
	for ; i < n && a[i] == b[i]; i++ {
	}
	return i
}

const (
	// aligned bytes in a row are taken without a search: code that has moved as one.
	aligned = 24
	// better is by how much another place must fit better to be worth a jump.
	better = 8
)

// match says how to make data of the old bytes: the way of bsdiff (Colin Percival,
// "Naive differences of executable code"). A piece that fits in most bytes is taken
// with its differences, since code that moved differs in its addresses alone.
func (m *matcher) match(data []byte) []step {
	if len(m.old) == 0 {
		return literal(len(data))
	}
	var steps []step
	var scan, length, pos int
	var lastScan, lastPos, offset int
	alignedRun := func(at int) int {
		if o := at + offset; o >= 0 && o < len(m.old) {
			return common(m.old[o:], data[at:])
		}
		return 0
	}
	same := func(at int) bool {
		o := at + offset
		return o >= 0 && o < len(m.old) && m.old[o] == data[at]
	}
	for scan < len(data) {
		score := 0
		scan += length
		for seen := scan; scan < len(data); scan++ {
			if run := alignedRun(scan); run >= aligned {
				pos, length, score = scan+offset, run, run
				break
			}
			pos, length = m.longest(data[scan:])
			for ; seen < scan+length; seen++ {
				if same(seen) {
					score++
				}
			}
			if length == score && length != 0 || length > score+better {
				break
			}
			if same(scan) {
				score--
			}
		}
		if length == score && scan < len(data) {
			continue
		}
		// The piece before ends, and another begins: where between them is decided by
		// what each fits.
		forward := 0
		for i, fit, best := 0, 0, 0; lastScan+i < scan && lastPos+i < len(m.old); {
			if m.old[lastPos+i] == data[lastScan+i] {
				fit++
			}
			i++
			if 2*fit-i > 2*best-forward {
				best, forward = fit, i
			}
		}
		backward := 0
		if scan < len(data) {
			for i, fit, best := 1, 0, 0; scan >= lastScan+i && pos >= i; i++ {
				if m.old[pos-i] == data[scan-i] {
					fit++
				}
				if 2*fit-i > 2*best-backward {
					best, backward = fit, i
				}
			}
		}
		if overlap := lastScan + forward - (scan - backward); overlap > 0 {
			var fit, best, cut int
			for i := range overlap {
				if data[lastScan+forward-overlap+i] == m.old[lastPos+forward-overlap+i] {
					fit++
				}
				if data[scan-backward+i] == m.old[pos-backward+i] {
					fit--
				}
				if fit > best {
					best, cut = fit, i+1
				}
			}
			forward += cut - overlap
			backward -= cut
		}
		if s := (step{old: int64(lastPos), added: forward, literal: scan - backward - (lastScan + forward)}); s.added+s.literal > 0 {
			steps = append(steps, s)
		}
		lastScan, lastPos, offset = scan-backward, pos-backward, pos-scan
	}
	return steps
}

func literal(n int) []step {
	if n == 0 {
		return nil
	}
	return []step{{literal: n}}
}
