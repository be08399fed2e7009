package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
	"github.com/holdfast-edge/holdfast/osimage/fat"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// What firmware, loader and kernel say of what they do not believe.
var (
	denied  = regexp.MustCompile(`(?i)(access denied|security violation|security policy violation)[^\r\n]*`)
	corrupt = regexp.MustCompile(`(?i)(verity[^\r\n]*corrupt|data block \d+ is corrupted)[^\r\n]*`)
)

// inTime is longer than a machine takes from a refusal to process 1, were it to go on.
const inTime = 30 * time.Second

// tamper flips one byte at a time. What the machine cannot mend is put back.
func (d *drill) tamper(ctx context.Context) error {
	switch r, err := d.Site.Ask(ctx); {
	case err != nil:
		return err
	case r.Slot != "a":
		return fmt.Errorf("the machine runs from slot %s: this drill flips bytes of the OS version of its first disk, so do it before an update, and once on a lab", r.Slot)
	}
	if err := d.tamperWithAll(ctx); err != nil {
		return err
	}
	err := d.step(ctx, "put the bytes back", "it comes back by itself", func(ctx context.Context) (string, string, error) {
		seen, err := d.well(ctx)
		return seen, "", err
	})
	if err != nil {
		return err
	}
	err = d.step(ctx, "let it run", "it makes copies of the slot that runs and of the boot loader", func(ctx context.Context) (string, string, error) {
		return "slot b holds the same root, whole; there are two boot images and two boot loaders", "", until(ctx, d.copied)
	})
	if err != nil {
		return err
	}
	for _, s := range []struct{ what, file, part string }{
		{"the boot image that it starts from", build.FirstUKI, build.PartUKI},
		{"the boot loader", osimage.BootLoaders[d.architecture], build.PartLoader},
	} {
		if err := d.tamperWith(ctx, s.what, s.file, filepath.Join(d.machine.OS, s.part)); err != nil {
			return err
		}
	}
	return d.tamperWithRoot(ctx)
}

var mended = regexp.MustCompile(`ways into the machine" did="[^\r\n]*written anew" started="Holdfast [^\r\n]*`)

// tamperWith flips a byte of a file of the boot partition that the machine has a
// copy of, and lets the machine see to it.
func (d *drill) tamperWith(ctx context.Context, what, file, original string) (err error) {
	var was flipped
	defer d.flipBack(ctx, &was, &err)
	const expected = "the firmware refuses it, and starts the machine by another way; the machine writes it anew, and says so: same STATE, every acknowledged write, the app answers"
	return d.step(ctx, "flip one byte of "+what, expected, func(ctx context.Context) (string, string, error) {
		good, err := os.ReadFile(original)
		if err != nil {
			return "", "", err
		}
		mark, line, err := d.flipAndStart(ctx, &was, denied, func() ([]int64, error) { return d.inFile(file) })
		if err != nil {
			return "", "", err
		}
		said, err := d.says(ctx, mark, 1, mended)
		if err != nil {
			return line, "", err
		}
		if err := until(ctx, func(context.Context) error { return d.same(file, good) }); err != nil {
			return line + "; then: " + said, "", err
		}
		seen, err := d.well(ctx)
		return fmt.Sprintf("%s of the disk; the console says: %s; then: %s; it is written anew; %s", was, line, said, seen), "", err
	})
}

// flipAndStart flips bytes of the disk while the machine is off, and starts it; line
// is the first that the console says of the kind, behind mark.
func (d *drill) flipAndStart(ctx context.Context, was *flipped, kind *regexp.Regexp, find func() ([]int64, error)) (mark int64, line string, err error) {
	err = d.restart(ctx, func() error {
		at, err := find()
		if err != nil {
			return err
		}
		mark = d.mark()
		*was, err = d.flip(at)
		return err
	})
	if err == nil {
		line, err = d.says(ctx, mark, 1, kind)
	}
	return mark, line, err
}

