package machine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/kube"
)

// standing is the plan that was made true last. It keeps apart who makes plans
// true: content, and who follows the LAN's name servers.
type standing struct {
	ensure func(context.Context, *kube.Plan) error

	mu        sync.Mutex   // guards what follows, and is held while a plan is made true
	taken     *taken       // nil: no plan stands
	upstreams []netip.Addr // that it was made with
}

// stand makes the plan of r true.
func (c *content) stand(ctx context.Context, r *rendered) error {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	if err := c.standing.ensure(ctx, r.plan); err != nil {
		return err
	}
	c.standing.taken, c.standing.upstreams = r.taken, r.upstreams
	return nil
}

// fall says that no plan stands any more.
func (c *content) fall() {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	c.standing.taken = nil
}

func (c *content) upstreams() []netip.Addr {
	if c.config.Upstreams == nil {
		return nil
	}
	return c.config.Upstreams()
}

// upstreamsEvery is how often the LAN's name servers are compared with those of
// the plan. A machine boots faster than its lease comes, and then its pods would
// have no names of the world until the next release.
const upstreamsEvery = 5 * time.Second

// followUpstreams makes the plan anew when the LAN names other servers, whatever
// else content is at: an app that needs them may be what it waits for.
func (c *content) followUpstreams(ctx context.Context) {
	for c.config.Upstreams != nil && pause(ctx, upstreamsEvery) {
		if err := c.takeUpstreams(ctx); err != nil && ctx.Err() == nil {
			c.log.Error("take the LAN's name servers", "err", err)
		}
	}
}

func (c *content) takeUpstreams(ctx context.Context) error {
	c.standing.mu.Lock()
	defer c.standing.mu.Unlock()
	if c.standing.taken == nil || slices.Equal(c.upstreams(), c.standing.upstreams) {
		return nil
	}
	next, err := c.plan(c.standing.taken)
	if err != nil {
		return err
	}
	if err := c.standing.ensure(ctx, next.plan); err != nil {
		return fmt.Errorf("ask %v: %w", next.upstreams, err)
	}
	c.standing.upstreams = next.upstreams
	c.log.Info("the LAN names other name servers", "servers", next.upstreams)
	return nil
}
