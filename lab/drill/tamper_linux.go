package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
)

// What firmware, loader and kernel say of what they do not believe.
var (
	denied  = regexp.MustCompile(`(?i)(access denied|security violation|security policy violation)[^\r\n]*`)
	corrupt = regexp.MustCompile(`(?i)(verity[^\r\n]*corrupt|data block \d+ is corrupted)[^\r\n]*`)
)

// inTime is longer than a machine takes from a refusal to process 1, were it to go on.
const inTime = 30 * time.Second

// spot is a place where one byte is flipped.
type spot struct {
	what     string
	expected string
	says     *regexp.Regexp // what the console tells then
	at       func(*drill) (off int64, err error)
}

var spots = []spot{
	{"the root, in a program that every boot reads", "the kernel reads no wrong byte: the block is refused and the machine starts again", corrupt, (*drill).inProgram},
	{"the boot image", "Secure Boot refuses it", denied, (*drill).inUKI},
	{"the boot loader", "the firmware refuses it", denied, (*drill).inLoader},
}

// tamper flips one byte at a time, and puts it back.
func (d *drill) tamper(ctx context.Context) error {
	switch r, err := d.Site.Ask(ctx); {
	case err != nil:
		return err
	case r.Slot != "a":
		return fmt.Errorf("the machine runs from slot %s: this drill flips bytes of the OS version of its first disk, so do it before an update", r.Slot)
	}
	for _, s := range spots {
		if err := d.tamperWith(ctx, s); err != nil {
			return err
		}
		err := d.step(ctx, "put the byte back", "it comes back by itself", func(ctx context.Context) (string, string, error) {
			seen, err := d.well(ctx)
			return seen, "", err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *drill) tamperWith(ctx context.Context, s spot) error {
	return d.step(ctx, "flip one byte of "+s.what, s.expected, func(ctx context.Context) (seen, _ string, err error) {
		var at int64
		var mark int64
		err = d.restart(ctx, func() (err error) {
			if at, err = s.at(d); err != nil {
				return err
			}
			mark = d.mark()
			return d.flip(at)
		})
		if at > 0 {
			defer afterwards(ctx, func(ctx context.Context) error {
				return d.replug(ctx, func() error { return d.flip(at) })
			}, &err)
		}
		if err != nil {
			return "", "", err
		}
		line, err := d.says(ctx, mark, 1, s.says)
		if err != nil {
			return "", "", err
		}
		// It has refused: now it may try again, and must not get further.
		tries, cancel := context.WithTimeout(ctx, inTime)
		defer cancel()
		if _, ran, err := d.first(tries, mark, machined); err == nil {
			return line, "", broken("it ran all the same: %s", ran)
		}
		return fmt.Sprintf("byte %d of the disk; the console says: %s", at, line), "", nil
	})
}

// flip changes a byte of the disk, or back.
func (d *drill) flip(at int64) error {
	f, err := os.OpenFile(d.Lab.DiskFile(d.machine, 0), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 0x20
	_, err = f.WriteAt(b, at)
	return err
}

// inProgram is within machined, which is process 1.
func (d *drill) inProgram() (int64, error) {
	p, v, err := d.root()
	if err != nil {
		return 0, err
	}
	defer p.Close()
	size := int64(v.DataBlocks) * osimage.VerityBlock
	files, err := erofs.Files(io.NewSectionReader(p, 0, size))
	if err != nil {
		return 0, err
	}
	for _, e := range files {
		if filepath.Base(e.Path) == "machined" && e.Size > 1<<20 {
			return p.Offset() + e.Offset + 0x100, nil // in the page with the program's header
		}
	}
	return 0, errors.New("the root has no machined")
}

// root is the partition of the OS version that the lab's parts are of.
func (d *drill) root() (part, osimage.Verity, error) {
	m, err := build.ReadManifest(d.machine.OS)
	if err != nil {
		return part{}, osimage.Verity{}, err
	}
	v, err := osimage.ParseVerity(m.Cmdline)
	if err != nil {
		return part{}, v, err
	}
	p, err := d.open(osimage.PartRootA)
	return p, v, err
}

func (d *drill) inUKI() (int64, error)    { return d.onESP(build.PartUKI) }
func (d *drill) inLoader() (int64, error) { return d.onESP(build.PartLoader) }

// onESP is in the middle of a file of the ESP, found by its content: Linux may have
// written it in pieces.
func (d *drill) onESP(name string) (int64, error) {
	f, err := os.Open(filepath.Join(d.machine.OS, name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	const sector = 512
	sample := make([]byte, sector)
	for at := info.Size() / 2 / sector * sector; ; at += sector { // one that is like no other
		if _, err := f.ReadAt(sample, at); err != nil {
			return 0, fmt.Errorf("find a sector of %s: %w", name, err)
		}
		if len(bytes.Trim(sample, "\x00\xff")) > sector/2 {
			break
		}
	}
	p, err := d.open(osimage.PartESP)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	chunk := make([]byte, 1<<20)
	for at := int64(0); at < p.Size(); at += int64(len(chunk)) {
		n, err := p.ReadAt(chunk[:min(int64(len(chunk)), p.Size()-at)], at)
		if err != nil && err != io.EOF {
			return 0, err
		}
		for i := 0; i+sector <= n; i += sector {
			if bytes.Equal(chunk[i:i+sector], sample) {
				return p.Offset() + at + int64(i) + sector/2, nil
			}
		}
	}
	return 0, fmt.Errorf("the ESP does not hold %s", name)
}
