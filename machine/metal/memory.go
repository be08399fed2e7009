package metal

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// compress gives the machine's own programs compressed memory to swap to: half
// of what there is. Pods do not swap (kubelet, NoSwap). Without the driver the
// machine has a little less room and is well.
func (m *metal) compress() {
	if !m.modules.Has("zram") {
		return
	}
	if err := m.compressed(); err != nil {
		m.log.Warn("no compressed memory", "err", err)
	}
}

const zram = "/dev/zram0"

func (m *metal) compressed() error {
	if err := m.modules.Load("zram"); err != nil {
		return err
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	size := int64(info.Totalram) * int64(info.Unit) / 2 &^ (swapPage - 1)
	os.WriteFile("/sys/block/zram0/comp_algorithm", []byte("zstd"), 0) // else the kernel's own choice
	if err := os.WriteFile("/sys/block/zram0/disksize", []byte(strconv.FormatInt(size, 10)), 0); err != nil {
		return fmt.Errorf("size compressed memory: %w", err)
	}
	f, err := os.OpenFile(zram, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(swapHeader(size), 0)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("prepare compressed memory: %w", err)
	}
	return swapOn(zram)
}

const swapPage = 4096

// swapHeader is what mkswap writes: version 1, one area to the end.
func swapHeader(size int64) []byte {
	b := make([]byte, swapPage)
	binary.LittleEndian.PutUint32(b[1024:], 1)
	binary.LittleEndian.PutUint32(b[1028:], uint32(size/swapPage-1)) // the last page
	copy(b[swapPage-10:], "SWAPSPACE2")
	return b
}

func swapOn(device string) error {
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	if _, _, e := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), 0, 0); e != 0 {
		return fmt.Errorf("swap to %s: %w", device, e)
	}
	return nil
}
