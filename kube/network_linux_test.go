package kube

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// streets are a machine with two LANs and a pod, each of them a namespace; anna
// and bob live on the LANs, and route to everything by way of the machine.
type streets struct {
	t                       *testing.T
	machine, anna, bob, pod *os.File
}

func newStreets(t *testing.T) *streets {
	s := &streets{t: t}
	for _, ns := range []**os.File{&s.machine, &s.anna, &s.bob, &s.pod} {
		var err error
		if *ns, err = netns.New(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*ns).Close() })
		s.in(*ns, func() error { // without ::1 this program believes that there is no IPv6
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		})
	}
	s.cable("eth0", s.anna, []string{"192.0.2.2/24", "2001:db8:a::2/64"}, []string{"192.0.2.1/24", "2001:db8:a::1/64"})
	s.cable("eth1", s.bob, []string{"198.51.100.2/24", "2001:db8:b::2/64"}, []string{"198.51.100.1/24", "2001:db8:b::1/64"})
	s.cable(PodInterfaces+"0", s.pod, []string{"10.214.0.1/24"}, []string{"10.214.0.5/24"})
	s.in(s.machine, func() error {
		for _, setting := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+setting, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	return s
}

func (s *streets) in(ns *os.File, f func() error) {
	s.t.Helper()
	if err := netns.Do(ns, f); err != nil {
		s.t.Fatal(err)
	}
}

// cable joins the machine's port to another's eth0, whose way out is the machine.
func (s *streets) cable(port string, to *os.File, near, far []string) {
	s.t.Helper()
	s.in(s.machine, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(to.Fd()))})
	})
	for _, end := range []struct {
		ns        *os.File
		name      string
		addresses []string
		via       []string
	}{{s.machine, port, near, nil}, {to, "eth0", far, near}} {
		h, err := netlink.NewHandleAt(vnetns.NsHandle(end.ns.Fd()), unix.NETLINK_ROUTE)
		if err != nil {
			s.t.Fatal(err)
		}
		defer h.Close()
		l, err := h.LinkByName(end.name)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, text := range end.addresses {
			a, err := netlink.ParseAddr(text)
			if err != nil {
				s.t.Fatal(err)
			}
			a.Flags = unix.IFA_F_NODAD // it counts at once
			if err := h.AddrAdd(l, a); err != nil {
				s.t.Fatalf("%s gets %s: %v", end.name, text, err)
			}
		}
		if err := h.LinkSetUp(l); err != nil {
			s.t.Fatal(err)
		}
		for _, text := range end.via {
			gateway := netip.MustParsePrefix(text).Addr()
			any := &net.IPNet{IP: make(net.IP, gateway.BitLen()/8), Mask: net.CIDRMask(0, gateway.BitLen())}
			if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: any, Gw: gateway.AsSlice()}); err != nil {
				s.t.Fatalf("route by way of %s: %v", gateway, err)
			}
		}
	}
}

// serve tells on port 8080 who asks.
func (s *streets) serve(ns *os.File) {
	s.in(ns, func() error {
		l, err := net.Listen("tcp", ":8080")
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprint(c, strings.TrimPrefix(from, "::ffff:"))
				c.Close()
			}
		}()
		return nil
	})
}

// asks is as whom somebody is seen at an address; "" when nothing answers.
func (s *streets) asks(ns *os.File, address string, patience time.Duration) string {
	var c net.Conn
	err := netns.Do(ns, func() (err error) {
		c, err = net.DialTimeout("tcp", address, patience)
		return err
	})
	if err != nil {
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 64)
	n, _ := c.Read(b)
	return string(b[:n])
}

func (s *streets) nft(script string) {
	s.t.Helper()
	s.in(s.machine, func() error {
		c := exec.Command("nft", "-f", "-")
		c.Stdin = strings.NewReader(script)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w\n%s\n%s", err, out, script)
		}
		return nil
	})
}

// A machine forwards for its pods and for NodePorts, and is nobody's router.
func TestNobodysRouter(t *testing.T) {
	s := newStreets(t)
	for _, ns := range []*os.File{s.anna, s.bob, s.pod} {
		s.serve(ns)
	}
	const soon, long = 500 * time.Millisecond, 30 * time.Second
	for _, address := range []string{"198.51.100.1:8080", "[2001:db8:b::1]:8080", "10.214.0.5:8080"} {
		if s.asks(s.anna, address, long) == "" {
			t.Fatalf("without a filter nothing leads to %s: the test shows nothing", address)
		}
	}
	p, err := New(shop(), shop().Machines[0], DefaultPaths(), options())
	if err != nil {
		t.Fatal(err)
	}
	s.nft(p.PacketFilter)
	s.nft(p.PacketFilter) // again is the same
	// As kube-proxy translates NodePorts: to a pod here, and to one behind a LAN.
	s.nft(`table inet proxy {
	chain in { type nat hook prerouting priority dstnat; tcp dport 30080 dnat ip to 10.214.0.5:8080; tcp dport 30081 dnat ip to 198.51.100.1:8080; }
	chain out { type nat hook postrouting priority srcnat; ct status dnat masquerade; }
}`)
	for _, c := range []struct {
		what, address, want string
		who                 *os.File
	}{
		{"one LAN to the other", "198.51.100.1:8080", "", s.anna},
		{"and back", "192.0.2.1:8080", "", s.bob},
		{"the same by IPv6", "[2001:db8:b::1]:8080", "", s.anna},
		{"a LAN to a pod", "10.214.0.5:8080", "", s.anna},
		{"a pod to a LAN", "192.0.2.1:8080", "192.0.2.2", s.pod},
		{"a pod to the other LAN", "198.51.100.1:8080", "198.51.100.2", s.pod},
		{"a NodePort of a pod here", "192.0.2.2:30080", "10.214.0.1", s.anna},
		{"a NodePort by the other LAN", "198.51.100.2:30080", "10.214.0.1", s.bob},
		{"a NodePort of a pod elsewhere", "192.0.2.2:30081", "198.51.100.2", s.anna},
	} {
		patience := long
		if c.want == "" {
			patience = soon
		}
		if got := s.asks(c.who, c.address, patience); got != c.want {
			t.Errorf("%s: seen as %q, want %q", c.what, got, c.want)
		}
	}
}
