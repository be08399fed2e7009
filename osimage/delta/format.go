package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

const (
	magic = "HFDELTA1"

	// DefaultChunk balances memory on the machine (4 of them) and size.
	DefaultChunk = 4 << 20
	leastChunk   = 4 << 10
	mostChunk    = 8 << 20
	mostImage    = 8 << 30
	mostChunks   = 1 << 16

	fixedHead = len(magic) + 4 + 8 + 8
	perChunk  = 4 + sha256.Size
)

// stepsMost, unpackedMost and packedMost bound one chunk; what Make writes is below them.
func stepsMost(chunk int) int    { return chunk / 4 }
func unpackedMost(chunk int) int { return chunk + stepsMost(chunk) }
func packedMost(chunk int) int   { return unpackedMost(chunk) + 4096 }

// ErrFormat: the bytes are no delta, or a damaged one.
var ErrFormat = errors.New("not a delta, or a damaged one")

// Delta is an open delta.
type Delta struct {
	r        io.ReaderAt
	chunk    int
	old, new int64
	chunks   []chunkHead
}

type chunkHead struct {
	offset int64 // of the packed bytes
	packed int
	digest [sha256.Size]byte // of what it makes
}

// OldSize is the size of the image that the delta begins with; 0: of none.
func (d *Delta) OldSize() int64 { return d.old }

// NewSize is the size of the image that it makes.
func (d *Delta) NewSize() int64 { return d.new }

// Open reads the head of a delta of size bytes. It holds 48 bytes for each chunk.
func Open(r io.ReaderAt, size int64) (*Delta, error) {
	head := make([]byte, fixedHead)
	if size < int64(fixedHead) {
		return nil, fmt.Errorf("%w: %d bytes", ErrFormat, size)
	}
	if err := readAt(r, head, 0); err != nil {
		return nil, fmt.Errorf("read a delta: %w", err)
	}
	if string(head[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it begins with %q", ErrFormat, head[:len(magic)])
	}
	le := binary.LittleEndian
	chunk, oldSize, newSize := le.Uint32(head[8:]), le.Uint64(head[12:]), le.Uint64(head[20:])
	if chunk < leastChunk || chunk > mostChunk || bits.OnesCount32(chunk) != 1 || oldSize > mostImage || newSize == 0 || newSize > mostImage {
		return nil, fmt.Errorf("%w: chunks of %d bytes, from %d bytes to %d", ErrFormat, chunk, oldSize, newSize)
	}
	d := &Delta{r: r, chunk: int(chunk), old: int64(oldSize), new: int64(newSize)}
	n := (d.new + int64(chunk) - 1) / int64(chunk)
	rest := n*perChunk + sha256.Size
	if n > mostChunks || size < int64(fixedHead)+rest {
		return nil, fmt.Errorf("%w: %d chunks in %d bytes", ErrFormat, n, size)
	}
	table := make([]byte, rest)
	if err := readAt(r, table, int64(fixedHead)); err != nil {
		return nil, fmt.Errorf("read a delta: %w", err)
	}
	sum := sha256.New()
	sum.Write(head)
	sum.Write(table[:len(table)-sha256.Size])
	if !bytes.Equal(sum.Sum(nil), table[len(table)-sha256.Size:]) {
		return nil, fmt.Errorf("%w: its head does not have its digest", ErrFormat)
	}
	at := int64(fixedHead) + rest
	for i := range n {
		entry := table[i*perChunk:]
		c := chunkHead{offset: at, packed: int(le.Uint32(entry)), digest: [sha256.Size]byte(entry[4:])}
		if c.packed > packedMost(d.chunk) {
			return nil, fmt.Errorf("%w: chunk %d has %d bytes", ErrFormat, i, c.packed)
		}
		at += int64(c.packed)
		d.chunks = append(d.chunks, c)
	}
	if at != size {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrFormat, size, at)
	}
	return d, nil
}

// readAt fills p; an end before that is an error.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// reach is the range of the new image that chunk i makes.
func (d *Delta) reach(i int) (off int64, n int) {
	off = int64(i) * int64(d.chunk)
	return off, int(min(int64(d.chunk), d.new-off))
}

// step is an instruction of a chunk.
type step struct {
	old            int64 // where its old bytes begin
	added, literal int
}

// reader takes numbers from a chunk.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad, n, v = true, 0, 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.data)
	if n <= 0 {
		r.bad, n, v = true, 0, 0
	}
	r.data = r.data[n:]
	return v
}

// errChunk is wrapped by ErrFormat at the caller, with the chunk's number.
var errChunk = errors.New("its steps do not make its range")

// unpack checks the steps of an unpacked chunk that makes size bytes from an old
// image of old bytes, and calls each with its differences and literals. data is
// changed.
func unpack(data []byte, size int, old int64, each func(s step, diff, literal []byte) error) error {
	r := &reader{data: data}
	how := r.uvarint()
	count := r.uvarint()
	if how >= uint64(filters) || count > uint64(size) {
		return errChunk
	}
	steps := *r
	var added, literal uint64
	at := int64(0)
	for range count {
		a, l, jump := r.uvarint(), r.uvarint(), r.varint()
		if r.bad || a > uint64(size) || l > uint64(size) || a+l == 0 || jump > old || jump < -old {
			return errChunk
		}
		at += jump
		if at < 0 || at+int64(a) > old {
			return errChunk
		}
		at += int64(a)
		added, literal = added+a, literal+l
	}
	if r.bad || added+literal != uint64(size) || uint64(len(r.data)) != uint64(size) {
		return errChunk
	}
	diffs, literals := r.data[:added], r.data[added:]
	filter(how).remove(literals)
	at = 0
	for range count {
		s := step{added: int(steps.uvarint()), literal: int(steps.uvarint())}
		s.old = at + steps.varint()
		at = s.old + int64(s.added)
		if err := each(s, diffs[:s.added], literals[:s.literal]); err != nil {
			return err
		}
		diffs, literals = diffs[s.added:], literals[s.literal:]
	}
	return nil
}
