package delta

import "encoding/binary"

// A filter makes the calls of a program alike: where code says how far away a
// function is, each call of it reads differently; with the place of the function
// in its stead, zstd finds them. It takes six hundredths off a Go program. A
// filter keeps lengths, and its way back is exact for any bytes.
type filter byte

const (
	plain filter = iota
	x86          // call and jmp: E8, E9, four bytes
	arm64        // bl: one word, aligned
	filters
)

// suits says which filter packs data better: programs are full of calls, other
// bytes look like them by chance only.
func suits(data []byte) filter {
	calls, branches := 0, 0
	for i := 0; i+5 <= len(data); i++ {
		if isCall(data[i:]) {
			calls++
			i += 4
		}
	}
	for i := 0; i+4 <= len(data); i += 4 {
		if isBranch(binary.LittleEndian.Uint32(data[i:])) {
			branches++
		}
	}
	switch {
	case calls*200 > len(data):
		return x86
	case branches*4*28 > len(data):
		return arm64
	}
	return plain
}

// isCall: a near call or jump whose distance has 25 bits, which the filter keeps.
func isCall(b []byte) bool {
	return (b[0] == 0xe8 || b[0] == 0xe9) && (b[4] == 0 || b[4] == 0xff)
}

func isBranch(word uint32) bool { return word>>26 == 0x25 }

func (f filter) apply(data []byte)  { f.run(data, 1) }
func (f filter) remove(data []byte) { f.run(data, -1) }

func (f filter) run(data []byte, sign int32) {
	switch f {
	case x86:
		for i := 0; i+5 <= len(data); i++ {
			if !isCall(data[i:]) {
				continue
			}
			v := int32(binary.LittleEndian.Uint32(data[i+1:])) + sign*int32(i+5)
			binary.LittleEndian.PutUint32(data[i+1:], uint32(v<<7>>7)) // 25 bits with their sign
			i += 4
		}
	case arm64:
		for i := 0; i+4 <= len(data); i += 4 {
			if w := binary.LittleEndian.Uint32(data[i:]); isBranch(w) {
				binary.LittleEndian.PutUint32(data[i:], w&^0x3ffffff|(w+uint32(sign*int32(i/4)))&0x3ffffff)
			}
		}
	}
}
