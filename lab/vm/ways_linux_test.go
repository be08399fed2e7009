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

// TestDamagedBoot flips a byte of the boot image, and then of the boot loader: the
// firmware refuses each, takes the next way into the machine, and the machine
// writes anew what was refused, by itself.
func TestDamagedBoot(t *testing.T) {
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
	// boots starts the machine, waits for the texts in their order and switches it off.
	boots := func(texts ...string) string {
		t.Helper()
		began := time.Now()
		v, err := Start(ctx, Spec{Dir: dir, Name: "cafe", Architecture: *architecture, Memory: 1 << 30, Disks: []Disk{{File: disk}}, TPM: filepath.Join(dir, "tpm")})
		if err != nil {
			t.Fatal(err)
		}
		defer v.PowerCut(0)
		for _, text := range append(texts, "code      ") {
			if err := v.WaitConsole(ctx, text); err != nil {
				t.Fatalf("%v; console:\n%s", err, v.Console())
			}
		}
		t.Logf("%s after %.0f s", texts[len(texts)-1], time.Since(began).Seconds())
		if err := v.PressButton(ctx); err != nil {
			t.Fatal(err)
		}
		if err := v.WaitConsole(ctx, "down: now"); err != nil {
			t.Fatalf("%v; console:\n%s", err, v.Console())
		}
		if err := v.Wait(); err != nil {
			t.Errorf("switched off by its button: %v", err)
		}
		return v.Console()
	}
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
	const another = "E49 the firmware started"
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
	boots(another+` "Holdfast slot b"`, runs, mended, "the boot image of slot a was written anew")
	holds(slotA, uki)
	if console := boots(runs); strings.Contains(console[strings.LastIndex(console, "init: kernel"):], another) {
		t.Error("it was mended, and yet started by another way")
	}

	damage(first, loader)
	boots(another+` "Holdfast copy of the boot loader"`, runs, mended, "the boot loader was written anew")
	holds(first, loader)

	damage(slotA, uki)
	damage(first, loader)
	damage(osimage.BootLoaderCopy, loader)
	boots(another+` "Holdfast slot b"`, runs, mended)
	holds(slotA, uki)
}
