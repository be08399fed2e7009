package release

import (
	"encoding/binary"
	"fmt"
)

// The encodings of slices are made of numbers (four bytes, the highest first) and byte strings (a number, then the bytes). Both have one spelling.

func putNumber(b []byte, n int) []byte { return binary.BigEndian.AppendUint32(b, uint32(n)) }

func putBytes(b, data []byte) []byte { return append(putNumber(b, len(data)), data...) }

// reader takes an encoding apart; after the first fault it returns zeros, and err says why.
type reader struct {
	b   []byte
	err error
}

func (r *reader) number(what string, limit int) int {
	if r.err != nil {
		return 0
	}
	if len(r.b) < 4 {
		r.err = fmt.Errorf("%w: within the length of %s", ErrTruncated, what)
		return 0
	}
	n := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	if uint64(n) > uint64(limit) {
		r.err = fmt.Errorf("%w: %s: %d, at most %d", ErrOversized, what, n, limit)
		return 0
	}
	return int(n)
}

// bytes returns a part of the input, not a copy.
func (r *reader) bytes(what string, limit int) []byte {
	n := r.number(what, limit)
	if r.err == nil && n > len(r.b) {
		r.err = fmt.Errorf("%w: within %s", ErrTruncated, what)
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) list(what string, count, size int) (all [][]byte) {
	for range r.number(what, count) {
		if r.err != nil {
			return nil
		}
		all = append(all, r.bytes(what, size))
	}
	return all
}

// letter takes one byte.
func (r *reader) letter(what string) byte {
	if r.err == nil && len(r.b) == 0 {
		r.err = fmt.Errorf("%w: before %s", ErrTruncated, what)
	}
	if r.err != nil {
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

// letters stand for kinds in encodings.
func kindLetter(kind string) byte {
	if kind == KindTree {
		return 't'
	}
	return 'b'
}

func letterKind(c byte) (string, error) {
	switch c {
	case 't':
		return KindTree, nil
	case 'b':
		return KindBlob, nil
	}
	return "", fmt.Errorf("%w: %q is no kind of object", ErrGrammar, c)
}
