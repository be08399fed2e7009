// Package verity makes and checks dm-verity hash trees as a root partition of
// the OS image carries them: format 1, SHA-256, blocks of 4096 bytes, the
// superblock of veritysetup in the first block behind the data, the tree behind
// it with its top block first.
//
// The same data and salt make the same bytes. Nothing here talks to the kernel:
// who maps the partition does so with what this package has found to be right.
package verity

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/osimage"
)

const (
	block     = osimage.VerityBlock
	perBlock  = block / sha256.Size
	maxBlocks = 1 << 20 // 4 GiB of data, 32 MiB of tree: the most that Make and Check hold
)

// ErrCorrupt is what Check returns when the partition is not the one that its
// root hash names: torn while it was written, or changed since.
var ErrCorrupt = errors.New("differs from its root hash")

// Make returns what belongs behind data of size bytes, beginning at the next
// boundary of a block: superblock and tree. The caller fills the last block of
// data with zeros; they are hashed as if they were there.
func Make(data io.ReaderAt, size int64, salt [32]byte) (tree []byte, v osimage.Verity, err error) {
	if size <= 0 || size > maxBlocks*block {
		return nil, v, fmt.Errorf("a hash tree for %d bytes: want between 1 and %d", size, int64(maxBlocks*block))
	}
	levels, root, err := hashAll(data, size, salt)
	if err != nil {
		return nil, v, err
	}
	v = osimage.Verity{RootHash: root, Salt: salt, DataBlocks: uint64(padded(size) / block)}
	return append(superblock(v), bytes.Join(levels, nil)...), v, nil
}

// TreeSize is the length of what Make returns for data of size bytes.
func TreeSize(size int64) int64 {
	total := int64(block)
	for hashes := padded(size) / block; hashes > 1; {
		level := padded(hashes * sha256.Size)
		total += level
		hashes = level / block
	}
	return total
}

// Check reads a whole partition, data and tree, and returns ErrCorrupt with the
// first block that is not what v promises. It holds a copy of the tree, 1/128 of the data.
func Check(r io.ReaderAt, v osimage.Verity) error {
	if v.DataBlocks == 0 || v.DataBlocks > maxBlocks {
		return fmt.Errorf("%d data blocks: want between 1 and %d", v.DataBlocks, maxBlocks)
	}
	size := int64(v.DataBlocks) * block
	ok, err := Matches(r, v)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("superblock or top hash block: %w", ErrCorrupt)
	}
	levels, root, err := hashAll(r, size, v.Salt)
	if err != nil {
		return err
	}
	at := size + block
	got := make([]byte, block)
	for _, level := range levels {
		for i := 0; i < len(level); i += block {
			if _, err := r.ReadAt(got, at); err != nil {
				return fmt.Errorf("read hash block at byte %d: %w", at, err)
			}
			if want := level[i : i+block]; !bytes.Equal(got, want) {
				return fmt.Errorf("hash block at byte %d, or what it covers: %w", at, ErrCorrupt)
			}
			at += block
		}
	}
	if root != v.RootHash {
		return fmt.Errorf("data: %w", ErrCorrupt)
	}
	return nil
}

// Matches reads two blocks and says whether the partition claims to be the one
// that v names: its superblock, and the block that hashes to the root hash. A
// partition that is too small is another one; an error is one of reading.
func Matches(r io.ReaderAt, v osimage.Verity) (bool, error) {
	if v.DataBlocks == 0 || v.DataBlocks > maxBlocks {
		return false, nil
	}
	at := int64(v.DataBlocks) * block
	buf := make([]byte, block)
	if _, err := r.ReadAt(buf, at); err != nil {
		return false, unlessEOF(err)
	}
	if got, err := ParseSuperblock(buf); err != nil || got.Salt != v.Salt || got.DataBlocks != v.DataBlocks {
		return false, nil
	}
	top := at + block
	if v.DataBlocks == 1 {
		top = 0 // no tree: the root hash is that of the only block
	}
	if _, err := r.ReadAt(buf, top); err != nil {
		return false, unlessEOF(err)
	}
	return sum(buf, v.Salt) == v.RootHash, nil
}

func unlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("look for a verity superblock: %w", err)
}

