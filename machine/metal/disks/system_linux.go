package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/machine/metal/dm"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

type realSystem struct{}

const sysBlock = "/sys/class/block"

// disks reads facts from sysfs. What has no device behind it (loop, ram, zram, device-mapper) is no disk; nor are optical drives and floppies.
func (realSystem) disks() ([]Disk, error) { return readDisks(sysBlock) }

func readDisks(dir string) ([]Disk, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("look for disks: %w", err)
	}
	var out []Disk
	for _, e := range entries {
		name := e.Name()
		at := filepath.Join(dir, name)
		text := func(file string) string {
			b, _ := os.ReadFile(filepath.Join(at, file)) // what is not there is empty
			return strings.TrimSpace(string(b))
		}
		if _, err := os.Stat(filepath.Join(at, "partition")); err == nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(at, "device")); err != nil || strings.HasPrefix(name, "sr") || strings.HasPrefix(name, "fd") || strings.Contains(name, "boot") || strings.Contains(name, "rpmb") {
			continue
		}
		sectors, err := strconv.ParseInt(text("size"), 10, 64)
		if err != nil || sectors == 0 { // a card reader without a card
			continue
		}
		d := Disk{Name: name, Size: sectors * gpt.Sector, Removable: text("removable") == "1", ReadOnly: text("ro") == "1",
			Model: text("device/model"), Serial: text("serial")}
		for _, file := range []string{"device/serial", "wwid", "device/wwid"} {
			if d.Serial == "" {
				d.Serial = text(file)
			}
		}
		if path, err := filepath.EvalSymlinks(at); err == nil {
			if i := strings.Index(path, "/devices/"); i >= 0 {
				d.Path = strings.TrimSuffix(path[i+len("/devices/"):], "/block/"+name)
			}
			// A stick in a USB port says that it is removable; a disk in a USB case does not, and neither is to be erased unasked.
			d.Removable = d.Removable || strings.Contains(path, "/usb")
		}
		out = append(out, d)
	}
	return out, nil
}

// open opens a device. One that is used otherwise opens too: the table of the disk that the machine runs from is changed as well.
func (realSystem) open(name string) (device, int64, error) {
	f, err := os.OpenFile(devPath(name), os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		f, err = os.Open(devPath(name))
	}
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, size, nil
}

// kernelPart is a partition as the kernel has it, in sectors.
type kernelPart struct {
	number        int
	first, length int64
}

func kernelParts(disk string) ([]kernelPart, error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, disk, disk+"*", "partition"))
	if err != nil {
		return nil, err
	}
	var out []kernelPart
	for _, file := range files {
		var v [3]int64
		for i, name := range []string{"partition", "start", "size"} {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(file), name))
			if err != nil {
				return nil, err
			}
			if v[i], err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
		out = append(out, kernelPart{int(v[0]), v[1], v[2]})
	}
	return out, nil
}

func wanted(t *gpt.Table) (out []kernelPart) {
	for i, p := range t.Partitions {
		if p.Type != (gpt.GUID{}) {
			out = append(out, kernelPart{i + 1, int64(p.First), int64(p.Last - p.First + 1)})
		}
	}
	return out
}

func (realSystem) knows(disk string, t *gpt.Table) (bool, error) {
	have, err := kernelParts(disk)
	if err != nil {
		return false, err
	}
	for _, p := range wanted(t) {
		if !slices.Contains(have, p) {
			return false, nil
		}
	}
	return true, nil
}

// struct blkpg_ioctl_arg and struct blkpg_partition of the kernel.
type (
	blkpgArg struct {
		op, flags, length int32
		_                 int32
		data              *blkpgPartition
	}
	blkpgPartition struct {
		start, length int64
		number        int32
		_             [64 + 64]byte
		_             [4]byte
	}
)

const (
	blkpg    = 0x1269
	blkpgAdd = 1
	blkpgDel = 2
)

// tell adds and removes single partitions: a disk in use does not let its whole table be read again.
func (realSystem) tell(disk string, t *gpt.Table) error {
	f, err := os.OpenFile(devPath(disk), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	call := func(op int32, p kernelPart) error {
		data := blkpgPartition{start: p.first * gpt.Sector, length: p.length * gpt.Sector, number: int32(p.number)}
		arg := blkpgArg{op: op, length: int32(unsafe.Sizeof(data)), data: &data}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), blkpg, uintptr(unsafe.Pointer(&arg))); errno != 0 {
			return fmt.Errorf("partition %d: %w", p.number, errno)
		}
		return nil
	}
	have, err := kernelParts(disk)
	if err != nil {
		return err
	}
	want := wanted(t)
	for _, p := range have {
		if !slices.Contains(want, p) {
			if err := call(blkpgDel, p); err != nil {
				return fmt.Errorf("remove %w", err)
			}
		}
	}
	for _, p := range want {
		if !slices.Contains(have, p) {
			if err := call(blkpgAdd, p); err != nil {
				return fmt.Errorf("add %w", err)
			}
		}
	}
	return nil
}

func (realSystem) mapCrypt(name string, c dm.CryptTarget) (string, error) { return dm.Crypt(name, c) }
func (realSystem) unmap(name string) error                                { return dm.Remove(name) }
func (realSystem) path(dev string) string                                 { return dev }

func (realSystem) mount(dev, dir string, flags uintptr) error {
	if err := unix.Mount(dev, dir, "ext4", flags, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", dev, dir, err)
	}
	return nil
}

func (realSystem) unmount(dir string) error { return unix.Unmount(dir, 0) }

func (realSystem) run(ctx context.Context, name string, args ...string) ([]byte, int, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := spawn.Start(cmd, nil); err != nil {
		return nil, -1, fmt.Errorf("start %s: %w", name, err)
	}
	err := spawn.Wait(cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return out.Bytes(), exit.ExitCode(), nil
	}
	return out.Bytes(), cmd.ProcessState.ExitCode(), err
}
