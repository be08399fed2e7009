// Command coredns is the site's name server: CoreDNS, unmodified, with the
// plugins that Holdfast's Corefile names and no other.
//
// It runs as a process of the machine, not as a pod, so that names resolve
// before the pod network does. Of some sixty plugins it registers ten, and a
// Corefile that asks for another is refused by name. It is a module of its own,
// because CoreDNS's pins of the Kubernetes libraries must not decide ours.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() {
	// The order in which a query meets them, a subset of upstream's.
	dnsserver.Directives = []string{
		"bind", "ready", "health", "prometheus", "errors", "log",
		"cache", "kubernetes", "loop", "forward",
	}
	coremain.Run()
}
