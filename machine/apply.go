package machine

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/apps"
)

// connect gives the engine that applies apps, made once it is wanted.
func (c *content) connect(r *rendered) (*apps.Engine, error) {
	return c.engine.get(func() (*apps.Engine, error) {
		return apps.New(apps.Config{REST: c.restConfig(r), Log: c.log})
	})
}

// apply brings the apps into the cluster. It returns when every app that can
// be applied is; an app that waits for another that it needs is waited for.
func (c *content) apply(ctx context.Context, next *rendered) error {
	engine, err := c.connect(next)
	if err != nil {
		return err
	}
	began := time.Now()
	plan := apps.Plan{Release: next.Tag.Payload.N, Delete: refs(next.rendering.Delete)}
	for _, a := range next.rendering.Apps {
		plan.Apps = append(plan.Apps, appOf(a))
	}
	result, err := engine.Apply(ctx, plan)
	if err != nil {
		return fmt.Errorf("apply release %d: %w", plan.Release, err)
	}
	c.reporter.timed("apply", began)
	c.reporter.update(func(r *wire.Report) { r.Apps = reported(next.rendering, result) })
	c.log.Info("applied", "n", plan.Release, "writes", result.Writes, "took", time.Since(began).Round(time.Millisecond))
	if !result.OK() {
		return fmt.Errorf("apply release %d: %s", plan.Release, firstFault(result))
	}
	return nil
}

func appOf(a render.App) apps.App {
	app := apps.App{Name: a.Name, Namespace: a.Namespace, Needs: a.Needs, Delete: refs(a.Delete)}
	for _, o := range a.Objects {
		app.Objects = append(app.Objects, apps.Object{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, JSON: o.JSON})
	}
	return app
}

func refs(list []fleet.ObjectRef) []apps.Ref {
	var out []apps.Ref
	for _, r := range list {
		out = append(out, apps.Ref{APIVersion: r.APIVersion, Kind: r.Kind, Namespace: r.Namespace, Name: r.Name})
	}
	return out
}

// reported is what the hub hears of the apps right after they were applied.
func reported(rendering *render.Rendering, result apps.Result) []wire.AppStatus {
	versions := map[string]string{}
	for _, a := range rendering.Apps {
		versions[a.Name] = a.Version
	}
	var list []wire.AppStatus
	for _, r := range result.Apps {
		s := wire.AppStatus{Name: r.App, Version: versions[r.App], Applied: r.Applied, Unchanged: r.Unchanged, Phase: wire.Applying}
		switch r.State {
		case apps.Waiting:
			s.Phase = wire.Waiting
		case apps.Failed:
			s.Phase = wire.Failed
		case apps.Removed:
			continue
		case apps.Orphaned:
			s.Phase = wire.OK
			s.Detail = "no longer selected, left in place because of its data"
		}
		if len(r.Messages) > 0 && s.Detail == "" {
			s.Detail = wire.Clean(r.Messages[0].Object.String() + ": " + r.Messages[0].Text)
		}
		list = append(list, s)
	}
	return list
}

func firstFault(result apps.Result) string {
	for _, a := range result.Apps {
		if (a.State == apps.Failed || a.State == apps.Waiting) && len(a.Messages) > 0 {
			return fmt.Sprintf("app %s: %s: %s", a.App, a.Messages[0].Object, a.Messages[0].Text)
		}
	}
	return "an app was not applied"
}

// judge follows how the apps are and reports it, until ctx ends. The release
// counts as good once every app of it is ready.
func (c *content) judge(ctx context.Context) {
	if c.running == nil {
		return
	}
	running := c.running
	engine, err := c.connect(running)
	if err != nil {
		c.log.Error("follow the apps", "err", err)
		return
	}
	began, good := time.Now(), false
	health := map[string]apps.AppStatus{}
	c.settled(running, health)
	for ctx.Err() == nil {
		err := engine.Watch(ctx, func(s apps.AppStatus) {
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

func allReady(wanted []render.App, health map[string]apps.AppStatus) bool {
	return !slices.ContainsFunc(wanted, func(a render.App) bool { return health[a.Name].Health != apps.Ready })
}

// settled reports the apps' health.
func (c *content) settled(running *rendered, health map[string]apps.AppStatus) {
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
		r.Site, r.N, r.Effect = running.site(), running.Tag.Payload.N, running.rendering.Effect.Digest
		if accepted, _ := c.memory.now(); accepted != nil {
			r.N = accepted.Tag.Payload.N // its trust half holds, also where its content is refused
		}
		r.Phase, r.Detail = wire.Worst(phases...), ""
		if c.refused != nil {
			r.Phase, r.Detail = wire.Refused, wire.Clean(c.refused.Error())
		}
	})
}

func phaseOf(h apps.Health) wire.Phase {
	switch h {
	case apps.Ready:
		return wire.OK
	case apps.Sick:
		return wire.Failed
	}
	return wire.Applying
}
