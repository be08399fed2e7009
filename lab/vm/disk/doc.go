// Package disk is the disk of a virtual machine: a raw file behind a volatile
// write cache, served over NBD. It promises what a disk promises: a write is
// read back at once, and is safe from a power cut only after a flush (or when it
// asked for that itself); Cut loses the rest, or keeps a seeded part of it, torn
// between sectors. Killing the process that serves loses all of the rest. It
// leaves out the loss of what was flushed: the file's own host is not cut.
package disk
