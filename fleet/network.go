package fleet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// ParseNetwork reads a network.yaml. The error is Faults, all at once.
func ParseNetwork(file string, data []byte) (*NetworkSpec, error) {
	n, faults := parse(&source{file: file, layer: "network"}, data)
	d := decoder{}
	out := &NetworkSpec{}
	_, spec := d.header(n, "Network", "")
	if spec != nil {
		d.decode(out, spec, "spec")
	}
	faults = append(faults, d.faults...)
	if spec != nil && spec.kind == mapping {
		checkInterfaces(out.Interfaces, spec.get("interfaces"), spec, "spec.interfaces", &faults)
	}
	if faults, _ = faults.sorted().split(); len(faults) > 0 {
		return nil, faults
	}
	return out, nil
}

// checkPorts checks the interfaces of a site's machines, as all layers together have them.
func checkPorts(s *Site, merged *node, r *Resolved, faults *Faults) {
	machine := merged.get("machine")
	checkInterfaces(r.Class.Interfaces, machine.get("interfaces"), s.spec, "spec.machine.interfaces", faults)
	for _, b := range elements(s.spec.get("machines")) {
		if c, own := r.perBox[b.get("name").str()]; own && b.path("machine", "interfaces") != nil {
			n := merge(machine, b.get("machine"), planFor[MachineClass](), nil)
			checkInterfaces(c.Interfaces, n.get("interfaces"), b, "spec.machines."+b.get("name").str()+".machine.interfaces", faults)
		}
	}
}

// checkInterfaces checks what only all interfaces of a machine together show. n
// is their list; a fault in one that stands in no single place is put at elsewhere.
func checkInterfaces(all []Interface, n, elsewhere *node, at string, faults *Faults) {
	byName := map[string]Interface{}
	for _, i := range all {
		byName[i.Name] = i
	}
	if len(all) > 0 && !slices.ContainsFunc(all, func(i Interface) bool { return i.DHCP || len(i.Addresses) > 0 }) {
		faults.at(cmp.Or(n, elsewhere), at, "none gets an address", "dhcp: true, or addresses, on one of them")
	}
	ports, vlans, gateway := map[string]string{}, map[VLAN]string{}, ""
	for _, x := range all {
		here := join(at, x.Name)
		place := func(keys ...string) *node {
			for _, e := range elements(n) {
				if e.get("name").str() != x.Name {
					continue
				}
				if v := e.path(keys...); v != nil {
					return v
				}
				return e
			}
			return elsewhere
		}
		carrier, known := byName[x.VLAN.Of]
		switch {
		case x.VLAN == (VLAN{}):
			port := x.Match
			if port == "" {
				port = x.Name
			}
			if first, twice := ports[port]; twice {
				faults.at(place("match"), here+".match", fmt.Sprintf("%s is %s already", port, first), "one interface for each port")
			}
			ports[port] = x.Name
		case x.VLAN.ID == 0 || x.VLAN.Of == "":
			faults.at(place("vlan"), here+".vlan", "is half said", "id, from 1 to 4094, and of, the name of another interface")
		case x.Match != "":
			faults.at(place("match"), here+".match", "a VLAN is no port", "vlan.of says what carries it: remove match")
		case !known || carrier.VLAN != (VLAN{}) || carrier.Match == "*":
			faults.at(place("vlan", "of"), here+".vlan.of", fmt.Sprintf("%q is no single port", shorten(x.VLAN.Of)), "the name of an interface that matches one port")
		default:
			if first, twice := vlans[x.VLAN]; twice {
				faults.at(place("vlan", "id"), here+".vlan.id", fmt.Sprintf("is %s already", first), "one interface for each VLAN")
			}
			vlans[x.VLAN] = x.Name
		}
		if x.Match == "*" && len(x.Addresses) > 0 {
			faults.at(place("addresses"), here+".addresses", "many ports cannot have one address", "match one port, or dhcp: true alone")
		}
		if !x.Gateway.IsValid() {
			continue
		}
		if !reaches(x.Addresses, x.Gateway) {
			faults.at(place("gateway"), here+".gateway", fmt.Sprintf("%s is in no network of its addresses", x.Gateway), "a neighbour of one of its addresses")
		}
		if gateway != "" {
			faults.at(place("gateway"), here+".gateway", fmt.Sprintf("%s has a gateway, too", gateway), "one gateway in all")
		}
		gateway = x.Name
	}
}

func reaches(addresses []string, gateway netip.Addr) bool {
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a); err == nil && p.Contains(gateway) && p.Addr() != gateway {
			return true
		}
	}
	return false
}
