//go:build vm

package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// TestBootPartition is what becomes of a machine when somebody, or a disk that
// fails, changes its boot partition. A byte that flips in the boot image or the boot
// loader: the firmware refuses it and takes the next way into the machine, which
// writes anew what was refused. An add-on of systemd-stub that nobody signed: it is
// passed over. A credential, which nobody signs: the disk stays shut.
func TestBootPartition(t *testing.T) {
	folder := osImages(t, "0.0.1")[0]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	uki, err := os.ReadFile(filepath.Join(folder, build.PartUKI))
	if err != nil {
		t.Fatal(err)
	}
	loader, err := os.ReadFile(filepath.Join(folder, build.PartLoader))
	if err != nil {
		t.Fatal(err)
	}
	raw, disk := filepath.Join(dir, "copy.raw"), filepath.Join(dir, "disk0.raw")
	const slotA, slotB = "EFI/Linux/holdfast-a.efi", "EFI/Linux/holdfast-b+0.efi"
	if err := build.Disk(folder, raw, map[string][]byte{slotB: uki}, false); err != nil {
		t.Fatal(err)
	}
	if err := Copy(disk, raw, 8<<30); err != nil {
		t.Fatal(err)
	}
	s := &shop{dir: dir, disk: disk}
	boots := s.boots(ctx, t)
	const runs, learnt = "boot: machined runs", "the firmware learnt the ways into the machine"
	did := func(what, started string) string { return fmt.Sprintf("did=%q started=%q", what, started) }
	boots(runs, "the copy of the boot loader was written anew", learnt)
	onDisk(t, disk, func(f *os.File, table *gpt.Table) error {
		a, b := table.Partitions[table.Find(osimage.PartRootA)-1], table.Partitions[table.Find(osimage.PartRootB)-1]
		_, err := io.Copy(io.NewOffsetWriter(f, b.Offset()), io.NewSectionReader(f, a.Offset(), a.Size()))
		return err
	})
	first := osimage.BootLoaders[*architecture]
	s.holds(t, osimage.BootLoaderCopy, loader)

	s.damage(t, slotA, uki)
	boots(runs, did("the boot image of slot a was written anew", "Holdfast slot b"))
	s.holds(t, slotA, uki)

	// That the copy of the loader is enough shows that the boot image is right again.
	s.damage(t, first, loader)
	boots(runs, did("the boot loader was written anew", "Holdfast copy of the boot loader"))
	s.holds(t, first, loader)

	s.damage(t, slotA, uki)
	s.damage(t, first, loader)
	s.damage(t, osimage.BootLoaderCopy, loader)
	boots(runs, did("the boot image of slot a was written anew", "Holdfast slot b"))
	s.holds(t, slotA, uki)
	s.holds(t, first, loader)
	s.holds(t, osimage.BootLoaderCopy, loader)

	// What would be added to the command line is measured: the disk opens, so it was not.
	addOn := bytes.Replace(uki, []byte("lockdown=integrity"), []byte("lockdown=none     "), 1)
	if bytes.Equal(addOn, uki) {
		t.Fatal("the boot image has no such command line")
	}
	for _, c := range []struct {
		file string
		data []byte
		says string
	}{
		{"loader/addons/shell.addon.efi", addOn, runs},
		{"loader/credentials/shell.cred", []byte("exec /bin/sh\n"), "E07"},
	} {
		file := filepath.Join(dir, filepath.Base(c.file))
		if err := os.WriteFile(file, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		s.onESP(t, "mmd", "::"+filepath.Dir(c.file))
		s.onESP(t, "mcopy", file, "::"+c.file)
		console := boots("init: kernel", c.says, "code      ")
		if begun := console[strings.LastIndex(console, "init: kernel"):]; strings.Contains(begun, "E07") != (c.says == "E07") {
			t.Errorf("with %s the console said:\n%s", c.file, begun)
		}
		s.onESP(t, "mdel", "::"+c.file)
	}
}

// TestNewBootLoader is an OS that brings another boot loader than the one on the disk:
// the firmware tries it at the next boot. Where it does not start, here for a byte
// that flipped, the one before does, and it is tried again; once it has started the
// machine, it takes its place. In the end a stick mends what keeps the disk from
// starting at all.
func TestNewBootLoader(t *testing.T) {
	folder := osImages(t, "0.0.1")[0]
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	loader, err := os.ReadFile(filepath.Join(folder, build.PartLoader))
	if err != nil {
		t.Fatal(err)
	}
	// The check sum of a program is no part of what is signed (Authenticode).
	before := bytes.Clone(loader)
	const toHeader, headerToSum = 0x3c, 4 + 20 + 64
	before[int(binary.LittleEndian.Uint32(before[toHeader:]))+headerToSum] ^= 1

	dir := t.TempDir()
	raw, disk := filepath.Join(dir, "before.raw"), filepath.Join(dir, "disk0.raw")
	first := osimage.BootLoaders[*architecture]
	if err := build.Disk(folder, raw, map[string][]byte{first: before}, false); err != nil {
		t.Fatal(err)
	}
	if err := Copy(disk, raw, 8<<30); err != nil {
		t.Fatal(err)
	}
	s := &shop{dir: dir, disk: disk}
	boots := s.boots(ctx, t)
	const tried = "the boot loader that came with the OS is tried at the next boot"
	boots(tried)
	s.holds(t, osimage.BootLoaderCopy, before)

	s.damage(t, "EFI/systemd/new+2.efi", loader)
	if console := boots(tried); !regexp.MustCompile(`failed to load Boot[0-9A-F]{4} "Holdfast new boot loader"`).MatchString(console) {
		t.Errorf("the firmware did not try it; the console:\n%s", console)
	}
	s.holds(t, first, before)

	// A damaged partition table the firmware writes anew, from the one at the disk's end.
	header := make([]byte, gpt.Sector)
	onDisk(t, s.disk, func(f *os.File, _ *gpt.Table) error {
		_, err := f.ReadAt(header, gpt.Sector)
		return errors.Join(err, flip(f, gpt.Sector+20))
	})
	boots(`did="the copy of the boot loader was written anew" started="Holdfast new boot loader"`, "the firmware learnt the ways")
	onDisk(t, s.disk, func(f *os.File, _ *gpt.Table) error {
		now := make([]byte, gpt.Sector)
		if _, err := f.ReadAt(now, gpt.Sector); err != nil || !bytes.Equal(now, header) {
			t.Errorf("the partition table is not what it was: %v", err)
		}
		return nil
	})
	s.holds(t, first, loader)
	s.holds(t, osimage.BootLoaderCopy, loader)

	// Where nothing on the disk starts, a stick does, and mends it: the loaders, and
	// the boot sector, without which the firmware finds no file there at all.
	s.damage(t, first, loader)
	s.damage(t, osimage.BootLoaderCopy, loader)
	onDisk(t, s.disk, func(f *os.File, table *gpt.Table) error {
		const sectorsPerCluster = 13
		return flip(f, table.Partitions[table.Find(osimage.PartESP)-1].Offset()+sectorsPerCluster)
	})
	s.stick = filepath.Join(dir, "stick.raw")
	if err := Copy(s.stick, folder+"-stick.raw", 0); err != nil {
		t.Fatal(err)
	}
	boots("disk: the boot loader was written anew", "disk: the copy of the boot loader was written anew", "code      ")
	s.holds(t, first, loader)
	s.holds(t, osimage.BootLoaderCopy, loader)

	// One whose folders nobody can read any more it fills anew; STATE is not touched.
	onDisk(t, s.disk, func(f *os.File, table *gpt.Table) error {
		esp := table.Partitions[table.Find(osimage.PartESP)-1].Offset()
		head := make([]byte, 512)
		_, err := f.ReadAt(head, esp)
		const tables, sectorsPerTable = 32 * 512, 36
		size := int64(binary.LittleEndian.Uint32(head[sectorsPerTable:])) * 512
		_, fault := f.WriteAt(make([]byte, 2*size), esp+tables)
		return errors.Join(err, fault)
	})
	if console := boots("disk: the boot partition was copied from the stick", "code      "); strings.Contains(console, "disk: STATE was made") {
		t.Errorf("STATE was made anew; the console:\n%s", console)
	}
	s.holds(t, first, loader)
	s.holds(t, osimage.BootLoaderCopy, loader)
}

// onESP has a program of mtools work on the boot partition.
func (s *shop) onESP(t *testing.T, tool string, args ...string) {
	t.Helper()
	var at int64
	onDisk(t, s.disk, func(_ *os.File, table *gpt.Table) error {
		at = table.Partitions[table.Find(osimage.PartESP)-1].Offset()
		return nil
	})
	args = append([]string{"-i", fmt.Sprintf("%s@@%d", s.disk, at)}, args...)
	if out, err := exec.CommandContext(t.Context(), tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", tool, args, err, out)
	}
}

// damage flips a bit of a file of the boot partition.
func (s *shop) damage(t *testing.T, name string, good []byte) {
	t.Helper()
	bad := bytes.Clone(good)
	bad[len(bad)/2] ^= 0x20
	file := filepath.Join(s.dir, "bad.efi")
	if err := os.WriteFile(file, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	s.onESP(t, "mcopy", "-o", file, "::"+name)
}

// holds wants a file of the boot partition to be what it should be.
func (s *shop) holds(t *testing.T, name string, want []byte) {
	t.Helper()
	file := filepath.Join(s.dir, "got.efi")
	s.onESP(t, "mcopy", "-n", "-o", "::"+name, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s is not what it should be: %d bytes, want %d; %v", name, len(got), len(want), err)
	}
}
