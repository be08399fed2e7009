package release

import (
	"fmt"
	"math/bits"

	"github.com/klauspost/compress/zstd"
)

// Compress packs plain, which is not empty, as one zstd frame against dictionary, typically the slice that the machine holds already (nil for none).
// The other side needs the same dictionary.
func Compress(plain, dictionary []byte) []byte {
	// The window spans dictionary and content, so that the whole of the old slice can be pointed at.
	window := 1 << bits.Len(uint(max(len(plain)+len(dictionary), zstd.MinWindowSize)))
	// The default level: for a one-line change 521 bytes in 3 ms and 3 MiB, where the best takes 505 bytes, 78 ms and 72 MiB.
	// A hub does this for every site.
	options := []zstd.EOption{
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(min(window, zstd.MaxWindowSize)),
	}
	if len(plain) < 256 { // only so does the format have room for a size below that
		options = append(options, zstd.WithSingleSegment(true))
	}
	if len(dictionary) > 0 {
		options = append(options, zstd.WithEncoderDictRaw(0, dictionary))
	}
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		panic("release: compress: " + err.Error()) // an option that is out of range is a bug here
	}
	defer e.Close()
	return e.EncodeAll(plain, nil)
}

// Decompress undoes Compress. It takes one frame that says its size, at most limit bytes (ErrOversized), and never uses much more
// memory than limit and the dictionary. Another dictionary than the one it was made with shows in the checksum: ErrDictionary.
func Decompress(b, dictionary []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, fmt.Errorf("decompress: %w: %w", ErrGrammar, err)
	}
	switch {
	case h.Skippable || !h.HasFCS || !h.HasCheckSum:
		return nil, fmt.Errorf("decompress: %w: want one frame with its size and a checksum", ErrGrammar)
	case h.DictionaryID != 0:
		return nil, fmt.Errorf("decompress: %w: dictionary %d", ErrDictionary, h.DictionaryID)
	case h.FrameContentSize > uint64(limit):
		return nil, fmt.Errorf("decompress: %w: %d bytes, at most %d", ErrOversized, h.FrameContentSize, limit)
	}
	window := uint64(1) << bits.Len64(uint64(max(limit+len(dictionary), zstd.MinWindowSize)))
	options := []zstd.DOption{
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(window), zstd.WithDecoderMaxWindow(min(window, zstd.MaxWindowSize)),
	}
	if len(dictionary) > 0 {
		options = append(options, zstd.WithDecoderDictRaw(0, dictionary))
	}
	d, err := zstd.NewReader(nil, options...)
	if err != nil {
		panic("release: decompress: " + err.Error())
	}
	defer d.Close()
	plain, err := d.DecodeAll(b, make([]byte, 0, h.FrameContentSize))
	switch {
	case err != nil && len(dictionary) > 0:
		return nil, fmt.Errorf("decompress: %w, or damaged: %w", ErrDictionary, err)
	case err != nil:
		return nil, fmt.Errorf("decompress: %w: %w", ErrGrammar, err)
	case uint64(len(plain)) != h.FrameContentSize:
		return nil, fmt.Errorf("decompress: %w: %d bytes instead of %d", ErrGrammar, len(plain), h.FrameContentSize)
	}
	return plain, nil
}
