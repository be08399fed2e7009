package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
)

func image(data []byte, files ...Extent) Image {
	return Image{R: bytes.NewReader(data), Size: int64(len(data)), Files: files}
}

// memory is a Target.
type memory struct {
	data   []byte
	writes int
	left   int // writes until the power goes; -1: it does not
}

var errPower = errors.New("the power went")

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if m.left == 0 {
		copy(m.data[off:], p[:len(p)/3])
		return len(p) / 3, errPower
	}
	m.left--
	m.writes++
	return copy(m.data[off:], p), nil
}

func apply(t *testing.T, delta, old []byte) []byte {
	t.Helper()
	d, err := Open(bytes.NewReader(delta), int64(len(delta)))
	if err != nil {
		t.Fatal(err)
	}
	to := &memory{data: make([]byte, d.NewSize()), left: -1}
	if err := d.Apply(t.Context(), bytes.NewReader(old), to, nil); err != nil {
		t.Fatal(err)
	}
	return to.data
}

func makeDelta(t testing.TB, old, new Image, chunk int) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := Make(context.Background(), &out, old, new, Options{Chunk: chunk}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// program makes bytes like those of a program: pieces with addresses in them that
// all move when something is inserted before.
func program(r *rand.Rand, size, shift int) []byte {
	var out []byte
	for i := 0; len(out) < size; i++ {
		p := rand.New(rand.NewPCG(7, uint64(i)))
		for range 20 + p.IntN(60) {
			out = append(out, byte(p.IntN(256)))
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(p.IntN(size)+shift))
	}
	if shift > 0 {
		at := size / 3
		out = append(out[:at:at], append(bytes.Repeat([]byte{0x90}, shift), out[at:]...)...)
	}
	_ = r
	return out[:size]
}

func TestRoundTrips(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	old := program(r, 300_000, 0)
	tests := map[string]struct {
		old, new []byte
		most     int // bytes of the delta
	}{
		"Same":        {old, old, 5000},
		"Shifted":     {old, program(r, 300_000, 48), 20_000},
		"Whole":       {nil, old, 320_000},
		"Unrelated":   {old, random, 110_000},
		"OneByte":     {old, []byte{7}, 200},
		"Shorter":     {old, old[1000:50_000], 1500},
		"Zeros":       {old, make([]byte, 200_000), 4000},
		"FromZeros":   {make([]byte, 200_000), old, 320_000},
		"Repeated":    {bytes.Repeat([]byte("ab"), 50_000), bytes.Repeat([]byte("ab"), 60_000), 4000},
		"OldOneByte":  {[]byte{1}, random[:5000], 6000},
		"EndsAtChunk": {old, old[:4*4096], 1000},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := makeDelta(t, image(tt.old), image(tt.new), 4096)
			if again := makeDelta(t, image(tt.old), image(tt.new), 4096); !bytes.Equal(d, again) {
				t.Error("the same images give different deltas")
			}
			if got := apply(t, d, tt.old); !bytes.Equal(got, tt.new) {
				t.Error("another image came out")
			}
			if len(d) > tt.most {
				t.Errorf("%d bytes, want at most %d", len(d), tt.most)
			}
		})
	}
}

// Random edits of random files in random places come out as they went in.
func TestRandomImages(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 9))
		files := map[string][]byte{}
		for i := range 1 + r.IntN(6) {
			files[fmt.Sprint("file", i)] = program(r, 1+r.IntN(30_000), 0)
		}
		old, oldFiles := layOut(r, files)
		for name, data := range files {
			switch r.IntN(4) {
			case 0:
				delete(files, name)
				files["moved-"+name] = data
			case 1:
				at := r.IntN(len(data))
				files[name] = append(append(bytes.Clone(data[:at]), "some bytes more"...), data[at:]...)
			case 2:
				delete(files, name)
			}
		}
		files["fresh"] = program(r, 5000, 3)
		is, newFiles := layOut(r, files)
		d := makeDelta(t, image(old, oldFiles...), image(is, newFiles...), 4096<<r.IntN(3))
		if got := apply(t, d, old); !bytes.Equal(got, is) {
			t.Fatalf("seed %d: another image came out", seed)
		}
	}
}

