package delta

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Target is where the new image is written, and read to see what is there already.
type Target interface {
	io.ReaderAt
	io.WriterAt
}

// ErrOld: the old image is not the one that the delta was made from, or it is damaged.
var ErrOld = errors.New("the old bytes are not those that the delta was made from")

// Apply makes the new image from the old one. A range of the target that is right
// already is left alone, so that after an interruption it goes on where it was;
// nothing is believed of the target that was not hashed. progress, if not nil,
// hears of each chunk. The caller flushes.
func (d *Delta) Apply(ctx context.Context, old io.ReaderAt, to Target, progress func(done, total int64)) error {
	z, err := newDecoder(d.chunk)
	if err != nil {
		return fmt.Errorf("apply a delta: %w", err)
	}
	defer z.Close()
	a := &applier{Delta: d, old: old, zstd: z, made: make([]byte, d.chunk)}
	for i := range d.chunks {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("apply a delta: %w", err)
		}
		if err := a.apply(i, to); err != nil {
			return fmt.Errorf("apply a delta, chunk %d of %d: %w", i+1, len(d.chunks), err)
		}
		if progress != nil {
			off, n := d.reach(i)
			progress(off+int64(n), d.new)
		}
	}
	return nil
}

func newDecoder(chunk int) (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(uint64(unpackedMost(chunk))), zstd.WithDecodeAllCapLimit(true))
}

// applier holds the memory of one Apply: at most the chunk that is made, one
// packed and one unpacked.
type applier struct {
	*Delta
	old              io.ReaderAt
	zstd             *zstd.Decoder
	made             []byte
	packed, unpacked []byte
}

func (a *applier) apply(i int, to Target) error {
	off, n := a.reach(i)
	made := a.made[:n]
	head := a.chunks[i]
	if readAt(to, made, off) == nil && sha256.Sum256(made) == head.digest {
		return nil
	}
	if err := a.make(head, made); err != nil {
		return err
	}
	if sha256.Sum256(made) != head.digest {
		return ErrOld
	}
	if _, err := to.WriteAt(made, off); err != nil {
		return err
	}
	return nil
}

func (a *applier) make(head chunkHead, made []byte) error {
	if cap(a.packed) < head.packed {
		a.packed = make([]byte, head.packed)
	}
	packed := a.packed[:head.packed]
	if err := readAt(a.r, packed, head.offset); err != nil {
		return err
	}
	if a.unpacked == nil {
		a.unpacked = make([]byte, 0, unpackedMost(a.chunk))
	}
	data, err := a.zstd.DecodeAll(packed, a.unpacked)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	rest := made
	err = unpack(data, len(made), a.Delta.old, func(s step, diff, literal []byte) error {
		part := rest[:s.added]
		if s.added > 0 {
			if err := readAt(a.old, part, s.old); err != nil {
				return fmt.Errorf("read the old image: %w", err)
			}
		}
		for i, d := range diff {
			part[i] += d
		}
		copy(rest[s.added:], literal)
		rest = rest[s.added+s.literal:]
		return nil
	})
	if errors.Is(err, errChunk) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}
