package network

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/netns"
)

// lan is a machine's namespace with eth0, plugged into lan0 of the world's.
type lan struct {
	machine, world *os.File
	in, out        *netlink.Handle
	refuse         atomic.Bool
	bare           atomic.Bool // grant an address and nothing else
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{}
	for _, x := range []struct {
		ns     **os.File
		handle **netlink.Handle
	}{{&l.machine, &l.in}, {&l.world, &l.out}} {
		var err error
		if *x.ns, err = netns.New(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*x.ns).Close() })
		if *x.handle, err = netlink.NewHandleAt(vnetns.NsHandle((*x.ns).Fd()), unix.NETLINK_ROUTE); err != nil {
			t.Fatal(err)
		}
		t.Cleanup((*x.handle).Close)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(l.machine.Fd()))}
	must(t, l.out.LinkAdd(veth))
	world, err := l.out.LinkByName("lan0")
	must(t, err)
	must(t, l.out.AddrAdd(world, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("192.0.2.1/24"))}))
	must(t, l.out.LinkSetUp(world))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve answers as a DHCP server on lan0.
func (l *lan) serve(t *testing.T) {
	t.Helper()
	var s *server4.Server
	must(t, netns.Do(l.world, func() (err error) {
		s, err = server4.NewServer("lan0", &net.UDPAddr{Port: dhcpv4.ServerPort}, func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
			kind := map[dhcpv4.MessageType]dhcpv4.MessageType{dhcpv4.MessageTypeDiscover: dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeRequest: dhcpv4.MessageTypeAck}[m.MessageType()]
			if l.refuse.Load() {
				kind = dhcpv4.MessageTypeNak
			}
			mods := []dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(net.IPv4(192, 0, 2, 1)), dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 50)),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1))), dhcpv4.WithLeaseTime(3600), dhcpv4.WithNetmask(net.CIDRMask(24, 32))}
			if !l.bare.Load() {
				mods = append(mods, dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1)), dhcpv4.WithDNS(net.IPv4(192, 0, 2, 53)))
			}
			if reply, err := dhcpv4.NewReplyFromRequest(m, mods...); err == nil {
				_, _ = conn.WriteTo(reply.ToBytes(), peer)
			}
		})
		return err
	}))
	go func() { _ = s.Serve() }()
	t.Cleanup(func() { s.Close() })
}

// run runs a manager in the machine's namespace; its ports are those called eth*.
func (l *lan) run(t *testing.T, o Options) *Manager {
	t.Helper()
	o.Namespace, o.Physical = l.machine, func(name string) bool { return strings.HasPrefix(name, "eth") }
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	m, err := New(o)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return m
}

// until asks until it is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

func (l *lan) addresses(t *testing.T, name string) []string {
	t.Helper()
	x, err := l.in.LinkByName(name)
	if err != nil {
		return nil
	}
	all, err := l.in.AddrList(x, unix.AF_INET)
	must(t, err)
	var out []string
	for _, a := range all {
		out = append(out, a.IPNet.String())
	}
	return out
}

func (l *lan) gateways(t *testing.T) (out []string) {
	t.Helper()
	all, err := l.in.RouteList(nil, unix.AF_INET)
	must(t, err)
	for _, r := range all {
		if r.Gw != nil {
			out = append(out, r.Gw.String())
		}
	}
	return out
}

// reach opens a connection from the machine to the world, and so proves the way.
func (l *lan) reach(t *testing.T, address string) error {
	t.Helper()
	return netns.Do(l.machine, func() error {
		c, err := net.DialTimeout("tcp", address, 2*time.Second)
		if errors.Is(err, unix.ECONNREFUSED) {
			return nil // somebody was there to say so
		}
		if err == nil {
			c.Close()
		}
		return err
	})
}

func TestDHCPForReal(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.serve(t)
	dir := t.TempDir()
	resolv := filepath.Join(dir, "resolv.conf")
	m := l.run(t, Options{Public: dir, Resolv: resolv})
	until(t, "a route", func() bool { return slices.Contains(l.gateways(t), "192.0.2.1") })
	if got := l.addresses(t, "eth0"); !slices.Equal(got, []string{"192.0.2.50/24"}) {
		t.Errorf("addresses %v", got)
	}
	must(t, l.reach(t, "192.0.2.1:443"))
	until(t, "resolv.conf", func() bool { b, _ := os.ReadFile(resolv); return string(b) == "nameserver 192.0.2.53\n" })
	until(t, "the status", func() bool { s := m.Status(); return len(s) == 1 && s[0].Carrier && len(s[0].Addresses) == 1 })

	// What others put on the port stays; what the release leaves out goes.
	eth0, err := l.in.LinkByName("eth0")
	must(t, err)
	must(t, l.in.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.213.0.11/24"))}))
	m.Apply(Config{Interfaces: []fleet.Interface{
		{Name: "wan", Match: "eth0", MTU: 1400, Addresses: []string{"192.0.2.7/24"}, Gateway: netip.MustParseAddr("192.0.2.9")},
	}})
	until(t, "the fixed route", func() bool { return slices.Contains(l.gateways(t), "192.0.2.9") })
	if got := l.addresses(t, "eth0"); !slices.Equal(got, []string{"10.213.0.11/24", "192.0.2.7/24"}) {
		t.Errorf("addresses %v", got)
	}
	if got := l.gateways(t); len(got) != 1 {
		t.Errorf("routes via %v", got)
	}
	if x, err := l.in.LinkByName("eth0"); err != nil || x.Attrs().MTU != 1400 {
		t.Errorf("MTU: %v, %v", x.Attrs().MTU, err)
	}
	must(t, l.reach(t, "192.0.2.1:443"))

	// The cable goes, and its route with it; it comes, and both are back.
	world, err := l.out.LinkByName("lan0")
	must(t, err)
	must(t, l.out.LinkSetDown(world))
	until(t, "no route without a cable", func() bool { return len(l.gateways(t)) == 0 })
	must(t, l.out.LinkSetUp(world))
	until(t, "the route again", func() bool { return slices.Contains(l.gateways(t), "192.0.2.9") })
}

func TestDHCPWithoutRouter(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.bare.Store(true)
	l.serve(t)
	l.run(t, Options{})
	until(t, "an address", func() bool { return len(l.addresses(t, "eth0")) == 1 })
	must(t, l.reach(t, "192.0.2.1:443"))
	if got := l.gateways(t); len(got) != 0 {
		t.Errorf("routes via %v", got)
	}
}

func TestServerThatComesLater(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.run(t, Options{})
	until(t, "the port on", func() bool { x, err := l.in.LinkByName("eth0"); return err == nil && x.Attrs().Flags&net.FlagUp != 0 })
	l.serve(t)
	until(t, "an address", func() bool { return len(l.addresses(t, "eth0")) == 1 })
}

func TestExtendForReal(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.serve(t)
	eth0, err := l.in.LinkByName("eth0")
	must(t, err)
	must(t, l.in.LinkSetUp(eth0))
	w := wire{"eth0", l.machine}
	got, err := w.request(t.Context())
	must(t, err)
	must(t, l.in.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(got.Address)}))
	for _, all := range []bool{false, true} {
		next, err := w.extend(t.Context(), got, all)
		if err != nil || next.Address != got.Address || next.Length != time.Hour {
			t.Errorf("all %v: %+v, %v", all, next, err)
		}
	}
	l.refuse.Store(true)
	if _, err := w.extend(t.Context(), got, false); !errors.Is(err, errRefused) {
		t.Errorf("refused: %v", err)
	}
}