// hashAll returns the levels of the tree as they are stored, top first, each
// filled with zeros to whole blocks, and the root hash.
func hashAll(data io.ReaderAt, size int64, salt [32]byte) (levels [][]byte, root [32]byte, err error) {
	blocks := padded(size) / block
	level := make([]byte, padded(blocks*sha256.Size))
	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	const batch = 128 // blocks: 512 KiB for each worker
	for first := int64(0); first < blocks; first += batch {
		workers.Go(func() error {
			n := min(batch*block, size-first*block)
			buf := make([]byte, padded(n))
			if got, err := data.ReadAt(buf[:n], first*block); int64(got) < n {
				return fmt.Errorf("read data from block %d: %w", first, err)
			}
			hashBlocks(level[first*sha256.Size:], buf, salt)
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, root, err
	}
	if blocks == 1 {
		return nil, [32]byte(level), nil
	}
	for {
		levels = append([][]byte{level}, levels...)
		if len(level) == block {
			return levels, sum(level, salt), nil
		}
		up := make([]byte, padded(int64(len(level)/perBlock)))
		hashBlocks(up, level, salt)
		level = up
	}
}

func hashBlocks(to, from []byte, salt [32]byte) {
	for ; len(from) > 0; from, to = from[block:], to[sha256.Size:] {
		h := sum(from[:block], salt)
		copy(to, h[:])
	}
}

func sum(b []byte, salt [32]byte) (out [32]byte) {
	h := sha256.New()
	h.Write(salt[:])
	h.Write(b)
	h.Sum(out[:0])
	return out
}

func padded(n int64) int64 { return (n + block - 1) / block * block }

// header is struct verity_sb of veritysetup, 512 bytes.
type header struct {
	Signature  [8]byte
	Version    uint32
	HashType   uint32
	UUID       [16]byte
	Algorithm  [32]byte
	DataBlock  uint32
	HashBlock  uint32
	DataBlocks uint64
	SaltSize   uint16
	_          [6]byte
	Salt       [256]byte
	_          [168]byte
}

var signature = [8]byte{'v', 'e', 'r', 'i', 't', 'y'}

// superblock returns a whole block. Its UUID follows from what it describes.
func superblock(v osimage.Verity) []byte {
	h := header{Signature: signature, Version: 1, HashType: 1, DataBlock: block, HashBlock: block, DataBlocks: v.DataBlocks, SaltSize: 32}
	copy(h.Algorithm[:], osimage.VerityHash)
	copy(h.Salt[:], v.Salt[:])
	id := sum(v.RootHash[:], v.Salt)
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // UUID version 8
	copy(h.UUID[:], id[:])
	out, err := binary.Append(make([]byte, 0, block), binary.LittleEndian, h)
	if err != nil {
		panic(err) // the type has a fixed size
	}
	return out[:block]
}

// ParseSuperblock reads the superblock of a hash area; it does not know the root
// hash. What it accepts is what Make writes: other parameters are refused.
func ParseSuperblock(b []byte) (osimage.Verity, error) {
	var h header
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return osimage.Verity{}, fmt.Errorf("verity superblock of %d bytes: want 512", len(b))
	}
	algorithm := string(bytes.TrimRight(h.Algorithm[:], "\x00"))
	switch {
	case h.Signature != signature:
		return osimage.Verity{}, errors.New("no verity superblock")
	case h.Version != 1 || h.HashType != 1 || algorithm != osimage.VerityHash || h.DataBlock != block || h.HashBlock != block || h.SaltSize != 32:
		return osimage.Verity{}, fmt.Errorf("verity superblock: version %d, type %d, %q, blocks %d and %d, salt of %d bytes: want 1, 1, %q, %d, %d, 32",
			h.Version, h.HashType, algorithm, h.DataBlock, h.HashBlock, h.SaltSize, osimage.VerityHash, block, block)
	case h.DataBlocks == 0 || h.DataBlocks > maxBlocks:
		return osimage.Verity{}, fmt.Errorf("verity superblock: %d data blocks: want between 1 and %d", h.DataBlocks, maxBlocks)
	}
	return osimage.Verity{Salt: [32]byte(h.Salt[:32]), DataBlocks: h.DataBlocks}, nil
}
