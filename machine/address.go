package machine

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// lookAtAddresses is how often the machine looks for its addresses.
const lookAtAddresses = 5 * time.Second

// watchAddresses shows the machine's addresses on its console.
func (m *Machine) watchAddresses(ctx context.Context) {
	for {
		var words []string
		for _, a := range lanAddresses() {
			words = append(words, a.String())
		}
		m.console.show("address", strings.Join(words, ", "))
		if !pause(ctx, lookAtAddresses) {
			return
		}
	}
}

// ours begin the names of devices that this machine's Kubernetes makes: their
// addresses are of no use to anybody outside.
var ours = []string{"lo", "cni", "veth", "kube-", "holdfast"}

// lanAddresses are the machine's addresses on its LAN, at most eight.
func lanAddresses() []netip.Addr {
	ports, _ := net.Interfaces()
	var list []netip.Addr
	for _, p := range ports {
		if p.Flags&net.FlagUp == 0 || slices.ContainsFunc(ours, func(o string) bool { return strings.HasPrefix(p.Name, o) }) {
			continue
		}
		addrs, _ := p.Addrs()
		for _, a := range addrs {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && prefix.Addr().IsGlobalUnicast() && len(list) < 8 {
				list = append(list, prefix.Addr())
			}
		}
	}
	return list
}
