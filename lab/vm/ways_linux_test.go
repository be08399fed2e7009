//go:build vm

package vm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
	boots := (&shop{dir: dir, disk: disk}).boots(ctx, t)
	esp := func() string { // as mtools names it
		var at int64
		onDisk(t, disk, func(_ *os.File, table *gpt.Table) error {
			at = table.Partitions[table.Find(osimage.PartESP)-1].Offset()
			return nil
		})
		return fmt.Sprintf("%s@@%d", disk, at)
	}
	mtools := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	damage := func(name string, good []byte) {
		t.Helper()
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 0x20
		file := filepath.Join(dir, "bad.efi")
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		mtools("mcopy", "-o", "-i", esp(), file, "::"+name)
	}
	holds := func(name string, want []byte) {
		t.Helper()
		file := filepath.Join(dir, "got.efi")
		mtools("mcopy", "-n", "-o", "-i", esp(), "::"+name, file)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s was not written anew: %d bytes, want %d; %v", name, len(got), len(want), err)
		}
	}
	const runs, learnt, mended = "boot: machined runs", "the firmware learnt the ways into the machine", "mended what the firmware starts"
	boots(runs, "the copy of the boot loader was written anew", learnt)
	onDisk(t, disk, func(f *os.File, table *gpt.Table) error {
		a, b := table.Partitions[table.Find(osimage.PartRootA)-1], table.Partitions[table.Find(osimage.PartRootB)-1]
		_, err := io.Copy(io.NewOffsetWriter(f, b.Offset()), io.NewSectionReader(f, a.Offset(), a.Size()))
		return err
	})
	first := osimage.BootLoaders[*architecture]
	holds(osimage.BootLoaderCopy, loader)

	damage(slotA, uki)
	boots(runs, mended+`" what="the boot image of slot a was written anew" started="Holdfast slot b"`)
	holds(slotA, uki)

	// That the copy of the loader is enough shows that the boot image is right again.
	damage(first, loader)
	boots(runs, mended+`" what="the boot loader was written anew" started="Holdfast copy of the boot loader"`)
	holds(first, loader)

	damage(slotA, uki)
	damage(first, loader)
	damage(osimage.BootLoaderCopy, loader)
	boots(runs, mended+`" what="the boot image of slot a was written anew" started="Holdfast slot b"`)
	holds(slotA, uki)

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
		mtools("mmd", "-i", esp(), "::"+filepath.Dir(c.file))
		mtools("mcopy", "-i", esp(), file, "::"+c.file)
		console := boots("init: kernel", c.says, "code      ")
		if begun := console[strings.LastIndex(console, "init: kernel"):]; strings.Contains(begun, "E07") != (c.says == "E07") {
			t.Errorf("with %s the console said:\n%s", c.file, begun)
		}
		mtools("mdel", "-i", esp(), "::"+c.file)
	}
}
