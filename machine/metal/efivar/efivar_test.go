package efivar

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLoaderText(t *testing.T) {
	dir := t.TempDir()
	if got, err := LoaderText(dir, "LoaderDevicePartUUID"); got != "" || err != nil {
		t.Fatalf("without firmware: got %q, %v", got, err)
	}
	const id = "2f7f2d1e-58a6-4b07-9c5b-7a1d3f2b6c11"
	if err := os.WriteFile(file(dir, "LoaderDevicePartUUID", Loader), append([]byte{6, 0, 0, 0}, encode(strings.ToUpper(id))...), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := LoaderText(dir, "LoaderDevicePartUUID"); got != id || err != nil {
		t.Errorf("got %q, %v; want %q", got, err, id)
	}
}

func TestReadRefusesASize(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, header - 1, most + 1, 1 << 20} {
		if err := os.WriteFile(file(dir, "LoaderEntrySelected", Loader), make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := LoaderText(dir, "LoaderEntrySelected"); !errors.Is(err, errSize) {
			t.Errorf("%d bytes: got %q, %v; want %v", size, got, err, errSize)
		}
	}
}

func FuzzTally(f *testing.F) {
	f.Add([]byte{7, 0, 0, 0, 4, 'a'})
	f.Add([]byte{7, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(file(dir, tallyName, holdfast), data, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := ReadTally(dir)
		if got.Boots < 0 || got.Boots > 255 || got.Damaged != "" && got.Damaged != "a" && got.Damaged != "b" || err != nil && got != (Tally{}) {
			t.Errorf("%q: %+v, %v", data, got, err)
		}
	})
}

func TestBootOnce(t *testing.T) {
	dir := t.TempDir()
	if err := BootOnce(dir, "holdfast-b.efi"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file(dir, "LoaderEntryOneShot", Loader))
	want := []byte("\x07\x00\x00\x00h\x00o\x00l\x00d\x00f\x00a\x00s\x00t\x00-\x00b\x00.\x00e\x00f\x00i\x00\x00\x00")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// A machine's life, as its tally tells it.
func TestTally(t *testing.T) {
	dir := t.TempDir()
	step := func(what string, err error, want Tally) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got, err := ReadTally(dir); err != nil || got != want {
			t.Fatalf("%s: the tally is %+v, %v; want %+v", what, got, err, want)
		}
	}
	count := func(before Tally) error {
		got, err := CountBoot(dir)
		if got != before {
			t.Errorf("counted: %+v before, want %+v", got, before)
		}
		return err
	}
	step("a new machine", nil, Tally{})
	step("boot", count(Tally{}), Tally{Boots: 1})
	step("boot again", count(Tally{Boots: 1}), Tally{Boots: 2})
	step("it lasts", Settle(dir), Tally{})
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("a tally of nothing is a variable: %v", left)
	}
	step("damage", WriteTally(dir, Tally{Boots: 1, Damaged: "b"}), Tally{Boots: 1, Damaged: "b"})
	step("it lasts, damaged", Settle(dir), Tally{Damaged: "b"})
	step("boot, damaged", count(Tally{Damaged: "b"}), Tally{Boots: 1, Damaged: "b"})
	step("mended", Mended(dir), Tally{Boots: 1})
	step("as many as fit", WriteTally(dir, Tally{Boots: 1000}), Tally{Boots: 255})
	step("one more", count(Tally{Boots: 255}), Tally{Boots: 255})
}

func TestTallyOfOthers(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	if got, err := CountBoot(none); got != (Tally{}) || err != nil {
		t.Errorf("without firmware: %+v, %v", got, err)
	}
	if err := Settle(none); err != nil {
		t.Errorf("without firmware: %v", err)
	}
	for _, data := range []string{"", "\x07\x00\x00\x00", "\x07\x00\x00\x00\x05"} {
		dir := t.TempDir()
		if err := os.WriteFile(file(dir, tallyName, holdfast), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := CountBoot(dir); got != (Tally{}) || err != nil {
			t.Errorf("%q: %+v, %v; want none", data, got, err)
		}
		if got, err := ReadTally(dir); got != (Tally{Boots: 1}) || err != nil {
			t.Errorf("%q: then %+v, %v; want one boot", data, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{'A', 0, 'b', 0, 0, 0})
	f.Add([]byte{6})
	f.Fuzz(func(t *testing.T, data []byte) {
		if s := decode(data); strings.Contains(s, "\x00") {
			t.Errorf("%q has a NUL", s)
		}
	})
}

func TestUnprotected(t *testing.T) {
	if why := Unprotected(filepath.Join(t.TempDir(), "none")); why != "" {
		t.Errorf("without firmware: %s", why)
	}
	for _, c := range []struct {
		secure, setup byte
		want          string
	}{{1, 0, ""}, {0, 1, "Secure Boot is in setup mode"}, {0, 0, "Secure Boot is off"}} {
		dir := t.TempDir()
		for name, value := range map[string]byte{"SecureBoot": c.secure, "SetupMode": c.setup} {
			if err := write(dir, name, global, []byte{value}); err != nil {
				t.Fatal(err)
			}
		}
		if got := Unprotected(dir); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if got := Unprotected(t.TempDir()); got != "Secure Boot is off" {
		t.Errorf("firmware that does not say: got %q", got)
	}
}
