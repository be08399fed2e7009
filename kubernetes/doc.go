// Command kube is the one Kubernetes binary of a machine: etcd, API server,
// controller manager, scheduler, kubelet, service proxy and kubectl, upstream
// and unmodified, linked once so that they share their text and their heap.
//
//	kube control-plane --config FILE   etcd + API server, and, where FILE lists
//	                                   their arguments, controller manager and
//	                                   scheduler in the same process
//	kube controllers   --config FILE   controller manager + scheduler alone: the
//	                                   shape with several control planes, and
//	                                   after a crash loop
//	kube node          --config FILE   kubelet + nftables service proxy
//	kube kubectl ...                   kubectl; also when called by that name
//	kube version
//
// What it promises:
//
//   - Every API, every admission plugin, OpenAPI v2 and v3 and aggregation are
//     served; nothing that conformance tests is switched off.
//   - etcd has no client port. The API server reaches it by function call; see
//     the next heading. Peers speak mutual TLS under a CA of their own, even
//     where there is only one member.
//   - SIGTERM is an ordered stop: scheduler and controllers, then the API
//     server, which drains, then etcd, which hands its leadership on. A second
//     signal ends the process at once. Nothing is lost by ending it hard.
//   - --ready-file names a file that holds "ready" from the moment the part
//     serves, and does not exist before; --ready-fd names an inherited
//     descriptor to which the same line is written once.
//   - Damaged etcd data ends the process with an exit code of its own (65), data
//     of a newer etcd with another (76), so that the caller can tell what needs
//     a snapshot from what needs patience or the newer program.
//
// # The old dialect
//
// "hold" in a configuration file names the minor of Kubernetes before this one's.
// As long as it stands there, the API server and the controllers emulate that minor
// and etcd calls itself one of the minor that it had, so that nothing is ever
// written, from the first entry on, that the older program could not read: a new
// program on trial can be killed at any instant and the old one goes on. To lift
// the hold is to start without it; within seconds etcd raises its versions, and
// from then on the older program refuses the data (76). --status-file names a file
// that says, while the control plane runs, what it speaks and which versions its
// data has.
//
// # Function-call etcd, said openly
//
// k8s.io/apiserver builds its etcd clients through a package variable that is
// not exported (factory.newETCD3Client). This program sets that variable, by
// linkname, to a function that returns a client of the embedded server. It is
// the one place where kube reaches into Kubernetes; no source is patched, and
// the requests, their checks and their order are the same as over a socket.
// It saves some 75 gRPC connections, about 13 MiB and 130 descriptors, and
// there is no port 2379 for a hostNetwork pod to find. The client also needs
// its unexported endpoint list filled (the feature checker, the size prober and
// the compactor go by it); storeClient checks that both still hold and refuses
// to start where a newer version has changed them.
//
// # What it leaves out
//
// Deciding. It takes argument lists from files that somebody else wrote (package
// kube of the main module plans them), never reads the fleet, and neither forms
// nor changes an etcd cluster beyond what its file says. It does not supervise:
// when a part ends, the process ends (the service proxy excepted, which is
// started again beside a living kubelet), and the caller starts it anew.
package main
