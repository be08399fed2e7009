package slots

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// The list of the specification of the version format, oldest first.
func TestCompareVersions(t *testing.T) {
	order := []string{"", "122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1", "124.9", "124.10", "124.010.1"}
	for i, a := range order {
		for j, b := range order {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := CompareVersions(a, b); got != want {
				t.Errorf("CompareVersions(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"123_a", "123a"}, {"1.01", "1.1"}, {"+1", "1"}} {
		if got := CompareVersions(same[0], same[1]); got != 0 {
			t.Errorf("CompareVersions(%q, %q) = %d, want 0", same[0], same[1], got)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0~rc1", "1.0", "1-^.2")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if CompareVersions(a, b) != -CompareVersions(b, a) {
			t.Errorf("%q and %q: not the same both ways", a, b)
		}
		if CompareVersions(a, a) != 0 {
			t.Errorf("%q differs from itself", a)
		}
	})
}

func TestNames(t *testing.T) {
	for name, want := range map[string]Entry{
		"holdfast-a.efi":      {Slot: A},
		"HOLDFAST-B+3.EFI":    {Slot: B, Count: Count{true, 3, 0}},
		"holdfast-b+2-1.efi":  {Slot: B, Count: Count{true, 2, 1}},
		"holdfast-b+0-12.efi": {Slot: B, Count: Count{true, 0, 12}},
	} {
		slot, count, ok := parseName(name)
		if !ok || slot != want.Slot || count != want.Count {
			t.Errorf("parseName(%q) = %v %v %v, want %+v", name, slot, count, ok, want)
		}
		if got := fileName(slot, count); !strings.EqualFold(got, name) {
			t.Errorf("%q is written as %q", name, got)
		}
	}
	for _, name := range []string{"", "holdfast-c.efi", "holdfast-a.new", "holdfast-a+.efi", "holdfast-a+1-.efi", "holdfast-a+-1.efi", "holdfast-a+9999999999.efi", "holdfast-a+1+2.efi", "xholdfast-a.efi", "holdfast-a.efi.tmp"} {
		if _, _, ok := parseName(name); ok {
			t.Errorf("%q is taken", name)
		}
	}
	if len(hidden(A)) > 26 || len(fileName(B, Count{true, 999, 999})) > 26 {
		t.Error("a name takes more than three places in a FAT folder, so that a rename may touch two sectors")
	}
}

func TestOrder(t *testing.T) {
	entry := func(file, version string) Entry {
		slot, count, ok := parseName(file)
		if !ok {
			t.Fatal(file)
		}
		return Entry{Slot: slot, Count: count, File: file, Version: version, sortKey: "holdfast"}
	}
	for name, want := range map[string][]Entry{
		"NewerFirst":        {entry("holdfast-b+3.efi", "1.10"), entry("holdfast-a.efi", "1.9")},
		"SpentLast":         {entry("holdfast-a.efi", "1.9"), entry("holdfast-b+0-3.efi", "1.10")},
		"BothSpentNewer":    {entry("holdfast-a+0.efi", "2"), entry("holdfast-b+0-3.efi", "1")},
		"SameVersionByName": {entry("holdfast-b.efi", "1"), entry("holdfast-a.efi", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sorted([]Entry{want[1], want[0]}); got[0].File != want[0].File {
				t.Errorf("first is %s, want %s", got[0].File, want[0].File)
			}
		})
	}
}

// minimalPE is a PE file with the sections that we read.
func minimalPE(sections map[string]string) []byte {
	var out bytes.Buffer
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	dos := make([]byte, 64)
	dos[0], dos[1], dos[60] = 'M', 'Z', 64
	out.Write(dos)
	out.WriteString("PE\x00\x00")
	put([]uint16{0x8664, uint16(len(sections))})
	put([]uint32{0, 0, 0})
	put([]uint16{0, 0x22})
	names := []string{".osrel", ".cmdline"}
	at := uint32(512)
	var body bytes.Buffer
	for _, name := range names {
		text, ok := sections[name]
		if !ok {
			continue
		}
		var n [8]byte
		copy(n[:], name)
		out.Write(n[:])
		size := (uint32(len(text)) + 511) &^ 511
		put([]uint32{uint32(len(text)), at, size, at, 0, 0, 0, 0x40000040})
		body.WriteString(text + strings.Repeat("\x00", int(size)-len(text)))
		at += size
	}
	data := append(out.Bytes(), make([]byte, 512-out.Len())...)
	return append(data, body.Bytes()...)
}

func realSlots(t *testing.T) (*Slots, osimage.Verity, []byte) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "efi", Folder), 0o755); err != nil {
		t.Fatal(err)
	}
	roots := map[Slot]string{A: filepath.Join(dir, "root-a"), B: filepath.Join(dir, "root-b")}
	for _, file := range roots {
		if err := os.WriteFile(file, make([]byte, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data := bytes.Repeat([]byte("root"), 5*osimage.VerityBlock/4)
	_, v, err := verity.Make(bytes.NewReader(data), int64(len(data)), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{ESP: filepath.Join(dir, "efi"), Roots: roots, Slot: A})
	if err != nil {
		t.Fatal(err)
	}
	return s, v, data
}

func TestRealFiles(t *testing.T) {
	s, v, data := realSlots(t)
	pe := func(version string) []byte {
		return minimalPE(map[string]string{".osrel": "ID=holdfast\nIMAGE_VERSION=\"" + version + "\"\n", ".cmdline": "quiet " + v.Argument()})
	}
	if err := os.WriteFile(s.Path("holdfast-a.efi"), pe("1.0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path("holdfast-b.efi"), pe("0.9"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path("stranger.efi"), []byte("MZ"), 0o600); err != nil {
		t.Fatal(err)
	}
	fill := func(w Target) error { _, err := w.WriteAt(data, 0); return err }
	if err := s.WriteRoot(t.Context(), B, v, fill); !errors.Is(err, ErrBootable) {
		t.Fatalf("overwrote a root that can be booted: %v", err)
	}
	if err := s.WriteRoot(t.Context(), A, v, fill); !errors.Is(err, ErrRunning) {
		t.Fatalf("overwrote the running root: %v", err)
	}
	if err := s.Discard(B); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteRoot(t.Context(), B, v, func(w Target) error { _, err := w.WriteAt(data[1:], 0); return err }); !errors.Is(err, ErrContent) {
		t.Fatalf("wrong root: %v", err)
	}
	if err := s.WriteRoot(t.Context(), B, v, func(w Target) error { _, err := w.WriteAt([]byte{1}, int64(len(data))); return err }); err == nil {
		t.Fatal("wrote behind the data")
	}
	large := v
	large.DataBlocks = 1 << 40
	if err := s.WriteRoot(t.Context(), B, large, fill); err == nil {
		t.Fatal("a root that does not fit was taken")
	}
	if err := s.WriteRoot(t.Context(), B, v, fill); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.HoldsRoot(B, v); err != nil || !ok {
		t.Fatalf("HoldsRoot = %v, %v", ok, err)
	}
	if ok, err := s.HoldsRoot(A, v); err != nil || ok {
		t.Fatalf("HoldsRoot of an empty slot = %v, %v", ok, err)
	}
	text := pe("1.1")
	path, err := s.WriteUKI(t.Context(), B, bytes.NewReader(text), int64(len(text)), sha256.Sum256(text))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".efi") {
		t.Errorf("%s can be booted before it is armed", path)
	}
	if err := s.Arm(B); err != nil {
		t.Fatal(err)
	}
	entries, err := s.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.File+" "+e.Version)
	}
	if want := []string{"holdfast-b+3.efi 1.1", "holdfast-a.efi 1.0"}; !slices.Equal(got, want) {
		t.Errorf("entries are %q, want %q", got, want)
	}
	for slot, want := range map[Slot]bool{A: false, B: true} {
		if got, err := OnTrial(s.ESP, slot); err != nil || got != want {
			t.Errorf("OnTrial of %s = %v, %v", slot, got, err)
		}
	}
	if entries[0].Verity != v {
		t.Error("the entry's root is another one")
	}
	if err := s.Clean(""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Path("stranger.efi")); err != nil {
		t.Errorf("somebody else's file was removed: %v", err)
	}
}