// layOut puts files into an image: some bytes before, then each on a page.
func layOut(r *rand.Rand, files map[string][]byte) (data []byte, extents []Extent) {
	data = make([]byte, page*(1+r.IntN(3)))
	for i := range data {
		data[i] = byte(i / 100)
	}
	for name, content := range files {
		extents = append(extents, Extent{name, int64(len(data)), int64(len(content))})
		data = append(data, content...)
		data = append(data, make([]byte, (page-len(data)%page)%page)...)
	}
	return data, extents
}

func TestFilesThatMovedCostNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	random := make([]byte, 200_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	head := make([]byte, page)
	old := append(bytes.Clone(head), random...)
	is := append(append(bytes.Clone(head), program(r, 10*page, 0)...), random...)
	d := makeDelta(t, image(old, Extent{"lib/6.1/x.ko", page, 200_000}), image(is, Extent{"usr/new", page, 10 * page}, Extent{"lib/6.2/x.ko", 11 * page, 200_000}), 1<<16)
	if got := apply(t, d, old); !bytes.Equal(got, is) {
		t.Fatal("another image came out")
	}
	if len(d) > 45_000 {
		t.Errorf("%d bytes: the file that moved was sent again", len(d))
	}
}

// The power goes at each write; what was written stays, and Apply goes on there.
func TestApplyGoesOn(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	old, is := program(r, 60_000, 0), program(r, 60_000, 16)
	data := makeDelta(t, image(old), image(is), 4096)
	d, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	to := &memory{data: make([]byte, len(is))}
	all := (len(is) + 4095) / 4096
	for cut := range all {
		to.left, to.writes = 1, 0
		err := d.Apply(t.Context(), bytes.NewReader(old), to, nil)
		if cut < all-1 && !errors.Is(err, errPower) {
			t.Fatalf("cut %d: %v", cut, err)
		}
		if to.writes != 1 {
			t.Fatalf("cut %d: %d chunks were written, want the next one", cut, to.writes)
		}
	}
	if !bytes.Equal(to.data, is) {
		t.Fatal("another image came out")
	}
	to.data[3*4096+1] ^= 1 // a range that the power damaged
	to.left, to.writes = -1, 0
	if err := d.Apply(t.Context(), bytes.NewReader(old), to, nil); err != nil || to.writes != 1 || !bytes.Equal(to.data, is) {
		t.Fatalf("mended with %d writes, %v", to.writes, err)
	}
}

