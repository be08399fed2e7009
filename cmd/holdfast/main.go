// Command holdfast is what people type. Everything is in package cli; here
// are only the signals, one call and the exit code.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/holdfast-edge/holdfast/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := cli.Run(ctx, os.Stdin, os.Stdout, os.Stderr, os.Args[1:])
	stop()
	cli.Print(os.Stderr, err)
	os.Exit(cli.Code(err))
}
