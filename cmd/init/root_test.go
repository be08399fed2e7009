package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage"
)

const bootedESP = "2f7f2d1e-58a6-4b07-9c5b-7a1d3f2b6c11"

var disks = []partition{
	{"sda1", "sda", "EFI system partition", "aaaaaaaa-58a6-4b07-9c5b-7a1d3f2b6c11"},
	{"vda1", "vda", osimage.PartESP, bootedESP},
	{"vda2", "vda", osimage.PartRootA, "1"},
	{"vda3", "vda", osimage.PartRootB, "2"},
	{"vdb1", "vdb", osimage.PartESP, "3"},
	{"vdb2", "vdb", osimage.PartRootA, "4"},
	{"vdc1", "vdc", osimage.PartStickESP, "5"},
	{"vdc2", "vdc", osimage.PartStickRoot, "6"},
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name, esp, taken string
		holds            []string // partitions whose hash is the wanted one
		want             osimage.Boot
		err              error
	}{
		{"the slot that has the hash", bootedESP, "", []string{"vda3"}, osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda3", Slot: "b"}, nil},
		{"only the disk that firmware booted from", "3", "", []string{"vda2", "vdb2"}, osimage.Boot{Disk: "vdb", ESP: "vdb1", Root: "vdb2", Slot: "a"}, nil},
		{"both slots alike: the first", bootedESP, "", []string{"vda2", "vda3"}, osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda2", Slot: "a"}, nil},
		{"both slots alike: the one whose entry was taken", bootedESP, "b", []string{"vda2", "vda3"}, osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda3", Slot: "b"}, nil},
		{"the other slot than the one whose entry was taken", bootedESP, "a", []string{"vda3"}, osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda3", Slot: "b"}, nil},
		{"a stick", "5", "", []string{"vdc2", "vda2"}, osimage.Boot{Disk: "vdc", ESP: "vdc1", Root: "vdc2", Slot: "stick"}, nil},
		{"no firmware: any disk", "", "", []string{"vdb2"}, osimage.Boot{Disk: "vdb", ESP: "vdb1", Root: "vdb2", Slot: "a"}, nil},
		{"on another disk only", bootedESP, "", []string{"vdb2"}, osimage.Boot{}, errNoRoot},
		{"a name that is not ours", "", "", []string{"sda1"}, osimage.Boot{}, errNoRoot},
		{"nowhere", "", "", nil, osimage.Boot{}, errNoRoot},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := choose(disks, c.esp, c.taken, func(p partition) (bool, error) {
				for _, h := range c.holds {
					if h == p.device {
						return true, nil
					}
				}
				return false, nil
			})
			if !errors.Is(err, c.err) || got.Disk != c.want.Disk || got.ESP != c.want.ESP || got.Root != c.want.Root || got.Slot != c.want.Slot {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
	if _, err := choose(disks, "not-there-yet", "", nil); err == nil || !strings.Contains(err.Error(), "not-there-yet") {
		t.Errorf("a boot partition that is not there yet: got %v", err)
	}
	broken := errors.New("input/output error")
	if _, err := choose(disks, "", "", func(partition) (bool, error) { return false, broken }); !errors.Is(err, errNoRoot) || !strings.Contains(err.Error(), broken.Error()) {
		t.Errorf("disks that cannot be read: got %v", err)
	}
}

func TestPartitions(t *testing.T) {
	sys := t.TempDir()
	class := filepath.Join(sys, "class/block")
	for device, uevent := range map[string]string{
		"devices/pci0/virtio0/block/vda":      "MAJOR=254\nDEVNAME=vda\nDEVTYPE=disk\n",
		"devices/pci0/virtio0/block/vda/vda2": "MAJOR=254\nDEVNAME=vda2\nDEVTYPE=partition\nPARTN=2\nPARTNAME=holdfast-root-a\nPARTUUID=2F7F2D1E-58A6\n",
		"devices/virtual/block/dm-0":          "DEVNAME=dm-0\nDEVTYPE=disk\n",
	} {
		dir := filepath.Join(sys, device)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "uevent"), []byte(uevent), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(class, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir, filepath.Join(class, filepath.Base(device))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := partitions(class)
	if err != nil {
		t.Fatal(err)
	}
	want := partition{"vda2", "vda", osimage.PartRootA, "2f7f2d1e-58a6"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if text := describe(got); text != "vda2 holdfast-root-a" {
		t.Errorf("described as %q", text)
	}
}

func TestEntries(t *testing.T) {
	for entry, want := range map[string]struct {
		slot, other string
	}{
		"holdfast-a.efi":     {"a", "holdfast-b.efi"},
		"holdfast-b.efi":     {"b", "holdfast-a.efi"},
		"holdfast-b+2-1.efi": {"b", ""}, // on trial: the loader counts
		"holdfast-c.efi":     {"", ""},
		"holdfast-ab.efi":    {"", ""},
		"":                   {"", ""},
	} {
		other, known := otherEntry(entry)
		if slot := slotOf(entry); slot != want.slot || other != want.other || known != (other != "") {
			t.Errorf("entry %q: slot %q, the other one %q, %t; want %+v", entry, slot, other, known, want)
		}
	}
}
