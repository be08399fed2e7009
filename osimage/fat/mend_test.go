package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var errCut = errors.New("the power is gone")

// ram is a disk of few pages, so that a copy costs little.
type ram struct {
	size  int64
	pages map[int64][]byte // by number; of page bytes, never changed in place
	left  int              // sectors until the power goes; below 0: it stays
}

const page = 4096

func (r *ram) copy() *ram { return &ram{r.size, maps.Clone(r.pages), -1} }

func (r *ram) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > r.size {
		return 0, io.EOF
	}
	clear(b)
	for n := 0; n < len(b); {
		in := (at + int64(n)) % page
		k := int(min(page-in, int64(len(b)-n)))
		if p := r.pages[(at+int64(n))/page]; p != nil {
			copy(b[n:n+k], p[in:])
		}
		n += k
	}
	return len(b), nil
}

func (r *ram) WriteAt(b []byte, at int64) (int, error) {
	for n := 0; n < len(b); {
		in := (at + int64(n)) % page
		k := int(min(sector-in%sector, int64(len(b)-n)))
		if r.left == 0 {
			return n, errCut
		}
		r.left--
		p := make([]byte, page)
		copy(p, r.pages[(at+int64(n))/page])
		copy(p[in:], b[n:n+k])
		r.pages[(at+int64(n))/page] = p
		n += k
	}
	return len(b), nil
}

func (r *ram) Sync() error {
	if r.left == 0 {
		return errCut
	}
	return nil
}

func (r *ram) u32(at int64) uint32 {
	b := make([]byte, 4)
	r.ReadAt(b, at)
	return binary.LittleEndian.Uint32(b)
}

func (r *ram) put(at int64, v uint32) {
	r.WriteAt(binary.LittleEndian.AppendUint32(nil, v), at)
}

// fsck is what fsck.vfat finds wrong.
func (r *ram) fsck(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(r.size); err != nil {
		t.Fatal(err)
	}
	for at, p := range r.pages {
		if _, err := f.WriteAt(p, at*page); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("fsck.vfat", "-n", name).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ""
}

// files reads what is there by the first table, and nothing but that.
func (r *ram) files(t *testing.T) map[string][]byte {
	t.Helper()
	m := &mender{d: r, cached: map[int64][]byte{}, edits: map[int64]bool{}}
	if err := m.read(); err != nil {
		t.Fatal(err)
	}
	if err := m.folder(m.root, "", 0); err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, f := range m.files {
		data, c := []byte{}, f.first
		for len(data) < int(f.size) && m.inside(c) {
			b := make([]byte, m.clusterSize())
			r.ReadAt(b, m.offset(c))
			data, c = append(data, b...), m.tables[0][c]&value
		}
		found[f.path] = data[:min(len(data), int(f.size))]
	}
	return found
}

// find gives the short entry of a file and what is known of the volume.
func (r *ram) find(t *testing.T, name string) (*mender, *file) {
	t.Helper()
	m := &mender{d: r, cached: map[int64][]byte{}, edits: map[int64]bool{}}
	if err := errors.Join(m.read(), m.folder(m.root, "", 0)); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(m.files, func(f *file) bool { return f.path == name })
	if i < 0 {
		t.Fatalf("there is no %s", name)
	}
	return m, m.files[i]
}

func volumeOf(t *testing.T, files map[string][]byte) *ram {
	t.Helper()
	r := &ram{34 * mib, map[int64][]byte{}, -1}
	if err := (Volume{Size: r.size, Label: "ESP", Files: files}).Write(r); err != nil {
		t.Fatal(err)
	}
	return r
}

func small() map[string][]byte {
	return map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI":       bytes.Repeat([]byte("boot"), 3000),
		"EFI/Linux/holdfast-a.efi":   bytes.Repeat([]byte("uki-a"), 4001),
		"EFI/Linux/holdfast-b+3.efi": bytes.Repeat([]byte("uki-b"), 3000),
		"EFI/Linux/holdfast-b.new":   bytes.Repeat([]byte("new"), 3333),
		"holdfast/recovery.age":      []byte("escrow"),
		"holdfast/empty":             nil,
		"loader/loader.conf":         []byte("timeout 0\n"),
	}
}

func isNew(name string) bool { return strings.HasSuffix(name, ".new") }

func TestMendLeavesWhatIsSound(t *testing.T) {
	for name, files := range map[string]map[string][]byte{"few": small(), "many": esp(), "none": nil} {
		r := volumeOf(t, files)
		r.left = 0 // nothing may be written
		if said, err := Mend(r, isNew); err != nil || len(said) != 0 {
			t.Errorf("%s: %q, %v", name, said, err)
		}
	}
}

