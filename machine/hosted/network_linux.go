package hosted

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// port is the name of a machine's interface at the bridge: 15 characters at most, the same in every life, so that a leftover is known by its name.
func port(name string) string {
	sum := sha256.Sum256([]byte(name))
	return "hf" + hex.EncodeToString(sum[:5])
}

func (n *Network) hardware(name string) net.HardwareAddr {
	if n.MAC != nil {
		return n.MAC
	}
	sum := sha256.Sum256([]byte("mac " + name))
	return append(net.HardwareAddr{0x02}, sum[:5]...) // locally administered
}

// handle speaks to the kernel about the namespace that has the bridge.
func (n *Network) handle() (*netlink.Handle, error) {
	if n.Namespace == nil {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	return netlink.NewHandleAt(vnetns.NsHandle(n.Namespace.Fd()), unix.NETLINK_ROUTE)
}

// attach makes eth0 inside the namespace of the process and its other end at the bridge. The pair is made in place: it never shows up elsewhere, and it goes
// away with the machine's namespace.
func (n *Network) attach(name string, pid int) error {
	if n.Bridge == "" {
		return nil
	}
	inside, err := netns.Of(pid)
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := n.detach(name); err != nil {
		return err
	}
	h, err := n.handle()
	if err != nil {
		return fmt.Errorf("open netlink at the bridge: %w", err)
	}
	defer h.Close()
	bridge, err := h.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.Bridge, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.MTU = port(name), bridge.Attrs().Index, n.MTU
	if attrs.MTU == 0 {
		attrs.MTU = bridge.Attrs().MTU
	}
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(attrs.MTU), PeerHardwareAddr: n.hardware(name), PeerNamespace: netlink.NsFd(int(inside.Fd()))}
	if err := h.LinkAdd(veth); err != nil {
		return fmt.Errorf("make interface %s: %w", attrs.Name, err)
	}
	if err := h.LinkSetUp(veth); err != nil {
		return fmt.Errorf("bring up interface %s: %w", attrs.Name, err)
	}
	return n.configure(inside)
}

// configure gives eth0 its address and route.
func (n *Network) configure(inside *os.File) error {
	h, err := netlink.NewHandleAt(vnetns.NsHandle(inside.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink inside the machine: %w", err)
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: n.Address.Addr().AsSlice(), Mask: net.CIDRMask(n.Address.Bits(), n.Address.Addr().BitLen())}}
	if err := h.AddrAdd(eth0, addr); err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", n.Address, err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("bring up eth0: %w", err)
	}
	if !n.Gateway.IsValid() {
		return nil
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: n.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("route by way of %s: %w", n.Gateway, err)
	}
	return nil
}

// detach removes the machine's end at the bridge, where an earlier life left one that the kernel has not yet removed.
func (n *Network) detach(name string) error {
	if n.Bridge == "" {
		return nil
	}
	h, err := n.handle()
	if err != nil {
		return fmt.Errorf("open netlink at the bridge: %w", err)
	}
	defer h.Close()
	old, err := h.LinkByName(port(name))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for interface %s: %w", port(name), err)
	}
	err = h.LinkDel(old)
	if _, gone := h.LinkByName(port(name)); errors.As(gone, &netlink.LinkNotFoundError{}) {
		return nil // by us or, meanwhile, by the kernel
	}
	return err
}
