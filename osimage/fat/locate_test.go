package fat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// Files in one piece, and one that mtools put where there was room.
func TestLocate(t *testing.T) {
	files := small()
	name := filepath.Join(t.TempDir(), "esp.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (Volume{Size: 34 * mib, Label: "ESP", Files: files}).Write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(34 * mib); err != nil {
		t.Fatal(err)
	}
	mtools := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	mtools("mdel", "-i", name, "::EFI/Linux/holdfast-a.efi")
	free := make([]byte, 4) // clusters, as the information sector says
	if _, err := f.ReadAt(free, sector+488); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(t.TempDir(), "big") // too much for the end of the volume, so that the gap is used
	if err := os.WriteFile(big, bytes.Repeat([]byte{7}, int(binary.LittleEndian.Uint32(free)-3)*sector), 0o600); err != nil {
		t.Fatal(err)
	}
	mtools("mcopy", "-i", name, big, "::EFI/Linux/holdfast-c.efi")
	delete(files, "EFI/Linux/holdfast-a.efi")
	if files["efi/linux/HOLDFAST-c.efi"], err = os.ReadFile(big); err != nil {
		t.Fatal(err)
	}
	most := 0
	for file, want := range files {
		pieces, err := Locate(f, file)
		if err != nil {
			t.Error(err)
			continue
		}
		most = max(most, len(pieces))
		var got []byte
		for _, p := range pieces {
			b := make([]byte, p.Size)
			if _, err := f.ReadAt(b, p.Offset); err != nil {
				t.Fatal(err)
			}
			got = append(got, b...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d bytes in %v are not its %d", file, len(got), pieces, len(want))
		}
	}
	if most < 2 {
		t.Error("no file lies in more than one piece: the test shows half")
	}
	if _, err := Locate(f, "EFI/Linux/holdfast-a.efi"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was deleted: %v", err)
	}
	if _, err := Locate(bytes.NewReader(make([]byte, 40*mib)), "x"); !errors.Is(err, ErrFormat) {
		t.Errorf("zeros: %v", err)
	}
}
