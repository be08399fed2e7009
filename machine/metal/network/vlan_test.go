//go:build vlan

package network

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/holdfast-edge/holdfast/fleet"
)

// TestVLANForReal needs a kernel with 8021q, which not every computer of ours has: go test -tags vlan -run VLAN .
func TestVLANForReal(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	l.serve(t)
	world, err := l.out.LinkByName("lan0")
	must(t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "office", world.Attrs().Index
	must(t, l.out.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 12}))
	office, err := l.out.LinkByName("office")
	must(t, err)
	must(t, l.out.AddrAdd(office, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("198.51.100.1/24"))}))
	must(t, l.out.LinkSetUp(office))
	m := l.run(t, Options{})
	m.Apply(Config{Interfaces: []fleet.Interface{
		{Name: "wan", Match: "eth0"},
		{Name: "office", VLAN: fleet.VLAN{ID: 12, Of: "wan"}, Addresses: []string{"198.51.100.7/24"}, Gateway: netip.MustParseAddr("198.51.100.1")},
	}})
	until(t, "the VLAN's route", func() bool { return slices.Contains(l.gateways(t), "198.51.100.1") })
	if a, b := l.addresses(t, "eth0"), l.addresses(t, "eth0.12"); len(a) != 0 || !slices.Equal(b, []string{"198.51.100.7/24"}) {
		t.Errorf("addresses %v and %v", a, b)
	}
	must(t, l.reach(t, "198.51.100.1:443"))
	m.Apply(anyPort())
	until(t, "DHCP again", func() bool { return slices.Contains(l.addresses(t, "eth0"), "192.0.2.50/24") })
	until(t, "no VLAN", func() bool { _, err := l.in.LinkByName("eth0.12"); return err != nil })
}
