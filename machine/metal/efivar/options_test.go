package efivar

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var esp = Partition{Number: 1, First: 2048, Blocks: 524288, ID: [16]byte{0x1e, 0x2d, 0x7f, 0x2f, 0xa6, 0x58, 0x07, 0x4b, 0x9c, 0x5b, 0x7a, 0x1d, 0x3f, 0x2b, 0x6c, 0x11}}

// As efibootmgr writes it: efibootmgr -c -d DISK -p 1 -L H -l '\EFI\a.efi'.
func TestOptionEncode(t *testing.T) {
	got := hex.EncodeToString(Option{Name: "H", Partition: esp, File: "EFI/a.efi"}.encode())
	want := strings.Join([]string{
		"01000000", "4800", "48000000", // active, 72 bytes of path, "H"
		"04012a00", "01000000", "0008000000000000", "0000080000000000", "1e2d7f2fa658074b9c5b7a1d3f2b6c11", "0202",
		"04041a00", "5c004500460049005c0061002e006500660069000000", // \EFI\a.efi
		"7fff0400",
	}, "")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func order(t *testing.T, dir string) []uint16 {
	t.Helper()
	o, err := readOrder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestSetOptions(t *testing.T) {
	dir := t.TempDir()
	others := map[string][]byte{
		"Boot0000": Option{Name: "UEFI QEMU HARDDISK", Partition: esp, File: "EFI/BOOT/BOOTX64.EFI"}.encode(),
		"Boot0002": Option{Name: "Somebody else's", Partition: esp, File: "else.efi"}.encode(),
		"Boot0007": {1, 0},          // no option at all
		"Boot000A": make([]byte, 7), // one without a name
	}
	for name, data := range others {
		if err := write(dir, name, global, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeOrder(dir, []uint16{2, 0}); err != nil {
		t.Fatal(err)
	}
	way := func(name, file string) Option { return Option{Name: "Holdfast " + name, Partition: esp, File: file} }
	set := func(want ...Option) (changed bool) {
		t.Helper()
		changed, err := SetOptions(dir, "Holdfast ", want)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	if !set(way("boot loader", "l"), way("slot a", "a")) {
		t.Error("it says that nothing has changed")
	}
	if got, want := order(t, dir), []uint16{2, 0, 1, 3}; !slices.Equal(got, want) {
		t.Errorf("two options: order %v, want %v", got, want)
	}

	// What is right is not written again.
	past := time.Unix(1e9, 0)
	files, err := filepath.Glob(filepath.Join(dir, "Boot*"))
	if err != nil || len(files) != 7 {
		t.Fatalf("%q, %v; want six options and their order", files, err)
	}
	for _, f := range files {
		if err := os.Chtimes(f, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if set(way("boot loader", "l"), way("slot a", "a")) {
		t.Error("it says that what was right has changed")
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || !info.ModTime().Equal(past) {
			t.Errorf("%s was written again: %v", filepath.Base(f), err)
		}
	}

	set(way("boot loader", "l"), way("slot a", "a+0"), way("slot b", "b")) // another file, and another option
	if got, want := order(t, dir), []uint16{2, 0, 1, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("three options: order %v, want %v", got, want)
	}
	if data, err := read(dir, "Boot0003", global); err != nil || !bytes.Equal(data, way("slot a", "a+0").encode()) {
		t.Errorf("slot a's option is %q, %v", data, err)
	}

	// The firmware puts an option of its own behind ours, and one of ours first.
	if err := writeOrder(dir, []uint16{4, 2, 0, 1, 3, 10}); err != nil {
		t.Fatal(err)
	}
	set(way("boot loader", "l"), way("slot b", "b"))
	if got, want := order(t, dir), []uint16{2, 0, 10, 1, 4}; !slices.Equal(got, want) {
		t.Errorf("without slot a: order %v, want %v", got, want)
	}
	if _, err := os.Stat(file(dir, "Boot0003", global)); err == nil {
		t.Error("slot a's option is still there")
	}

	// One that is started once has no place in the order.
	next := func() string {
		data, err := read(dir, "BootNext", global)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		return hex.EncodeToString(data)
	}
	once := way("new boot loader", "n")
	once.Once = true
	if was := next(); was != "" || !set(way("boot loader", "l"), way("slot b", "b"), once) || next() != "0300" {
		t.Errorf("next is option %q, and was %q", next(), was)
	}
	if set(way("boot loader", "l"), way("slot b", "b"), once) {
		t.Error("it says that what was right has changed")
	}
	if got, want := order(t, dir), []uint16{2, 0, 10, 1, 4}; !slices.Equal(got, want) {
		t.Errorf("with one that is started once: order %v, want %v", got, want)
	}
	set(way("boot loader", "l"), way("slot b", "b"))
	if _, err := os.Stat(file(dir, "Boot0003", global)); err == nil {
		t.Error("the new boot loader's option is still there")
	}
	for name, want := range others {
		if got, err := read(dir, name, global); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s, which is not ours, is %q, %v", name, got, err)
		}
	}
}

func TestSetOptionsWithoutFirmware(t *testing.T) {
	if _, err := SetOptions(filepath.Join(t.TempDir(), "none"), "Holdfast ", nil); err == nil {
		t.Error("want an error")
	}
}

func TestStarted(t *testing.T) {
	dir := t.TempDir()
	want := func(what, name string) {
		t.Helper()
		if got, err := Started(dir); err != nil || got != name {
			t.Errorf("%s: got %q, %v; want %q", what, got, err, name)
		}
	}
	want("no firmware", "")
	for data, what := range map[string]string{"\x05\x00": "an option that is gone", "\x05": "half a number"} {
		if err := write(dir, "BootCurrent", global, []byte(data)); err != nil {
			t.Fatal(err)
		}
		want(what, "")
	}
	if err := write(dir, "BootCurrent", global, []byte{0x0a, 0}); err != nil {
		t.Fatal(err)
	}
	if err := write(dir, "Boot000A", global, Option{Name: "Holdfast slot b", Partition: esp, File: "b"}.encode()); err != nil {
		t.Fatal(err)
	}
	want("ours", "Holdfast slot b")
}

func FuzzOption(f *testing.F) {
	f.Add(Option{Name: "Holdfast slot b", Partition: esp, File: "b"}.encode())
	f.Add([]byte{1, 0, 0, 0, 0, 0, 'H'})
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		err := os.WriteFile(file(dir, "Boot0001", global), append(slices.Clone(kept), data...), 0o600)
		if err = errors.Join(err, write(dir, "BootCurrent", global, []byte{1, 0})); err != nil {
			t.Fatal(err)
		}
		name, err := Started(dir)
		if err != nil && len(data) <= most-header || strings.Contains(name, "\x00") {
			t.Errorf("%q: %q, %v", data, name, err)
		}
		if _, err := SetOptions(dir, "Holdfast ", []Option{{Name: "Holdfast slot a", Partition: esp, File: "a"}}); err != nil {
			t.Errorf("%q: %v", data, err)
		}
	})
}
