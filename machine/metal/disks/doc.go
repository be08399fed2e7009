// Package disks finds the machine's disk, divides it, encrypts STATE and DATA, opens and mounts them.
//
// It promises:
//
//   - A foreign disk is never written to: one with a partition table, a file system, an encrypted volume or any other data that is not ours. The one
//     exception is a rule that says Wipe.
//   - What is to be done follows from what is on the disk ([next], which does no input or output), one step after another, each looked at again: so a power
//     cut at any moment leaves a disk from which the next boot goes on. Nothing that was once in use is made anew unless it can be shown to be lost: a fault
//     of reading, a TPM that does not answer, a missing module are errors and not reasons to format.
//   - STATE opens by its TPM token only. No other slot is tried unless [Unlock] is called with the recovery key. What opens must be the volume whose key the
//     machine remembers in its box: a volume that somebody swapped in is not read, whatever opens it, and is made anew.
//   - The recovery key's escrow, encrypted, is in STATE's header from the moment at which there is a slot for that key, so no power cut loses it.
//   - Whoever may open STATE next is decided by measurements that this program predicts or reads itself, never by what a header says.
//
// DATA's secret is a file on STATE: without STATE, DATA is noise and is made anew. Without a TPM both are plain file systems, which protect nothing.
//
// It leaves out the file systems' programs (mke2fs, e2fsck), mounting the boot partition, the choice of slot, and repairing an installed root from a stick (slots.Repair).
package disks
