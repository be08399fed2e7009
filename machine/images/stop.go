package images

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// graceAnnotation is where the kubelet notes on a container how long its pod may
// take to end, in seconds.
const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod"

// defaultGrace is that of a pod which says nothing.
const defaultGrace = 30 * time.Second

// spare is kept of the time for pods: CRI has whole seconds, and their networks
// are to be taken down.
const spare = 2 * time.Second

// StopPods ends every container, each within the grace of its pod and all before
// ctx ends, and takes the pods' sandboxes down. Nobody may be starting any
// meanwhile. A containerd that does not run has no pods.
func (c *Containerd) StopPods(ctx context.Context) error { return stopPods(ctx, c.runtime) }

// stopper is what StopPods needs of the runtime.
type stopper interface {
	containers(ctx context.Context) ([]*cri.Container, error)
	stop(ctx context.Context, id string, grace time.Duration) error
	sandboxes(ctx context.Context) ([]*cri.PodSandbox, error)
	stopSandbox(ctx context.Context, id string) error
}

func stopPods(ctx context.Context, r stopper) error {
	running, err := r.containers(ctx)
	if status.Code(err) == codes.Unavailable {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop pods: list containers: %w", err)
	}
	var faults faultList
	faults.each(len(running), func(i int) error {
		container := running[i]
		err := r.stop(ctx, container.GetId(), graceOf(ctx, container))
		if err != nil {
			return fmt.Errorf("stop container %s of pod %s: %w", container.GetMetadata().GetName(), container.GetLabels()["io.kubernetes.pod.name"], err)
		}
		return nil
	})
	ready, err := r.sandboxes(ctx)
	if err != nil {
		return errors.Join(append(faults.list, fmt.Errorf("stop pods: list sandboxes: %w", err))...)
	}
	faults.each(len(ready), func(i int) error {
		if err := r.stopSandbox(ctx, ready[i].GetId()); err != nil {
			return fmt.Errorf("stop the sandbox of pod %s: %w", ready[i].GetMetadata().GetName(), err)
		}
		return nil
	})
	return errors.Join(faults.list...)
}

// graceOf is how long a container may take: its pod's word, within what is left.
func graceOf(ctx context.Context, c *cri.Container) time.Duration {
	grace := defaultGrace
	if s, err := strconv.ParseInt(c.GetAnnotations()[graceAnnotation], 10, 32); err == nil && s >= 0 {
		grace = time.Duration(s) * time.Second
	}
	if end, ok := ctx.Deadline(); ok {
		grace = min(grace, max(0, time.Until(end)-spare))
	}
	return grace
}

// faultList gathers what went wrong at many things at once.
type faultList struct {
	mu   sync.Mutex
	list []error
}

func (f *faultList) each(n int, do func(i int) error) {
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			if err := do(i); err != nil {
				f.mu.Lock()
				f.list = append(f.list, err)
				f.mu.Unlock()
			}
		})
	}
	work.Wait()
}

// criRuntime is the runtime half of CRI.
type criRuntime struct{ cri.RuntimeServiceClient }

func (r criRuntime) containers(ctx context.Context) ([]*cri.Container, error) {
	resp, err := r.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	return resp.GetContainers(), err
}

// stop asks in whole seconds, as CRI has them: rounded up where any time is left.
func (r criRuntime) stop(ctx context.Context, id string, grace time.Duration) error {
	_, err := r.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: int64((grace + time.Second - 1) / time.Second)})
	return err
}

func (r criRuntime) sandboxes(ctx context.Context) ([]*cri.PodSandbox, error) {
	resp, err := r.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{
		State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY},
	}})
	return resp.GetItems(), err
}

func (r criRuntime) stopSandbox(ctx context.Context, id string) error {
	_, err := r.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	return err
}
