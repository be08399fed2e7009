package machine

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/supervise"
)

// The kubelet ends first, what starts anything again is refused, and the rest
// follows in order; asked again, the machine says the same.
func TestShutdown(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	command := func(name string, after ...string) kube.Command {
		return kube.Command{Name: name, Path: sleep, Args: []string{"1000"}, After: after, Grace: 10 * time.Second}
	}
	var mu sync.Mutex
	var ended []string
	containerd, err := images.DialContainerd(t.TempDir() + "/nobody.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer containerd.Close()
	var pulses atomic.Int32
	m := newMachine(Config{Log: quiet(), StopTime: time.Minute, Pulse: func() { pulses.Add(1) }})
	m.containerd = containerd
	m.cluster = &cluster{log: quiet(), supervisor: supervise.New(supervise.Config{Log: quiet(), OnExit: func(name string, e supervise.Exit) {
		mu.Lock()
		defer mu.Unlock()
		if !e.Expected {
			t.Errorf("%s ended by itself: %s", name, e)
		}
		ended = append(ended, name)
	}})}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m.group, _ = errgroup.WithContext(ctx)
	m.runProcesses(ctx)
	m.cluster.plan = &kube.Plan{Commands: []kube.Command{
		command("containerd"), command("control-plane"), command(node, "containerd"), command("coredns", "control-plane"),
	}}
	if err := m.cluster.run(ctx, m.cluster.children(m.cluster.plan)); err != nil {
		t.Fatal(err)
	}
	if err := m.cluster.supervisor.WaitReady(ctx, "containerd", "control-plane", node, "coredns"); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			if err := m.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	order := strings.Join(ended, " ")
	if len(ended) != 4 || ended[0] != node || slices.Index(ended, "coredns") > slices.Index(ended, "control-plane") {
		t.Errorf("ended in the order %s", order)
	}
	if err := m.cluster.run(ctx, nil); !errors.Is(err, errStopping) {
		t.Errorf("start something now: got %v, want errStopping", err)
	}
	if err := m.group.Wait(); err != nil {
		t.Error(err)
	}
	if pulses.Load() == 0 {
		t.Error("no pulse was felt")
	}
}

// A machine that has started nothing, a limited one, has nothing to stop.
func TestShutdownOfNothing(t *testing.T) {
	if err := newMachine(Config{Log: quiet()}).Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
