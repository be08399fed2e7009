//go:build linux

// Command pause holds a pod's namespaces open: it sleeps until told to stop, and
// reaps whatever processes the pod's containers leave to it where they share its
// process namespace. It does nothing else, and it is in every pod: that is all
// that there is to say for its size.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap takes every dead child: several may have died behind one signal.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid <= 0 && err != syscall.EINTR {
			return
		}
	}
}
