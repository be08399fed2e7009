package delta

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"path"
	"runtime"
	"slices"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// Extent is a piece of a file as it lies in an image.
type Extent struct {
	Path         string
	Offset, Size int64
}

// Image is a file-system image, or any other file: then without Files. What no
// extent covers is matched with what none covers in the other image.
type Image struct {
	R     io.ReaderAt
	Size  int64
	Files []Extent
}

// Options of Make.
type Options struct {
	Chunk int // bytes; 0: DefaultChunk
}

// Stats says what Make wrote.
type Stats struct {
	Size   int64 // of the delta
	Steps  int
	Copied int64 // bytes made from old ones
}

// Make writes the delta from old to new. The zero Image is no old image: the delta
// carries the whole. The same images give the same bytes. It holds the pairs of
// files that it matches in memory, each nine times, and the delta.
func Make(ctx context.Context, w io.Writer, old, new Image, o Options) (Stats, error) {
	if o.Chunk == 0 {
		o.Chunk = DefaultChunk
	}
	if o.Chunk < leastChunk || o.Chunk > mostChunk || bits.OnesCount(uint(o.Chunk)) != 1 || new.Size <= 0 || new.Size > mostImage || old.Size > mostImage {
		return Stats{}, fmt.Errorf("make a delta from %d bytes to %d with chunks of %d: out of bounds", old.Size, new.Size, o.Chunk)
	}
	steps, err := steps(ctx, old, new)
	if err != nil {
		return Stats{}, fmt.Errorf("make a delta: %w", err)
	}
	stats := Stats{Steps: len(steps)}
	for _, s := range steps {
		stats.Copied += int64(s.added)
	}
	m := &maker{old: old, new: new, chunk: o.Chunk}
	stats.Size, err = m.write(ctx, w, m.cut(steps))
	if err != nil {
		return Stats{}, fmt.Errorf("make a delta: %w", err)
	}
	return stats, nil
}

// span is a range of an image.
type span struct{ offset, size int64 }

// part is a file, or all that is no file.
type part struct {
	path  string
	spans []span
	size  int64
	sum   [sha256.Size]byte
}

const page = 4096

// parts sorts an image into files and the rest. The padding behind a file goes with
// it; what is smaller than a page lies among inodes and goes with the rest.
func parts(img Image) (files []*part, rest *part, err error) {
	extents := slices.Clone(img.Files)
	slices.SortFunc(extents, func(a, b Extent) int { return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Path, b.Path)) })
	byPath := map[string]*part{}
	rest = &part{}
	at := int64(0)
	for i, e := range extents {
		if e.Size < page || e.Offset%page != 0 || i > 0 && e.Offset == extents[i-1].Offset && e.Size == extents[i-1].Size { // the last: a hard link
			continue
		}
		end := img.Size
		for _, next := range extents[i+1:] {
			if next.Offset > e.Offset {
				end = next.Offset
				break
			}
		}
		size := min((e.Size+page-1)/page*page, end-e.Offset)
		if e.Offset < at || size < e.Size {
			return nil, nil, fmt.Errorf("%s lies at %d+%d, in what is not its own", e.Path, e.Offset, e.Size)
		}
		rest.add(at, e.Offset-at)
		at = e.Offset + size
		p := byPath[e.Path]
		if p == nil {
			p = &part{path: e.Path}
			byPath[e.Path] = p
			files = append(files, p)
		}
		p.add(e.Offset, size)
	}
	rest.add(at, img.Size-at)
	for _, p := range append(files[:len(files):len(files)], rest) {
		h := sha256.New()
		for _, s := range p.spans {
			n, err := io.Copy(h, io.NewSectionReader(img.R, s.offset, s.size))
			if err == nil && n < s.size {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return nil, nil, err
			}
		}
		p.sum = [sha256.Size]byte(h.Sum(nil))
	}
	return files, rest, nil
}

func (p *part) add(offset, size int64) {
	if size > 0 {
		p.spans = append(p.spans, span{offset, size})
		p.size += size
	}
}

func (p *part) read(r io.ReaderAt) ([]byte, error) {
	data := make([]byte, p.size)
	at := data
	for _, s := range p.spans {
		if err := readAt(r, at[:s.size], s.offset); err != nil {
			return nil, err
		}
		at = at[s.size:]
	}
	return data, nil
}

