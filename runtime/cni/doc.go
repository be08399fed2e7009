// Package cni pins the four network plugins of a machine: ptp joins a pod to
// the machine by a routed pair of interfaces, host-local hands out its
// address, loopback raises lo, portmap serves hostPorts.
//
// It is a module of its own and holds no code: build/system.mk builds the
// imported commands by path. The bridge plugin is left out on purpose: on one
// bridge, traffic between pods of a machine passes no filter.
package cni
