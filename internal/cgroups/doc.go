// Package cgroups makes, fills and removes control groups on hosts with version 1 hierarchies, with version 2, and with both side by side.
//
// A Group is one path in every hierarchy of the host. A process gets into it before it runs its first instruction: on version 2 by the clone3 flag, on
// version 1 by moving the thread that forks there and back, since a child is born where its parent's thread is. Where any controller sits in a version 1
// hierarchy the host counts as version 1, as container runtimes see it; a version 2 tree beside it is used to place and kill, without controllers.
//
// Left out: moving controllers between versions, systemd's delegation protocol, and limits other than memory, CPU and process count.
package cgroups
