package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/balance"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/update"
	"github.com/holdfast-edge/holdfast/release"
)

// content makes the content half of a release true, one at a time; a newer one
// supersedes what is under way, at a step where that is safe.
//
//	accepted -> rendered -> same effect? remembered, nothing else happens
//	                     -> staged whole -> plan true -> objects applied -> remembered -> well? last good
//
// At boot what was applied comes first, so that a site stands up from its own
// disk; then what was accepted since, if anything.
type content struct {
	*Machine
	woken chan struct{}

	standing standing
	replan   atomic.Bool // the plan depends on something that changed

	// Owned by run.
	running   *rendered      // what the cluster runs; nil before the first
	refused   error          // why the newest content is not what runs
	unusable  release.Digest // of applied content that this machine can make nothing of any more
	previous  *rendered      // what it ran before; its images are kept
	balancing balancing
}

// rendered is a slice with what it renders here.
type rendered struct {
	*taken
	resolved  *fleet.Resolved
	plan      *kube.Plan
	upstreams []netip.Addr       // that the plan was made with
	started   bool               // the plan is true
	rendering *applier.Rendering // nil before it came
}

func newContent(m *Machine) *content {
	return &content{Machine: m, woken: make(chan struct{}, 1), standing: standing{ensure: m.cluster.ensure}}
}

// wake says that a slice was accepted.
func (c *content) wake() {
	select {
	case c.woken <- struct{}{}:
	default:
	}
}

// again makes the running plan anew, since something that it depends on changed.
func (c *content) again() {
	c.replan.Store(true)
	c.wake()
}

const (
	retryLeast = time.Second
	retryMost  = time.Minute
)

func (c *content) run(ctx context.Context) error {
	retry := retryLeast
	for ctx.Err() == nil {
		target := c.target()
		if target == nil {
			c.wait(ctx, nil)
			continue
		}
		err := c.make(ctx, target)
		if err == nil {
			err = c.catchUp(ctx)
		}
		c.refused = nil
		if !errors.Is(err, errRefused) {
			c.fault(nil, faults.ContentRefused)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			retry = retryLeast
			c.settle(ctx)
		case errors.Is(err, update.ErrRebooting):
			<-ctx.Done()
		case errors.Is(err, errSuperseded):
			retry = retryLeast
		case errors.Is(err, errRefused):
			// Rendering is pure: the same slice would be refused again, so nothing
			// is tried until another one comes, and what runs goes on.
			c.log.Error("refuse a release's content", "n", target.Tag.Payload.N, "err", err)
			c.refused = fmt.Errorf("release %d: %w", target.Tag.Payload.N, err)
			c.fault(c.refused, faults.ContentRefused)
			c.reporter.state(wire.Refused, c.refused.Error())
			if accepted, _ := c.memory.now(); c.running == nil && accepted != nil && accepted.Digest != target.Digest {
				c.unusable = target.Digest // an older machined wrote it: the accepted one is next
				continue
			}
			c.follow(ctx)
		default:
			c.log.Error("make a release true", "n", target.Tag.Payload.N, "err", err)
			c.reporter.state(wire.Failed, err.Error())
			c.wait(ctx, time.After(retry))
			retry = min(2*retry, retryMost)
		}
	}
	return nil
}

// errRefused marks content that this machine cannot make anything of.
var errRefused = applier.ErrRefused

// target is what to make true next; nil when there is nothing yet.
func (c *content) target() *taken {
	accepted, applied := c.memory.now()
	if accepted != nil && accepted.Evicted {
		return accepted // the trust half: nothing comes before it
	}
	if t := c.os.onTrial(); t != nil {
		return t // whatever is newer waits until the OS is blessed or gone
	}
	if c.running == nil && applied != nil && applied.Digest != c.unusable {
		return applied // stand up first, from what is on disk
	}
	return accepted
}

// wait returns when woken, at the timer, or at the end.
func (c *content) wait(ctx context.Context, timer <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-c.woken:
	case <-timer:
	}
}

