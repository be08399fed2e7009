package slots

import (
	"os"

	"golang.org/x/sys/unix"
)

// forget drops a flushed file from memory.
func forget(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint
}

// syncFS flushes the file system that f is on: on FAT the tables, too.
func syncFS(f *os.File) error { return unix.Syncfs(int(f.Fd())) }
