// Command bench measures what the README claims, in one run on one computer: a
// site of a lab from nothing to an answering app, its memory, idle processors,
// disk and link, a release of one line, a crash without a hub, and a fleet of
// 10 000 sites. It prints one table in Markdown.
//
// It drives bin/holdfast as a person would and reads the rest from /proc and
// /sys. It promises to clean up after itself, also after Ctrl-C. It judges
// nothing: budgets are tests, and stand beside what they hold.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	bin    string        // folder with holdfast, machined and system
	site   string        // of the example fleet
	listen string        // the hub's address, out of the way of other labs
	rest   time.Duration // before memory is read
	window time.Duration // in which an idle site is watched
	sites  int           // of the generated fleet
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "folder with holdfast, machined and system")
	flag.StringVar(&o.site, "site", "berlin-mitte", "site of the example fleet that the lab runs")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:9543", "address of the lab's hub")
	flag.DurationVar(&o.rest, "rest", 2*time.Minute, "how long the site rests before memory is read")
	flag.DurationVar(&o.window, "window", 4*time.Minute, "how long the idle site is watched")
	flag.IntVar(&o.sites, "sites", 10_000, "sites of the generated fleet; 0 leaves it out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted:
		fmt.Fprintln(os.Stderr, "bench: interrupted; everything is cleaned up")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures everything and prints the table; what was measured before a
// failure is printed too.
func run(ctx context.Context, o options) (err error) {
	t := &table{}
	shop, err := newShop(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, shop.close()) }()
	t.head(o, shop.version(ctx))
	err = shop.measure(ctx, t)
	if err == nil && o.sites > 0 {
		err = measureFleet(ctx, o, shop, t)
	}
	if err == nil {
		err = measureCode(ctx, t)
	}
	if ctx.Err() == nil && len(t.rows) > 1 {
		t.write(os.Stdout)
	}
	return err
}

// say tells on stderr what goes on: the table is alone on stdout.
func say(format string, a ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", a...) }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
