package faults

import (
	"slices"
	"strings"
)

// Kind is how a fault is told.
type Kind int

// Kinds of entries.
const (
	Wrong Kind = iota // on the console, and to the hub as a condition that is not well
	Note              // to be known, and no more: the hub hears it as a condition that is well
	Local             // on the console only: while it lasts the hub hears nothing, or knows it better
)

// Entry explains a code.
type Entry struct {
	Code     Code
	Title    string // a few words
	Sentence string // for fmt: what is wrong, on the console
	Subject  bool   // the first argument tells several of the kind apart
	Kind     Kind
	Explain  string // what it means, and what the machine does meanwhile
	Next     string // what a person does
}

// The codes, by what they concern: 0x disks, 1x network, 2x time and trust,
// 3x and E40 to E44 the OS, from E45 Kubernetes, 6x a boot that stopped, by its
// phase. A code that is out of use is not given to anything else: E12, E38, E55, E56.
const (
	NoDisk       Code = "E01" // what was looked for
	ForeignDisk  Code = "E02" // disk, what is on it
	SeveralDisks Code = "E03" // the disks
	SmallDisk    Code = "E04" // disk, its size and the least
	BadDisk      Code = "E05" // disk, error
	Locked       Code = "E06" // why
	LockedBoot   Code = "E07" // which registers differ
	NoTPM        Code = "E08" // error
	StateSwapped Code = "E09" // why
	FromStick    Code = "E10"
	Unprotected  Code = "E11"
	OldRecovery  Code = "E13" // error

	NoCarrier     Code = "E16" // port
	NoAddress     Code = "E17" // port
	NoRoute       Code = "E18" // hub, error
	HubKey        Code = "E19" // hub
	NetworkUndone Code = "E20" // error
	NoNames       Code = "E21" // error
	BadHints      Code = "E22" // file, error

	ClockFloor      Code = "E25" // the time it is set to
	ClockDisagrees  Code = "E26" // error
	ReleaseRefused  Code = "E27" // error
	TrustLost       Code = "E28"
	ForeignFleet    Code = "E29" // error
	RollbackByDisk  Code = "E30"
	ContentRefused  Code = "E31" // error
	UnsavedReleases Code = "E32" // error

	LoaderKept   Code = "E33"
	DamagedSlot  Code = "E34" // slot
	OSRefused    Code = "E35" // version, error
	OSRolledBack Code = "E36" // version, why
	OSTooOld     Code = "E37" // version, floor
	NoWatchdog   Code = "E39"
	UnsafeBoot   Code = "E40" // what
	NoSlot       Code = "E41" // slot, error
	Trial        Code = "E42" // version
	Unmeasured   Code = "E43" // what

	BootFailed  Code = "E44" // phase, error
	EtcdDamaged Code = "E45" // error
	EtcdHeld    Code = "E46" // version
	CrashLoops  Code = "E47" // process, error
	DiskFull    Code = "E48" // disk, error
	AnotherWay  Code = "E49" // boot option

	BootMounts   Code = "E60" // error; so are all that follow
	BootWatchdog Code = "E61"
	BootSettings Code = "E62"
	BootScreen   Code = "E63"
	BootDevices  Code = "E64"
	BootButton   Code = "E65"
	BootESP      Code = "E66"
	BootClock    Code = "E67"
	BootDisks    Code = "E68"
	BootNetwork  Code = "E69"
	BootModules  Code = "E70"
)

