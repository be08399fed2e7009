// Package efivar reads and writes variables of the firmware: what the boot loader
// says and is told, the boot options that are ways into the machine, and a tally of
// our own of the boots that did not last.
//
// The tally is for what a signed boot image cannot tell by itself: a damaged block
// of the root restarts the machine at once, without a trace, and would do so for
// ever. Each boot is counted before the root is used, and struck off when the
// machine has run for a while or goes down in order. cmd/init reads the whole root
// when several in a row are left, and boots what is whole.
//
// Nothing depends on the truth of these variables: who changes them makes a machine
// read its root once more, or start another OS that is signed and not below the
// floor. It leaves out what is made of a count.
package efivar
