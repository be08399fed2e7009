package fat

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const mib = 1 << 20

// esp is like the one of a machine, with names of each kind and more entries
// than a cluster has room for.
func esp() map[string][]byte {
	files := map[string][]byte{
		"EFI/BOOT/BOOTX64.EFI":                 bytes.Repeat([]byte("boot"), 40000),
		"EFI/Linux/holdfast-a.efi":             bytes.Repeat([]byte("uki-a"), 200001),
		"EFI/Linux/holdfast-b+3.efi":           bytes.Repeat([]byte("uki-b"), 3000),
		"loader/loader.conf":                   []byte("timeout 0\n"),
		"loader/keys/auto/PK.auth":             []byte("x"),
		"holdfast/empty":                       nil,
		"holdfast/größe.yaml":                  []byte("umlauts"),
		"holdfast/exactly13chars":              []byte("thirteen and one"),
		"holdfast/exactly13char":               []byte("thirteen"),
		"holdfast/a.b.c":                       []byte("dots"),
		"holdfast/" + strings.Repeat("n", 255): []byte("longest"),
	}
	for i := range 200 {
		files[fmt.Sprintf("many/a file with number %d.txt", i)] = []byte(fmt.Sprint(i))
	}
	return files
}

func write(t *testing.T, v Volume) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(v.Size); err != nil {
		t.Fatal(err)
	}
	if err := v.Write(f); err != nil {
		t.Fatal(err)
	}
	return file
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestStockToolsAgree(t *testing.T) {
	for _, size := range []int64{34 * mib, 64 * mib, 256 * mib, 256*mib + 512, 300*mib + 7*512, 2048 * mib} {
		t.Run(fmt.Sprint(size/mib), func(t *testing.T) {
			files := esp()
			file := write(t, Volume{Size: size, Label: "HOLDFAST", Serial: 0x12345678, Files: files})
			if out := run(t, "fsck.vfat", "-n", "-v", file); strings.Contains(out, "rong") || strings.Contains(out, "differ") || !strings.Contains(out, fmt.Sprintf(" %d files", 1+len(files)+countFolders(files))) {
				t.Errorf("fsck.vfat:\n%s", out)
			}
			if out := run(t, "mdir", "-i", file, "::/"); !strings.Contains(out, "Volume in drive : is HOLDFAST") || !strings.Contains(out, "1234-5678") {
				t.Errorf("mdir:\n%s", out)
			}
			to := t.TempDir()
			run(t, "mcopy", "-s", "-Q", "-i", file, "::/*", to)
			for name, want := range files {
				got, err := os.ReadFile(filepath.Join(to, name))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v: want %d", name, len(got), err, len(want))
				}
			}
			var stat syscall.Stat_t
			if err := syscall.Stat(file, &stat); err != nil || stat.Blocks*512 > 2*mib+2*size/256 {
				t.Errorf("the sparse file takes %d bytes, %v", stat.Blocks*512, err)
			}
		})
	}
}

func countFolders(files map[string][]byte) int {
	seen := map[string]bool{}
	for name := range files {
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			seen[d] = true
		}
	}
	return len(seen)
}

func TestOldContentDoesNotShine(t *testing.T) {
	v := Volume{Size: 34 * mib, Files: esp()}
	file := filepath.Join(t.TempDir(), "old")
	if err := os.WriteFile(file, bytes.Repeat([]byte{0xe5, 0x41}, 17*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := v.Write(f); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.vfat", "-n", file)
}

func TestSameFilesSameBytes(t *testing.T) {
	v := Volume{Size: 34 * mib, Label: "ESP", Files: esp()}
	a, errA := os.ReadFile(write(t, v))
	b, errB := os.ReadFile(write(t, v))
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("two volumes differ, %v, %v", errA, errB)
	}
}

func TestRefuses(t *testing.T) {
	for name, v := range map[string]Volume{
		"too small":         {Size: 30 * mib},
		"negative":          {Size: -1},
		"label":             {Size: 34 * mib, Label: "holdfast"},
		"long label":        {Size: 34 * mib, Label: "HOLDFAST-ESP"},
		"does not fit":      {Size: 34 * mib, Files: map[string][]byte{"a": make([]byte, 20*mib), "b": make([]byte, 15*mib)}},
		"above":             {Size: 34 * mib, Files: map[string][]byte{"../a": nil}},
		"absolute":          {Size: 34 * mib, Files: map[string][]byte{"/a": nil}},
		"no name":           {Size: 34 * mib, Files: map[string][]byte{"": nil}},
		"case":              {Size: 34 * mib, Files: map[string][]byte{"a": nil, "A": nil}},
		"case of a folder":  {Size: 34 * mib, Files: map[string][]byte{"a/b": nil, "A/c": nil}},
		"file and folder":   {Size: 34 * mib, Files: map[string][]byte{"a": nil, "a/b": nil}},
		"forbidden letter":  {Size: 34 * mib, Files: map[string][]byte{"a:b": nil}},
		"ends with a point": {Size: 34 * mib, Files: map[string][]byte{"a.": nil}},
		"too long":          {Size: 34 * mib, Files: map[string][]byte{strings.Repeat("n", 256): nil}},
	} {
		if err := v.Write(discard{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	full := errors.New("disk is full")
	if err := (Volume{Size: 34 * mib, Files: esp()}).Write(discard{full}); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
}

type discard struct{ err error }

func (d discard) WriteAt(b []byte, _ int64) (int, error) { return len(b), d.err }

func TestShortNamesAreUnique(t *testing.T) {
	root := tree(esp())
	seen := map[[11]byte]string{}
	many := root.children[slices.IndexFunc(root.children, func(n *node) bool { return n.name == "many" })]
	for i, c := range many.children {
		short := many.shortName(i)
		if old := seen[short]; old != "" {
			t.Errorf("%q and %q are both %q", old, c.name, short)
		}
		seen[short] = c.name
	}
	if len(slices.Collect(maps.Keys(seen))) != 200 {
		t.Errorf("%d names", len(seen))
	}
}
