// Package network gives a machine its addresses, and keeps the way to the hub.
//
// Where its configuration comes from, in order: what last worked, network.yaml
// on the boot partition or a stick, DHCP on every port; later the release. It
// promises that the last configuration with which the hub was reached is never
// lost: a new one from a release is a trial, and when the hub, reached before,
// is not reached with it in time, the machine goes back by itself, says so, and
// does not try the same again. A configuration counts as good only after
// contact, and is then written down durably.
//
// What is not proven yet takes turns; what is proven stays while the hub is
// away, since the site works without it. Duplicate addresses are not looked for,
// IPv6 is left to the kernel, radio is left out.
package network