// flipBack undoes what a step that failed has flipped.
func (d *drill) flipBack(ctx context.Context, was *flipped, err *error) {
	if *err != nil && len(*was) > 0 {
		afterwards(ctx, func(ctx context.Context) error {
			return d.replug(ctx, func() error { return d.unflip(*was) })
		}, err)
	}
}

// inFile is in the midst of a file of the boot partition.
func (d *drill) inFile(name string) ([]int64, error) {
	p, err := d.open(osimage.PartESP)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	pieces, err := fat.Locate(p, name)
	if err != nil {
		return nil, err
	}
	middle := pieces[len(pieces)/2]
	return []int64{p.Offset() + middle.Offset + middle.Size/2}, nil
}

// same says whether a file of the boot partition is what it should be.
func (d *drill) same(name string, want []byte) error {
	p, err := d.open(osimage.PartESP)
	if err != nil {
		return err
	}
	defer p.Close()
	pieces, err := fat.Locate(p, name)
	if err != nil {
		return err
	}
	var got []byte
	for _, piece := range pieces {
		b := make([]byte, piece.Size)
		if _, err := p.ReadAt(b, piece.Offset); err != nil {
			return err
		}
		got = append(got, b...)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s is not what it was", name)
	}
	return nil
}

// tamperWithAll flips a byte of each boot image there is: nothing may start.
func (d *drill) tamperWithAll(ctx context.Context) error {
	return d.step(ctx, "flip one byte of every boot image", "Secure Boot refuses them, and nothing starts", func(ctx context.Context) (seen, _ string, err error) {
		var was flipped
		mark, line, err := d.flipAndStart(ctx, &was, denied, d.inUKI)
		if len(was) > 0 {
			defer afterwards(ctx, func(ctx context.Context) error {
				return d.replug(ctx, func() error { return d.unflip(was) })
			}, &err)
		}
		if err != nil {
			return "", "", err
		}
		// It has refused: now it may try again, and must not get further.
		tries, cancel := context.WithTimeout(ctx, inTime)
		defer cancel()
		if _, ran, err := d.first(tries, mark, machined); err == nil {
			return line, "", broken("it ran all the same: %s", ran)
		}
		return fmt.Sprintf("%s of the disk; the console says: %s", was, line), "", nil
	})
}

var damaged = regexp.MustCompile(`holdfast: fault +E34[^\r\n]*`)

// tamperWithRoot flips a byte of the root that runs, and lets the machine see to
// it: it has a copy.
func (d *drill) tamperWithRoot(ctx context.Context) (err error) {
	var was flipped
	defer d.flipBack(ctx, &was, &err)
	const expected = "the kernel reads no wrong byte: the block is refused, the machine restarts, and after some restarts it boots the copy and says so: same STATE, every acknowledged write, the app answers"
	err = d.step(ctx, "flip one byte of the root, in a program that every boot reads", expected, func(ctx context.Context) (string, string, error) {
		mark, line, err := d.flipAndStart(ctx, &was, corrupt, d.inProgram)
		if err != nil {
			return "", "", err
		}
		said, err := d.says(ctx, mark, 1, damaged)
		if err != nil {
			return line, "", err
		}
		refused := len(corrupt.FindAllString(d.console(mark), -1))
		began := time.Now()
		err = errors.Join(until(ctx, d.itself), until(ctx, d.answers), until(ctx, d.keeps))
		return fmt.Sprintf("%s of the disk; %s, %d times; then: %s; app and API after %.0f s more", was, line, refused, said, time.Since(began).Seconds()), "", err
	})
	if err != nil {
		return err
	}
	return d.step(ctx, "let it run", "it mends the byte, and says no more that it is damaged", func(ctx context.Context) (string, string, error) {
		err := until(ctx, func(context.Context) error { return d.holds(was) })
		if err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		return "the byte is right again; " + seen, "", err
	})
}