var errSuperseded = errors.New("a newer release came")

// superseded returns a context that ends when something newer than t is
// accepted; not while the machine stands up first, which nothing is to delay.
func (c *content) superseded(ctx context.Context, t *taken, first bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if first {
		return ctx, func() { cancel(nil) }
	}
	go func() {
		for pause(ctx, 200*time.Millisecond) {
			if accepted, _ := c.memory.now(); accepted != nil && accepted.Tag.Payload.N > t.Tag.Payload.N {
				cancel(errSuperseded)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// make makes t true. It returns nil once t runs here and is remembered.
func (c *content) make(ctx context.Context, t *taken) error {
	if t.Evicted {
		return c.leave(ctx, t)
	}
	next, err := c.plan(t)
	if err != nil {
		return err
	}
	if c.stoodHere(t) {
		if err := c.start(ctx, next); err != nil {
			return err
		}
	}
	began := time.Now()
	if next.rendering, err = c.applier.Render(ctx, t.Encoded); err != nil {
		return err
	}
	c.reporter.timed("render", began)
	c.reporter.update(func(r *wire.Report) {
		r.Site, r.N, r.Effect = t.site(), t.Tag.Payload.N, next.rendering.Effect
	})
	if c.running != nil && !c.replan.Swap(false) && c.running.rendering.Effect == next.rendering.Effect && c.running.Member == t.Member {
		return c.adoptNumber(ctx, next)
	}
	return c.change(ctx, next)
}

// adoptNumber takes a release that changes nothing here: no apply, no restart.
// Rights of operators are the trust half and take effect by themselves.
func (c *content) adoptNumber(ctx context.Context, next *rendered) error {
	c.configure(next)
	if err := c.stand(ctx, next); err != nil {
		return err
	}
	if err := c.remember(next); err != nil {
		return err
	}
	c.running = next
	c.log.Info("same effect, nothing to do", "n", next.Tag.Payload.N)
	return nil
}

// stoodHere says whether t is what this machine ran before it booted: Kubernetes
// then starts while the applier, cold, still renders.
func (c *content) stoodHere(t *taken) bool {
	_, applied := c.memory.now()
	return c.running == nil && applied != nil && applied.Digest == t.Digest
}

// plan turns a slice into what it means for this machine, but for its apps.
func (c *content) plan(t *taken) (*rendered, error) {
	if t.ContentErr != nil {
		return nil, fmt.Errorf("%w: the release's content: %w", errRefused, t.ContentErr)
	}
	site, ok := t.Fleet.Site(t.site())
	if !ok {
		return nil, fmt.Errorf("%w: the release does not describe site %s", errRefused, t.site())
	}
	resolved, err := t.Fleet.Resolve(site)
	if err != nil {
		return nil, fmt.Errorf("%w: resolve the release: %w", errRefused, err)
	}
	upstreams := c.upstreams()
	plan, err := kube.New(resolved, t.Member, c.cluster.paths, kube.Options{
		Trust: c.memory.currentTrust(), Time: c.memory.floor(), Hosted: c.config.Hosted, Split: c.cluster.isSplit(),
		Registry: c.registryAddress(), Memory: c.config.Memory, Hold: c.os.held(),
		Upstreams: upstreams,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return &rendered{taken: t, resolved: resolved, plan: plan, upstreams: upstreams}, nil
}

// change stages next whole and then makes it true. On a machine that runs
// nothing yet, Kubernetes starts while the images come.
func (c *content) change(ctx context.Context, next *rendered) error {
	first := c.running == nil
	ctx, cancel := c.superseded(ctx, next.taken, first)
	defer cancel()
	c.reporter.state(wire.Staging, "")
	wanted := c.imagesOf(next)
	if err := c.registry.SetTable(c.withRunning(wanted)); err != nil {
		return err
	}
	if first && !next.started {
		if err := c.start(ctx, next); err != nil {
			return err
		}
	}
	if err := c.stage(ctx, wanted); err != nil {
		return cause(ctx, err)
	}
	if !first {
		// Another OS is tried with the new configuration, so that they come and go
		// together. A machine that runs nothing yet has nothing to go back to.
		if err := c.updateOS(ctx, next); err != nil {
			return cause(ctx, err)
		}
		if err := c.start(ctx, next); err != nil {
			return err
		}
	}
	c.reporter.state(wire.Applying, "")
	began := time.Now()
	if err := c.cluster.waitFor(ctx, controlPlane); err != nil {
		return cause(ctx, err)
	}
	c.reporter.timed("api ready", began)
	if err := c.apply(ctx, next); err != nil {
		return cause(ctx, err)
	}
	if err := c.remember(next); err != nil {
		return err
	}
	c.previous, c.running = c.running, next
	return c.registry.SetTable(wanted)
}

// remember makes next what runs here after a reboot; not while an OS is on trial
// with it: they stay or go together.
func (c *content) remember(next *rendered) error {
	if t := c.os.onTrial(); t != nil && t.Digest == next.Digest {
		return nil
	}
	return c.memory.setApplied(next.taken)
}

// withRunning adds the images of what runs: until the change is through, a tag
// means what it meant.
func (c *content) withRunning(wanted []images.Image) []images.Image {
	if c.running == nil {
		return wanted
	}
	all := c.imagesOf(c.running)
	known := map[string]bool{}
	for _, i := range all {
		known[i.Ref] = true
	}
	for _, i := range wanted {
		if !known[i.Ref] {
			all = append(all, i)
		}
	}
	return all
}

// cause prefers the reason for which ctx ended.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), errSuperseded) && !errors.Is(err, update.ErrRebooting) {
		return errSuperseded
	}
	return err
}

// start makes the plan true and serves the site's API address.
func (c *content) start(ctx context.Context, next *rendered) error {
	c.configure(next)
	c.cluster.name = next.resolved.Fleet + "/" + next.resolved.Site
	began := time.Now()
	if err := c.stand(ctx, next); err != nil {
		return err
	}
	c.reporter.timed("plan", began)
	next.started = true
	return c.serveAPIAddress(next)
}

// configure tells the box what the content says of it.
func (c *content) configure(next *rendered) {
	if c.config.Configure != nil {
		c.config.Configure(next.resolved, next.Member.Name)
	}
}

// imagesOf lists the images of a release with the machine's own.
func (c *content) imagesOf(r *rendered) []images.Image {
	list := []images.Image{c.pause}
	for _, i := range r.rendering.Images {
		list = append(list, images.Image{Ref: i.Ref, Digest: images.Digest(i.Digest)})
	}
	return list
}

// stage brings every image of the effect onto the machine, startable with no network.
func (c *content) stage(ctx context.Context, wanted []images.Image) error {
	began := time.Now()
	progress := func(done, total int64) {
		if total > 0 {
			c.reporter.state(wire.Staging, fmt.Sprintf("%d of %d MB", done>>20, total>>20))
		}
	}
	if err := c.stager.Stage(ctx, wanted, progress); err != nil {
		return fmt.Errorf("stage the release's images: %w", err)
	}
	c.reporter.timed("stage", began)
	return nil
}

// updateOS reboots into the OS that next wants, with update.ErrRebooting, or does
// nothing where that one runs.
func (c *content) updateOS(ctx context.Context, next *rendered) error {
	if c.os.onTrial() != nil {
		return nil
	}
	t, due, err := c.os.due(next)
	if err != nil || !due {
		return err
	}
	return c.os.begin(ctx, t, next, c.running)
}

// catchUp changes the OS where what runs wants another one: a machine that ran
// nothing before, or had to go on with what it had, has its OS still to change. What
// was accepted since says itself which OS it wants; it may take this one back.
func (c *content) catchUp(ctx context.Context) error {
	accepted, _ := c.memory.now()
	if c.running == nil || accepted != nil && accepted.Tag.Payload.N > c.running.Tag.Payload.N {
		return nil
	}
	ctx, cancel := c.superseded(ctx, c.running.taken, false)
	defer cancel()
	return cause(ctx, c.updateOS(ctx, c.running))
}

// settle says how the machine is, until something new is accepted.
func (c *content) settle(ctx context.Context) {
	accepted, _ := c.memory.now()
	if accepted != nil && c.running != nil && accepted.Digest != c.running.Digest && c.os.onTrial() == nil {
		return // not there yet
	}
	c.follow(ctx)
}

// follow judges what runs, until something new is accepted.
func (c *content) follow(ctx context.Context) {
	watch, cancel := context.WithCancel(ctx)
	var judging sync.WaitGroup
	judging.Go(func() { c.judge(watch) })
	c.wait(ctx, nil)
	cancel()
	judging.Wait()
}

// leave is what an evicted machine does: it stops, forgets the cluster, and
// waits as a stranger.
func (c *content) leave(ctx context.Context, t *taken) error {
	c.reporter.update(func(r *wire.Report) {
		r.Phase, r.Detail, r.Apps, r.N = wire.Evicted, "by release "+fmt.Sprint(t.Tag.Payload.N), nil, t.Tag.Payload.N
	})
	c.fall()
	if err := c.cluster.forget(ctx); err != nil {
		return err
	}
	c.running = nil
	c.wait(ctx, nil)
	return nil
}

// serveAPIAddress runs the balancer on the site's API address, once.
func (c *content) serveAPIAddress(next *rendered) error {
	address := net.JoinHostPort(next.resolved.Network.APIAddress.String(), fmt.Sprint(kube.APIPort))
	var backends []string
	for _, m := range next.resolved.Machines {
		if m.Role == kube.RoleControlPlane {
			backends = append(backends, net.JoinHostPort(m.SiteAddress.String(), fmt.Sprint(kube.APIPort)))
		}
	}
	if c.balancing.same(address, backends) {
		return nil
	}
	c.balancing.stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve the site's API address: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := balance.New(balance.Config{Listen: l, Backends: backends, Log: c.log}).Run(ctx); err != nil {
			c.log.Error("the balancer ended", "err", err)
		}
	}()
	c.balancing = balancing{address: address, backends: backends, stop_: func() { cancel(); <-done }}
	return nil
}

// balancing is the balancer that runs.
type balancing struct {
	address  string
	backends []string
	stop_    func()
}

func (b *balancing) same(address string, backends []string) bool {
	return b.stop_ != nil && b.address == address && slices.Equal(b.backends, backends)
}

func (b *balancing) stop() {
	if b.stop_ != nil {
		b.stop_()
		b.stop_ = nil
	}
}

func (m *Machine) registryAddress() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(m.config.RegistryPort))
}

// serveRegistry serves the registry on loopback, the only one that containerd asks.
func (m *Machine) serveRegistry(ctx context.Context) error {
	l, err := net.Listen("tcp", m.registryAddress().String())
	if err != nil {
		return fmt.Errorf("listen for the registry: %w", err)
	}
	server := &http.Server{Handler: m.registry, ReadHeaderTimeout: 10 * time.Second}
	m.group.Go(func() error { return ended(ctx, server.Serve(l)) })
	m.group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return nil
}

// fetcher brings blobs from the hub, over the link's bulk session.
func (m *Machine) fetcher() *images.Fetcher {
	return &images.Fetcher{
		Store: m.store, Client: link.Client(func(ctx context.Context) (net.Conn, error) { return m.keeper.OpenBulk(ctx) }, 10*time.Second), Base: "http://" + link.Host + "/v2",
		Repository: func(i images.Image) string {
			r, err := images.ParseReference(i.Ref)
			if err != nil {
				return "app"
			}
			return filepath.ToSlash(r.Repository)
		},
		Log: m.log,
	}
}
