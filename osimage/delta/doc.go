// Package delta makes a file-system image out of the one before: for a change of
// one line in one program it carries that change and not the program.
//
// [Make] runs on the host. It pairs the files of both images (same bytes, same
// path, same name), matches each pair as bsdiff does, and packs the result.
// Without an old image the same format carries the whole. [Open] and
// [Delta.Apply] run on the machine.
//
// A delta is cut into chunks, each of which makes a known range of the new image
// and depends on no other: so it is applied in bounded memory, goes on after any
// power cut at the first chunk whose range is not right yet, and names the range
// that is wrong. All numbers are little-endian:
//
//	"HFDELTA1"
//	u32 chunk size, a power of two; each chunk makes so many bytes, the last one the rest
//	u64 old size, u64 new size
//	for each chunk: u32 packed size, SHA-256 of what it makes
//	SHA-256 of all of the above
//	the packed chunks
//
// A packed chunk is one zstd frame that holds: uvarint filter of the literals (none,
// x86, arm64); uvarint number of steps; for each step uvarint added, uvarint literal, varint distance of its old position from the
// end of the step before (0 at the chunk's begin); all differences; all literals. A
// step makes `added` bytes, each the sum of a byte of the old image and of the
// differences, and then `literal` bytes as they are.
//
// It promises that Apply writes no byte that does not have the digest that the
// delta names, and holds at most 4 chunks in memory. It leaves out who vouches for
// the delta (a digest in a manifest), and the hash tree behind a root, which the
// machine computes itself.
package delta