// copied says whether the idle slot holds the root of slot a, whole.
func (d *drill) copied(context.Context) error {
	p, v, err := d.root()
	if err != nil {
		return err
	}
	defer p.Close()
	b, err := d.open(osimage.PartRootB)
	if err != nil {
		return err
	}
	defer b.Close()
	if is, err := verity.Matches(b, v); err != nil || !is {
		return errors.Join(err, errors.New("slot b holds no copy yet"))
	}
	if uki, err := d.inUKI(); err != nil || len(uki) < 2 {
		return errors.Join(err, errors.New("the boot partition holds one boot image"))
	}
	if _, err := d.inFile(osimage.BootLoaderCopy); err != nil {
		return err
	}
	return verity.Check(b, v)
}

// flipped is bytes of the disk as they were.
type flipped map[int64]byte

func (f flipped) String() string {
	at := slices.Sorted(maps.Keys(f))
	return "byte " + strings.Trim(strings.ReplaceAll(fmt.Sprint(at), " ", " and "), "[]")
}

// flip changes bytes of the disk.
func (d *drill) flip(at []int64) (was flipped, err error) {
	f, err := os.OpenFile(d.Lab.DiskFile(d.machine, 0), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	was = flipped{}
	for _, at := range at {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			return was, err
		}
		was[at] = b[0]
		if _, err := f.WriteAt([]byte{b[0] ^ 0x20}, at); err != nil {
			return was, err
		}
	}
	return was, nil
}

func (d *drill) unflip(was flipped) error {
	f, err := os.OpenFile(d.Lab.DiskFile(d.machine, 0), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for at, b := range was {
		_, fault := f.WriteAt([]byte{b}, at)
		err = errors.Join(err, fault)
	}
	return err
}

// holds says whether the disk holds bytes as they were.
func (d *drill) holds(was flipped) error {
	f, err := os.Open(d.Lab.DiskFile(d.machine, 0))
	if err != nil {
		return err
	}
	defer f.Close()
	for at, want := range was {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			return err
		}
		if b[0] != want {
			return fmt.Errorf("byte %d of the disk is %#x, and was %#x", at, b[0], want)
		}
	}
	return nil
}

// inProgram is within machined, which is process 1.
func (d *drill) inProgram() ([]int64, error) {
	p, v, err := d.root()
	if err != nil {
		return nil, err
	}
	defer p.Close()
	size := int64(v.DataBlocks) * osimage.VerityBlock
	files, err := erofs.Files(io.NewSectionReader(p, 0, size))
	if err != nil {
		return nil, err
	}
	for _, e := range files {
		if filepath.Base(e.Path) == "machined" && e.Size > 1<<20 {
			return []int64{p.Offset() + e.Offset + 0x100}, nil // in the page with the program's header
		}
	}
	return nil, errors.New("the root has no machined")
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

// inUKI is in the midst of each boot image, wherever it is found by its content:
// Linux may have written it in pieces, and a slot may be a copy of the other.
func (d *drill) inUKI() (found []int64, err error) {
	const name = build.PartUKI
	f, err := os.Open(filepath.Join(d.machine.OS, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const sector = 512
	sample := make([]byte, sector)
	for at := info.Size() / 2 / sector * sector; ; at += sector { // one that is like no other
		if _, err := f.ReadAt(sample, at); err != nil {
			return nil, fmt.Errorf("find a sector of %s: %w", name, err)
		}
		if len(bytes.Trim(sample, "\x00\xff")) > sector/2 {
			break
		}
	}
	p, err := d.open(osimage.PartESP)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	chunk := make([]byte, 1<<20)
	for at := int64(0); at < p.Size(); at += int64(len(chunk)) {
		n, err := p.ReadAt(chunk[:min(int64(len(chunk)), p.Size()-at)], at)
		if err != nil && err != io.EOF {
			return nil, err
		}
		for i := 0; i+sector <= n; i += sector {
			if bytes.Equal(chunk[i:i+sector], sample) {
				found = append(found, p.Offset()+at+int64(i)+sector/2)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("the ESP does not hold %s", name)
	}
	return found, nil
}
