// Package slots keeps the two boot slots of a machine: two root partitions and,
// on the ESP, one UKI for each, whose file name carries the boot loader's count
// of tries.
//
//	EFI/Linux/holdfast-a.efi       blessed: booted without counting
//	EFI/Linux/holdfast-b+3.efi     armed: three tries, none made
//	EFI/Linux/holdfast-b+2-1.efi   the loader counts down before each try
//	EFI/Linux/holdfast-b+0-3.efi   no try left: sorted last, booted only when nothing else is there
//	EFI/Linux/holdfast-b+0.efi     put last: sent back, or a copy of the other slot (Mirror)
//	EFI/Linux/holdfast-b.new       unfinished: the loader does not see it
//
// It promises that at each instant at which the power can go, an entry that is
// known to be good is on the ESP, and first in the loader's order unless a new
// one was armed. For that no file of a good slot is ever renamed: FAT writes the
// two halves of a rename as it likes, so a name changes by a copy that is
// flushed, and only then goes the old file. The one rename is that of a new UKI
// from its hidden name, where either outcome is harmless, and Clean unties the two
// names where both reached the disk.
//
// The boot loader chooses among these, and does not try the next one where the
// firmware refuses one. So the firmware is told all ways into the machine (Ways): the
// loader, its copy, and the UKIs that are not on trial; and what it passed over is
// written anew from what it started. A loader that comes with an OS is on trial, too:
//
//	EFI/BOOT/BOOTX64.EFI             known to start
//	EFI/systemd/systemd-boot.efi     its copy
//	EFI/systemd/new+2.efi            started once, at the next boot; two tries are left after it
//
// It leaves out what is to be booted and why (package machine/update), where the
// bytes come from (package osimage/artefact) and the partitions themselves.
package slots
