package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/machine/metal/efivar"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// partition is one that the kernel found, on any disk.
type partition struct {
	device string // kernel name, such as vda2
	disk   string // kernel name of its disk
	name   string // GPT's name
	id     string // GPT's unique ID, lower case
}

// slots are the partitions that may hold a root.
var slots = map[string]string{osimage.PartRootA: "a", osimage.PartRootB: "b", osimage.PartStickRoot: "stick"}

// esps are the partitions that firmware may have started the machine from.
var esps = []string{osimage.PartESP, osimage.PartStickESP}

// find finds the root: on the disk that firmware booted from, where there was
// firmware that says so; the partition whose hash tree ends in the hash that the
// command line names, whatever it is called. Slow disks get time.
func (b *boot) find() error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	if b.verity, err = osimage.ParseVerity(string(line)); err != nil {
		return err
	}
	esp, err := efivar.LoaderText(efivar.Dir, "LoaderDevicePartUUID")
	if err != nil {
		return err
	}
	if b.entry, err = efivar.LoaderText(efivar.Dir, "LoaderEntrySelected"); err != nil {
		say("<4>", "init: "+err.Error()) // it only says which of two that are alike
	}
	for end := now() + patience; ; time.Sleep(50 * time.Millisecond) {
		parts, err := partitions("/sys/class/block")
		if err != nil {
			return err
		}
		if esp != "" {
			identify(parts, "/sys/class/block", "/dev")
		}
		b.choose = func(matches func(partition) (bool, error)) error {
			found, err := choose(parts, esp, slotOf(b.entry), matches)
			if err != nil {
				return err
			}
			found.RootHash = fmt.Sprintf("%x", b.verity.RootHash)
			found.Phases = b.said.Phases
			b.said = found
			return nil
		}
		if err = b.choose(b.matches); err == nil {
			return nil
		}
		if now() > end {
			return fmt.Errorf("%w; seen for %v: %s", err, patience, describe(parts))
		}
		b.plug() // controllers, and then disks on them; a disk on virtio was there at once
	}
}

// slotOf is the slot of a boot entry by its file; empty where it names none.
func slotOf(entry string) string {
	for _, slot := range []string{"a", "b"} {
		if rest, ok := strings.CutPrefix(entry, "holdfast-"+slot); ok && (rest == ".efi" || strings.HasPrefix(rest, "+")) {
			return slot
		}
	}
	return ""
}

// choose picks the root among the partitions. esp is the ID of the one that
// firmware loaded us from; empty: it did not say. Where both slots hold that root
// it is the one whose boot entry was taken.
func choose(parts []partition, esp, taken string, matches func(partition) (bool, error)) (osimage.Boot, error) {
	disk := ""
	if esp != "" {
		for _, p := range parts {
			if p.id == esp {
				disk = p.disk
			}
		}
		if disk == "" {
			return osimage.Boot{}, fmt.Errorf("the partition that firmware booted from, %s, is not there", esp)
		}
	}
	fault := errNoRoot
	parts = slices.Clone(parts)
	slices.SortStableFunc(parts, func(p, q partition) int { // true sorts first
		return cmp.Compare(btoi(slots[q.name] == taken), btoi(slots[p.name] == taken))
	})
	for _, p := range parts {
		slot, ok := slots[p.name]
		if !ok || (disk != "" && p.disk != disk) {
			continue
		}
		is, err := matches(p)
		if err != nil {
			fault = fmt.Errorf("%w (%s: %v)", errNoRoot, p.device, err)
		}
		if is {
			return osimage.Boot{Disk: p.disk, ESP: espOf(parts, p.disk, esp), Root: p.device, Slot: slot}, nil
		}
	}
	return osimage.Boot{}, fault
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// espOf is the ESP of a disk: the one that firmware named, or the one with our name.
func espOf(parts []partition, disk, esp string) string {
	for _, p := range parts {
		if p.disk != disk {
			continue
		}
		if p.id == esp && esp != "" {
			return p.device
		}
		for _, name := range esps {
			if esp == "" && p.name == name {
				return p.device
			}
		}
	}
	return ""
}

// matches reads the top of the partition's hash tree.
func (b *boot) matches(p partition) (bool, error) {
	f, err := os.Open("/dev/" + p.device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return verity.Matches(f, b.verity)
}

// partitions lists what the kernel tells of partitions in dir, /sys/class/block.
func partitions(dir string) ([]partition, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []partition
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name(), "uevent"))
		if err != nil {
			continue // it is gone
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[key] = value
		}
		if fields["DEVTYPE"] != "partition" {
			continue
		}
		place, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			continue
		}
		list = append(list, partition{
			device: e.Name(), disk: filepath.Base(filepath.Dir(place)),
			name: fields["PARTNAME"], id: strings.ToLower(fields["PARTUUID"]),
		})
	}
	return list, nil
}

// identify fills in the IDs that the kernel does not tell (before 6.13 it tells
// none) from the partition tables. A disk that cannot be read keeps none.
func identify(parts []partition, dir, dev string) {
	tables := map[string]*gpt.Table{}
	for i, p := range parts {
		if p.id != "" {
			continue
		}
		t, tried := tables[p.disk]
		if !tried {
			t = table(filepath.Join(dev, p.disk))
			tables[p.disk] = t
		}
		text, err := os.ReadFile(filepath.Join(dir, p.device, "partition"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if t != nil && err == nil && n >= 1 && n <= len(t.Partitions) {
			parts[i].id = t.Partitions[n-1].ID.String()
		}
	}
}

func table(path string) *gpt.Table {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	t, err := gpt.Read(f, size)
	if err != nil {
		return nil
	}
	return t
}

func describe(parts []partition) string {
	if len(parts) == 0 {
		return "no partition at all"
	}
	var words []string
	for _, p := range parts {
		words = append(words, p.device+" "+p.name)
	}
	return strings.Join(words, ", ")
}
