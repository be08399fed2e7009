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
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/osimage"
	image "github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// ErrLoader: the boot loader that came with the OS was to be started once, and was not.
var ErrLoader = errors.New("the firmware did not start the boot loader that came with the OS")

// Way is something that the firmware can start, by the name of its boot option.
type Way struct {
	Name string
	File string // on the ESP, with slashes
	Once bool   // at the next boot, and then never again
}

// Names of ways. The firmware tries the next one where one does not start or comes
// back, as the boot loader does with a UKI that the firmware refuses.
const (
	WayPrefix = "Holdfast "
	wayLoader = WayPrefix + "boot loader"
	wayCopy   = WayPrefix + "copy of the boot loader"
	wayNew    = WayPrefix + "new boot loader"
	waySlot   = WayPrefix + "slot "
)

// Boot loaders on the ESP: the one that firmware finds by itself, and a copy of it.
var bootLoader = osimage.BootLoaders[runtime.GOARCH]

const bootLoaderCopy = osimage.BootLoaderCopy

// newBootLoader is one that is tried, with the tries that are left after this one.
func newBootLoader(left int) string { return fmt.Sprintf("EFI/systemd/new+%d.efi", left) }

// Another tells whether the way is one that is taken when those before it fail.
func Another(way string) bool {
	return strings.HasPrefix(way, WayPrefix) && way != wayLoader && way != wayNew
}

// Ways keeps the ways into the machine: the boot loader, which counts and chooses;
// its copy; and then the UKIs without it, but for one that is on trial, since nobody
// would count its tries. Its methods are called by one goroutine at a time, and not
// beside those of its Slots.
type Ways struct {
	slots *Slots
	WaysConfig
	esp  disk // the whole of it
	root func(Slot) (device, error)
	next string // file of the boot loader that is tried at the next boot; "" is none
}

// WaysConfig of Ways.
type WaysConfig struct {
	Started string            // the way that the firmware took; "" is unknown
	Loader  string            // file of the boot loader that came with the OS that runs
	Tell    func([]Way) error // tells the firmware all that it can start, in the order of trying
}

// Ways returns the ways into the machine.
func (s *Slots) Ways(c WaysConfig) (*Ways, error) {
	if err := makeFolders(s.ESP); err != nil {
		return nil, err
	}
	return &Ways{slots: s, WaysConfig: c, esp: onESP(s.ESP), root: func(slot Slot) (device, error) { return os.Open(s.Roots[slot]) }}, nil
}

// makeFolders makes those of the boot loaders and the UKIs.
func makeFolders(esp string) error {
	for _, dir := range []string{path.Dir(bootLoader), path.Dir(bootLoaderCopy), Folder} {
		if err := os.MkdirAll(path.Join(esp, dir), 0o700); err != nil {
			return fmt.Errorf("make the folders of the boot partition: %w", err)
		}
	}
	return nil
}

// See tells the firmware all ways into the machine, and before that writes anew what
// it refused to start before it took the way that it took, from what it did start.
// said is what was done. What was started is never touched. After a power cut the
// same call goes on.
//
// The boot loader and its copy are held against each other at each call; UKIs where
// another way was taken. What boots the same root as the UKI that was started gets
// its bytes; one of another OS that is not what was signed can be made whole by
// nobody here, and is removed.
//
// A boot loader that came with the OS and is another one is tried first: the firmware
// starts it at the next boot, whenever that is, and only then. If it brings the
// machine up it takes the place of the one before. If it has not after so many tries
// as an OS has, that one stays, and ErrLoader says so until another OS has come.
//
// While an OS is on trial, or about to be, nothing is mended, since its boot image
// may be what was refused, which is for the trial to end, and no loader is tried.
func (w *Ways) See(ctx context.Context, trial bool) (said []string, err error) {
	if trial {
		err = w.withdraw("")
	} else {
		said, err = w.heal(ctx)
	}
	return said, errors.Join(err, w.tell())
}

func (w *Ways) heal(ctx context.Context) (said []string, err error) {
	var faults []error
	loader, err := w.loaders()
	if err != nil {
		faults = append(faults, fmt.Errorf("mend the boot loader: %w", err))
	}
	var ukis []string
	if slot, ok := strings.CutPrefix(w.Started, waySlot); ok {
		if ukis, err = w.ukis(ctx, Slot(slot)); err != nil {
			faults = append(faults, fmt.Errorf("mend the boot images: %w", err))
		}
	}
	return append(loader, ukis...), errors.Join(faults...)
}

// list is all ways, as the slots are now.
func (w *Ways) list() ([]Way, error) {
	ways := []Way{{Name: wayLoader, File: bootLoader}, {Name: wayCopy, File: bootLoaderCopy}}
	entries, err := w.slots.Entries()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !e.Count.Counted || e.Count.spent() {
			ways = append(ways, Way{Name: waySlot + string(e.Slot), File: path.Join(Folder, e.File)})
		}
	}
	if w.next != "" {
		ways = append(ways, Way{Name: wayNew, File: w.next, Once: true})
	}
	return ways, nil
}

func (w *Ways) tell() error {
	ways, err := w.list()
	if err == nil {
		err = w.Tell(ways)
	}
	if err != nil {
		return fmt.Errorf("tell the firmware the ways into the machine: %w", err)
	}
	return nil
}

// withdraw removes each boot loader that is to be tried, or that was, but for the
// one in that file.
func (w *Ways) withdraw(but string) error {
	if w.next != but {
		w.next = ""
	}
	removed := false
	for left := range Tries {
		name := newBootLoader(left)
		if data, err := w.readLoader(name); err != nil {
			return err
		} else if data == nil || name == but {
			continue
		}
		if err := w.esp.remove(name); err != nil {
			return err
		}
		removed = true
	}
	if !removed {
		return nil
	}
	return w.esp.sync()
}

