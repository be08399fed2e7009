package disks

import (
	"context"
	"io"

	"github.com/holdfast-edge/holdfast/machine/metal/dm"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// device is an open disk or partition.
type device interface {
	luks.Device
	io.Closer
}

// system is what this package wants of the kernel and of programs.
type system interface {
	disks() ([]Disk, error)                                                    // without Holds
	open(name string) (device, int64, error)                                   // by the kernel's name; with its size
	knows(disk string, t *gpt.Table) (bool, error)                             // the kernel has the partitions of ours as t has them
	tell(disk string, t *gpt.Table) error                                      // make it so
	mapCrypt(name string, c dm.CryptTarget) (string, error)                    // path of the device
	unmap(name string) error                                                   //
	mount(dev, dir string, flags uintptr) error                                // ext4
	unmount(dir string) error                                                  //
	run(ctx context.Context, name string, args ...string) ([]byte, int, error) // output and exit code
	path(dev string) string                                                    // of a device, as programs see it
}
