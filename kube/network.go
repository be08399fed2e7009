package kube

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// PodInterfaces is the prefix of the names that CNI's ptp plugin gives to a
// machine's ends of its pods' interfaces.
const PodInterfaces = "veth"

func (s *site) sysctls() map[string]string {
	return map[string]string{
		"net.ipv4.ip_forward": "1",
		// Replies to a site address may leave by another interface than the request
		// came in by; loose mode still drops sources that no route knows.
		"net.ipv4.conf.all.rp_filter":     "2",
		"net.ipv4.conf.default.rp_filter": "2",
		// Site addresses are on loopback: a machine must not answer for them on a
		// LAN where another site uses the same range.
		"net.ipv4.conf.all.arp_ignore":     "1",
		"net.ipv4.conf.all.arp_announce":   "2",
		"net.ipv4.conf.default.arp_ignore": "1",
	}
}

// packetFilter is one table, replaced in one transaction.
//
// "entry" runs before addresses are translated: whatever comes from outside and
// is addressed to pods, Services or site addresses as such was routed here by
// somebody who has no business with them, since NodePorts and LoadBalancers are
// reached by the machine's own addresses. Without it every box on a shop's LAN
// could add a route and talk to every pod.
//
// "doors" is the second lock on what listens on all addresses by mistake.
//
// "between" keeps the machine from being a router: it forwards for its pods, and
// what a NodePort sends on to another machine, and nothing else. Else who sits on
// one of its networks would reach the others through it.
//
// "outward" lends pods the machine's address towards the world, and only
// there: no plugin of ours does it, since theirs would hide pods from pods on
// other machines.
func (s *site) packetFilter() string {
	n := s.Network
	inside := strings.Join([]string{n.PodRange.String(), n.ServiceRange.String(), n.SiteRange.String()}, ", ")
	interfaces := []string{`"lo"`, fmt.Sprintf(`"%s*"`, PodInterfaces)}
	for _, i := range s.opts.PeerInterfaces {
		interfaces = append(interfaces, fmt.Sprintf("%q", i))
	}
	// On a trusted LAN the other machines' traffic comes from it as it is.
	var trusted string
	if peers := s.peers(); n.LANTrusted && len(peers) > 0 {
		trusted = fmt.Sprintf("\t\tip saddr { %s, %s } ip daddr { %s } accept\n", n.PodRange, joined(peers), inside)
	}
	return fmt.Sprintf(`table inet holdfast
delete table inet holdfast
table inet holdfast {
	set known {
		type ifname
		flags interval
		elements = { %[1]s }
	}
	chain entry {
		type filter hook prerouting priority raw; policy accept;
		iifname @known accept
%[2]s		ip daddr { %[3]s } counter drop
		ip saddr { %[3]s } counter drop
	}
	chain doors {
		type filter hook input priority filter; policy accept;
		iifname @known accept
%[4]s		tcp dport { %[5]d, %[6]d, %[7]d } counter drop
	}
	chain between {
		type filter hook forward priority filter; policy accept;
		iifname @known accept
		oifname @known accept
		ct status dnat accept
		counter drop
	}
	chain outward {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[8]s ip daddr != { %[3]s } masquerade
	}
}
`, strings.Join(interfaces, ", "), trusted, inside, s.trustedDoors(), PeerPort, APIPort, KubeletPort, n.PodRange)
}

func (s *site) trustedDoors() string {
	peers := s.peers()
	if !s.Network.LANTrusted || len(peers) == 0 {
		return ""
	}
	return fmt.Sprintf("\t\tip saddr { %s, %s } accept\n", s.Network.PodRange, joined(peers))
}

// peers are the site addresses of the other machines.
func (s *site) peers() []netip.Addr {
	var list []netip.Addr
	for _, m := range s.Machines {
		if m.Name != s.self.Name {
			list = append(list, m.SiteAddress)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

func joined(list []netip.Addr) string {
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}
