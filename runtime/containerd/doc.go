// Package containerd pins the container runtime of a machine: the daemon and
// the shim, built unmodified from the Go module proxy.
//
// It is a module of its own so that containerd's pins decide nothing for the
// rest of the house, and holds no code: build/system.mk builds the imported
// commands by path. What it leaves out are the snapshotters that need a disk
// layout of their own (btrfs, devmapper, zfs), by build tag.
package containerd