// candidate is the boot loader that is tried, with the tries that are left; nil: none.
func (w *Ways) candidate() (data []byte, left int, err error) {
	for left := range Tries {
		if data, err := w.readLoader(newBootLoader(left)); err != nil || data != nil {
			return data, left, err
		}
	}
	return nil, Tries, nil
}

// loaders mends the boot loader and its copy, and tries the one that came with the
// OS where that is another.
func (w *Ways) loaders() (said []string, err error) {
	own, err := os.ReadFile(w.Loader)
	if err != nil {
		return nil, err
	}
	good, said, err := w.mend(own)
	if err != nil {
		return said, err
	}
	tried, left, err := w.candidate()
	switch {
	case err != nil:
		return said, err
	case bytes.Equal(own, good):
		return said, w.withdraw("")
	case !intact(own):
		return said, fmt.Errorf("%w: %s is no boot loader with a signature", ErrContent, w.Loader)
	case !bytes.Equal(own, tried):
		if err := w.withdraw(""); err != nil {
			return said, err
		}
		left = Tries
	case w.next != "": // the next boot will show
		return said, nil
	case left == 0:
		return said, ErrLoader
	}
	if err := w.try(own, left-1); err != nil {
		return said, err
	}
	return append(said, "the boot loader that came with the OS is tried at the next boot"), nil
}

// mend makes the boot loader and its copy the one that is known to start; where none
// is, one that is what was signed, own at last.
func (w *Ways) mend(own []byte) (good []byte, said []string, err error) {
	first, err := w.readLoader(bootLoader)
	if err != nil {
		return nil, nil, err
	}
	second, err := w.readLoader(bootLoaderCopy)
	if err != nil {
		return nil, nil, err
	}
	good = first // where the firmware does not say what it started, too
	switch {
	case w.Started == wayNew && w.next == "":
		if tried, _, err := w.candidate(); err != nil {
			return nil, nil, err
		} else if intact(tried) {
			good = tried
		}
	case w.Started == wayCopy:
		good = second
	}
	if !intact(good) {
		i := slices.IndexFunc([][]byte{first, second, own}, intact)
		if i < 0 {
			return nil, nil, fmt.Errorf("%w: neither %s nor %s is what was signed; a stick repairs them", ErrContent, bootLoader, bootLoaderCopy)
		}
		good = [][]byte{first, second, own}[i]
	}
	for _, c := range []struct {
		name, called string
		data         []byte
	}{{bootLoader, "the boot loader", first}, {bootLoaderCopy, "the copy of the boot loader", second}} {
		if bytes.Equal(c.data, good) {
			continue
		}
		if err := w.writeLoader(c.name, good); err != nil {
			return nil, said, err
		}
		said = append(said, c.called+" was written anew")
	}
	return good, said, nil
}

// try has the firmware start a boot loader at the next boot. The firmware is told
// first: a power cut leaves it with a file that is not there, and not the file as if
// it had been tried.
func (w *Ways) try(loader []byte, left int) error {
	w.next = newBootLoader(left)
	if err := w.tell(); err != nil {
		return err
	}
	if err := w.writeLoader(w.next, loader); err != nil {
		return err
	}
	return w.withdraw(w.next)
}

// intact is of a program with a signature: what has none is none of ours.
func intact(program []byte) bool { return len(program) > 0 && image.Intact(program) }

// maxLoader is more than a boot loader has.
const maxLoader = 4 << 20

// readLoader is a file of the ESP; nil where there is none, or one that is no boot loader.
func (w *Ways) readLoader(name string) ([]byte, error) {
	f, size, err := w.esp.open(name)
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

// writeLoader makes or replaces a file of the ESP.
func (w *Ways) writeLoader(name string, data []byte) error {
	const unfinished = bootLoaderCopy + ".tmp"
	if err := w.esp.write(unfinished, bytes.NewReader(data)); err != nil {
		return err
	}
	if err := w.esp.sync(); err != nil {
		return err
	}
	if err := w.esp.rename(unfinished, name); err != nil {
		return err
	}
	return w.esp.sync()
}

// ukis makes all that boots the root of the UKI that was started like it.
func (w *Ways) ukis(ctx context.Context, started Slot) (said []string, err error) {
	good, ok, err := w.slots.Entry(started)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("slot %s, which was started, has no UKI: %w", started, fs.ErrNotExist)
	}
	r := &repair{Slots: w.slots}
	if r.from.UKI, err = r.whole(good.File); err != nil {
		return nil, err
	}
	names, err := r.disk.list()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		slot, _, ours := parseName(name)
		if !ours || name == good.File {
			continue
		}
		if err := ctx.Err(); err != nil {
			return said, err
		}
		text, err := r.whole(name)
		if err == nil && bytes.Equal(text, r.from.UKI) {
			continue
		}
		same, fault := w.boots(slot, good.Verity)
		switch {
		case fault != nil:
			return said, fault
		case same:
			if err := r.place(slot, name); err != nil {
				return said, err
			}
			said = append(said, "the boot image of slot "+string(slot)+" was written anew")
		case (err != nil || !intact(text)) && slot != w.slots.Slot:
			if err := errors.Join(r.disk.remove(name), r.disk.sync()); err != nil {
				return said, err
			}
			said = append(said, "slot "+string(slot)+" is not booted any more: its boot image was not what was signed")
		}
	}
	return said, nil
}

// boots tells whether the root of a slot is the one that v names.
func (w *Ways) boots(slot Slot, v osimage.Verity) (bool, error) {
	f, err := w.root(slot)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return verity.Matches(f, v)
}
