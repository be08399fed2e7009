package metal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's name for its telling of buttons, lids and the like.
const (
	buttonFamily = "acpi_event"
	buttonGroup  = "acpi_mc_group"
)

// bootButton makes the power button switch the machine off in order, once its
// driver is loaded. A machine without one, or without ACPI, is well.
func (m *metal) bootButton(ctx context.Context) error {
	presses, err := listenForButton()
	if err != nil {
		m.log.Info("no power button", "err", err)
		return nil
	}
	m.background.Go(func() {
		stop := context.AfterFunc(ctx, func() { presses.Close() })
		defer stop()
		buf := make([]byte, 8<<10)
		for {
			n, err := presses.Read(buf)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err == nil && pressed(buf[:n]) {
				m.power.request(off, "the power button")
			}
		}
	})
	return nil
}

func listenForButton() (*os.File, error) {
	family, err := netlink.GenlFamilyGet(buttonFamily)
	if err != nil {
		return nil, err
	}
	for _, g := range family.Groups {
		if g.Name != buttonGroup {
			continue
		}
		s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_GENERIC)
		if err != nil {
			return nil, err
		}
		err = unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err == nil {
			err = unix.SetsockoptInt(s, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g.ID))
		}
		if err != nil {
			unix.Close(s)
			return nil, fmt.Errorf("listen for the power button: %w", err)
		}
		return os.NewFile(uintptr(s), "acpi events"), nil
	}
	return nil, fmt.Errorf("%s has no group %s", buttonFamily, buttonGroup)
}

// pressed tells whether messages of the kernel say that the power button was
// pressed: struct acpi_genl_event in an attribute, behind two headers.
func pressed(messages []byte) bool {
	const (
		headers = unix.SizeofNlMsghdr + 4 // and that of generic netlink
		class   = 20                      // bytes of the event's first field
	)
	for len(messages) >= headers+unix.SizeofNlAttr+class {
		size := int(binary.NativeEndian.Uint32(messages))
		if size < headers+unix.SizeofNlAttr+class || size > len(messages) {
			return false
		}
		name, _, _ := strings.Cut(string(messages[headers+unix.SizeofNlAttr:][:class]), "\x00")
		if name == "button/power" {
			return true
		}
		messages = messages[min(len(messages), (size+3)&^3):]
	}
	return false
}
