// Package kube plans a machine's Kubernetes: a site's settings and one of its
// machines in, everything that must stand on that machine out. The plan is data:
// files, programs with their arguments and order, addresses, kernel settings,
// packet filter rules, the certificates that are wanted, and the objects without
// which a cluster is not a site.
//
// What it promises:
//
//   - Pure: the same input gives the same plan, and nothing is read, started or
//     asked. So golden files show all of it, and a change of a line of Go is seen
//     as the change of a machine.
//   - The site address of a machine is the only one in certificates, arguments
//     and objects; what DHCP gives never enters. Renumbering a LAN changes no plan.
//   - The API server listens on the site address, the balancer of this machine on
//     Network.APIAddress, both on port 6443; pods find the latter behind
//     kubernetes.default. On a control plane everything else uses the API server
//     beside it, so that no kubelet is ever newer than its API.
//   - Nobody holds system:masters. Rights come in through the bootstrap objects,
//     which the API server applies to itself before it is ready.
//   - Strangers reach neither pods, Services nor site addresses, but for what a
//     NodePort or LoadBalancer admits.
//
// What it leaves out: making keys and certificates (machine/pki), carrying the
// plan out (machine), forming an etcd cluster of several members (it plans the
// one that it is told to be), and apps.
package kube
