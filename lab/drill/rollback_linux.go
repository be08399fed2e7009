package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// oldVersion is before every version that a machine of a lab ever ran.
const oldVersion = "0.0.1"

// tooOld is what a machine says of such a boot: below the floor, or, where it has
// no floor yet as nothing was ever updated, not what STATE was sealed to.
var tooOld = regexp.MustCompile(`holdfast: fault +(E37|E07)[^\r\n]*`)

// rollback puts an old OS version, signed by the fleet, in the place of the one that runs.
func (d *drill) rollback(ctx context.Context) error {
	var made *OSBuild
	err := d.step(ctx, "build OS "+oldVersion, "signed with the fleet's keys, like every other", func(ctx context.Context) (_, _ string, err error) {
		made, err = d.Site.BuildOS(ctx, oldVersion, "", nil)
		return "built", "", err
	})
	if err != nil {
		return err
	}
	defer os.RemoveAll(made.Parts)
	err = d.step(ctx, "write it over boot partition and root, as somebody with the disk in hand can", "Secure Boot starts it, and it opens nothing: it says why, and runs nothing", func(ctx context.Context) (seen, _ string, err error) {
		kept := filepath.Join(filepath.Dir(made.Parts), "kept.raw")
		defer os.Remove(kept)
		var mark int64
		err = d.restart(ctx, func() error {
			mark = d.mark()
			return d.putOld(made.Parts, kept)
		})
		if _, fault := os.Stat(kept); fault == nil {
			defer afterwards(ctx, func(ctx context.Context) error {
				return d.restart(ctx, func() error { return d.copyBoot(d.Lab.DiskFile(d.machine, 0), kept) })
			}, &err)
		}
		if err != nil {
			return "", "", err
		}
		line, err := d.says(ctx, mark, 1, tooOld)
		if err != nil {
			return "", "", err
		}
		if body, err := d.answer(ctx); err == nil && d.Port != 0 {
			return line, "", broken("the app answers: %.60s", body)
		}
		return "the console says: " + line, "", nil
	})
	if err != nil {
		return err
	}
	return d.step(ctx, "put the right version back", "the machine is well", func(ctx context.Context) (string, string, error) {
		seen, err := d.well(ctx)
		return seen, "", err
	})
}

// putOld writes what build.Disk makes of parts over the machine's first two
// partitions, which lie where they lie on every disk, and keeps what was there.
func (d *drill) putOld(parts, kept string) error {
	disk := d.Lab.DiskFile(d.machine, 0)
	fresh := kept + ".old"
	defer os.Remove(fresh)
	if err := build.Disk(parts, fresh, nil, false); err != nil {
		return err
	}
	if err := build.Disk(parts, kept, nil, false); err != nil { // a file of the right shape
		return err
	}
	return errors.Join(d.copyBoot(kept, disk), d.copyBoot(disk, fresh))
}

// copyBoot copies boot partition and root from one disk to another.
func (d *drill) copyBoot(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	for _, name := range []string{osimage.PartESP, osimage.PartRootA} {
		source, err := partitionOf(in, name)
		if err != nil {
			return err
		}
		target, err := partitionOf(out, name)
		if err != nil {
			return err
		}
		if source.Size() != target.Size() {
			return fmt.Errorf("partition %s has %d bytes here and %d there", name, source.Size(), target.Size())
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, target.Offset()), io.NewSectionReader(in, source.Offset(), source.Size())); err != nil {
			return err
		}
	}
	return out.Sync()
}

func partitionOf(f *os.File, name string) (gpt.Partition, error) {
	info, err := f.Stat()
	if err != nil {
		return gpt.Partition{}, err
	}
	t, err := gpt.Read(f, info.Size())
	if err != nil {
		return gpt.Partition{}, err
	}
	n := t.Find(name)
	if n == 0 {
		return gpt.Partition{}, fmt.Errorf("%s has no partition %s", f.Name(), name)
	}
	return t.Partitions[n-1], nil
}
