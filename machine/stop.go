package machine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/machine/supervise"
)

// stopping is how a machine comes to its end.
type stopping struct {
	once          sync.Once
	done          chan struct{} // closed when all is down
	err           error         // of what did not end as asked; read after done
	content       context.CancelFunc
	contentGone   chan struct{}
	processes     context.CancelFunc
	processesGone chan struct{}
}

// Shutdown stops what runs, from the outside in, and returns when all of it is
// down and the disks are in order; the link and the machine's API go on. It may
// be called from anywhere and more than once: later calls wait for the first.
//
//	content                     nothing is applied, judged or followed any more
//	kubelet and service proxy   so that nobody starts a pod again
//	pods, through CRI           each within its own grace and all within StopTime
//	the control plane           controllers, API server, etcd, in this order
//	container runtime           last, and then what is written goes to the disks
//
// A pod's preStop hooks are the kubelet's and do not run. What does not end in
// time is killed and told by the error; the stop goes on.
func (m *Machine) Shutdown(ctx context.Context) error {
	m.stopping.once.Do(func() {
		m.stopping.err = m.shutdown(ctx)
		close(m.stopping.done)
	})
	select {
	case <-m.stopping.done:
		return m.stopping.err
	case <-ctx.Done():
		return fmt.Errorf("stop the machine: %w", ctx.Err())
	}
}

func (m *Machine) shutdown(ctx context.Context) error {
	if m.stopping.processes == nil {
		unix.Sync()
		return nil // nothing was started
	}
	began := time.Now()
	var faults []error
	m.stopContent(ctx)
	if m.config.StopTime > 0 {
		ctx, cancel := context.WithTimeout(ctx, m.config.StopTime)
		if err := m.cluster.stopNode(ctx); err != nil {
			faults = append(faults, err)
		} else if err := m.containerd.StopPods(ctx); err != nil {
			faults = append(faults, err)
		}
		cancel()
	}
	pods := time.Now()
	m.stopping.processes()
	select {
	case <-m.stopping.processesGone:
	case <-ctx.Done():
		faults = append(faults, fmt.Errorf("stop the processes: %w", ctx.Err()))
	}
	unix.Sync()
	err := errors.Join(faults...)
	m.log.Info("stopped", "took", time.Since(began).Round(time.Millisecond), "pods", pods.Sub(began).Round(time.Millisecond), "err", err)
	return err
}

// letGo is how long the worker of content may take to put down what it holds.
const letGo = 5 * time.Second

// stopContent ends the worker of content: the API server does not end in good
// order before those who watch it have gone. Who calls from within that worker is
// not waited for.
func (m *Machine) stopContent(ctx context.Context) {
	if m.stopping.content == nil {
		return
	}
	m.stopping.content()
	ctx, cancel := context.WithTimeout(ctx, letGo)
	defer cancel()
	select {
	case <-m.stopping.contentGone:
		m.content.balancing.stop()
	case <-ctx.Done():
	}
}

// errStopping refuses work on a machine that comes to its end.
var errStopping = errors.New("the machine stops")

// run makes children those that run, unless the machine stops.
func (c *cluster) run(ctx context.Context, children []supervise.Child) error {
	c.running.Lock()
	defer c.running.Unlock()
	if c.ends {
		return errStopping
	}
	return c.supervisor.Apply(ctx, children)
}

// node is the process that is the kubelet and the service proxy.
const node = "node"

// stopNode stops the kubelet and returns when it is gone: what ends from then on
// is not started again.
func (c *cluster) stopNode(ctx context.Context) error {
	c.running.Lock()
	c.ends = true
	c.mu.Lock()
	plan := c.plan
	c.mu.Unlock()
	var err error
	if plan != nil {
		rest := slices.DeleteFunc(c.children(plan), func(child supervise.Child) bool { return child.Name == node })
		err = c.supervisor.Apply(ctx, rest)
	}
	c.running.Unlock()
	for err == nil {
		changed := c.supervisor.Changed()
		if !slices.ContainsFunc(c.supervisor.Status(), func(s supervise.Status) bool { return s.Name == node && s.PID != 0 }) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return fmt.Errorf("stop the kubelet: %w", err)
}
