// Package vm runs a virtual machine as a machine of a lab: QEMU with UEFI, Secure
// Boot, a TPM, a watchdog, disks that lose on a power cut what was not flushed,
// and one port on a LAN of the lab's world. It promises that nothing of a machine
// outlives the process that started it, and that everything of it that lasts is
// files in two folders: the machine's (disks, firmware variables, console) and the
// TPM's, which is the box itself. It leaves out what the machine runs, and keeping
// it alive. Guests for amd64 and arm64 on Linux, without root; only LANs need root.
//
//	spec  ->  Start  ->  swtpm <- QEMU -> NBD -> disk.Disk -> disk files
package vm
