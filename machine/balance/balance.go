// Package balance is the machine's local way to the API servers of its site:
// one fixed address on the loopback device, the same on every machine, behind
// which live API servers are found. It promises that a connection never stays
// on a server that stopped answering for longer than two probes, since clients
// notice a silent peer only after 30 seconds and more. Backends come from the
// release, never from the API; it terminates nothing and reads no byte.
package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/link"
)

// Defaults of Config.
const (
	ProbeEvery   = time.Second
	ProbeTimeout = 800 * time.Millisecond
	// deadAfter failed probes in a row, every connection through a backend is cut.
	deadAfter = 2
)

// Config describes a Balancer. Listen and Backends are required.
type Config struct {
	Listen   net.Listener
	Backends []string // host:port, tried in order of health, then as listed
	// Probe says whether a backend answers; nil means that it accepts a connection.
	Probe func(ctx context.Context, backend string) error
	Log   *slog.Logger
}

// Balancer forwards connections to the first live backend.
type Balancer struct {
	config Config
	log    *slog.Logger

	mu       sync.Mutex // guards what follows
	backends []*backend
}

type backend struct {
	address string
	failed  int // probes in a row
	conns   map[net.Conn]struct{}
}

// New returns a Balancer that Run sets to work.
func New(config Config) *Balancer {
	b := &Balancer{config: config, log: config.Log}
	if b.log == nil {
		b.log = slog.Default()
	}
	if b.config.Probe == nil {
		b.config.Probe = dialProbe
	}
	for _, address := range config.Backends {
		b.backends = append(b.backends, &backend{address: address, conns: map[net.Conn]struct{}{}})
	}
	return b
}

func dialProbe(ctx context.Context, address string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Run accepts, forwards and probes until ctx ends; then it closes every connection.
func (b *Balancer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { b.config.Listen.Close() })
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, be := range b.backends {
		wg.Go(func() { b.watch(ctx, be) })
	}
	for {
		conn, err := b.config.Listen.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if temporary(err) {
				time.Sleep(10 * time.Millisecond) // out of descriptors: let some close
				continue
			}
			return fmt.Errorf("accept on %s: %w", b.config.Listen.Addr(), err)
		}
		wg.Go(func() { b.forward(ctx, conn) })
	}
}

func temporary(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && !errors.Is(err, net.ErrClosed)
}

// watch probes one backend and cuts its connections once it is dead.
func (b *Balancer) watch(ctx context.Context, be *backend) {
	tick := time.NewTicker(ProbeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		probe, cancel := context.WithTimeout(ctx, ProbeTimeout)
		err := b.config.Probe(probe, be.address)
		cancel()
		b.judge(be, err)
	}
}

func (b *Balancer) judge(be *backend, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		be.failed = 0
		return
	}
	be.failed++
	if be.failed < deadAfter || len(be.conns) == 0 {
		return
	}
	b.log.Warn("API server is silent, cutting its connections", "backend", be.address, "connections", len(be.conns), "err", err)
	for conn := range be.conns {
		conn.Close()
	}
}

// candidates lists the backends, healthy ones first, each part in its listed order.
func (b *Balancer) candidates() []*backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	var live, dead []*backend
	for _, be := range b.backends {
		if be.failed < deadAfter {
			live = append(live, be)
		} else {
			dead = append(dead, be)
		}
	}
	return append(live, dead...)
}

func (b *Balancer) forward(ctx context.Context, client net.Conn) {
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	for _, be := range b.candidates() {
		dial, cancel := context.WithTimeout(ctx, ProbeTimeout)
		var d net.Dialer
		server, err := d.DialContext(dial, "tcp", be.address)
		cancel()
		if err != nil {
			continue
		}
		b.track(be, server, client)
		link.Splice(ctx, client, server)
		b.untrack(be, server, client)
		return
	}
}

func (b *Balancer) track(be *backend, conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		be.conns[c] = struct{}{}
	}
}

func (b *Balancer) untrack(be *backend, conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		delete(be.conns, c)
	}
}
