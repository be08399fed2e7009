// Package machine is machined's inside: what a machine does from the moment
// that its disks, network and time are there.
//
// A table of phases boots it (boot.go). Then a few workers run until the end,
// each waking the others by small events and none calling another's work:
//
//	uplink   greets the hub, takes slices, relays, sends reports   uplink.go
//	memory   verifies and remembers; the trust half takes effect   memory.go
//	content  has it rendered, stages whole, has it applied,        content.go
//	         judges, remembers; a program of its own does the
//	         work between (package applier)
//	cluster  makes a Kubernetes plan true: files, keys, processes  cluster.go
//	door     the machine's API, on the LAN and through the relay   door.go
//
// A machine whose disk does not open, or that has none, runs memory, uplink and
// door alone, until an operator opens it (limited.go). The end has an order too
// (stop.go). What is wrong with the box is a list of codes (faults), shown on the
// console and reported.
//
// It promises: nothing is acted upon that memory has not verified and written;
// with the hub gone all of it goes on; killed at any instant it begins again
// from what memory holds. It leaves out what owns a box (disks, kernel,
// watchdog, OS slots); hosted machines have machine/hosted for that.
package machine
