package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// kernel is what the manager does to ports; tests put a fake in its place.
type kernel interface {
	links() ([]link, error)
	changes(ctx context.Context) (<-chan struct{}, error)
	configure(wants []want) error
	exchange(port string) exchange
}

// linux configures ports by netlink. It removes only what it has put there
// itself: other programs have addresses and routes of their own.
type linux struct {
	namespace *os.File // nil: the process's own
	physical  func(name string) bool
	handle    *netlink.Handle

	addresses map[address]bool
	routes    map[installed]bool
	vlans     map[string]bool
}

type address struct {
	link   string
	prefix netip.Prefix
}

type installed struct {
	link   string
	to     netip.Prefix
	via    netip.Addr
	metric int
}

func newLinux(namespace *os.File, physical func(string) bool) (*linux, error) {
	k := &linux{namespace: namespace, physical: physical, addresses: map[address]bool{}, routes: map[installed]bool{}, vlans: map[string]bool{}}
	if physical == nil {
		k.physical = func(name string) bool {
			_, err := os.Stat(filepath.Join("/sys/class/net", name, "device"))
			return err == nil
		}
	}
	var err error
	if namespace != nil {
		k.handle, err = netlink.NewHandleAt(vnetns.NsHandle(namespace.Fd()), unix.NETLINK_ROUTE)
	} else {
		k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return k, nil
}

func (k *linux) exchange(port string) exchange { return wire{port, k.namespace} }

// list reads again when the kernel says that something changed meanwhile.
func list[T any](read func() ([]T, error)) ([]T, error) {
	for range 5 {
		out, err := read()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return read()
}

func (k *linux) links() ([]link, error) {
	all, err := list(k.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network ports: %w", err)
	}
	var out []link
	for _, l := range all {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 {
			continue
		}
		x := link{Index: a.Index, Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0}
		if v, ok := l.(*netlink.Vlan); ok {
			x.VLAN, x.Parent = v.VlanId, a.ParentIndex
		} else {
			x.Physical = k.physical(a.Name)
			if driver, err := os.Readlink(filepath.Join("/sys/class/net", a.Name, "device/driver")); err == nil {
				x.Driver = filepath.Base(driver)
			}
		}
		out = append(out, x)
	}
	return out, nil
}

// changes tells that a link changed; several changes may be one telling.
func (k *linux) changes(ctx context.Context) (<-chan struct{}, error) {
	updates, done, out := make(chan netlink.LinkUpdate, 16), make(chan struct{}), make(chan struct{}, 1)
	options := netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}}
	if k.namespace != nil {
		ns := vnetns.NsHandle(k.namespace.Fd())
		options.Namespace = &ns
	}
	if err := netlink.LinkSubscribeWithOptions(updates, done, options); err != nil {
		return nil, fmt.Errorf("watch network ports: %w", err)
	}
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-updates:
				if !ok {
					close(out) // overrun, or the socket broke: subscribe again
					return
				}
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, nil
}

// configure brings the ports to what is wanted and takes back what it did before
// and is wanted no more. It goes on after an error and returns all.
func (k *linux) configure(wants []want) error {
	var errs []error
	addresses, routes, vlans := map[address]bool{}, map[installed]bool{}, map[string]bool{}
	for _, w := range wants {
		for _, p := range w.Addresses {
			addresses[address{w.Link, p}] = true
		}
		if w.Gateway.IsValid() {
			routes[installed{w.Link, netip.PrefixFrom(netip.IPv4Unspecified(), 0), w.Gateway, w.Metric}] = true
		}
		for _, r := range w.Routes {
			routes[installed{w.Link, r.To, r.Via, w.Metric}] = true
		}
		if w.VLAN != 0 {
			vlans[w.Link] = true
		}
	}
	// Removing comes first: a first address takes the later ones of its network with it.
	for a := range k.addresses {
		if !addresses[a] {
			errs = append(errs, k.removeAddress(a))
			delete(k.addresses, a)
		}
	}
	for r := range k.routes {
		if !routes[r] {
			errs = append(errs, k.removeRoute(r))
			delete(k.routes, r)
		}
	}
	for v := range k.vlans {
		if !vlans[v] {
			if l, err := k.handle.LinkByName(v); err == nil {
				errs = append(errs, k.handle.LinkDel(l))
			}
			delete(k.vlans, v)
		}
	}
	for _, w := range wants {
		if err := k.bring(w); err != nil {
			errs = append(errs, fmt.Errorf("port %s: %w", w.Link, err))
		}
	}
	for r := range routes { // after all addresses
		if err := k.addRoute(r); err != nil {
			errs = append(errs, fmt.Errorf("route %v via %v on %s: %w", r.to, r.via, r.link, err))
			continue
		}
		k.routes[r] = true
	}
	return errors.Join(errs...)
}

func (k *linux) bring(w want) error {
	l, err := k.handle.LinkByName(w.Link)
	if err != nil && w.VLAN != 0 {
		l, err = k.addVLAN(w)
	}
	if err != nil {
		return err
	}
	if a := l.Attrs(); w.MTU != 0 && a.MTU != w.MTU {
		if err := k.handle.LinkSetMTU(l, w.MTU); err != nil {
			return fmt.Errorf("set the packet size %d: %w", w.MTU, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := k.handle.LinkSetUp(l); err != nil {
			return fmt.Errorf("switch on: %w", err)
		}
	}
	have, err := list(func() ([]netlink.Addr, error) { return k.handle.AddrList(l, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, p := range w.Addresses {
		ip := ipNet(p)
		if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == ip.String() }) {
			if err := k.handle.AddrAdd(l, &netlink.Addr{IPNet: ip}); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("add address %v: %w", p, err)
			}
		}
		k.addresses[address{w.Link, p}] = true
	}
	return nil
}

func (k *linux) addVLAN(w want) (netlink.Link, error) {
	parent, err := k.handle.LinkByName(w.Parent)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = w.Link, parent.Attrs().Index
	if err := k.handle.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: w.VLAN}); err != nil {
		return nil, fmt.Errorf("make VLAN %d on %s: %w", w.VLAN, w.Parent, err)
	}
	k.vlans[w.Link] = true
	return k.handle.LinkByName(w.Link)
}

// removeAddress is done when the address, or its port, is gone.
func (k *linux) removeAddress(a address) error {
	l, err := k.handle.LinkByName(a.link)
	if err == nil {
		err = k.handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(a.prefix)})
	}
	return unlessGone(err)
}

func (k *linux) addRoute(r installed) error {
	x, err := k.route(r)
	if err != nil {
		return err
	}
	return k.handle.RouteReplace(x)
}

func (k *linux) removeRoute(r installed) error {
	x, err := k.route(r)
	if err == nil {
		err = k.handle.RouteDel(x)
	}
	return unlessGone(err)
}

func (k *linux) route(r installed) (*netlink.Route, error) {
	l, err := k.handle.LinkByName(r.link)
	if err != nil {
		return nil, err
	}
	x := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.to), Priority: r.metric, Protocol: unix.RTPROT_STATIC}
	if r.via.IsUnspecified() { // RFC 3442: on the link itself
		x.Scope = unix.RT_SCOPE_LINK
	} else {
		x.Gw, x.Flags = r.via.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	return x, nil
}

func unlessGone(err error) error {
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
