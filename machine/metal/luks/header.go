package luks

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Refusals.
var (
	// ErrNone: there is no LUKS2 header, whole or damaged.
	ErrNone = errors.New("no LUKS2 volume")
	// ErrDamaged: there is a header, and neither copy is whole.
	ErrDamaged = errors.New("both copies of the LUKS2 header are damaged")
	// ErrFormat: the header is whole and says something that this package does not do or that cannot be.
	ErrFormat = errors.New("a LUKS2 volume of a kind that is not supported")
	// ErrSecret: the secret does not open the slot.
	ErrSecret = errors.New("the secret does not open the key slot")
	// ErrSlot: there is no such slot.
	ErrSlot = errors.New("no such key slot")
)

const (
	binarySize = 4096 // of a header; JSON follows
	headerSize = 16384
	maxHeader  = 4 << 20

	offVersion   = 6
	offSize      = 8
	offSeq       = 16
	offLabel     = 24
	offAlgorithm = 72
	offSalt      = 104
	offUUID      = 168
	offSubsystem = 208
	offPlace     = 256
	offSum       = 448
	endSum       = 512
)

var magics = [2]string{"LUKS\xba\xbe", "SKUL\xba\xbe"}

// Device is a disk or a part of one.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// header is a copy of a header as it stands on disk.
type header struct {
	size                   int64 // of one copy
	seq                    uint64
	label, subsystem, uuid string
	meta                   metadata
}

// encode returns copy 0 or 1.
func (h header) encode(i int) ([]byte, error) {
	js, err := json.Marshal(h.meta)
	if err != nil {
		return nil, err
	}
	if len(js) >= int(h.size)-binarySize {
		return nil, fmt.Errorf("the header would have %d bytes of JSON, %d fit", len(js), h.size-binarySize-1)
	}
	b := make([]byte, h.size)
	be := binary.BigEndian
	copy(b, magics[i])
	be.PutUint16(b[offVersion:], 2)
	be.PutUint64(b[offSize:], uint64(h.size))
	be.PutUint64(b[offSeq:], h.seq)
	copy(b[offLabel:offLabel+47], h.label)
	copy(b[offAlgorithm:], "sha256")
	rand.Read(b[offSalt : offSalt+64]) // so that no two headers are alike in their checksums
	copy(b[offUUID:offUUID+39], h.uuid)
	copy(b[offSubsystem:offSubsystem+47], h.subsystem)
	be.PutUint64(b[offPlace:], uint64(i)*uint64(h.size))
	copy(b[binarySize:], js)
	sum := sha256.Sum256(b)
	copy(b[offSum:], sum[:])
	return b, nil
}

// readCopy reads copy i, which begins at offset: ErrNone, ErrDamaged, ErrFormat, or a fault of the disk.
func readCopy(d io.ReaderAt, i int, offset int64) (h header, err error) {
	b := make([]byte, binarySize)
	if err := readAll(d, b, offset); err != nil {
		return h, err
	}
	if string(b[:6]) != magics[i] {
		return h, ErrNone
	}
	be := binary.BigEndian
	h.size = int64(be.Uint64(b[offSize:]))
	if h.size < headerSize || h.size > maxHeader || h.size&(h.size-1) != 0 || i == 1 && h.size != offset ||
		be.Uint64(b[offPlace:]) != uint64(offset) || be.Uint16(b[offVersion:]) != 2 {
		return h, ErrDamaged
	}
	b = append(b, make([]byte, h.size-binarySize)...)
	if err := readAll(d, b[binarySize:], offset+binarySize); err != nil {
		return h, err
	}
	if text(b[offAlgorithm:offAlgorithm+32]) != "sha256" {
		return h, fmt.Errorf("%w: checksum of another kind", ErrFormat)
	}
	sum := slices.Clone(b[offSum : offSum+sha256.Size])
	clear(b[offSum:endSum])
	if got := sha256.Sum256(b); !bytes.Equal(got[:], sum) {
		return h, ErrDamaged
	}
	h.seq = be.Uint64(b[offSeq:])
	h.label, h.subsystem, h.uuid = text(b[offLabel:offLabel+48]), text(b[offSubsystem:offSubsystem+48]), text(b[offUUID:offUUID+40])
	h.meta, err = parseMetadata(b[binarySize:], h.size)
	return h, err
}

// readAll reads b whole. A device that ends before is one without a header.
func readAll(d io.ReaderAt, b []byte, offset int64) error {
	n, err := d.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return ErrNone
	}
	return fmt.Errorf("read LUKS header at byte %d: %w", offset, err)
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// readHeader finds the copy that counts: the one with the higher number of those that are whole. mend says that the other is not the same.
func readHeader(d io.ReaderAt) (h header, mend bool, err error) {
	first, errFirst := readCopy(d, 0, 0)
	if fault(errFirst) {
		return h, false, errFirst
	}
	var second header
	errSecond := ErrNone
	for size := int64(headerSize); size <= maxHeader; size *= 2 {
		if errFirst == nil && size != first.size {
			continue
		}
		if second, errSecond = readCopy(d, 1, size); fault(errSecond) {
			return h, false, errSecond
		}
		if !errors.Is(errSecond, ErrNone) {
			break
		}
	}
	switch {
	case errFirst == nil && (errSecond != nil || first.seq >= second.seq):
		return first, errSecond != nil || first.seq != second.seq, nil
	case errSecond == nil:
		return second, true, nil
	case errors.Is(errFirst, ErrFormat):
		return h, false, errFirst
	case errors.Is(errSecond, ErrFormat):
		return h, false, errSecond
	case errors.Is(errFirst, ErrNone) && errors.Is(errSecond, ErrNone):
		return h, false, ErrNone
	}
	return h, false, ErrDamaged
}

// fault tells an error of the disk, from which nobody may conclude anything, from what stands on it.
func fault(err error) bool {
	return err != nil && !errors.Is(err, ErrNone) && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrFormat)
}
