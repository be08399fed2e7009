package delta

import (
	"encoding/binary"
	"iter"
)

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
	for i := range windows(data) {
		if isCall(data[i:]) {
			calls++
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

// windows are where call or jmp may stand: each takes five bytes, whether it is one
// or not, so that none is judged by bytes that another one has changed, and the way
// back sees the same ones.
func windows(data []byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := 0; i+5 <= len(data); i++ {
			if data[i] != 0xe8 && data[i] != 0xe9 {
				continue
			}
			if !yield(i) {
				return
			}
			i += 4
		}
	}
}

// isCall: its distance has 25 bits, which the filter keeps.
func isCall(window []byte) bool { return window[4] == 0 || window[4] == 0xff }

func isBranch(word uint32) bool { return word>>26 == 0x25 }

func (f filter) apply(data []byte)  { f.run(data, 1) }
func (f filter) remove(data []byte) { f.run(data, -1) }

func (f filter) run(data []byte, sign int32) {
	switch f {
	case x86:
		for i := range windows(data) {
			if isCall(data[i:]) {
				v := int32(binary.LittleEndian.Uint32(data[i+1:])) + sign*int32(i+5)
				binary.LittleEndian.PutUint32(data[i+1:], uint32(v<<7>>7)) // 25 bits with their sign
			}
		}
	case arm64:
		for i := 0; i+4 <= len(data); i += 4 {
			if w := binary.LittleEndian.Uint32(data[i:]); isBranch(w) {
				binary.LittleEndian.PutUint32(data[i:], w&^0x3ffffff|(w+uint32(sign*int32(i/4)))&0x3ffffff)
			}
		}
	}
}
