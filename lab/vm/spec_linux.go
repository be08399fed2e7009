package vm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// Spec is a machine as it is built: what would be bought and plugged together.
type Spec struct {
	// Dir holds what belongs to the machine but the disks: vars.fd, serial.log,
	// qemu.log, lock. It is made when missing.
	Dir    string
	Name   string // for people, in the process list; default: the folder's name
	Serial string // serial number on the case; default: the name
	// Architecture is the processor by Go's name, amd64 or arm64; default: this
	// computer's. Another one's is always translated.
	Architecture string
	Memory       int64  // bytes; default 2 GiB
	CPUs         int    // default 2
	Disks        []Disk // in the order in which the firmware tries to boot from them
	// TPM is the folder of the TPM's state, made when missing; "": no TPM.
	TPM string
	// Kernel is started without firmware where it is set: quicker, without Secure Boot.
	Kernel *Kernel
	// Keys is a file of firmware variables for the first start, with Secure Boot's
	// keys in it; "": without keys, so that the firmware is in setup mode.
	Keys string
	// Tap is the machine's end of its network cable (world.Tap); it is closed by
	// Start. Nil: no network.
	Tap *os.File
	MAC net.HardwareAddr // default: derived from Serial
	// Clock is what the machine's clock shows at the start, as 2006-01-02T15:04:05;
	// "": the time.
	Clock string
	Accel Accel // default TCG
	Log   *slog.Logger
}

// Kernel is a kernel to start without firmware.
type Kernel struct{ File, Initrd, Arguments string }

// Bus is how a disk is attached.
type Bus string

// The buses. A stick is on USB; the cloud flavour of the kernel has no USB.
const (
	Virtio Bus = "virtio"
	NVMe   Bus = "nvme"
	USB    Bus = "usb"
)

// Disk is one disk of a machine.
type Disk struct {
	File         string // raw; it must exist
	Serial       string // default: disk0, disk1
	Bus          Bus    // default Virtio
	WriteThrough bool   // every write is safe at once, as on a disk without a cache
}

func (s Spec) withDefaults() Spec {
	s.Name = cmp.Or(s.Name, filepath.Base(s.Dir))
	s.Serial = cmp.Or(s.Serial, s.Name)
	s.Architecture = cmp.Or(s.Architecture, runtime.GOARCH)
	s.Memory = cmp.Or(s.Memory, 2<<30)
	s.CPUs = cmp.Or(s.CPUs, 2)
	s.Accel = cmp.Or(s.Accel, TCG)
	s.Log = cmp.Or(s.Log, slog.Default())
	if s.MAC == nil {
		s.MAC = MAC(s.Serial)
	}
	disks := make([]Disk, len(s.Disks))
	for i, d := range s.Disks {
		d.Bus = cmp.Or(d.Bus, Virtio)
		d.Serial = cmp.Or(d.Serial, fmt.Sprintf("disk%d", i))
		disks[i] = d
	}
	s.Disks = disks
	return s
}

func (s Spec) validate() error {
	var faults []error
	if s.Dir == "" {
		faults = append(faults, errors.New("it has no folder"))
	}
	if _, ok := boards[s.Architecture]; !ok {
		faults = append(faults, fmt.Errorf("no processor is called %q here", s.Architecture))
	}
	if s.Accel == KVM && s.Architecture != runtime.GOARCH {
		faults = append(faults, fmt.Errorf("KVM runs no %s on %s", s.Architecture, runtime.GOARCH))
	}
	if s.Memory < 64<<20 {
		faults = append(faults, fmt.Errorf("%d MiB of memory are too few, 64 MiB the least", s.Memory>>20))
	}
	for _, d := range s.Disks {
		if d.Bus != Virtio && d.Bus != NVMe && d.Bus != USB {
			faults = append(faults, fmt.Errorf("disk %s: no bus is called %q", d.File, d.Bus))
		}
		if len(d.Serial) > 20 {
			faults = append(faults, fmt.Errorf("disk %s: the serial number %q has more than 20 letters", d.File, d.Serial))
		}
	}
	return errors.Join(faults...)
}

// Blank makes a disk without content. It takes no room yet.
func Blank(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make a disk: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		os.Remove(path)
		return fmt.Errorf("make a disk: %w", err)
	}
	return nil
}

// Copy makes a disk with the content of the raw disk image at from, and at least
// size bytes long. What is empty there takes no room here. It is there as a whole
// or not at all.
func Copy(path, from string, size int64) (err error) {
	fail := func(err error) error { return fmt.Errorf("make a disk from %s: %w", from, err) }
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return fail(errors.Join(err, fmt.Errorf("%s: %w", path, fs.ErrExist)))
	}
	in, err := os.Open(from)
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fail(err)
	}
	defer out.Close()
	if err := copySparse(out, in, size); err != nil {
		os.Remove(out.Name())
		return fail(err)
	}
	return os.Rename(out.Name(), path)
}

func copySparse(out, in *os.File, size int64) error {
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(max(size, info.Size())); err != nil {
		return err
	}
	for at := int64(0); at < info.Size(); {
		data, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		hole, err := in.Seek(data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data)); err != nil {
			return err
		}
		at = hole
	}
	return nil
}
