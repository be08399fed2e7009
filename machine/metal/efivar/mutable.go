package efivar

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const immutable = 0x10 // FS_IMMUTABLE_FL

// mutable takes the guard away that efivarfs puts on variables that it does not
// know, lest somebody erases the firmware's by mistake.
func mutable(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil // another file system, in a test
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
