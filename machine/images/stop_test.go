package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pods is a runtime with containers that take their time.
type pods struct {
	needs map[string]time.Duration // how long a container takes to end by itself
	grace map[string]string        // its annotation
	bad   error                    // of one that does not stop
	away  bool

	mu     sync.Mutex
	killed []string
	down   []string
}

func (p *pods) containers(context.Context) ([]*cri.Container, error) {
	if p.away {
		return nil, status.Error(codes.Unavailable, "no containerd")
	}
	var list []*cri.Container
	for id := range p.needs {
		c := &cri.Container{Id: id, Metadata: &cri.ContainerMetadata{Name: id}, Labels: map[string]string{"io.kubernetes.pod.name": "pod-" + id}}
		if g, ok := p.grace[id]; ok {
			c.Annotations = map[string]string{graceAnnotation: g}
		}
		list = append(list, c)
	}
	return list, nil
}

func (p *pods) stop(ctx context.Context, id string, grace time.Duration) error {
	if id == "stuck" {
		return p.bad
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(min(grace, p.needs[id])):
	}
	if p.needs[id] > grace {
		p.mu.Lock()
		p.killed = append(p.killed, id)
		p.mu.Unlock()
	}
	return nil
}

func (p *pods) sandboxes(context.Context) ([]*cri.PodSandbox, error) {
	var list []*cri.PodSandbox
	for id := range p.needs {
		list = append(list, &cri.PodSandbox{Id: id, Metadata: &cri.PodSandboxMetadata{Name: "pod-" + id}})
	}
	return list, nil
}

func (p *pods) stopSandbox(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = append(p.down, id)
	return nil
}

// Each container has its pod's grace, and all together have what is left; they
// end side by side.
func TestStopPods(t *testing.T) {
	for name, c := range map[string]struct {
		most   time.Duration
		took   time.Duration
		killed string
	}{
		"plenty":     {5 * time.Minute, time.Minute, "deaf"},
		"not enough": {20 * time.Second, 18 * time.Second, "database,deaf"},
		"no time":    {time.Second, 0, "database,deaf,quick,silent"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &pods{
					needs: map[string]time.Duration{"quick": time.Second, "database": time.Minute, "deaf": time.Hour, "silent": 10 * time.Second},
					grace: map[string]string{"quick": "30", "database": "90", "deaf": "5", "silent": "soon"},
				}
				ctx, cancel := context.WithTimeout(t.Context(), c.most)
				defer cancel()
				began := time.Now()
				if err := stopPods(ctx, p); err != nil {
					t.Fatal(err)
				}
				slices.Sort(p.killed)
				if got := strings.Join(p.killed, ","); got != c.killed || time.Since(began) != c.took || len(p.down) != 4 {
					t.Errorf("killed %q after %v, %d sandboxes down; want %q after %v, 4", got, time.Since(began), len(p.down), c.killed, c.took)
				}
			})
		})
	}
}

func TestStopPodsFaults(t *testing.T) {
	if err := stopPods(t.Context(), &pods{away: true}); err != nil {
		t.Errorf("no containerd runs: %v", err)
	}
	p := &pods{needs: map[string]time.Duration{"stuck": 0, "a": 0, "b": 0}, bad: errors.New("in the kernel")}
	err := stopPods(t.Context(), p)
	if !errors.Is(err, p.bad) || !strings.Contains(fmt.Sprint(err), "pod-stuck") || len(p.down) != 3 {
		t.Errorf("got %v, down %v; want the pod's name, and the others down", err, p.down)
	}
}
