package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const mib = 1 << 20

// disk is a disk in memory that remembers its writes sector by sector.
type disk struct {
	data   []byte
	writes []sector
	syncs  []int // how many writes were done at each sync
}

type sector struct {
	at   int
	data [Sector]byte
}

func (d *disk) ReadAt(b []byte, at int64) (int, error) { return bytes.NewReader(d.data).ReadAt(b, at) }
func (d *disk) Sync() error                            { d.syncs = append(d.syncs, len(d.writes)); return nil }

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	if at%Sector != 0 || len(b)%Sector != 0 || int(at)+len(b) > len(d.data) {
		return 0, fmt.Errorf("write of %d bytes at %d", len(b), at)
	}
	for i := 0; i < len(b); i += Sector {
		d.writes = append(d.writes, sector{int(at) + i, [Sector]byte(b[i:])})
	}
	return copy(d.data[at:], b), nil
}

func newDisk(t testing.TB, size int64, tables ...*Table) *disk {
	t.Helper()
	d := &disk{data: make([]byte, size)}
	for _, table := range tables {
		if err := table.Write(d); err != nil {
			t.Fatal(err)
		}
	}
	d.writes, d.syncs = nil, nil
	return d
}

func table(t testing.TB, size int64, names ...string) *Table {
	t.Helper()
	table := &Table{ID: Derive("disk"), Size: size}
	for _, name := range names {
		if _, err := table.Add(Partition{Type: TypeLinux, ID: Derive(name), Name: name}, mib); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

func mustRead(t testing.TB, d *disk) *Table {
	t.Helper()
	got, err := Read(d, int64(len(d.data)))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestGUID(t *testing.T) {
	const text = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	if got := TypeESP.String(); got != text {
		t.Errorf("got %s, want %s", got, text)
	}
	if TypeESP[0] != 0x28 || TypeESP[15] != 0x3b {
		t.Errorf("on disk: %x", TypeESP[:])
	}
	for _, bad := range []string{"", "x", text + "0", strings.ReplaceAll(text, "-", "") + "----", strings.ReplaceAll(text, "c", "g")} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
	if Derive("a", "b") == Derive("ab") || Derive("a") != Derive("a") || Derive("a").String()[14] != '8' {
		t.Error("derived GUIDs")
	}
}

func TestSgdiskFindsNoFault(t *testing.T) {
	whole := &Table{ID: Derive("disk"), Size: 64 * mib}
	for _, p := range []struct {
		name string
		kind GUID
		size int64
	}{{"holdfast-esp", TypeESP, 10 * mib}, {"holdfast-root-a", TypeLinux, 20*mib - 5}, {"größer", TypeLUKS, 0}} {
		if _, err := whole.Add(Partition{Type: p.kind, ID: Derive(p.name), Name: p.name}, p.size); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(whole.Size); err != nil {
		t.Fatal(err)
	}
	if err := whole.Write(f); err != nil {
		t.Fatal(err)
	}
	for _, grown := range []int64{0, 32 * mib} {
		if err := f.Truncate(whole.Size + grown); err != nil {
			t.Fatal(err)
		}
		got, err := Read(f, whole.Size+grown)
		if err != nil {
			t.Fatal(err)
		}
		if grown > 0 {
			if _, err := got.Add(Partition{Type: TypeLinux, ID: Derive("data"), Name: "data"}, 0); err != nil {
				t.Fatal(err)
			}
			if err := got.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("sgdisk", "-v", "-p", "-i", "3", file).CombinedOutput()
		if text := string(out); err != nil || !strings.Contains(text, "No problems found") || strings.Contains(text, "aution") {
			t.Errorf("sgdisk: %v\n%s", err, out)
		}
		for _, want := range []string{"holdfast-esp", "10.0 MiB    EF00", "20.0 MiB    8300", "größer", strings.ToUpper(Derive("größer").String())} {
			if !strings.Contains(string(out), want) {
				t.Errorf("sgdisk does not say %q:\n%s", want, out)
			}
		}
	}
}

func TestReadsWhatSgdiskWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64*mib); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sgdisk", "-n", "1:2048:4095", "-c", "1:one", "-n", "3:8192:0", "-A", "3:set:2", file).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	p := got.Partitions
	if len(p) != 3 || p[0].Name != "one" || p[0].Offset() != mib || p[0].Size() != mib || p[1] != (Partition{}) || p[2].Attributes != 4 {
		t.Errorf("got %+v", got)
	}
}

func TestReadUsesTheBackup(t *testing.T) {
	want := table(t, 16*mib, "a", "b")
	for _, at := range []int{Sector, 2 * Sector, Sector + 60} {
		d := newDisk(t, 16*mib, want)
		d.data[at] ^= 1
		if diff := cmp.Diff(want, mustRead(t, d)); diff != "" {
			t.Errorf("byte %d flipped:\n%s", at, diff)
		}
		d.data[len(d.data)-Sector+20] ^= 1
		if _, err := Read(d, int64(len(d.data))); !errors.Is(err, ErrNone) {
			t.Errorf("both broken: %v", err)
		}
	}
}

func TestReadErrorIsNotAnEmptyDisk(t *testing.T) {
	if _, err := Read(failing{}, 16*mib); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestPowerCutLeavesATable cuts each way of changing a table after every sector,
// and after each sync with any part of what follows it.
func TestPowerCutLeavesATable(t *testing.T) {
	const size = 16 * mib
	small, old, next := table(t, size/2, "a"), table(t, size, "a"), table(t, size, "a", "b")
	broken := func(at int) func(*disk) { return func(d *disk) { d.data[at] ^= 1 } }
	for _, c := range []struct {
		name   string
		before *Table
		damage func(*disk)
		after  *Table
	}{
		{"add", old, func(*disk) {}, next},
		{"grow and add", small, func(*disk) {}, next},
		{"the primary header is broken", old, broken(Sector + 30), next},
		{"the primary entries are broken", old, broken(2 * Sector), next},
		{"the backup is broken", old, broken(size - Sector), next},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDisk(t, size, c.before)
			c.damage(d)
			start := bytes.Clone(d.data)
			was := mustRead(t, d)
			if err := c.after.Write(d); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.after, mustRead(t, d)); diff != "" {
				t.Error(diff)
			}
			random := rand.New(rand.NewPCG(1, 2))
			check := func(what string, data []byte) {
				t.Helper()
				got, err := Read(bytes.NewReader(data), size)
				if err != nil || !cmp.Equal(got, was) && !cmp.Equal(got, c.after) {
					t.Fatalf("%s: %+v, %v", what, got, err)
				}
			}
			at, synced := bytes.Clone(start), 0
			for n, w := range d.writes {
				copy(at[w.at:], w.data[:])
				check(fmt.Sprintf("%d writes", n+1), at)
			}
			at = bytes.Clone(start)
			for _, end := range d.syncs {
				for range 50 {
					torn := d.writes[synced:end]
					saved := make([]sector, len(torn))
					for i, w := range torn {
						saved[i] = sector{w.at, [Sector]byte(at[w.at:])}
						if random.IntN(2) == 0 {
							copy(at[w.at:], w.data[:])
						}
					}
					check("torn", at)
					for _, w := range saved {
						copy(at[w.at:], w.data[:])
					}
				}
				for _, w := range d.writes[synced:end] {
					copy(at[w.at:], w.data[:])
				}
				synced = end
			}
		})
	}
}

func TestWriteTwiceChangesNothing(t *testing.T) {
	want := table(t, 16*mib, "a")
	d := newDisk(t, 16*mib, want)
	before := bytes.Clone(d.data)
	if err := mustRead(t, d).Write(d); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, d.data) {
		t.Error("the disk changed")
	}
}