// Each damage that a power cut leaves: what is not hit by it is as before, each
// prefix of the repair is repaired again, and in the end fsck.vfat is content.
func TestMend(t *testing.T) {
	const victim, cut = "EFI/Linux/holdfast-b.new", "EFI/Linux/holdfast-b+3.efi"
	fat := func(m *mender, i int, c uint32) int64 { return m.tableAt(i) + 4*int64(c) }
	both := func(r *ram, m *mender, c, v uint32) { r.put(fat(m, 0, c), v); r.put(fat(m, 1, c), v) }
	tests := map[string]struct {
		harm func(r *ram, m *mender, f *file)
		hit  map[string]int // what is left of it in bytes; -1: it is gone
		said string
	}{
		"the mark": {func(r *ram, m *mender, _ *file) {
			r.WriteAt([]byte{1}, dirtyAt)
			both(r, m, 1, endOfChain&^0x08000000)
		}, nil, "not unmounted"},
		"lost clusters": {func(r *ram, m *mender, f *file) {
			r.WriteAt([]byte{removed}, f.slots[len(f.slots)-1])
			for _, at := range f.slots {
				r.WriteAt([]byte{removed}, at)
			}
		}, map[string]int{victim: -1}, "free again"},
		"a long name without its file": {func(r *ram, _ *mender, f *file) {
			r.WriteAt([]byte{removed}, f.slots[len(f.slots)-1])
		}, map[string]int{victim: -1}, "part of a name"},
		"the tables differ": {func(r *ram, m *mender, f *file) {
			r.put(fat(m, 1, f.first), 0)
		}, nil, ""},
		"the first table is old": {func(r *ram, m *mender, f *file) {
			r.put(fat(m, 0, f.first), 0)
		}, nil, ""},
		"the first table is unreadable": {func(r *ram, m *mender, _ *file) {
			r.WriteAt(bytes.Repeat([]byte{0x5a}, int(m.tableSize*sector)), m.tableAt(0))
		}, nil, ""},
		"a chain that breaks": {func(r *ram, m *mender, f *file) {
			both(r, m, f.first, 0)
		}, map[string]int{victim: 0}, "ended in the middle"},
		"a chain that is too short": {func(r *ram, m *mender, f *file) {
			both(r, m, f.first, endOfChain)
		}, map[string]int{victim: sector}, "ended in the middle"},
		"a chain that is too long": {func(r *ram, m *mender, f *file) {
			r.put(f.slots[len(f.slots)-1]+28, 700)
		}, map[string]int{victim: 700}, "free again"},
		"a chain in a circle": {func(r *ram, m *mender, f *file) {
			both(r, m, f.first+1, f.first)
		}, map[string]int{victim: 2 * sector}, "ended in the middle"},
		"a chain to nowhere": {func(r *ram, m *mender, f *file) {
			both(r, m, f.first+2, 0x0abcdef0)
		}, map[string]int{victim: 3 * sector}, "ended in the middle"},
		"a size before its clusters": {func(r *ram, m *mender, f *file) {
			r.put(f.slots[len(f.slots)-1]+28, 1<<30)
		}, map[string]int{victim: 3333*3/sector*sector + sector}, "ended in the middle"},
		"clusters of another file": {func(r *ram, m *mender, f *file) {
			_, other := r.find(t, "EFI/Linux/holdfast-a.efi")
			both(r, m, f.first+1, other.first+3)
		}, map[string]int{victim: 2 * sector}, "ended in the middle"},
		"a rename in two": {func(r *ram, m *mender, f *file) {
			_, target := r.find(t, cut)
			r.put(target.slots[len(target.slots)-1]+28, f.size)
			r.WriteAt([]byte{byte(f.first), byte(f.first >> 8)}, target.slots[len(target.slots)-1]+26)
		}, map[string]int{victim: -1, cut: -2}, "was also called"},
		"a folder without content": {func(r *ram, m *mender, f *file) {
			e := encode(nil, newSlot([11]byte([]byte("FOLDER     ")), directory, 9000, 0))
			r.WriteAt(e, m.offset(m.root)+6*slotSize)
		}, nil, "no content"},
		"the count":       {func(r *ram, m *mender, _ *file) { r.put(sector+488, 17) }, nil, "count of free"},
		"the boot sector": {func(r *ram, _ *mender, _ *file) { r.noise(0) }, nil, "the boot sector was damaged"},
		"a boot sector that leads to another root": {func(r *ram, m *mender, _ *file) { r.put(44, m.root+1) }, nil, "the boot sector was damaged"},
		"the copy of the boot sector":              {func(r *ram, _ *mender, _ *file) { r.noise(copyAt) }, nil, "the copy of the boot sector"},
		"a copy that leads to another root":        {func(r *ram, m *mender, _ *file) { r.put(copyAt+44, m.root+1) }, nil, "the copy of the boot sector"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := small()
			r := volumeOf(t, before)
			m, f := r.find(t, victim)
			tt.harm(r, m, f)
			check := func(what string, r *ram) {
				t.Helper()
				now := r.files(t)
				for file, want := range before {
					left, hit := tt.hit[file]
					switch {
					case hit && left == -1:
						want = nil
						if _, is := now[file]; is {
							t.Errorf("%s: %s is still there", what, file)
						}
					case left == -2:
						want = before[victim]
					case hit:
						want = append(bytes.Clone(want), make([]byte, max(0, left-len(want)))...)[:left]
					}
					if !bytes.Equal(now[file], want) {
						t.Errorf("%s: %s has %d bytes, want %d", what, file, len(now[file]), len(want))
					}
				}
			}
			for n := 0; ; n += 1 + n/8*4 { // a whole table is hundreds of writes alike
				cut := r.copy()
				cut.left = n
				said, err := Mend(cut, isNew)
				done := err == nil
				if !done && !errors.Is(err, errCut) {
					t.Fatal(err)
				}
				if done && !strings.Contains(fmt.Sprint(said), tt.said) {
					t.Errorf("said %q, want %q", said, tt.said)
				}
				cut.left = -1
				if _, err := Mend(cut, isNew); err != nil {
					t.Fatalf("cut %d: %v", n, err)
				}
				check(fmt.Sprintf("cut %d", n), cut)
				cut.left = 0
				if said, err := Mend(cut, isNew); err != nil || len(said) > 0 {
					t.Fatalf("cut %d: a third time: %q, %v", n, said, err)
				}
				if n < 3 || done {
					if out := cut.fsck(t); out != "" {
						t.Errorf("cut %d: fsck.vfat says:\n%s", n, out)
					}
				}
				if done {
					break
				}
			}
		})
	}
}

func TestMendRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		harm func(*ram)
		want error
	}{
		"noise":          {func(r *ram) { r.noise(0); r.noise(copyAt) }, ErrFormat},
		"shorter":        {func(r *ram) { r.size -= 4096 }, ErrFormat},
		"both tables":    {func(r *ram) { r.put(reserved*sector, 0); r.put((reserved+r.tableSize(t))*sector, 0) }, ErrBeyond},
		"root":           {func(r *ram) { r.put(reserved*sector+8, 0); r.put((reserved+r.tableSize(t))*sector+8, 0) }, ErrBeyond},
		"a folder holds": {func(r *ram) { m, _ := r.find(t, "holdfast/empty"); r.WriteAt([]byte("x"), m.offset(3)) }, ErrBeyond},
	} {
		r := volumeOf(t, small())
		tt.harm(r)
		r.left = 0
		if err := Check(r); !errors.Is(err, tt.want) {
			t.Errorf("%s, only looked at: %v", name, err)
		}
		if said, err := Mend(r, nil); !errors.Is(err, tt.want) || len(said) > 0 {
			t.Errorf("%s: %q, %v", name, said, err)
		}
	}
}

func (r *ram) noise(at int64) { r.WriteAt(bytes.Repeat([]byte{0xa5}, sector), at) }

func (r *ram) tableSize(t *testing.T) int64 {
	t.Helper()
	return int64(r.u32(36))
}

// TestMendRandom: whatever stands in the tables, files whose clusters are right
// are untouched, and what was repaired is sound.
func TestMendRandom(t *testing.T) {
	seed := uint64(20261122)
	random := rand.New(rand.NewPCG(seed, 1))
	for range 40 {
		r := volumeOf(t, small())
		m, _ := r.find(t, "holdfast/empty")
		for range 1 + random.IntN(6) {
			c, v := 20+random.Uint32N(120), random.Uint32N(160)
			if random.IntN(4) == 0 {
				v = endOfChain
			}
			r.put(m.tableAt(random.IntN(2))+4*int64(c), v)
		}
		if _, err := Mend(r, isNew); err != nil {
			t.Fatal(err)
		}
		r.left = 0
		if said, err := Mend(r, isNew); err != nil || len(said) > 0 {
			t.Errorf("a second time: %q, %v", said, err)
		}
	}
}

// FuzzMend: no bytes of a boot partition, which anybody may write, make Mend fail
// otherwise than by an error, and what it repaired is sound to it.
func FuzzMend(f *testing.F) {
	f.Add([]byte{1}, int64(dirtyAt))
	f.Add([]byte{0, 0, 0, 0}, int64(reserved*sector+4*30))
	f.Add(bytes.Repeat([]byte{0x0f}, 64), int64(sector*(reserved+2*530)))
	base := &ram{34 * mib, map[int64][]byte{}, -1}
	if err := (Volume{Size: base.size, Files: small()}).Write(base); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		r := base.copy()
		if at < 0 || at+int64(len(b)) > r.size {
			return
		}
		r.WriteAt(b, at)
		for name := range small() {
			pieces, err := Locate(r, name)
			if err != nil {
				continue
			}
			for _, p := range pieces {
				if p.Offset < 0 || p.Size < 1 || p.Offset+p.Size > r.size {
					t.Errorf("%s lies at %+v of %d bytes", name, p, r.size)
				}
			}
		}
		if _, err := Mend(r, isNew); err != nil {
			return
		}
		r.left = 0
		if said, err := Mend(r, isNew); err != nil || len(said) > 0 {
			t.Errorf("a second time: %q, %v", said, err)
		}
	})
}
