package slots

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/holdfast-edge/holdfast/osimage"
	image "github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// Way is something that the firmware can start, by the name of its boot option.
type Way struct {
	Name string
	File string // on the ESP, with slashes
}

// Names of ways. The firmware tries the next one where one does not start or comes
// back, as the boot loader does with a UKI that the firmware refuses.
const (
	WayPrefix = "Holdfast "
	wayLoader = WayPrefix + "boot loader"
	wayCopy   = WayPrefix + "copy of the boot loader"
	waySlot   = WayPrefix + "slot "
)

// bootLoader is the one that firmware finds by itself.
var bootLoader = osimage.BootLoaders[runtime.GOARCH]

// Another tells whether the way is one that is taken when those before it fail.
func Another(way string) bool {
	return strings.HasPrefix(way, WayPrefix) && way != wayLoader
}

// Ways are all ways into the machine, in the order in which the firmware is to try
// them: the boot loader, which counts and chooses; its copy; and then the UKIs
// without it, but for one that is on trial, since nobody would count its tries.
func (s *Slots) Ways() ([]Way, error) {
	ways := []Way{{wayLoader, bootLoader}, {wayCopy, osimage.BootLoaderCopy}}
	entries, err := s.Entries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Count.Counted || e.Count.spent() {
			ways = append(ways, Way{waySlot + string(e.Slot), path.Join(Folder, e.File)})
		}
	}
	return ways, nil
}

// Heal writes anew what the firmware refused to start before it took the way that
// it took, from what it did start, and says what it did. The boot loader and its
// copy are held against each other at each call; UKIs where another way was taken.
// What boots the same root as the UKI that was started gets its bytes; one of
// another OS that is not what was signed can be made whole by nobody here, and is
// removed. What was started is never touched. After a power cut the same call goes
// on.
func (s *Slots) Heal(ctx context.Context, way string) (said []string, err error) {
	h := &healer{Slots: s, esp: onESP(s.ESP), root: func(slot Slot) (device, error) { return os.Open(s.Roots[slot]) }}
	if err := os.MkdirAll(path.Join(s.ESP, path.Dir(osimage.BootLoaderCopy)), 0o700); err != nil {
		return nil, fmt.Errorf("mend what the firmware starts: %w", err)
	}
	err = h.heal(ctx, way)
	return h.said, err
}

type healer struct {
	*Slots
	esp  disk // the whole of it
	root func(Slot) (device, error)
	said []string
}

func (h *healer) heal(ctx context.Context, way string) error {
	var faults []error
	if err := h.loader(way); err != nil {
		faults = append(faults, fmt.Errorf("mend the boot loader: %w", err))
	}
	if slot, ok := strings.CutPrefix(way, waySlot); ok {
		if err := h.ukis(ctx, Slot(slot)); err != nil {
			faults = append(faults, fmt.Errorf("mend the boot images: %w", err))
		}
	}
	return errors.Join(faults...)
}

// loader makes the loader and its copy alike. The one that was started is right;
// where neither was, the one that is what was signed.
func (h *healer) loader(way string) error {
	first, err := h.readLoader(bootLoader)
	if err != nil {
		return err
	}
	second, err := h.readLoader(osimage.BootLoaderCopy)
	if err != nil || bytes.Equal(first, second) && intact(first) {
		return err
	}
	from, to, name := first, osimage.BootLoaderCopy, "the copy of the boot loader"
	if way == wayCopy || strings.HasPrefix(way, waySlot) && !intact(first) {
		from, to, name = second, bootLoader, "the boot loader"
	}
	if !intact(from) {
		return fmt.Errorf("%w: neither %s nor %s is what was signed; a stick repairs them", ErrContent, bootLoader, osimage.BootLoaderCopy)
	}
	const fresh = osimage.BootLoaderCopy + ".tmp"
	if err := h.esp.write(fresh, bytes.NewReader(from)); err != nil {
		return err
	}
	if err := h.esp.sync(); err != nil {
		return err
	}
	if err := h.esp.rename(fresh, to); err != nil {
		return err
	}
	h.said = append(h.said, name+" was written anew")
	return h.esp.sync()
}

// intact is of a program with a signature: what has none is none of ours.
func intact(program []byte) bool { return len(program) > 0 && image.Intact(program) }

// maxLoader is more than a boot loader has.
const maxLoader = 4 << 20

// readLoader is a file of the ESP; nil where there is none, or one that is no boot loader.
func (h *healer) readLoader(name string) ([]byte, error) {
	f, size, err := h.esp.open(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && size > maxLoader {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil && err != io.EOF {
		return nil, nil // a disk that cannot read it has nothing to copy
	}
	return data, nil
}

// ukis makes all that boots the root of the UKI that was started like it.
func (h *healer) ukis(ctx context.Context, started Slot) error {
	good, ok, err := h.Entry(started)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("slot %s, which was started, has no UKI: %w", started, fs.ErrNotExist)
	}
	r := &repair{Slots: h.Slots}
	if r.from.UKI, err = r.whole(good.File); err != nil {
		return err
	}
	names, err := h.disk.list()
	if err != nil {
		return err
	}
	for _, name := range names {
		slot, _, ours := parseName(name)
		if !ours || name == good.File {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		text, err := r.whole(name)
		if err == nil && bytes.Equal(text, r.from.UKI) {
			continue
		}
		same, fault := h.boots(slot, good.Verity)
		switch {
		case fault != nil:
			return fault
		case same:
			h.said = append(h.said, "the boot image of slot "+string(slot)+" was written anew")
			if err := r.place(slot, name); err != nil {
				return err
			}
		case (err != nil || !intact(text)) && slot != h.Slot:
			h.said = append(h.said, "slot "+string(slot)+" is not booted any more: its boot image was not what was signed")
			if err := errors.Join(h.disk.remove(name), h.disk.sync()); err != nil {
				return err
			}
		}
	}
	return nil
}

// boots tells whether the root of a slot is the one that v names.
func (h *healer) boots(slot Slot, v osimage.Verity) (bool, error) {
	f, err := h.root(slot)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return verity.Matches(f, v)
}