// pairs finds for each file of new the one of old that it came from.
func pairs(olds, news []*part) map[*part]*part {
	bySum, byPath, byName := map[[sha256.Size]byte]*part{}, map[string]*part{}, map[string]*part{}
	for _, p := range slices.Backward(olds) {
		bySum[p.sum], byPath[p.path], byName[path.Base(p.path)] = p, p, p
	}
	found := map[*part]*part{}
	for _, p := range news {
		found[p] = cmp.Or(bySum[p.sum], byPath[p.path], byName[path.Base(p.path)])
	}
	return found
}

// steps says how to make new, from its first byte to its last.
func steps(ctx context.Context, old, new Image) ([]step, error) {
	if old.Size == 0 {
		return literal(int(new.Size)), nil
	}
	oldFiles, oldRest, err := parts(old)
	if err != nil {
		return nil, fmt.Errorf("old image: %w", err)
	}
	newFiles, newRest, err := parts(new)
	if err != nil {
		return nil, fmt.Errorf("new image: %w", err)
	}
	from := pairs(oldFiles, newFiles)
	from[newRest] = oldRest
	pieces := map[int64][]step{} // by offset in new
	for _, p := range append(newFiles, newRest) {
		made, err := partSteps(ctx, old, new, from[p], p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.path, err)
		}
		spread(pieces, p, made)
	}
	var all []step
	for _, at := range slices.Sorted(mapKeys(pieces)) {
		all = append(all, pieces[at]...)
	}
	return all, nil
}

