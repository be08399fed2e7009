package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// link is a port, or a VLAN on one, as the kernel has it.
type link struct {
	Index    int
	Name     string
	MAC      string
	Driver   string
	Physical bool
	Up       bool // switched on
	Carrier  bool // a cable with somebody at its other end
	MTU      int
	Parent   int // of a VLAN
	VLAN     int
}

// want is what a port or VLAN is to be.
type want struct {
	Interface string // its name in the configuration
	Link      string // its name in the kernel
	Parent    string // of a VLAN: what carries it, in the kernel
	VLAN      int
	DHCP      bool
	Addresses []netip.Prefix
	Gateway   netip.Addr
	Routes    []route
	MTU       int // 0: as it is
	Metric    int // of its default route
	Named     bool
}

// plan says what each port is to be. An interface whose port is not there is left out.
func plan(c Config, links []link) []want {
	ports := slices.DeleteFunc(slices.Clone(links), func(l link) bool { return !l.Physical })
	slices.SortFunc(ports, func(a, b link) int { return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Name, b.Name)) })
	taken := map[string]bool{}
	carriers := map[string]string{} // interface to port
	var out []want
	add := func(i int, w want) {
		w.Metric = 100 + 10*i + len(out)
		for _, a := range c.Interfaces[i].Addresses {
			if p, err := netip.ParsePrefix(a); err == nil {
				w.Addresses = append(w.Addresses, p)
			}
		}
		x := c.Interfaces[i]
		w.Interface, w.DHCP, w.Gateway, w.MTU = x.Name, x.DHCP, x.Gateway, x.MTU
		out = append(out, w)
	}
	for i, x := range c.Interfaces {
		if x.VLAN.ID != 0 || x.Match == "*" {
			continue
		}
		for _, p := range ports {
			if !taken[p.Name] && matches(x.Match, x.Name, p) {
				taken[p.Name], carriers[x.Name] = true, p.Name
				add(i, want{Link: p.Name, Named: true})
				if len(x.Addresses) > 0 || p.Driver != x.Match {
					break // one port; a driver with DHCP may have several
				}
			}
		}
	}
	for i, x := range c.Interfaces {
		if parent := carriers[x.VLAN.Of]; x.VLAN.ID != 0 && parent != "" {
			add(i, want{Link: vlanName(parent, x.VLAN.ID), Parent: parent, VLAN: x.VLAN.ID, Named: true})
		}
	}
	for i, x := range c.Interfaces {
		for _, p := range ports {
			if x.Match == "*" && !taken[p.Name] {
				taken[p.Name] = true
				add(i, want{Link: p.Name})
			}
		}
	}
	return out
}

func matches(match, name string, p link) bool {
	if match == "" {
		return p.Name == name
	}
	return match == p.MAC || match == p.Name || match == p.Driver
}

// vlanName fits into the 15 bytes that the kernel has for it.
func vlanName(parent string, id int) string {
	if name := fmt.Sprintf("%s.%d", parent, id); len(name) <= 15 {
		return name
	}
	return fmt.Sprintf("vlan%d.%.5s", id, parent[len(parent)-5:])
}

// with lays what a DHCP server granted over what the configuration says.
func (w want) with(l *lease) want {
	if l == nil {
		return w
	}
	if !slices.Contains(w.Addresses, l.Address) {
		w.Addresses = append(slices.Clone(w.Addresses), l.Address)
	}
	w.Routes = l.Routes
	if !w.Gateway.IsValid() && len(l.Routes) == 0 {
		w.Gateway = l.Router
	}
	w.MTU = cmp.Or(w.MTU, l.MTU)
	return w
}