func TestRefusals(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	old, is := program(r, 30_000, 0), program(r, 30_000, 16)
	data := makeDelta(t, image(old), image(is), 4096)
	t.Run("ErrOld", func(t *testing.T) {
		wrong := bytes.Clone(old)
		wrong[2000] ^= 1
		d, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		to := &memory{data: make([]byte, len(is)), left: -1}
		if err := d.Apply(t.Context(), bytes.NewReader(wrong), to, nil); !errors.Is(err, ErrOld) {
			t.Fatalf("got %v, want ErrOld", err)
		}
		if err := d.Apply(t.Context(), bytes.NewReader(old[:100]), to, nil); err == nil {
			t.Fatal("applied to an old image that ends early")
		}
	})
	t.Run("ErrEveryByte", func(t *testing.T) { // each flipped byte: refused, or without effect
		for i := range data {
			bad := bytes.Clone(data)
			bad[i] ^= 0x41
			refusedOrRight(t, bad, old, is, fmt.Sprint("byte ", i))
		}
	})
	t.Run("ErrEveryLength", func(t *testing.T) {
		for i := 0; i < len(data); i += 7 {
			refusedOrRight(t, data[:i], old, is, fmt.Sprint("cut at ", i))
		}
		refusedOrRight(t, append(bytes.Clone(data), 0), old, is, "longer")
	})
	t.Run("ErrBounds", func(t *testing.T) {
		for name, change := range map[string]func(head []byte){
			"chunk":    func(h []byte) { binary.LittleEndian.PutUint32(h[8:], 1<<30) },
			"old size": func(h []byte) { binary.LittleEndian.PutUint64(h[12:], 1<<62) },
			"new size": func(h []byte) { binary.LittleEndian.PutUint64(h[20:], 1<<62) },
			"nothing":  func(h []byte) { binary.LittleEndian.PutUint64(h[20:], 0) },
			"packed":   func(h []byte) { binary.LittleEndian.PutUint32(h[28:], 1<<31) },
		} {
			bad := bytes.Clone(data)
			change(bad)
			reseal(bad)
			if _, err := Open(bytes.NewReader(bad), int64(len(bad))); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// reseal gives a changed head its digest again, as far as there is room.
func reseal(data []byte) {
	chunk, size := binary.LittleEndian.Uint32(data[8:]), binary.LittleEndian.Uint64(data[20:])
	if chunk == 0 || size > 1<<40 {
		return
	}
	end := uint64(fixedHead) + (size+uint64(chunk)-1)/uint64(chunk)*perChunk
	if end+sha256.Size <= uint64(len(data)) {
		sum := sha256.Sum256(data[:end])
		copy(data[end:], sum[:])
	}
}

func refusedOrRight(t *testing.T, delta, old, want []byte, what string) {
	t.Helper()
	d, err := Open(bytes.NewReader(delta), int64(len(delta)))
	if err != nil {
		return
	}
	to := &memory{data: make([]byte, len(want)), left: -1}
	if err := d.Apply(context.Background(), bytes.NewReader(old), to, nil); err == nil && !bytes.Equal(to.data, want) {
		t.Fatalf("%s: taken, and another image came out", what)
	}
}

// Apply holds what the package comment says, whatever the size of the image.
func TestMemory(t *testing.T) {
	const chunk, size = 1 << 20, 48 << 20
	r := rand.New(rand.NewPCG(11, 12))
	old := make([]byte, size)
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(old[i:], r.Uint64()&0x0f0f0f0f0f0f0f0f)
	}
	is := bytes.Clone(old)
	for i := 0; i < size; i += 10_000 {
		is[i]++
	}
	// Matched by place: what counts here is the memory of Apply.
	steps := []step{{added: size}}
	m := &maker{old: image(old), new: image(is), chunk: chunk}
	var out bytes.Buffer
	if _, err := m.write(t.Context(), &out, m.cut(steps)); err != nil {
		t.Fatal(err)
	}
	d, err := Open(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	to := &memory{data: make([]byte, size), left: -1}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	most := uint64(0)
	if err := d.Apply(t.Context(), bytes.NewReader(old), to, func(done, _ int64) {
		if done%(8<<20) == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.data, is) {
		t.Fatal("another image came out")
	}
	if most > 4*chunk {
		t.Errorf("Apply held %d KiB, want at most %d", most>>10, 4*chunk>>10)
	}
	t.Logf("Apply held %d KiB with chunks of %d KiB", most>>10, chunk>>10)
}

func TestMakeRefuses(t *testing.T) {
	data := make([]byte, 3*page)
	for name, img := range map[string]Image{
		"Overlap": image(data, Extent{"a", 0, 2 * page}, Extent{"b", page, page}),
		"Outside": image(data, Extent{"a", 2 * page, 2 * page}),
		"Short":   {R: bytes.NewReader(data), Size: 4 * page},
		"Empty":   {R: bytes.NewReader(nil)},
	} {
		if _, err := Make(t.Context(), io.Discard, image(data), img, Options{Chunk: 4096}); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if _, err := Make(t.Context(), io.Discard, Image{}, image(data), Options{Chunk: 5000}); err == nil {
		t.Error("a chunk that is no power of two was taken")
	}
}

// Whatever a delta says, Apply ends in an error or in bytes with their digests, and
// touches nothing outside of the image.
func FuzzApply(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	old, is := program(r, 9000, 0), program(r, 9000, 16)
	f.Add(makeDelta(f, image(old), image(is), 4096))
	f.Add(makeDelta(f, Image{}, image(is), 4096))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > fixedHead {
			reseal(data)
		}
		d, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil || d.NewSize() > 1<<20 {
			return
		}
		to := &memory{data: make([]byte, d.NewSize()), left: -1}
		if err := d.Apply(t.Context(), bytes.NewReader(old), to, nil); err != nil {
			return
		}
		for i, c := range d.chunks {
			off, n := d.reach(i)
			if sha256.Sum256(to.data[off:off+int64(n)]) != c.digest {
				t.Error("a range does not have its digest")
			}
		}
	})
}

// Steps that no digest would stop either end in a refusal, or in exactly their range.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{1, 1, 2, 1, 0, 0, 0, 'x'}, 3, int64(10))
	f.Fuzz(func(t *testing.T, data []byte, size int, old int64) {
		if size < 0 || size > 1<<20 || old < 0 || old > mostImage {
			return
		}
		made := 0
		err := unpack(data, size, old, func(s step, diff, literal []byte) error {
			if s.old < 0 || s.old+int64(s.added) > old || len(diff) != s.added || len(literal) != s.literal {
				t.Fatalf("step %+v of an old image with %d bytes", s, old)
			}
			made += s.added + s.literal
			return nil
		})
		if err == nil && made != size {
			t.Errorf("made %d of %d bytes", made, size)
		}
	})
}

func TestFilters(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for f := range filters {
		for n := range 200 {
			size := r.IntN(400)
			if n == 0 {
				size = 5 << 20 // where distances and places are large
			}
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(r.Uint32())
				switch r.IntN(12) { // full of what the filters look for
				case 0:
					data[i] = 0xe8 + byte(r.IntN(2))
				case 1:
					data[i] = 0
				case 2:
					data[i] = 0xff
				case 3:
					data[i] = 0x94 + byte(r.IntN(4))
				}
			}
			got := bytes.Clone(data)
			f.apply(got)
			f.remove(got)
			if !bytes.Equal(got, data) {
				t.Fatalf("filter %d is not undone", f)
			}
		}
	}
	code := make([]byte, 0, 6000)
	for i := range 300 { // calls of one function
		code = append(code, byte(i), 1, 2, 3, 0xe8)
		code = binary.LittleEndian.AppendUint32(code, uint32(5000-len(code)-4))
		code = append(code, byte(r.Uint32()), byte(r.Uint32()))
	}
	if got := suits(code); got != x86 {
		t.Errorf("code suits filter %d, want x86", got)
	}
	random := make([]byte, 10_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	if got := suits(random); got != plain {
		t.Errorf("noise suits filter %d, want none", got)
	}
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte{0xe8, 1, 2, 3, 0, 0x94, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		data = append(make([]byte, 3<<20), data...) // where places are large
		for f := range filters {
			got := bytes.Clone(data)
			f.apply(got)
			f.remove(got)
			if !bytes.Equal(got, data) {
				t.Fatalf("filter %d is not undone", f)
			}
		}
	})
}

func TestSuffixes(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for range 20 {
		data := program(r, 1+r.IntN(20_000), 0)
		sa, err := suffixes(data)
		if err != nil || len(sa) != len(data) {
			t.Fatalf("%d places, %v", len(sa), err)
		}
		for i := 1; i < len(sa); i++ {
			if bytes.Compare(data[sa[i-1]:], data[sa[i]:]) >= 0 {
				t.Fatal("not sorted")
			}
		}
	}
}

// With the table of starts and without, the same places are found.
func TestStarts(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	old := program(r, 1<<20, 0)
	old = append(old, 0, 0, 0xff)
	m, err := newMatcher(old)
	if err != nil || m.starts == nil {
		t.Fatal("no table", err)
	}
	slow := &matcher{old: old, sa: m.sa}
	for range 3000 {
		s := make([]byte, 1+r.IntN(30))
		if at := r.IntN(len(old)); r.IntN(3) > 0 {
			s = bytes.Clone(old[at:min(at+len(s), len(old))])
		}
		for i := range s {
			if r.IntN(9) == 0 {
				s[i] = byte(r.Uint32())
			}
		}
		at, n := m.longest(s)
		if slowAt, slowN := slow.longest(s); n != slowN || !bytes.Equal(old[at:at+n], old[slowAt:slowAt+n]) {
			t.Fatalf("found %d bytes at %d, without the table %d at %d", n, at, slowN, slowAt)
		}
	}
}

func TestLongest(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	old := make([]byte, 500)
	for i := range old {
		old[i] = byte(r.IntN(3))
	}
	m, err := newMatcher(old)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		s := make([]byte, 1+r.IntN(20), 64) // what is behind it counts for nothing
		for i := range s {
			s[i] = byte(r.IntN(3))
		}
		want := 0
		for i := range old {
			want = max(want, common(old[i:], s))
		}
		at, n := m.longest(s)
		if n != want || !bytes.Equal(old[at:at+n], s[:n]) {
			t.Fatalf("found %d bytes at %d, want %d", n, at, want)
		}
	}
}
