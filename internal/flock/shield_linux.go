package flock

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Shield keeps every descriptor that this process inherited, but for the three
// standard ones, from being inherited further. A process that was started with
// a lock calls it first, else its children would hold the lock after its death.
func Shield() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list inherited descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
