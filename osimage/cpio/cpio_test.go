package cpio

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func entries() []Entry {
	return []Entry{
		{Name: "dev", Mode: Folder | 0o755},
		{Name: "dev/console", Mode: Char | 0o600, Major: 5, Minor: 1},
		{Name: "init", Mode: File | 0o755, Data: bytes.Repeat([]byte("\x7fELF and more"), 1001)},
		{Name: "lib", Mode: Folder | 0o755},
		{Name: "lib/empty", Mode: File | 0o644},
		{Name: "lib/link", Mode: Link | 0o777, Data: []byte("../init")},
	}
}

func TestCpioReadsTheArchive(t *testing.T) {
	archive, err := Archive(entries())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-itvn", "--quiet")
	cmd.Stdin = bytes.NewReader(archive)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := []string{
		"drwxr-xr-x 2 0 0 0 Jan 1 1970 dev",
		"crw------- 1 0 0 5, 1 Jan 1 1970 dev/console",
		"-rwxr-xr-x 1 0 0 13013 Jan 1 1970 init",
		"drwxr-xr-x 2 0 0 0 Jan 1 1970 lib",
		"-rw-r--r-- 1 0 0 0 Jan 1 1970 lib/empty",
		"lrwxrwxrwx 1 0 0 7 Jan 1 1970 lib/link -> ../init",
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
	dir := t.TempDir()
	cmd = exec.Command("cpio", "-i", "--quiet", "init", "lib*")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio -i: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "init")); err != nil || !bytes.Equal(b, entries()[2].Data) {
		t.Errorf("init: %d bytes, %v", len(b), err)
	}
}

func TestArchiveRefuses(t *testing.T) {
	for name, e := range map[string][]Entry{
		"no folder":     {{Name: "a/b", Mode: File}},
		"file, folder":  {{Name: "a", Mode: File}, {Name: "a/b", Mode: File}},
		"twice":         {{Name: "a", Mode: File}, {Name: "a", Mode: File}},
		"absolute":      {{Name: "/a", Mode: File}},
		"above":         {{Name: "../a", Mode: File}},
		"trailer":       {{Name: trailer, Mode: File}},
		"empty name":    {{Name: "", Mode: File}},
		"socket":        {{Name: "a", Mode: 0o140000}},
		"no kind":       {{Name: "a", Mode: 0o644}},
		"folder's data": {{Name: "a", Mode: Folder, Data: []byte{1}}},
	} {
		if _, err := Archive(e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestZstdReadsTheFrame(t *testing.T) {
	data := make([]byte, 12<<20)
	rand.NewChaCha8([32]byte{}).Read(data[:6<<20])
	copy(data[8<<20:], data[:3<<20]) // a match as far back as the window allows
	frame, err := Compress(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Compress(data)
	if err != nil || !bytes.Equal(frame, again) {
		t.Errorf("two frames differ, %v", err)
	}
	file := filepath.Join(t.TempDir(), "initramfs.zst")
	if err := os.WriteFile(file, frame, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("zstd", "-lv", file).CombinedOutput(); err != nil || !strings.Contains(string(out), "Window Size: 8.00 MiB") {
		t.Errorf("zstd -lv: %v\n%s", err, out)
	}
	if got, err := exec.Command("zstd", "-dc", "--memory=8MB", file).Output(); err != nil || !bytes.Equal(got, data) {
		t.Errorf("zstd -d: %d bytes, %v", len(got), err)
	}
}
