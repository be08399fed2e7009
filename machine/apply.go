package machine

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/supervise"
)

// Applier renders what was verified and brings it into the site's Kubernetes.
// An error of Render that is no applier.ErrRefused, and each of the others, is
// worth a second try.
type Applier interface {
	Render(ctx context.Context, slice []byte) (*applier.Rendering, error)
	Apply(ctx context.Context, o applier.Order) (applier.Result, error)
	// Watch reports every app, at once and then at each change, until ctx ends.
	Watch(ctx context.Context, api applier.API, report func(applier.Status)) error
}

// helper is the program that applies, as the supervisor knows it.
const helper = "applier"

// bootApplier makes the way to the program, which starts when there is an API
// server to speak to.
func (m *Machine) bootApplier(context.Context) error {
	if m.applier = m.config.Applier; m.applier != nil {
		return nil
	}
	child := &applier.Child{
		Program: filepath.Join(m.config.BinDir, helper), Socket: filepath.Join(m.config.RunDir, "applier.sock"),
		Stuck: func() {
			m.log.Error("the applier does not answer, so it is started again")
			if err := m.cluster.supervisor.Restart(context.Background(), helper); err != nil {
				m.log.Error("start the applier again", "err", err)
			}
		},
	}
	m.applier = child
	m.cluster.helpers = []supervise.Child{{
		Name: helper, Path: child.Program, Args: child.RunArgs(), Env: environment(applier.RunEnv),
		After: []string{controlPlane}, Ready: ready(kube.Ready{Socket: child.Socket}), Grace: 5 * time.Second,
		OOMScoreAdj: -800, Cgroup: helper,
	}}
	return nil
}

// api is the way to the site's API server.
func (c *content) api(r *rendered) applier.API {
	pki := c.cluster.paths.PKI
	return applier.API{
		URL:  "https://" + net.JoinHostPort(r.Member.SiteAddress.String(), fmt.Sprint(kube.APIPort)),
		Name: kube.APIName,
		CA:   filepath.Join(pki, string(kube.CACluster)+"-ca.crt"),
		Cert: filepath.Join(pki, "machined.crt"),
		Key:  filepath.Join(pki, "machined.key"),
	}
}

// apply brings the apps into the cluster. It returns when every app that can
// be applied is; an app that waits for another that it needs is waited for.
func (c *content) apply(ctx context.Context, next *rendered) error {
	for _, h := range c.cluster.helpers {
		if err := c.cluster.waitFor(ctx, h.Name); err != nil {
			return err
		}
	}
	began := time.Now()
	n := next.Tag.Payload.N
	result, err := c.applier.Apply(ctx, applier.Order{API: c.api(next), Release: n, Plan: next.rendering.Plan})
	if err != nil {
		return fmt.Errorf("apply release %d: %w", n, err)
	}
	c.reporter.timed("apply", began)
	c.reporter.update(func(r *wire.Report) { r.Apps = reported(next.rendering, result) })
	c.log.Info("applied", "n", n, "writes", result.Writes, "took", time.Since(began).Round(time.Millisecond))
	if result.Fault != "" {
		return fmt.Errorf("apply release %d: %s", n, result.Fault)
	}
	next.rendering.Plan = nil // whoever wants it again renders again
	return nil
}

// reported is what the hub hears of the apps right after they were applied.
func reported(rendering *applier.Rendering, result applier.Result) []wire.AppStatus {
	versions := map[string]string{}
	for _, a := range rendering.Apps {
		versions[a.Name] = a.Version
	}
	var list []wire.AppStatus
	for _, r := range result.Apps {
		s := wire.AppStatus{Name: r.Name, Version: versions[r.Name], Applied: r.Applied, Unchanged: r.Unchanged, Phase: wire.Applying}
		switch r.State {
		case applier.Waiting:
			s.Phase = wire.Waiting
		case applier.Failed:
			s.Phase = wire.Failed
		case applier.Removed:
			continue
		case applier.Orphaned:
			s.Phase = wire.OK
			s.Detail = "no longer selected, left in place because of its data"
		}
		if s.Detail == "" {
			s.Detail = wire.Clean(r.Detail)
		}
		list = append(list, s)
	}
	return list
}

// judge follows how the apps are and reports it, until ctx ends. The release
// counts as good once every app of it is ready.
func (c *content) judge(ctx context.Context) {
	if c.running == nil {
		return
	}
	running := c.running
	began, good := time.Now(), false
	health := map[string]applier.Status{}
	c.settled(running, health)
	for ctx.Err() == nil {
		err := c.applier.Watch(ctx, c.api(running), func(s applier.Status) {
			health[s.App] = s
			c.os.saw(running, s)
			c.settled(running, health)
			if !good && allReady(running.rendering.Apps, health) {
				good = true
				c.reporter.timed("ready", began)
				c.keep(ctx, running)
			}
		})
		if ctx.Err() == nil {
			c.log.Warn("follow the apps", "err", err)
			pause(ctx, time.Second)
		}
	}
}

// keep remembers that a release is good here, and lets go of what only older ones needed.
func (c *content) keep(ctx context.Context, running *rendered) {
	if err := c.memory.setGood(running.Tag.Payload.N); err != nil {
		c.log.Error("remember a good release", "err", err)
	}
	keep := c.imagesOf(running)
	if c.previous != nil {
		keep = append(keep, c.imagesOf(c.previous)...)
	}
	if _, err := c.stager.Release(ctx, keep); err != nil && ctx.Err() == nil {
		c.log.Warn("let go of images", "err", err)
	}
}

func allReady(wanted []applier.App, health map[string]applier.Status) bool {
	return !slices.ContainsFunc(wanted, func(a applier.App) bool { return health[a.Name].Health != applier.Ready })
}

// settled reports the apps' health.
func (c *content) settled(running *rendered, health map[string]applier.Status) {
	c.reporter.update(func(r *wire.Report) {
		var phases []wire.Phase
		kept := r.Apps[:0]
		known := map[string]wire.AppStatus{}
		for _, a := range r.Apps {
			known[a.Name] = a
		}
		for _, a := range running.rendering.Apps {
			s := known[a.Name]
			s.Name, s.Version = a.Name, a.Version
			if h, ok := health[a.Name]; ok {
				s.Phase, s.Detail, s.Ready, s.Wanted = phaseOf(h.Health), wire.Clean(h.Message), h.Ready, h.Total
			} else if s.Phase == "" {
				s.Phase = wire.Applying
			}
			phases = append(phases, s.Phase)
			kept = append(kept, s)
			delete(known, a.Name)
		}
		for _, a := range known { // orphaned ones stay told
			if a.Phase == wire.OK && a.Detail != "" {
				kept = append(kept, a)
			}
		}
		r.Apps = kept
		r.Site, r.N, r.Effect = running.site(), running.Tag.Payload.N, running.rendering.Effect
		if accepted, _ := c.memory.now(); accepted != nil {
			r.N = accepted.Tag.Payload.N // its trust half holds, also where its content is refused
		}
		r.Phase, r.Detail = wire.Worst(phases...), ""
		if c.refused != nil {
			r.Phase, r.Detail = wire.Refused, wire.Clean(c.refused.Error())
		}
	})
}

func phaseOf(h applier.Health) wire.Phase {
	switch h {
	case applier.Ready:
		return wire.OK
	case applier.Sick:
		return wire.Failed
	}
	return wire.Applying
}
