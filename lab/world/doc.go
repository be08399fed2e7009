// Package world is a lab's network: one network namespace that stands for everything between the sites, with a bridge for each site's LAN.
//
// The world routes between its LANs and answers at HubAddress, so a hub outside of it can be reached inside: ListenIn opens a listener in the world for a
// process that stays in the host's namespace. Nothing is named or mounted anywhere, and the host's own network is not touched: the world lives by its
// descriptor and goes away with the last process that holds it. Other processes get it by inheriting File, and Open.
//
// Virtual machines plug into a LAN by Tap and get their address by ServeDHCP.
//
// It leaves out bad networks (delay, loss), name service and the way out to the real internet. Linux only; needs root.
package world
