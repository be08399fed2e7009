//go:build linux

// Package dm makes and removes device-mapper devices by ioctl: dm-verity for the
// root, dm-crypt for STATE and DATA.
//
// It promises that a device is there and usable when a call returned, and that
// what was half made is removed again. It needs devtmpfs on /dev and the targets'
// modules loaded, and imports next to nothing: the first program of the boot
// links it. It leaves out everything else that device-mapper can, and the
// formats on the disk, which packages verity and luks know.
package dm

import (
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	headerSize = 312 // struct dm_ioctl
	targetSize = 40  // struct dm_target_spec
	sector     = 512

	cmdCreate = 3
	cmdRemove = 4
	cmdResume = 6 // DM_DEV_SUSPEND without the flag that says suspend
	cmdStatus = 7
	cmdLoad   = 9

	flagReadOnly = 1 << 0
	flagSecure   = 1 << 15 // the kernel wipes its copy of the command

	maxName = 127
)

// ErrExists is returned for a name that is taken.
var ErrExists = errors.New("the name is taken")

// VerityTarget is a file system with a hash tree of format 1, both in blocks of 4096 bytes with SHA-256.
type VerityTarget struct {
	Data, Hash string // paths of block devices; the same where one holds both
	DataBlocks uint64
	HashStart  uint64 // block of Hash at which the tree begins, after the superblock
	RootHash   [32]byte
	Salt       [32]byte
}

func (v VerityTarget) table() []byte {
	b := []byte("1 " + v.Data + " " + v.Hash + " 4096 4096 ")
	b = strconv.AppendUint(b, v.DataBlocks, 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, v.HashStart, 10)
	b = append(b, " sha256 "...)
	b = hex.AppendEncode(b, v.RootHash[:])
	b = append(b, ' ')
	b = hex.AppendEncode(b, v.Salt[:])
	return append(b, " 1 restart_on_corruption"...)
}

// Verity makes a read-only device and returns its path, /dev/dm-N. A block whose hash is wrong restarts the machine at once.
func Verity(name string, v VerityTarget) (string, error) {
	return create(name, flagReadOnly, v.DataBlocks*4096/sector, "verity", v.table())
}

// CryptTarget is an encrypted part of a device: aes-xts-plain64.
type CryptTarget struct {
	Device     string // path of a block device
	Key        []byte
	Offset     uint64 // bytes; where the first encrypted byte is
	Length     uint64 // bytes
	SectorSize int    // 512 or 4096
}

func (c CryptTarget) table() []byte {
	b := make([]byte, 0, 256+2*len(c.Key)+len(c.Device)) // the key is in no second copy that append left behind
	b = append(b, "aes-xts-plain64 "...)
	b = hex.AppendEncode(b, c.Key)
	b = append(b, " 0 "...)
	b = append(b, c.Device...)
	b = append(b, ' ')
	b = strconv.AppendUint(b, c.Offset/sector, 10)
	if c.SectorSize != sector {
		b = append(b, " 1 sector_size:"...)
		b = strconv.AppendInt(b, int64(c.SectorSize), 10)
	}
	return b
}

// Crypt makes a device that shows what is encrypted, and returns its path, /dev/dm-N.
func Crypt(name string, c CryptTarget) (string, error) {
	if len(c.Key) != 32 && len(c.Key) != 64 {
		return "", errors.New("device-mapper: make " + name + ": a key of " + strconv.Itoa(len(c.Key)) + " bytes, want 32 or 64")
	}
	if unit := uint64(c.SectorSize); c.SectorSize != 512 && c.SectorSize != 4096 || c.Length == 0 || c.Length%unit != 0 || c.Offset%sector != 0 {
		return "", errors.New("device-mapper: make " + name + ": length, offset or sector size is odd")
	}
	table := c.table()
	defer clear(table)
	return create(name, 0, c.Length/sector, "crypt", table)
}

// command is a struct dm_ioctl with what follows it.
func command(name string, flags uint32, targets uint32, body []byte) []byte {
	b := make([]byte, headerSize+len(body), headerSize+len(body)+1)
	put32(b[0:], 4) // version of the interface
	put32(b[12:], uint32(len(b)))
	put32(b[16:], headerSize)
	put32(b[20:], targets)
	put32(b[28:], flags)
	copy(b[48:48+maxName], name)
	copy(b[headerSize:], body)
	return b
}

// target is a struct dm_target_spec with its parameters.
func target(sectors uint64, kind string, table []byte) []byte {
	size := (targetSize + len(table) + 1 + 7) &^ 7
	b := make([]byte, size)
	put64(b[8:], sectors)
	put32(b[20:], uint32(size))
	copy(b[24:24+15], kind)
	copy(b[targetSize:], table)
	return b
}

func create(name string, flags uint32, sectors uint64, kind string, table []byte) (string, error) {
	if name == "" || len(name) > maxName {
		return "", errors.New("device-mapper: make a device: want a name of 1 to 127 bytes")
	}
	made := command(name, 0, 0, nil)
	if err := control(cmdCreate, made); err != nil {
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			err = ErrExists
		}
		return "", fault("make", name, err)
	}
	body := target(sectors, kind, table)
	load := command(name, flags|flagSecure, 1, body)
	err := control(cmdLoad, load)
	clear(body)
	clear(load)
	if err == nil {
		err = control(cmdResume, command(name, flags, 0, nil))
	}
	if err != nil {
		_ = Remove(name) // it is of no use and would hold the name
		return "", fault("make "+kind+" device", name, err)
	}
	return path(made), nil
}

func path(answer []byte) string {
	return "/dev/dm-" + strconv.Itoa(int(unix.Minor(get64(answer[40:]))))
}

// Find returns the path of the device of that name; unix.ENXIO when there is none.
func Find(name string) (string, error) {
	answer := command(name, 0, 0, nil)
	if err := control(cmdStatus, answer); err != nil {
		return "", fault("find", name, err)
	}
	return path(answer), nil
}

// Remove removes a device that nothing uses. One that is not there is no error.
func Remove(name string) error {
	err := control(cmdRemove, command(name, 0, 0, nil))
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fault("remove", name, err)
	}
	return nil
}

func fault(what, name string, err error) error {
	return &os.PathError{Op: "device-mapper: " + what, Path: name, Err: err}
}

// control gives the kernel one command; the answer comes back in its place.
func control(number int, b []byte) error {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	request := uintptr(3<<30 | headerSize<<16 | 0xfd<<8 | number)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return errno
	}
	return nil
}

// The kernel reads these in its own order of bytes, which on the machines that we know is little-endian.
func put32(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func put64(b []byte, v uint64) { put32(b, uint32(v)); put32(b[4:], uint32(v>>32)) }

func get64(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}