func TestAddUsesGapsAndRefuses(t *testing.T) {
	tab := table(t, 16*mib, "a", "b", "c")
	tab.Partitions[1] = Partition{}
	if n, err := tab.Add(Partition{Type: TypeLinux, ID: Derive("d"), Name: "d"}, 2*mib); n != 2 || err != nil || tab.Partitions[1].Offset() != 4*mib {
		t.Errorf("too large for the gap: number %d, %v, %+v", n, err, tab.Partitions[1])
	}
	if n, err := tab.Add(Partition{Type: TypeLinux, ID: Derive("e"), Name: "e"}, 1); n != 4 || err != nil || tab.Partitions[3].Offset() != 2*mib {
		t.Errorf("fits the gap: number %d, %v, %+v", n, err, tab.Partitions[3])
	}
	before := fmt.Sprintf("%+v", tab)
	if _, err := tab.Add(Partition{Type: TypeLinux, ID: Derive("f")}, 10*mib); !errors.Is(err, ErrNoRoom) {
		t.Errorf("too large: %v", err)
	}
	for name, p := range map[string]Partition{
		"no type": {ID: Derive("g")}, "no ID": {Type: TypeLinux}, "same ID": {Type: TypeLinux, ID: Derive("a")},
		"long name": {Type: TypeLinux, ID: Derive("g"), Name: strings.Repeat("x", 37)},
	} {
		if _, err := tab.Add(p, mib); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if after := fmt.Sprintf("%+v", tab); after != before {
		t.Errorf("a refused Add changed the table:\n%s\n%s", before, after)
	}
	if tab.Find("d") != 2 || tab.Find("nothing") != 0 {
		t.Error("Find")
	}
}

// FuzzRead corrects the checksums, so that what is behind them is reached.
func FuzzRead(f *testing.F) {
	good := newDisk(f, 16*mib, table(f, 16*mib, "a", "b")).data
	f.Add(good[Sector:Sector+headerSize], good[2*Sector:2*Sector+2*entrySize])
	f.Fuzz(func(t *testing.T, head, array []byte) {
		d := sparse{}
		copy(d[Sector:2*Sector], head)
		copy(d[2*Sector:], array)
		le := binary.LittleEndian
		le.PutUint32(d[Sector+88:], crc32.ChecksumIEEE(d[2*Sector:][:entries*entrySize]))
		le.PutUint32(d[Sector+16:], 0)
		le.PutUint32(d[Sector+16:], crc32.ChecksumIEEE(d[Sector:][:headerSize]))
		tab, err := Read(&d, 16*mib)
		if err != nil {
			return
		}
		if err := tab.validate(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(tab.Partitions, parseEntries(tab.encodeEntries())); diff != "" && utf8.ValidString(diff) && !strings.ContainsRune(diff, utf8.RuneError) {
			t.Error(diff)
		}
	})
}

// sparse is a disk of 16 MiB of which the beginning is not zero.
type sparse [(firstUsable + 1) * Sector]byte

func (s *sparse) ReadAt(b []byte, at int64) (int, error) {
	clear(b)
	if at < int64(len(s)) {
		copy(b, s[at:])
	}
	return len(b), nil
}
