// Package metal is machined as process 1 of the OS image: it owns mounts, kernel
// settings, modules, watchdog, screen, clock, TPM, disks and network, and ends in
// machine.Run, which knows nothing of these.
//
// Boot is a table of phases, each timed and said on the console and in the
// kernel's log (`holdfast: boot: disks 812 ms`). What boot cannot do without
// returns an error: the screen says it, and the machine reboots after a while, so
// that the boot counter can choose the other slot; never oftener than once a
// minute. What only people can mend is no such error: without a disk, with one
// that stays locked, without a network or a hub the machine stays up, says so,
// and does what it can.
//
// The way down is one as well: pods and processes in order (machine.Run), what is
// left by force, disks unmounted, and the watchdog behind it all.
//
// There is no shell, no login and no input: whoever stands before the machine can
// read the screen, press the power button and pull the plug.
package metal
