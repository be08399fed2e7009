//go:build vm

package vm

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// TestForeignDisk starts a machine from a stick, whose only disk is somebody else's:
// not a byte of it changes, unless the class says wipe.
func TestForeignDisk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	dir := t.TempDir()
	foreign := filepath.Join(dir, "foreign.raw")
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(foreign, 4<<30); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-L", "accounts", foreign).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	before := digest(t, foreign)
	// starts boots from the stick of an OS, until the machine has said the text, and
	// leaves the disk as the power cut after that leaves it.
	starts := func(rule fleet.DiskRule, text string) {
		t.Helper()
		folder := osImagesFor(t, rule, "0.0.1")[0]
		home := t.TempDir()
		stick := filepath.Join(home, "stick.raw")
		if err := Copy(stick, folder+"-stick.raw", 0); err != nil {
			t.Fatal(err)
		}
		v, err := Start(ctx, Spec{Dir: home, Name: "cafe", Architecture: *architecture, Memory: 1 << 30, TPM: filepath.Join(home, "tpm"),
			Disks: []Disk{{File: stick}, {File: foreign}}, Kernel: direct(t, filepath.Join(folder, build.PartUKI))})
		if err != nil {
			t.Fatal(err)
		}
		defer v.PowerCut(0)
		for _, text := range []string{text, "boot: machined runs", "code      "} {
			if err := v.WaitConsole(ctx, text); err != nil {
				t.Fatalf("%v; console:\n%s", err, v.Console())
			}
		}
		if err := v.PressButton(ctx); err != nil {
			t.Fatal(err)
		}
		if err := v.Wait(); err != nil {
			t.Errorf("switched off by its button: %v", err)
		}
	}
	starts(fleet.DiskRule{}, "and is not touched")
	if digest(t, foreign) != before {
		t.Error("the disk of somebody else was written to")
	}
	starts(fleet.DiskRule{Wipe: true}, "boot: disks")
	onDisk(t, foreign, func(_ *os.File, table *gpt.Table) error {
		for _, name := range []string{osimage.PartESP, osimage.PartRootA, osimage.PartState, osimage.PartData} {
			if table.Find(name) == 0 {
				t.Errorf("with wipe it was not taken: it has no partition %s", name)
			}
		}
		return nil
	})
}

func digest(t *testing.T, file string) (sum [sha256.Size]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}
