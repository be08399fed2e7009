//go:build vm

package vm

import (
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

var mend = flag.Bool("mend", false, "TestDamagedRoot also waits until the machine has mended its slot, which takes it five minutes")

// TestDamagedRoot flips a byte of the root that runs, which every boot reads: the
// machine restarts, and goes on from the other slot, be it a copy or another OS.
func TestDamagedRoot(t *testing.T) {
	folders := osImages(t, "0.0.1", "0.0.2")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk0.raw")
	if err := Copy(disk, folders[0]+".raw", 8<<30); err != nil {
		t.Fatal(err)
	}
	boots := (&shop{dir: dir, disk: disk}).boots(ctx, t)
	const runs = "boot: machined runs"
	boots("holdfast: init: kernel", runs, "code      ")

	at := machinedIn(t, filepath.Join(folders[0], build.PartRoot))
	onDisk(t, disk, func(f *os.File, t *gpt.Table) error {
		a, b := t.Partitions[t.Find(osimage.PartRootA)-1], t.Partitions[t.Find(osimage.PartRootB)-1]
		_, err := io.Copy(io.NewOffsetWriter(f, b.Offset()), io.NewSectionReader(f, a.Offset(), a.Size()))
		return errors.Join(err, flip(f, a.Offset()+at))
	})
	began := time.Now()
	console := boots("4 boots in a row did not last", "the root of slot a is damaged", "slot b holds the same root, whole", runs, "E34 what slot a holds is not what was signed")
	if n := len(regexp.MustCompile(`data block \d+ is corrupted`).FindAllString(console, -1)); n < 4 {
		t.Errorf("the kernel found the block %d times: want one for each boot that did not last", n)
	}
	t.Logf("from a copy after %.0f s", time.Since(began).Seconds())
	texts := []string{"slot a is damaged, slot b holds the same root", runs, "E34 what slot a holds is not what was signed"}
	if *mend {
		texts = append(texts, "the idle slot is a copy of the one that runs")
	}
	boots(texts...)
	if *mend {
		onDisk(t, disk, func(f *os.File, table *gpt.Table) error {
			a := table.Partitions[table.Find(osimage.PartRootA)-1]
			m, err := build.ReadManifest(folders[0])
			if err != nil {
				return err
			}
			v, err := osimage.ParseVerity(m.Cmdline)
			if err != nil {
				return err
			}
			return verity.Check(io.NewSectionReader(f, a.Offset(), a.Size()), v)
		})
	}

	// Now slot a has a newer OS, which is damaged; slot b goes on holding the one
	// that STATE is sealed to.
	before, err := os.ReadFile(filepath.Join(folders[0], build.PartUKI))
	if err != nil {
		t.Fatal(err)
	}
	newer := filepath.Join(dir, "newer.raw")
	if err := build.Disk(folders[1], newer, map[string][]byte{"EFI/Linux/holdfast-b.efi": before}, false); err != nil {
		t.Fatal(err)
	}
	at = machinedIn(t, filepath.Join(folders[1], build.PartRoot))
	onDisk(t, newer, func(from *os.File, newer *gpt.Table) error {
		onDisk(t, disk, func(to *os.File, t *gpt.Table) error {
			for _, name := range []string{osimage.PartESP, osimage.PartRootA} {
				p, q := newer.Partitions[newer.Find(name)-1], t.Partitions[t.Find(name)-1]
				if _, err := io.Copy(io.NewOffsetWriter(to, q.Offset()), io.NewSectionReader(from, p.Offset(), p.Size())); err != nil {
					return err
				}
			}
			return flip(to, t.Partitions[t.Find(osimage.PartRootA)-1].Offset()+at)
		})
		return nil
	})
	began = time.Now()
	boots("4 boots in a row did not last", "the root of slot a is damaged", "the boot loader is asked for holdfast-b.efi", runs, "E34 what slot a holds is not what was signed")
	t.Logf("from the OS before after %.0f s", time.Since(began).Seconds())
}

// shop is a machine that nobody has adopted.
type shop struct {
	dir, disk string
	stick     string // in the machine, too; "" is none
}

// boots is how it is started: until it has said the texts in their order, and then
// switched off. It returns what the machine said.
func (s *shop) boots(ctx context.Context, t *testing.T) func(texts ...string) string {
	return func(texts ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // it takes one, and six where a slot is mended
		defer cancel()
		began := time.Now()
		disks := []Disk{{File: s.disk}}
		if s.stick != "" {
			disks = []Disk{{File: s.stick}, {File: s.disk}}
		}
		v, err := Start(ctx, Spec{Dir: s.dir, Name: "cafe", Architecture: *architecture, Memory: 1 << 30, Disks: disks, TPM: filepath.Join(s.dir, "tpm")})
		if err != nil {
			t.Fatal(err)
		}
		defer v.PowerCut(0)
		for _, text := range texts {
			if err := v.WaitConsole(ctx, text); err != nil {
				t.Fatalf("%v; console:\n%s", err, v.Console())
			}
		}
		t.Logf("%q after %.0f s", texts[len(texts)-1], time.Since(began).Seconds())
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
}

// machinedIn is where machined's first page lies in a root.
func machinedIn(t *testing.T, root string) int64 {
	t.Helper()
	f, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	files, err := erofs.Files(io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range files {
		if filepath.Base(e.Path) == "machined" && e.Size > 1<<20 {
			return e.Offset + 0x100
		}
	}
	t.Fatal("the root has no machined")
	return 0
}

func onDisk(t *testing.T, file string, do func(*os.File, *gpt.Table) error) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(f, info.Size())
	if err == nil {
		err = do(f, table)
	}
	if err = errors.Join(err, f.Sync()); err != nil {
		t.Fatal(err)
	}
}

func flip(f *os.File, at int64) error {
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x20
	_, err := f.WriteAt(b, at)
	return err
}
