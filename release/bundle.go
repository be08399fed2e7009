package release

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
)

// A bundle brings a release to a hub: the tag, further signatures, and those objects that the hub does not have, in any order.
//
//	"holdfast-bundle 1\n", tag, list of signatures, then for each object the letter t or b and its bytes, and the letter e
//
// Numbers and byte strings are those of slices. A bundle is a stream; neither side holds it whole.
const bundleMagic = "holdfast-bundle 1\n"

const bundleEnd = 'e'

// EncodeBundle writes a bundle. A fault that objects yields ends it, cut short, so that no reader takes it for whole.
func EncodeBundle(w io.Writer, tag []byte, objects iter.Seq2[Object, error], signatures ...[]byte) error {
	b := bufio.NewWriterSize(w, 64<<10)
	head := putList(putBytes([]byte(bundleMagic), tag), signatures)
	if _, err := b.Write(head); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	for o, err := range objects {
		if err == nil {
			_, err = b.Write(putNumber([]byte{kindLetter(o.Kind)}, len(o.Data)))
		}
		if err == nil {
			_, err = b.Write(o.Data)
		}
		if err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	if err := b.WriteByte(bundleEnd); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// DecodeBundle reads a bundle to its end and hands each object to add, which owns its bytes. It judges nothing but form and bounds: the tag and
// what belongs to it are for VerifyRelease. An error of add ends it.
func DecodeBundle(r io.Reader, limits Limits, add func(id ObjectID, o Object) error) (tag []byte, signatures [][]byte, err error) {
	d := &bundleReader{r: bufio.NewReaderSize(r, 64<<10), left: limits.Bundle}
	if tag, signatures, err = d.decode(limits, add); err != nil {
		return nil, nil, fmt.Errorf("read bundle: %w", err)
	}
	return tag, signatures, nil
}

type bundleReader struct {
	r    *bufio.Reader
	left int64
}

func (d *bundleReader) decode(limits Limits, add func(ObjectID, Object) error) (tag []byte, signatures [][]byte, err error) {
	magic, err := d.take("the first line", len(bundleMagic))
	if err != nil {
		return nil, nil, err
	}
	if string(magic) != bundleMagic {
		return nil, nil, fmt.Errorf("%w: it does not begin with %q", ErrGrammar, bundleMagic)
	}
	if tag, err = d.bytes("tag", limits.Tag); err != nil {
		return nil, nil, err
	}
	n, err := d.number("signatures", limits.Signatures)
	for i := 0; err == nil && i < n; i++ {
		var s []byte
		s, err = d.bytes("signature", limits.Signature)
		signatures = append(signatures, s)
	}
	for count := 0; err == nil; count++ {
		var letter []byte
		if letter, err = d.take("an object", 1); err != nil {
			break
		}
		if letter[0] == bundleEnd {
			return tag, signatures, d.end()
		}
		if count == limits.BundleObjs {
			return nil, nil, fmt.Errorf("%w: more than %d objects", ErrOversized, count)
		}
		err = d.object(letter[0], limits, add)
	}
	return nil, nil, err
}

func (d *bundleReader) object(letter byte, limits Limits, add func(ObjectID, Object) error) error {
	kind, err := letterKind(letter)
	if err != nil {
		return err
	}
	data, err := d.bytes("object", limits.Object)
	if err != nil {
		return err
	}
	return add(HashObject(kind, data), Object{kind, data})
}

func (d *bundleReader) end() error {
	switch _, err := d.r.ReadByte(); {
	case err == nil:
		return fmt.Errorf("%w: something follows its end", ErrGrammar)
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

func (d *bundleReader) number(what string, limit int) (int, error) {
	b, err := d.take("the length of "+what, 4)
	if err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(limit) {
		return 0, fmt.Errorf("%w: %s: %d, at most %d", ErrOversized, what, n, limit)
	}
	return int(n), nil
}

func (d *bundleReader) bytes(what string, limit int) ([]byte, error) {
	n, err := d.number(what, limit)
	if err != nil {
		return nil, err
	}
	return d.take(what, n)
}

// take reads n bytes. Memory grows with what arrives, not with what a length promises.
func (d *bundleReader) take(what string, n int) ([]byte, error) {
	if d.left -= int64(n); d.left < 0 {
		return nil, fmt.Errorf("%w: the bundle is larger than allowed", ErrOversized)
	}
	const step = 256 << 10
	out := make([]byte, 0, min(n, step))
	for len(out) < n {
		part := min(n-len(out), step)
		at := len(out)
		out = append(out, make([]byte, part)...)
		if _, err := io.ReadFull(d.r, out[at:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: within %s", ErrTruncated, what)
		} else if err != nil {
			return nil, err
		}
	}
	return out, nil
}
