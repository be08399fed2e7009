// Guest is process 1 of the small guest that tests virtual machines: it loads the
// modules that it finds, says what hardware it sees, and does what the kernel's
// command line asks of it. It is part of no product.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

func must(what string, err error) {
	if err != nil {
		fmt.Println("guest:", what+":", err)
		hang()
	}
}

// hang stays: process 1 must not end, and a program whose goroutines all block is ended by Go.
func hang() {
	for {
		time.Sleep(time.Hour)
	}
}

func main() {
	for dir, kind := range map[string]string{"/dev": "devtmpfs", "/proc": "proc", "/sys": "sysfs"} {
		must("mount "+dir, unix.Mount(kind, dir, kind, 0, ""))
	}
	console, err := os.OpenFile("/dev/console", os.O_RDWR, 0)
	must("open the console", err)
	os.Stdout = console
	modules, _ := filepath.Glob("/modules/*")
	slices.Sort(modules)
	for _, m := range modules {
		f, err := os.Open(m)
		must("open a module", err)
		must("load "+m, unix.FinitModule(int(f.Fd()), "", unix.MODULE_INIT_COMPRESSED_FILE))
		f.Close()
	}
	line, err := os.ReadFile("/proc/cmdline")
	must("read the command line", err)
	fmt.Println("guest: clock", time.Now().UTC().Format(time.RFC3339))
	for _, file := range []string{"/dev/tpm0", "/dev/vda", "/dev/vdb", "/dev/watchdog0", "/dev/hwrng", "/sys/class/net/eth0"} {
		_, err := os.Stat(file)
		fmt.Println("guest:", file, err == nil)
	}
	serial, _ := os.ReadFile("/sys/block/vda/serial")
	fmt.Printf("guest: serial %s\n", serial)
	for word := range strings.FieldsSeq(string(line)) {
		switch word {
		case "do=write":
			write()
		case "do=watchdog":
			watchdog()
		case "do=carrier":
			carrier()
		case "do=fat":
			fat(string(line))
		}
	}
	fmt.Println("guest: done")
	hang()
}

// write leaves a megabyte that was flushed, and then one that was not.
func write() {
	d, err := os.OpenFile("/dev/vda", os.O_RDWR, 0)
	must("open the disk", err)
	_, err = d.WriteAt(bytes.Repeat([]byte{'S'}, 1<<20), 1<<20)
	must("write", err)
	must("flush", d.Sync())
	fmt.Println("guest: flushed")
	raw, err := unix.Open("/dev/vda", unix.O_RDWR|unix.O_DIRECT, 0)
	must("open the disk again", err)
	page, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must("get memory", err)
	copy(page, bytes.Repeat([]byte{'U'}, len(page)))
	_, err = unix.Pwrite(raw, page, 2<<20)
	must("write past the cache", err)
	fmt.Println("guest: written and not flushed")
}

// fat writes a file to the disk, which holds such a file system, as machines write
// to their boot partition: the command line is its content.
func fat(text string) {
	must("make a folder", os.Mkdir("/efi", 0o755))
	must("mount the disk", unix.Mount("/dev/vda", "/efi", "vfat", 0, "umask=0077,errors=continue,flush"))
	must("write", durable.WriteFile("/efi/holdfast/file", []byte(text), 0o600))
	fmt.Println("guest: durable")
}

// watchdog starts it and hangs; the life after that switches the machine off.
func watchdog() {
	d, err := os.OpenFile("/dev/vda", os.O_RDWR, 0)
	must("open the disk", err)
	mark := make([]byte, 8)
	_, err = d.ReadAt(mark, 8<<20)
	must("read", err)
	if binary.LittleEndian.Uint64(mark) == 1 {
		fmt.Println("guest: back after the watchdog")
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	binary.LittleEndian.PutUint64(mark, 1)
	_, err = d.WriteAt(mark, 8<<20)
	must("write", err)
	must("flush", d.Sync())
	dog, err := os.OpenFile("/dev/watchdog0", os.O_WRONLY, 0)
	must("open the watchdog", err)
	must("set the watchdog", unix.IoctlSetPointerInt(int(dog.Fd()), unix.WDIOC_SETTIMEOUT, 2))
	fmt.Println("guest: hangs")
	hang()
}

// carrier tells for a while whether the cable is plugged in.
func carrier() {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	must("open a socket", err)
	request, err := unix.NewIfreq("eth0")
	must("name the port", err)
	request.SetUint16(unix.IFF_UP)
	must("set the port up", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request))
	last := ""
	for {
		now, _ := os.ReadFile("/sys/class/net/eth0/carrier")
		if text := strings.TrimSpace(string(now)); text != last && text != "" {
			last = text
			fmt.Println("guest: carrier", text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
