package world

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// HubAddress is where the world's hub is reached, from every LAN. It is on the world's loopback device, in the range set aside for benchmarks.
var HubAddress = netip.MustParseAddr("198.18.0.1")

// MTU of every LAN.
const MTU = 1500

// World is a lab's network.
type World struct{ ns *os.File }

// New makes a world without LANs.
func New() (*World, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	w := &World{ns}
	if err := w.setUp(); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make the lab's network: %w", err)
	}
	return w, nil
}

// Open uses a world that another process made. It takes the descriptor over.
func Open(ns *os.File) (*World, error) {
	w := &World{ns}
	h, err := w.handle()
	if err != nil {
		return nil, fmt.Errorf("open the lab's network: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	addrs, err := h.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if a.IP.Equal(HubAddress.AsSlice()) {
			return w, nil
		}
	}
	return nil, errors.New("open the lab's network: this namespace is none")
}

// File is the world's descriptor, for machines to attach to and for other processes to inherit.
func (w *World) File() *os.File { return w.ns }

// Close lets go of the world. It goes away when nobody else holds it.
func (w *World) Close() error { return w.ns.Close() }

func (w *World) handle() (*netlink.Handle, error) {
	return netlink.NewHandleAt(vnetns.NsHandle(w.ns.Fd()), unix.NETLINK_ROUTE)
}

func (w *World) setUp() error {
	err := netns.Do(w.ns, func() error { // these settings belong to the namespace of the thread that writes them
		for name, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	h, err := w.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	return h.AddrAdd(lo, address(netip.PrefixFrom(HubAddress, 32)))
}

// Bridge is the name of a LAN's bridge, for a LAN name of any length.
func Bridge(lan string) string {
	sum := sha256.Sum256([]byte(lan))
	return "lan" + hex.EncodeToString(sum[:5])
}

// AddLAN makes a LAN whose router, the world, has the address. Adding it again changes nothing.
func (w *World) AddLAN(name string, router netip.Prefix) error {
	fail := func(err error) error { return fmt.Errorf("make LAN %s with %s: %w", name, router, err) }
	h, err := w.handle()
	if err != nil {
		return fail(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = Bridge(name), MTU
	err = h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fail(err)
	}
	bridge, err := h.LinkByName(attrs.Name)
	if err != nil {
		return fail(err)
	}
	if err := h.AddrAdd(bridge, address(router)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fail(err)
	}
	if err := h.LinkSetUp(bridge); err != nil {
		return fail(err)
	}
	return nil
}

// RemoveLAN removes a LAN. It is no error when there is none.
func (w *World) RemoveLAN(name string) error {
	h, err := w.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	bridge, err := h.LinkByName(Bridge(name))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(bridge)
	}
	if err != nil {
		return fmt.Errorf("remove LAN %s: %w", name, err)
	}
	return nil
}

// AddRoute sends what is for a range to a machine of a LAN; adding it again changes where. RemoveRoute undoes it.
func (w *World) AddRoute(to netip.Prefix, via netip.Addr) error {
	h, err := w.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RouteReplace(&netlink.Route{Dst: ipNet(to), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s by way of %s: %w", to, via, err)
	}
	return nil
}

// RemoveRoute forgets the way to a range. It is no error when there is none.
func (w *World) RemoveRoute(to netip.Prefix) error {
	h, err := w.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RouteDel(&netlink.Route{Dst: ipNet(to)}); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func address(p netip.Prefix) *netlink.Addr { return &netlink.Addr{IPNet: ipNet(p)} }

// ListenIn opens a TCP listener inside a namespace for this process, which stays outside. The address must be numeric.
func ListenIn(ns *os.File, addr string) (l net.Listener, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("listen in the lab's network: %w", err)
	}
	err = netns.Do(ns, func() error {
		l, err = net.Listen("tcp", addr)
		return err
	})
	return l, err
}

// DialIn connects inside a namespace for this process, which stays outside. The address must be numeric: names would be asked for outside.
func DialIn(ctx context.Context, ns *os.File, network, addr string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial in the lab's network: %w", err)
	}
	err = netns.Do(ns, func() error { // one numeric address: the dialer stays on this goroutine
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
