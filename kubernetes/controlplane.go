package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"

	"github.com/holdfast-edge/holdfast/kubernetes/config"
	"github.com/holdfast-edge/holdfast/kubernetes/store"
)

// stopLimit is how long each stage of an ordered stop may take before the next
// one begins regardless: a hung controller must not keep etcd from its stop.
const stopLimit = 15 * time.Second

// runControlPlane is the life of a control plane:
//
//	etcd -> API server -> ready -> controller manager, scheduler   start
//	scheduler, controller manager -> API server -> etcd            stop
//
// The end of any of them is the end of all: half a control plane helps nobody,
// and the caller knows how to start a whole one.
func runControlPlane(ctx context.Context, file string, ready *readiness, tell *teller) error {
	c, err := config.LoadControlPlane(file)
	if err != nil {
		return err
	}
	d, err := heldAt(c.Hold)
	if err != nil {
		return err
	}
	c.Etcd.Speak = d.Etcd
	startMemory(c.Memory)
	member, err := store.Start(ctx, c.Etcd, os.Exit)
	if err != nil {
		return err
	}
	defer member.Close()
	useMember(member)
	said("etcd serves")
	go tell.follow(ctx, d, member)

	var server atomic.Pointer[genericapiserver.GenericAPIServer]
	api := start("API server", func(ctx context.Context) error {
		return runAPIServer(ctx, d.Arguments(c.APIServer), c.Bootstrap, server.Store)
	})
	defer api.stop(stopLimit)
	if err := wait(ctx, api, member, func(ctx context.Context) error { return waitReady(ctx, c.Probe) }); err != nil {
		return ended(ctx, err)
	}
	said("API ready")
	tell.tell(func(s *status) { s.Ready = true })
	if err := ready.set(); err != nil {
		return err
	}

	stages := []*stage{api}
	if len(c.ControllerManager) > 0 {
		s := startControllers(d.Arguments(c.ControllerManager), c.Scheduler)
		defer stopAll(s)
		stages = append(stages, s...)
	}
	settle(ctx, c.Memory, func() {
		if err := packOpenAPI(server.Load()); err != nil {
			fmt.Fprintln(os.Stderr, "kube: OpenAPI documents stay unpacked, which costs memory only:", err)
		}
	})
	err = first(ctx, member, stages)
	tell.tell(func(s *status) { s.Ready = false })
	ready.clear()
	return ended(ctx, err)
}

// runControllers is controller manager and scheduler beside an API server that
// runs elsewhere, and is waited for.
func runControllers(ctx context.Context, file string, ready *readiness, _ *teller) error {
	c, err := config.LoadControllers(file)
	if err != nil {
		return err
	}
	d, err := heldAt(c.Hold)
	if err != nil {
		return err
	}
	manager := d.Arguments(c.ControllerManager)
	startMemory(c.Memory)
	if err := setGlobals(manager); err != nil {
		return err
	}
	if err := waitReady(ctx, c.Probe); err != nil {
		return ended(ctx, err)
	}
	s := startControllers(manager, c.Scheduler)
	defer stopAll(s)
	if err := ready.set(); err != nil {
		return err
	}
	settle(ctx, c.Memory, nil)
	return ended(ctx, first(ctx, nil, s))
}

func startControllers(manager, scheduler []string) []*stage {
	return []*stage{
		start("controller manager", func(ctx context.Context) error { return runControllerManager(ctx, manager) }),
		start("scheduler", func(ctx context.Context) error { return runScheduler(ctx, scheduler) }),
	}
}

func stopAll(s []*stage) {
	for _, one := range s {
		one.cancel()
	}
	for _, one := range s {
		one.stop(stopLimit)
	}
}

// A stage is a component on a goroutine of its own, with a context of its own so
// that components stop in our order and not all at the signal.
type stage struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set before done is closed
}

func start(name string, run func(context.Context) error) *stage {
	ctx, cancel := context.WithCancel(context.Background())
	s := &stage{name: name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = run(ctx)
	}()
	return s
}

func (s *stage) stop(limit time.Duration) {
	s.cancel()
	select {
	case <-s.done:
	case <-time.After(limit):
		fmt.Fprintf(os.Stderr, "kube: %s did not stop within %v; going on without it\n", s.name, limit)
	}
}

func (s *stage) failure() error {
	if s.err == nil {
		return fmt.Errorf("%s ended", s.name)
	}
	return fmt.Errorf("%s: %w", s.name, s.err)
}

// wait runs f, unless a stage or etcd ends first.
func wait(ctx context.Context, s *stage, m *store.Member, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- f(ctx) }()
	select {
	case err := <-result:
		return err
	case <-s.done:
		return s.failure()
	case <-m.Done():
		return errors.New("etcd stopped")
	}
}

// first waits for whatever ends first. A stage that ends because ctx did is no
// failure.
func first(ctx context.Context, m *store.Member, stages []*stage) error {
	var etcd <-chan struct{}
	if m != nil {
		etcd = m.Done()
	}
	end := make(chan *stage, len(stages))
	for _, s := range stages {
		go func() {
			<-s.done
			end <- s
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case <-etcd:
		return errors.New("etcd stopped")
	case s := <-end:
		return s.failure()
	}
}

// ended turns whatever a stop on request looks like into success.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}
