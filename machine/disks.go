package machine

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/faults"
)

// lookAtDisks is how often the machine looks how full its disks are.
const lookAtDisks = 10 * time.Second

// watchDisks tells the hub of a disk that fills, while the API still serves:
// the kubelet evicts pods for want of space only later.
func (m *Machine) watchDisks(ctx context.Context) {
	disks := []struct{ name, dir string }{{"STATE", m.config.StateDir}, {"DATA", m.config.DataDir}}
	worst := make([]int, len(disks))
	for {
		for i, d := range disks {
			free, err := freeShare(d.dir)
			if err == nil {
				worst[i], err = shortage(free, worst[i])
			}
			m.fault(err, faults.DiskFull, d.name)
		}
		if !pause(ctx, lookAtDisks) {
			return
		}
	}
}

// shortage says which step of want the free share, in percent, has come down
// to, and keeps saying so until there is a little more again: a report is sent
// at steps, not at every percent.
func shortage(free float64, before int) (step int, err error) {
	for _, s := range []int{2, 5, 10} {
		if free < float64(s) || (before != 0 && s >= before && free < float64(s)+2) {
			return s, fmt.Errorf("less than %d %% are free", s)
		}
	}
	return 0, nil
}

// freeShare is the smaller of the shares of bytes and of files that are free, in percent.
func freeShare(dir string) (float64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("look how full the disk is: %w", err)
	}
	free := 100.0
	if used := fs.Blocks - fs.Bfree; used+fs.Bavail > 0 {
		free = 100 * float64(fs.Bavail) / float64(used+fs.Bavail)
	}
	if fs.Files > 0 {
		free = min(free, 100*float64(fs.Ffree)/float64(fs.Files))
	}
	return free, nil
}