var table = []Entry{
	{NoDisk, "no disk", "no disk to live on: %s", false, Wrong,
		"The machine found no disk that the rule of its class allows and that is large enough. It runs from memory, keeps no release and runs no apps; it is linked and reported.",
		"Put a disk in, or see that its controller's driver is in the OS image (holdfast os build, profile). If there is one, machine.disk names another: correct it in the class or the site and release, and the machine goes on by itself."},
	{ForeignDisk, "disk of somebody else", "disk %s holds %s and is not touched", true, Wrong,
		"The only disk that could be used carries partitions or a file system that Holdfast did not make. Nothing on it was changed. A foreign disk is never overwritten unless the class says so.",
		"If the disk may be erased: machine.disk: {wipe: true} in a class of the site or for this machine, and release: it goes on by itself. Or erase its first and last MiB elsewhere."},
	{SeveralDisks, "several disks", "several disks could be used and no rule says which: %s", false, Wrong,
		"More than one disk is large enough and the class does not choose. Guessing could erase the wrong one, so none is touched.",
		"Name the disk by model, serial number, path or size in machine.disk of the class, the site or this machine, and release: it goes on by itself. For machines to come: holdfast os build --class."},
	{SmallDisk, "disk too small", "%s", false, Wrong,
		"The boot partitions, two roots, STATE and DATA do not fit.",
		"Put a larger disk in, or choose a smaller STATE and DATA in the OS image's profile."},
	{BadDisk, "disk error", "disk %s: %s", true, Wrong,
		"The disk answers with errors. What was acknowledged before is on it or it is not; the machine does not guess.",
		"Replace the disk. The machine keeps its identity (it is in the TPM) and fills the new one by itself."},
	{Locked, "locked", "the disk stays locked: %s", false, Wrong,
		"STATE did not open by the TPM. The machine runs no apps and takes no release; it is linked and reported, and waits.",
		"holdfast machine unlock MACHINE, with the recovery key. If nobody changed this machine, find out first who did."},
	{LockedBoot, "locked: booted differently", "the disk stays locked: the boot differs in %s", false, Wrong,
		"The TPM gives the disk's key to the very programs and Secure Boot keys that it was sealed to. Something before or in the boot image is different: other firmware settings, other Secure Boot keys, a boot image that no update announced, or somebody who tampers.",
		"Undo the change and start again; if it was meant, holdfast machine unlock MACHINE with the recovery key, which seals to the new state."},
	{NoTPM, "TPM gone", "the TPM does not answer: %s", false, Wrong,
		"This machine was installed with a TPM and now has none: it is switched off in the firmware, broken, or the disk is in another box. The identity was in it, so this box is a stranger now.",
		"Switch the TPM on in the firmware. If it is broken, the machine is to be replaced: retire it and adopt the box anew."},
	{StateSwapped, "STATE is not this machine's", "the disk's STATE is not what this machine remembers: %s", false, Wrong,
		"The anchor in the TPM names another volume key or a newer release than the disk holds. Somebody swapped the disk or put an old copy back. It was moved aside unread.",
		"Put the machine's own disk back, or leave this one: the machine fills itself from the fleet. Find out who had it open."},
	{FromStick, "booted from the stick", "this boot came from the stick", false, Note,
		"The machine runs from a USB stick. It installs to its disk where the rule of its class (machine.disk) allows it, and repairs boot slots that are damaged; then it is to start from the disk.",
		"When the console says that it is installed, pull the stick out and start again."},
	{Unprotected, "protection none", "protection: none - the disk is not encrypted and the key lies in a file", false, Note,
		"The class says protection: none, or there is no TPM. Who takes the disk has all that is on it and the machine's identity; a rollback by disk is possible. Such a machine gets secrets only if the class says secretsUnprotected.",
		"Nothing, if that is meant. Else switch the TPM on in the firmware, erase the disk, and install again."},
	{OldRecovery, "old recovery key", "the recovery key is not changed to trust.yaml's people: %s", false, Wrong,
		"trust.yaml names other recovery recipients than those who can read this machine's recovery key, and making a new one, or keeping its escrow on the boot partition, failed. The machine tries again with each release and at each boot.",
		"See to the disk. Until then the recipients before can open it, if they hold it in their hands."},

	{NoCarrier, "no cable", "nothing is plugged into port %s", true, Wrong,
		"The port has no link: no cable, a switch that is off, or a speed that the two do not share.",
		"See to the cable and the switch; the lamps of the port tell."},
	{NoAddress, "no address", "no address on port %s", true, Wrong,
		"The port has a link, and nobody gave it an address: no DHCP server answers, or the site's network names another port or VLAN.",
		"See to the DHCP server or the VLAN of the switch's port. Without DHCP: network.yaml on the boot partition or a stick (holdfast schema network)."},
	{NoRoute, "hub not reached", "the hub %s is not reached: %s", true, Local,
		"The machine has an address and cannot open a connection to the hub: no route, a firewall, a proxy that is not named, or the hub is down. Apps go on; reports are kept.",
		"From the site's network, see that the hub's port answers (TCP, TLS). Where a proxy is needed: network.yaml, or the site's network."},
	{HubKey, "hub key not pinned", "who answers as hub %s shows a key that is not pinned", true, Local,
		"Something between the machine and the hub ends TLS (a firewall that inspects), or the hub has a key that trust.yaml does not name, or this is not the hub.",
		"Let the hub's address pass uninspected. If the hub has a new key: trust.yaml must name it before the old one goes."},
	{NetworkUndone, "network undone", "the new network settings lost the hub and were undone: %s", false, Wrong,
		"A release changed the network, the hub was not reached with it in time, and the machine went back to the settings that last worked. It does not try these again.",
		"Correct the site's network and release."},
	{NoNames, "no name service", "names are not resolved: %s", false, Local,
		"No name server answers. The hub is reached only where its address is a number or was kept.",
		"See to the DNS servers in the site's network, or to those that DHCP gives."},
	{BadHints, "hints not readable", "%s is not used: %s", true, Wrong,
		"A file that a person or a stick brought has a fault and is left aside whole.",
		"Correct it: holdfast schema network shows what it may say."},

	{ClockFloor, "clock at the floor", "the clock is only known to be after %s", false, Wrong,
		"The hardware clock is dead or lies before the newest signed time, and no time server answers. The machine works; no maintenance window opens, and logs carry that date.",
		"See to NTP (port 123/udp, or a server in the site's network), and to the battery of the clock."},
	{ClockDisagrees, "clocks disagree", "sources of time disagree: %s", false, Wrong,
		"A step of more than a day needs two sources that agree. The clock stays as it is.",
		"See which of the NTP servers is wrong."},
	{ReleaseRefused, "release refused", "refused a release: %s", false, Wrong,
		"A release came that does not prove itself: its signature, number, digest or content is not what it must be. Nothing of it is used, and what ran goes on.",
		"holdfast verify release/N in your clone says what is wrong with it. If yours is good, the hub or the way to it is not."},
	{TrustLost, "trust lost", "trust.yaml is lost; the next release brings it back", false, Wrong,
		"The file that the anchor names is damaged or gone. Operators are refused until a release brings what the anchor names.",
		"Nothing: it comes with the next slice. If it does not: holdfast release."},
	{ForeignFleet, "other fleet", "%s", false, Wrong,
		"The machine remembers another fleet than the OS image was made for. Nothing of it is used.",
		"Boot the OS image of the machine's own fleet, or clear the TPM in the firmware to give the box away for good."},
	{RollbackByDisk, "rollback by disk possible", "rollback by disk possible: what the machine remembers lies on the disk", false, Note,
		"Without a TPM the newest release that the machine accepted is remembered on the disk itself: who puts an old copy of the disk in brings old trust back.",
		"Nothing, if protection: none is meant."},
	{ContentRefused, "content refused", "refused what a release says: %s", false, Wrong,
		"The release proves itself and this machine cannot make anything of its content. What ran goes on; the trust half is in force.",
		"holdfast check and holdfast render SITE in the fleet repo say why; correct it and release."},
	{UnsavedReleases, "release not kept", "a release could not be written: %s", false, Wrong,
		"STATE or the anchor takes no writes: full, read-only, or broken. The release does not count until it is written.",
		"If the disk is full, see what fills it; if it is broken, replace it: the machine fills the new one."},

	{LoaderKept, "boot loader kept", "the boot loader that came with this OS version did not start; the one before stays", false, Note,
		"An OS version brings its own boot loader. The firmware was told to start it, at three boots, once each, and the machine came up by another way each time: it refused that loader, or does not do what it is told. The boot loader that is known to start stays in its place.",
		"Nothing on this machine; the next OS version tries again. Where several machines of one kind say so, try that OS version on one that you can reach, or in holdfast lab, before it goes further."},
	{DamagedSlot, "slot damaged", "what slot %s holds is not what was signed", true, Wrong,
		"A block of that boot slot was changed: by a disk that begins to fail, or by somebody. Nothing of it is used: the first such block restarts the machine, and after some restarts it boots what is whole: a copy in the other slot, or the OS version before. From there it writes the damaged slot anew.",
		"Nothing, the first time. If it comes again, replace the disk, or find out who had it open. If the machine keeps restarting, both slots are damaged: boot it once from its stick."},
	{OSRefused, "OS version refused", "refused OS version %s: %s", true, Wrong,
		"The OS image that a release names does not prove itself, does not fit this machine, or was tried and undone before. It is not tried again until a release names another, or holdfast os retry.",
		"holdfast status --direct says more; correct os/ in the fleet repo and release."},
	{OSRolledBack, "OS undone", "OS version %s was tried and undone: %s", true, Wrong,
		"The new version did not do well in its trial, and the machine went back to the old one with the old configuration, by itself. The same version with the same release is not tried again.",
		"Read why on holdfast status --direct; release a version that does it better."},
	{OSTooOld, "below the version floor", "OS version %s is below the floor %s of this machine", false, Wrong,
		"The machine ran a newer version for good. Older ones, though signed, may have holes that are closed since.",
		"Boot the newest OS image. The floor rises only, and is in the TPM."},
	{NoWatchdog, "no watchdog", "no watchdog: a hang needs a person", false, Wrong,
		"No hardware watchdog was found, or its driver is not in the OS image. A kernel that hangs stays hanging.",
		"Switch the watchdog on in the firmware, or add its driver to the profile of the OS image."},
	{UnsafeBoot, "boot not protected", "the boot is not protected: %s", false, Wrong,
		"Secure Boot is off or in setup mode: what boots next is not checked by the firmware. The TPM still measures it.",
		"Enrol the fleet's keys: they are on the boot partition (loader/keys), and systemd-boot enrols them in setup mode."},
	{NoSlot, "slot not usable", "slot %s cannot be written: %s", true, Wrong,
		"The idle slot or the boot partition takes no writes, so the OS cannot be updated.",
		"Replace the disk if it fails."},
	{Trial, "on trial", "OS version %s is on trial", true, Note,
		"The machine judges the new version. Until it is blessed a restart may bring the old one back.",
		"Wait."},
	{Unmeasured, "not sealed", "the disk is not sealed for the next boot: %s", false, Wrong,
		"Before a planned restart the disk's key is sealed to what will boot next, and tested. That failed, so the restart is not made.",
		"holdfast status --direct says more."},

	{BootFailed, "machine stopped", "the machine stopped at %s: %s", false, Wrong,
		"A step that the machine cannot do without failed after its disk and network were there. " + again,
		"Read the sentence: it names what failed, a file on STATE for one. " + show},
	{EtcdDamaged, "etcd damaged", "the cluster's data is damaged: %s", false, Wrong,
		"etcd does not start on its data. It was moved aside, not deleted; where another machine of the site has the data, it is fetched from there.",
		"On a site of one machine: holdfast release again re-creates what the release says; what only the cluster knew is in the last backup."},
	{EtcdHeld, "storage version held", "etcd is held at version %s until the OS is blessed", false, Note,
		"So that the old OS could still read the data. It ends by itself.",
		"Wait."},
	{CrashLoops, "process crashes", "%s crashes again and again: %s", true, Wrong,
		"A process of the machine ended several times in ten minutes. It is started again after a pause that grows.",
		"holdfast status --direct; the last lines of its output are in the log."},
	{DiskFull, "disk full", "%s is full: %s", true, Wrong,
		"Below a tenth the machine says so, below a twentieth pods are turned away.",
		"See which app fills it: holdfast kubectl SITE get pods -A; the class can give DATA a larger disk."},

	{AnotherWay, "started by another way", "the firmware started \"%s\", since what it tries first did not start", true, Wrong,
		"The boot loader or the boot image that this machine starts from is not what was signed, or cannot be read: the firmware refused it and took the next way. What was refused is written anew from what was started, in the first minutes.",
		"Nothing, the first time. If it stays, boot the machine once from its stick, which repairs what it cannot. If it comes again, replace the disk, or find out who had it open."},
	{BootMounts, "boot: mounts", "the boot stopped, no file systems of the kernel: %s", false, Wrong,
		"What the kernel shows as files (/proc, /sys, control groups), or the machine's own folders in memory, could not be mounted. " + again,
		"The kernel of the OS image lacks something, or memory is broken. " + show},
	{BootWatchdog, "boot: drivers unreadable", "the boot stopped, drivers or watchdog: %s", false, Wrong,
		"The list of drivers in the OS image is not readable, or the watchdog refuses its settings. " + again,
		"Boot another version of the OS image; if that helps, this one was built wrongly. " + show},
	{BootSettings, "boot: settings", "the boot stopped, a setting of the kernel: %s", false, Wrong,
		"The kernel refused one of the settings that harden it. The machine does not run without them. " + again,
		"Kernel and machined are of different versions: build the OS image anew. " + show},
	{BootScreen, "boot: screen", "the boot stopped, the screen: %s", false, Wrong,
		"The console could not be used at all. " + again,
		"Take the screen's adapter out, or another one. " + show},
	{BootDevices, "boot: devices", "the boot stopped, devices are not heard of: %s", false, Wrong,
		"The kernel does not tell which devices are there, so none would get its driver. " + again,
		"Cut the power, wait a minute and start again. " + show},
	{BootButton, "boot: power button", "the boot stopped, the power button: %s", false, Wrong,
		"The power button could not be listened to. " + again,
		"Cut the power, wait a minute and start again. " + show},
	{BootESP, "boot: boot partition", "the boot stopped, the boot partition: %s", false, Wrong,
		"The driver for the boot partition's file system (vfat) did not load, or memory has no room for the folder that stands in for it. " + again,
		"Boot another version of the OS image, from a stick for one. " + show},
	{BootClock, "boot: clock", "the boot stopped, the clock: %s", false, Wrong,
		"The OS image does not say when it was built, or the kernel's clock takes no time. " + again,
		"Build the OS image anew. " + show},
	{BootDisks, "boot: disks", "the boot stopped, the disks: %s", false, Wrong,
		"The OS image's own profile or command line is not readable, or an OS on trial found its disk locked, gone or damaged; the OS before may still open it. " + again,
		"If the machine comes back with the OS before: holdfast status --direct says why this one did not. " + show},
	{BootNetwork, "boot: network", "the boot stopped, the network: %s", false, Wrong,
		"The kernel does not let ports be configured. A port without a cable or an address is no such fault. " + again,
		"Boot another version of the OS image. " + show},
	{BootModules, "boot: drivers", "the boot stopped, the rest of the drivers: %s", false, Wrong,
		"The kernel could not be told how to load drivers later. One driver that does not load is no such fault. " + again,
		"Boot another version of the OS image. " + show},
}

// What is the same of every boot that stopped.
const (
	again = "The machine restarts and tries again; an OS on trial falls back to the one before by itself."
	show  = "If it stays, show the screen to whoever made the OS image."
)

// Lookup finds the entry of a code.
func Lookup(code Code) (Entry, bool) {
	i := slices.IndexFunc(table, func(e Entry) bool { return e.Code == code })
	if i < 0 {
		return Entry{}, false
	}
	return table[i], true
}

// Parse reads a code as a person writes it: e17.
func Parse(s string) (Code, bool) {
	s = strings.ToUpper(strings.TrimSpace(s))
	if len(s) != 3 || s[0] != 'E' || s[1] < '0' || s[1] > '9' || s[2] < '0' || s[2] > '9' {
		return "", false
	}
	return Code(s), true
}

// Table lists every entry, by code.
func Table() []Entry { return slices.Clone(table) }
