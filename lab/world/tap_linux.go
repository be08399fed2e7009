package world

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// Tap plugs a virtual machine into a LAN. What reads and writes the descriptor is
// the machine's end of the cable, wherever it runs; the device goes away with the
// last copy of it.
func (w *World) Tap(lan string) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, fmt.Errorf("plug into LAN %s: %w", lan, err) }
	h, err := w.handle()
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	bridge, err := h.LinkByName(Bridge(lan))
	if err != nil {
		return fail(err)
	}
	var fd int
	name := ""
	err = netns.Do(w.ns, func() error { // the device is made where the thread is
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq("tap%d") // the kernel fills the number in
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			unix.Close(fd)
			return fmt.Errorf("make a tap device: %w", err)
		}
		name = request.Name()
		return nil
	})
	if err != nil {
		return fail(err)
	}
	tap := os.NewFile(uintptr(fd), name)
	link, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkSetMTU(link, MTU)
	}
	if err == nil {
		err = h.LinkSetMasterByIndex(link, bridge.Attrs().Index)
	}
	if err == nil {
		err = h.LinkSetUp(link)
	}
	if err != nil {
		tap.Close()
		return fail(err)
	}
	return tap, nil
}