// partSteps makes one part; its old positions are those of the old image.
func partSteps(ctx context.Context, old, new Image, from, p *part) ([]step, error) {
	if from == nil || from.size == 0 {
		return literal(int(p.size)), nil
	}
	if from.sum == p.sum {
		return from.place([]step{{added: int(p.size)}}), nil
	}
	was, err := from.read(old.R)
	if err != nil {
		return nil, err
	}
	is, err := p.read(new.R)
	if err != nil {
		return nil, err
	}
	m, err := newMatcher(was)
	if err != nil {
		return nil, err
	}
	const piece = 4 << 20 // matched by one goroutine
	made := make([][]step, (len(is)+piece-1)/piece)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range made {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			made[i] = m.match(is[i*piece : min((i+1)*piece, len(is))])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return from.place(slices.Concat(made...)), nil
}

// place turns positions in a part into those of its image.
func (p *part) place(steps []step) []step {
	var out []step
	for _, s := range steps {
		at, left := s.old, s.added
		for _, sp := range p.spans {
			if left == 0 {
				break
			}
			if at >= sp.size {
				at -= sp.size
				continue
			}
			n := int(min(int64(left), sp.size-at))
			out = append(out, step{old: sp.offset + at, added: n})
			left, at = left-n, 0
		}
		if s.literal > 0 {
			if s.added == 0 {
				out = append(out, step{})
			}
			out[len(out)-1].literal = s.literal
		}
	}
	return out
}

// spread cuts the steps of a part into those of its ranges.
func spread(pieces map[int64][]step, p *part, steps []step) {
	for _, sp := range p.spans {
		var mine []step
		mine, steps = take(steps, int(sp.size))
		pieces[sp.offset] = mine
	}
}

// take cuts off the steps that make the first n bytes.
func take(steps []step, n int) (head, rest []step) {
	for len(steps) > 0 && n > 0 {
		s := steps[0]
		h := step{old: s.old, added: min(s.added, n)}
		h.literal = min(s.literal, n-h.added)
		head = append(head, h)
		n -= h.added + h.literal
		s.old, s.added, s.literal = s.old+int64(h.added), s.added-h.added, s.literal-h.literal
		if s.added+s.literal > 0 {
			return head, append([]step{s}, steps[1:]...)
		}
		steps = steps[1:]
	}
	return head, steps
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// maker packs chunks.
type maker struct {
	old, new Image
	chunk    int
}

// cut gives each chunk its steps.
func (m *maker) cut(steps []step) [][]step {
	var chunks [][]step
	var now []step
	room := m.chunk
	for _, s := range steps {
		for s.added+s.literal > 0 {
			h := step{old: s.old, added: min(s.added, room)}
			h.literal = 0
			if h.added == s.added {
				h.literal = min(s.literal, room-h.added)
			}
			now = append(now, h)
			room -= h.added + h.literal
			s.old, s.added, s.literal = s.old+int64(h.added), s.added-h.added, s.literal-h.literal
			if room == 0 {
				chunks, now, room = append(chunks, now), nil, m.chunk
			}
		}
	}
	if now != nil {
		chunks = append(chunks, now)
	}
	return chunks
}

func (m *maker) write(ctx context.Context, w io.Writer, chunks [][]step) (int64, error) {
	packed := make([][]byte, len(chunks))
	digests := make([][sha256.Size]byte, len(chunks))
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	g.SetLimit(workers)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(mostChunk), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return 0, err
	}
	defer z.Close()
	for i, steps := range chunks {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			data := make([]byte, min(int64(m.chunk), m.new.Size-int64(i)*int64(m.chunk)))
			if err := readAt(m.new.R, data, int64(i)*int64(m.chunk)); err != nil {
				return err
			}
			digests[i] = sha256.Sum256(data)
			chunk, err := m.unpacked(steps, data)
			if err != nil {
				return err
			}
			if len(chunk)-len(data) > stepsMost(m.chunk) { // crumbs: cheaper as they are
				if chunk, err = m.unpacked(literal(len(data)), data); err != nil {
					return err
				}
			}
			packed[i] = z.EncodeAll(chunk, nil)
			if len(packed[i]) > packedMost(m.chunk) {
				return fmt.Errorf("chunk %d takes %d bytes packed: more than is read", i, len(packed[i]))
			}
			return m.try(packed[i], data)
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	head := le.AppendUint32([]byte(magic), uint32(m.chunk))
	head = le.AppendUint64(head, uint64(m.old.Size))
	head = le.AppendUint64(head, uint64(m.new.Size))
	for i := range packed {
		head = le.AppendUint32(head, uint32(len(packed[i])))
		head = append(head, digests[i][:]...)
	}
	sum := sha256.Sum256(head)
	total := int64(0)
	for _, data := range slices.Concat([][]byte{head, sum[:]}, packed) {
		n, err := w.Write(data)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// try applies a chunk that was just packed: a fault of this program is to be found
// here and not on a machine.
func (m *maker) try(packed, want []byte) error {
	d := &Delta{r: bytes.NewReader(packed), chunk: m.chunk, old: m.old.Size, new: m.new.Size}
	z, err := newDecoder(m.chunk)
	if err != nil {
		return err
	}
	defer z.Close()
	a := &applier{Delta: d, old: m.old.R, zstd: z}
	made := make([]byte, len(want))
	if err := a.make(chunkHead{packed: len(packed)}, made); err != nil {
		return fmt.Errorf("try what was packed: %w", err)
	}
	if !bytes.Equal(made, want) {
		return errors.New("what was packed does not make what it was packed from: a bug of this program")
	}
	return nil
}

// unpacked is a chunk before it is packed.
func (m *maker) unpacked(steps []step, data []byte) ([]byte, error) {
	var out []byte
	at := int64(0)
	var literals []byte
	diffs := make([]byte, 0, len(data))
	for _, s := range steps {
		if s.added == 0 {
			s.old = at
		}
		out = binary.AppendUvarint(out, uint64(s.added))
		out = binary.AppendUvarint(out, uint64(s.literal))
		out = binary.AppendVarint(out, s.old-at)
		at = s.old + int64(s.added)
		was := make([]byte, s.added)
		if s.added > 0 {
			if err := readAt(m.old.R, was, s.old); err != nil {
				return nil, err
			}
		}
		for i, b := range was {
			diffs = append(diffs, data[i]-b)
		}
		literals = append(literals, data[s.added:s.added+s.literal]...)
		data = data[s.added+s.literal:]
	}
	how := suits(literals)
	how.apply(literals)
	head := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(how)), uint64(len(steps)))
	return slices.Concat(head, out, diffs, literals), nil
}
