package kube

import (
	"fmt"
	"strings"
)

// dns writes the configuration of CoreDNS, a process of the machine that serves
// pods on the site address. Questions about the cluster and about the world are
// kept apart:
//
// A cluster name is answered from what the API last said, without a cache: an old
// ClusterIP is worse than none.
//
// With the uplink dead a question about the world must fail within a second, or
// every name that an app looks up through its search list hangs for five: hence
// the short timeouts, the health check that remembers, and stale answers for a
// day. Where no upstream is known at all, such questions are refused at once.
func (s *site) dns() {
	n := s.Network
	zones := fmt.Sprintf("%s %s %s", n.Domain, n.PodRange, n.ServiceRange)
	text := fmt.Sprintf(`%s {
    bind %s
    errors
    health %s
    ready %s
    kubernetes %s {
        kubeconfig %s
        pods insecure
        ttl 5
        startup_timeout 1s
    }
}
`, zones, s.self.SiteAddress, loopback(dnsHealthPort), loopback(dnsReadyPort), zones, s.writeKubeconfig("dns"))
	if len(s.upstreams) > 0 {
		text += fmt.Sprintf(`. {
    bind %s
    errors
    cache 300 {
        serve_stale 24h verify 300ms
    }
    loop
    forward . %s {
        policy sequential
        max_concurrent 1000
        read_timeout 500ms
        max_connect_attempts 2
        max_fails 1
        health_check 1s
        failfast_all_unhealthy_upstreams
    }
}
`, s.self.SiteAddress, strings.ReplaceAll(joined(s.upstreams), ",", ""))
	}
	s.write("Corefile", []byte(text))
}