func TestWriteUKIRefuses(t *testing.T) {
	s, v, _ := realSlots(t)
	good := minimalPE(map[string]string{".osrel": "ID=holdfast\nIMAGE_VERSION=1\n", ".cmdline": v.Argument()})
	for name, tt := range map[string]struct {
		data []byte
		size int
		sum  [32]byte
	}{
		"Digest":   {good, len(good), sha256.Sum256(nil)},
		"Longer":   {good, len(good) - 1, sha256.Sum256(good)},
		"Shorter":  {good[:600], len(good), sha256.Sum256(good)},
		"NoUKI":    {[]byte("MZ"), 2, sha256.Sum256([]byte("MZ"))},
		"NoOSRel":  {minimalPE(map[string]string{".cmdline": v.Argument()}), 0, [32]byte{}},
		"NoVerity": {minimalPE(map[string]string{".osrel": "ID=x\nVERSION=1\n", ".cmdline": "quiet"}), 0, [32]byte{}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.size == 0 {
				tt.size, tt.sum = len(tt.data), sha256.Sum256(tt.data)
			}
			if _, err := s.WriteUKI(t.Context(), B, bytes.NewReader(tt.data), int64(tt.size), tt.sum); err == nil {
				t.Fatal("taken")
			}
			if entries, err := s.Entries(); err != nil || len(entries) != 0 {
				t.Errorf("there are entries: %v %v", entries, err)
			}
		})
	}
}

func FuzzInspect(f *testing.F) {
	v := osimage.Verity{DataBlocks: 1}
	f.Add(minimalPE(map[string]string{".osrel": "ID=holdfast\nIMAGE_VERSION=1\n", ".cmdline": v.Argument()}))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := inspect(bytes.NewReader(data), int64(len(data)))
		if err == nil && (e.Version == "" || e.sortKey == "" || e.Verity.DataBlocks == 0) {
			t.Errorf("%+v got through", e)
		}
	})
}
