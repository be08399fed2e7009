package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"sync"

	"k8s.io/client-go/rest"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/apps"
	"github.com/holdfast-edge/holdfast/release"
)

// Local does in this process what the program does; its zero value is ready.
type Local struct {
	Log *slog.Logger // nil: slog.Default

	mu     sync.Mutex // guards what follows
	api    applier.API
	engine *apps.Engine
}

// Render has applier.Child's shape.
func (l *Local) Render(_ context.Context, slice []byte) (*applier.Rendering, error) {
	r, err := Render(slice)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", applier.ErrRefused, err)
	}
	return r, nil
}

// Render renders an encoded slice. It is pure: what it refuses it always refuses.
func Render(slice []byte) (*applier.Rendering, error) {
	s, err := release.DecodeSlice(slice)
	if err != nil {
		return nil, err
	}
	tag, err := release.ParseTag(s.Tag)
	if err != nil {
		return nil, err
	}
	tree := release.TreeFS(s.Objects, tag.Payload.TreeSHA256)
	f, err := fleet.LoadSite(tree, s.SiteDir)
	if err != nil {
		return nil, err
	}
	site, ok := f.Site(path.Base(s.SiteDir))
	if !ok {
		return nil, fmt.Errorf("the release does not describe site %s", s.SiteDir)
	}
	resolved, err := f.Resolve(site)
	if err != nil {
		return nil, fmt.Errorf("resolve the release: %w", err)
	}
	r, err := render.Site(tree, resolved)
	if err != nil {
		return nil, fmt.Errorf("render the release: %w", err)
	}
	return told(r)
}

// told is a rendering in the words of package applier.
func told(r *render.Rendering) (*applier.Rendering, error) {
	out := &applier.Rendering{Effect: r.Effect.Digest, Apps: []applier.App{}, Images: []applier.Image{}}
	for _, a := range r.Apps {
		out.Apps = append(out.Apps, applier.App{Name: a.Name, Version: a.Version, Critical: a.Critical})
	}
	for _, i := range r.Images {
		out.Images = append(out.Images, applier.Image{Ref: i.Ref, Digest: i.Digest})
	}
	var plan bytes.Buffer
	if err := encoder(&plan).Encode(planOf(r)); err != nil {
		return nil, fmt.Errorf("write the plan: %w", err)
	}
	out.Plan = bytes.TrimSpace(plan.Bytes())
	return out, nil
}

// plan is apps.Plan on its way from one run of the program to another.
type plan struct {
	Apps   []planApp  `json:"apps"`
	Delete []apps.Ref `json:"delete,omitempty"`
}

type planApp struct {
	Name      string       `json:"name"`
	Namespace string       `json:"namespace"`
	Needs     []string     `json:"needs,omitempty"`
	Objects   []planObject `json:"objects"`
	Delete    []apps.Ref   `json:"delete,omitempty"`
}

type planObject struct {
	apps.Ref
	Content json.RawMessage `json:"content"`
}

func planOf(r *render.Rendering) plan {
	p := plan{Apps: []planApp{}, Delete: refs(r.Delete)}
	for _, a := range r.Apps {
		app := planApp{Name: a.Name, Namespace: a.Namespace, Needs: a.Needs, Delete: refs(a.Delete)}
		for _, o := range a.Objects {
			app.Objects = append(app.Objects, planObject{apps.Ref{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}, o.JSON})
		}
		p.Apps = append(p.Apps, app)
	}
	return p
}

func refs(list []fleet.ObjectRef) []apps.Ref {
	var out []apps.Ref
	for _, r := range list {
		out = append(out, apps.Ref{APIVersion: r.APIVersion, Kind: r.Kind, Namespace: r.Namespace, Name: r.Name})
	}
	return out
}

// wanted is the plan of an order, as the engine takes it.
func wanted(o applier.Order) (apps.Plan, error) {
	var p plan
	d := json.NewDecoder(bytes.NewReader(o.Plan))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return apps.Plan{}, fmt.Errorf("read the plan of release %d: %w", o.Release, err)
	}
	out := apps.Plan{Release: o.Release, Delete: p.Delete}
	for _, a := range p.Apps {
		app := apps.App{Name: a.Name, Namespace: a.Namespace, Needs: a.Needs, Delete: a.Delete}
		for _, o := range a.Objects {
			app.Objects = append(app.Objects, apps.Object{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, JSON: o.Content})
		}
		out.Apps = append(out.Apps, app)
	}
	return out, nil
}

// connect gives the engine for an API server, made once it is wanted.
func (l *Local) connect(api applier.API) (*apps.Engine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.engine != nil && l.api == api {
		return l.engine, nil
	}
	engine, err := apps.New(apps.Config{
		REST: &rest.Config{
			Host:            api.URL,
			TLSClientConfig: rest.TLSClientConfig{ServerName: api.Name, CAFile: api.CA, CertFile: api.Cert, KeyFile: api.Key},
		},
		Log: l.Log,
	})
	if err != nil {
		return nil, err
	}
	l.api, l.engine = api, engine
	return engine, nil
}

// Apply has applier.Child's shape.
func (l *Local) Apply(ctx context.Context, o applier.Order) (applier.Result, error) {
	p, err := wanted(o)
	if err != nil {
		return applier.Result{}, err
	}
	engine, err := l.connect(o.API)
	if err != nil {
		return applier.Result{}, err
	}
	result, err := engine.Apply(ctx, p)
	return resultOf(result), err
}

func resultOf(r apps.Result) applier.Result {
	out := applier.Result{Apps: []applier.AppResult{}, Writes: r.Writes}
	for _, a := range r.Apps {
		app := applier.AppResult{Name: a.App, State: applier.State(a.State), Applied: a.Applied, Unchanged: a.Unchanged}
		if len(a.Messages) > 0 {
			app.Detail = a.Messages[0].Object.String() + ": " + a.Messages[0].Text
		}
		out.Apps = append(out.Apps, app)
		if out.Fault == "" && (a.State == apps.Failed || a.State == apps.Waiting) && app.Detail != "" {
			out.Fault = "app " + a.App + ": " + app.Detail
		}
	}
	if out.Fault == "" && !r.OK() {
		out.Fault = "an app was not applied"
	}
	return out
}

// Watch has applier.Child's shape.
func (l *Local) Watch(ctx context.Context, api applier.API, report func(applier.Status)) error {
	engine, err := l.connect(api)
	if err != nil {
		return err
	}
	err = engine.Watch(ctx, func(s apps.AppStatus) {
		report(applier.Status{App: s.App, Health: applier.Health(s.Health), Message: s.Message, Ready: s.Ready, Total: s.Total})
	})
	if err == nil {
		err = errors.New("the watch ended by itself")
	}
	return err
}
