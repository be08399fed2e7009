// Command applier is machined's helper: it renders releases and brings them into
// the site's Kubernetes, so that process 1 links neither templates nor a client of
// Kubernetes. Here are only the signals, one call and the exit code; package serve
// is the inside of it. Nobody but machined calls it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-edge/holdfast/machine/applier/serve"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := serve.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "applier:", err)
		os.Exit(1)
	}
}
