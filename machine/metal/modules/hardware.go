package modules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/osimage/kmod"
)

// Coldplug loads a driver for each device that is there: sys is /sys. Devices
// that nothing drives are no fault. Loaded drivers may bring forth more devices,
// of which Listen tells.
func (l *Loader) Coldplug(sys string) error {
	files, err := filepath.Glob(filepath.Join(sys, "bus/*/devices/*/modalias"))
	if err != nil {
		return err
	}
	var aliases []string
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil {
			aliases = append(aliases, strings.TrimSpace(string(text)))
		}
	}
	slices.Sort(aliases)
	return l.Load(l.drivers(slices.Compact(aliases))...)
}

// drivers are the modules for a set of aliases, sorted. Aliases of one bus are
// compared with patterns of that bus only: there are thousands of each.
func (l *Loader) drivers(aliases []string) []string {
	byBus := map[string][]string{}
	for _, a := range aliases {
		bus, _, _ := strings.Cut(a, ":")
		byBus[bus] = append(byBus[bus], a)
	}
	var names []string
	for name, m := range l.index.Modules {
		if slices.ContainsFunc(m.Aliases, func(pattern string) bool {
			bus, _, _ := strings.Cut(pattern, ":")
			return slices.ContainsFunc(byBus[bus], func(a string) bool { return kmod.Match(pattern, a) })
		}) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Events is a subscription to the kernel's word of devices.
type Events struct{ file *os.File }

// Subscribe begins to take note of devices. What appears from now on is seen, so
// that subscribing before Coldplug misses nothing.
func Subscribe() (*Events, error) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(s)
		return nil, fmt.Errorf("listen for devices: %w", err)
	}
	unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20) // a crowd of events at boot; the default would drop some
	return &Events{os.NewFile(uintptr(s), "uevents")}, nil
}

// Load loads drivers for what appears, until ctx ends. tell hears of drivers
// that did not load.
func (e *Events) Load(ctx context.Context, l *Loader, tell func(error)) error {
	stop := context.AfterFunc(ctx, func() { e.file.Close() })
	defer stop()
	buf := make([]byte, 64<<10)
	for {
		n, err := e.file.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some are lost: look at everything again
			if err := l.Coldplug("/sys"); err != nil {
				tell(err)
			}
		case err != nil:
			return fmt.Errorf("listen for devices: %w", err)
		default:
			if alias, ok := appeared(buf[:n]); ok {
				if err := l.Load(l.drivers([]string{alias})...); err != nil {
					tell(err)
				}
			}
		}
	}
}

// appeared is the alias of a device that an event says has appeared.
func appeared(event []byte) (alias string, ok bool) {
	header, rest, _ := strings.Cut(string(event), "\x00")
	if !strings.HasPrefix(header, "add@") {
		return "", false
	}
	for field := range strings.SplitSeq(rest, "\x00") {
		if a, found := strings.CutPrefix(field, "MODALIAS="); found && a != "" {
			return a, true
		}
	}
	return "", false
}
