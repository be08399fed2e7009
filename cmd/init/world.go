package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/metal/efivar"
	"github.com/holdfast-edge/holdfast/machine/metal/modules"
	"github.com/holdfast-edge/holdfast/osimage"
)

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// kernelMounts move to the root, with all below them.
var kernelMounts = []struct {
	kind, at string
	flags    uintptr
	options  string
}{
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=755"},
	{"proc", "/proc", safe, ""},
	{"sysfs", "/sys", safe, ""},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=128m"},
}

func (b *boot) mounts() error {
	for _, m := range kernelMounts {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.options); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	loud()
	return nil
}

// loud lets the consoles show our notices, and does not let the kernel drop lines
// of ours when there are many.
func loud() {
	os.WriteFile("/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0) // may be set already, and then it is locked
	const shown = 6                                                    // notices and what is worse
	var level int
	text, _ := os.ReadFile("/proc/sys/kernel/printk")
	if _, err := fmt.Sscan(string(text), &level); err == nil && level < shown {
		os.WriteFile("/proc/sys/kernel/printk", []byte("6"), 0)
	}
}

func (b *boot) modules() error {
	l, err := modules.Open("/modules")
	if err != nil {
		return err
	}
	b.drivers = l
	// What is for other hardware may not load on this; what is missed shows itself
	// in the next phases.
	if err := l.Load(l.Listed()...); err != nil {
		say("<6>", "init: "+err.Error())
	}
	if _, err := os.Stat(efivar.Dir); err == nil {
		if err := unix.Mount("efivarfs", efivar.Dir, "efivarfs", safe, ""); err != nil && err != unix.EBUSY {
			say("<4>", "init: mount the firmware's variables: "+err.Error())
		}
	}
	return nil
}

// plug loads drivers for the hardware that is there by now.
func (b *boot) plug() {
	if err := b.drivers.Coldplug("/sys"); err != nil {
		say("<6>", "init: "+err.Error())
	}
}

// watchdog starts the machine's watchdog, where a driver is there already: what
// hangs from here on is rebooted. Closed without the magic letter it runs on, and
// machined goes on feeding it.
func (b *boot) watchdog() error {
	w, err := os.OpenFile("/dev/watchdog", os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	defer w.Close()
	unix.IoctlSetPointerInt(int(w.Fd()), unix.WDIOC_SETTIMEOUT, 60)
	_, err = w.WriteString("x")
	return err
}

// newRoot is where the root is mounted before it is the root.
const newRoot = "/root"

// handOver mounts the root, says how the machine booted and moves the kernel's
// file systems there.
func (b *boot) handOver() error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(b.device, newRoot, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount the root %s: %w", b.device, err)
	}
	for _, m := range kernelMounts {
		if err := unix.Mount(m.at, newRoot+m.at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to the root: %w", m.at, err)
		}
	}
	return nil
}

// tell writes BootFile, below the new root.
func (b *boot) tell() error {
	data, err := json.Marshal(b.said)
	if err != nil {
		return err
	}
	path := newRoot + osimage.BootFile
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, fs.FileMode(0o644))
}

// leave gives the initramfs's memory back, makes the new root the root and
// becomes its process 1.
func (b *boot) leave() error {
	if err := b.tell(); err != nil {
		return err
	}
	for _, name := range []string{"/init", "/modules"} {
		os.RemoveAll(name)
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("make %s the root: %w", newRoot, err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	const init = "/sbin/init"
	err := unix.Exec(init, []string{init}, []string{"PATH=/usr/lib/holdfast:/usr/sbin:/usr/bin", "HOME=/run"})
	return fmt.Errorf("start %s: %w", init, err)
}
