package apps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// Config of an Engine.
type Config struct {
	REST *rest.Config // how to reach the site's API server, with rights to everything

	NeedsWait  time.Duration   // how long an app waits for a needed app to be ready; 0: 5 min
	ObjectWait time.Duration   // how long one object is tried again while the API server, a webhook or a namespace is not there; 0: 30 s
	KindWait   time.Duration   // how long a kind that is not served yet is waited for; 0: 15 s
	GoneWait   time.Duration   // how long removed custom resources may take before their controllers are removed; 0: 30 s
	Done       func(AppResult) // told as soon as an app is done, from several goroutines; nil: nobody
	Log        *slog.Logger    // nil: slog.Default
}

// Engine applies plans to one site. One Apply runs at a time; Watch and Status may run beside it.
type Engine struct {
	cfg    Config
	client *client

	apply sync.Mutex // held by Apply

	mu      sync.Mutex
	loaded  bool                  // books holds what is in the cluster
	books   map[string]*inventory // by app; replaced, never changed
	changed chan struct{}         // closed and replaced when books changes
}

// New makes an engine. It does not connect.
func New(cfg Config) (*Engine, error) {
	for d, or := range map[*time.Duration]time.Duration{
		&cfg.NeedsWait: 5 * time.Minute, &cfg.ObjectWait: 30 * time.Second, &cfg.KindWait: 15 * time.Second, &cfg.GoneWait: 30 * time.Second,
	} {
		if *d == 0 {
			*d = or
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	c, err := newClient(cfg.REST)
	if err != nil {
		return nil, err
	}
	return &Engine{cfg: cfg, client: c, books: map[string]*inventory{}, changed: make(chan struct{})}, nil
}

var (
	configMaps = resource{corev1.SchemeGroupVersion.WithResource("configmaps"), true}
	namespaces = resource{corev1.SchemeGroupVersion.WithResource("namespaces"), false}
	claimsAt   = resource{corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims"), true}
)

// setBooks replaces what is known of one app and wakes the watchers; nil forgets the app.
func (e *Engine) setBooks(app string, inv *inventory) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if inv == nil {
		delete(e.books, app)
	} else {
		e.books[app] = inv
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// snapshot is the books now, and a channel that is closed when they change.
func (e *Engine) snapshot() (map[string]*inventory, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.books), e.changed
}

// work is one Apply: what its apps share. The maps are filled before the apps start and only read by them.
type work struct {
	*Engine
	plan   Plan
	wanted map[identity]string      // every object of the plan, to its app
	digest map[identity]string      //
	once   map[string]*once         // by app
	raw    map[string]string        // data of the ConfigMaps as they are in the cluster, by name
	limit  chan struct{}            // one for each write under way
	done   map[string]chan struct{} // by app; closed when the app's result stands
	result map[string]*AppResult    // by app; written by its goroutine before done closes
}

// Apply makes the cluster what the plan says. The error is about what keeps it from working at all (no API server, a plan that is not
// one, ctx); what happened to each app is in the result, which is also filled as far as it goes when there is an error.
func (e *Engine) Apply(ctx context.Context, plan Plan) (Result, error) {
	e.apply.Lock()
	defer e.apply.Unlock()
	before := e.client.writes.Load()
	w := &work{
		Engine: e, plan: plan, wanted: map[identity]string{}, digest: map[identity]string{}, once: map[string]*once{}, raw: map[string]string{},
		limit: make(chan struct{}, 8), done: map[string]chan struct{}{}, result: map[string]*AppResult{},
	}
	out := Result{Release: plan.Release}
	if err := w.check(); err != nil {
		return out, err
	}
	if err := w.load(ctx); err != nil {
		return out, err
	}
	var group sync.WaitGroup
	for i := range plan.Apps {
		app := &plan.Apps[i]
		group.Go(func() {
			defer close(w.done[app.Name])
			start := time.Now()
			r := w.app(ctx, app)
			r.Took = time.Since(start)
			*w.result[app.Name] = r
			if e.cfg.Done != nil {
				e.cfg.Done(r)
			}
		})
	}
	group.Wait()
	for _, app := range plan.Apps {
		out.Apps = append(out.Apps, *w.result[app.Name])
	}
	if out.OK() && !plan.KeepOld && ctx.Err() == nil {
		out.Apps = append(out.Apps, w.leftovers(ctx)...)
	}
	out.Writes = e.client.writes.Load() - before
	return out, ctx.Err()
}

// check refuses plans that cannot be carried out, whatever the cluster.
func (w *work) check() error {
	var errs []error
	for _, app := range w.plan.Apps {
		if _, twice := w.done[app.Name]; twice || app.Name == "" {
			errs = append(errs, fmt.Errorf("app %q is in the plan twice, or has no name", app.Name))
			continue
		}
		w.done[app.Name] = make(chan struct{})
		w.result[app.Name] = &AppResult{App: app.Name, State: Waiting}
		for _, o := range app.Objects {
			id := o.Ref().identity()
			if other, taken := w.wanted[id]; taken {
				errs = append(errs, fmt.Errorf("%s is in app %s and in app %s", o.Ref(), other, app.Name))
			}
			d, err := o.digest()
			if err != nil {
				errs = append(errs, fmt.Errorf("app %s: %w", app.Name, err))
			}
			w.wanted[id], w.digest[id] = app.Name, d
		}
	}
	for _, app := range w.plan.Apps {
		for _, r := range app.Delete {
			if other, ok := w.wanted[r.identity()]; ok {
				errs = append(errs, fmt.Errorf("app %s asks to delete %s, which app %s brings", app.Name, r, other))
			}
		}
	}
	if loop := circle(w.plan.Apps); loop != "" {
		errs = append(errs, fmt.Errorf("app %s needs itself, through others", loop))
	}
	return errors.Join(errs...)
}

// circle returns an app that needs itself, or "".
func circle(apps []App) string {
	needs := map[string][]string{}
	for _, a := range apps {
		needs[a.Name] = a.Needs
	}
	const looking, fine = 1, 2
	state := map[string]int{}
	var visit func(string) bool
	visit = func(a string) bool {
		if state[a] != 0 {
			return state[a] == looking
		}
		state[a] = looking
		defer func() { state[a] = fine }()
		return slices.ContainsFunc(needs[a], visit)
	}
	for _, a := range apps {
		if visit(a.Name) {
			return a.Name
		}
	}
	return ""
}

// load reads the books of all apps, with one request.
func (w *work) load(ctx context.Context) error {
	var list *unstructured.UnstructuredList
	err := again(ctx, w.cfg.ObjectWait, transient, func() (err error) {
		list, err = w.client.dyn.Resource(configMaps.GroupVersionResource).Namespace(Namespace).List(ctx, metav1.ListOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("read the inventories: %w", err)
	}
	books := map[string]*inventory{}
	for _, m := range list.Items {
		data, _, _ := unstructured.NestedString(m.Object, "data", booksKey)
		if app, ok := m.GetLabels()[inventoryLabel]; ok {
			inv, err := decodeInventory(data)
			if err != nil {
				w.cfg.Log.Warn("inventory is not readable, making it again from the labels", "app", app, "err", err)
				continue
			}
			books[app] = inv
		} else if app, ok := m.GetLabels()[onceLabel]; ok {
			o, err := decodeOnce(data)
			if err != nil {
				return fmt.Errorf("app %q: %w", app, err) // guessing here could run a migration twice
			}
			w.once[m.GetName()] = o
		} else {
			continue
		}
		w.raw[m.GetName()] = data
	}
	lost := w.plan.Rescan
	if len(books) == 0 && !lost {
		// Either nothing was ever applied here, or the books are gone. The namespace tells.
		ns, err := w.client.get(ctx, namespaces, "", Namespace)
		if err != nil {
			return fmt.Errorf("read the inventories: %w", err)
		}
		lost = ns != nil
	}
	if lost {
		if err := w.rescan(ctx, books); err != nil {
			return err
		}
	}
	w.mu.Lock()
	w.books, w.loaded = books, true
	close(w.changed)
	w.changed = make(chan struct{})
	w.mu.Unlock()
	return nil
}

// rescan completes books from the labels on all objects of the cluster.
func (w *work) rescan(ctx context.Context, books map[string]*inventory) error {
	all, err := w.client.listable(ctx, false)
	if err != nil {
		return fmt.Errorf("make the inventories again: %w", err)
	}
	for _, r := range all {
		err := w.client.list(ctx, r.resource, "", LabelApp, func(m *metav1.PartialObjectMetadata) {
			if _, ours := m.Annotations[AnnotationDigest]; !ours || len(m.OwnerReferences) > 0 || m.DeletionTimestamp != nil {
				return // made from one of ours, by a controller that copies labels; or on its way out
			}
			app := m.Labels[LabelApp]
			inv := books[app]
			if inv == nil {
				inv = &inventory{Version: 1, App: app}
				books[app] = inv
			}
			ref := Ref{r.GroupVersion().String(), r.kind, m.Namespace, m.Name}
			if !inv.has(ref.identity()) {
				inv.Objects = append(inv.Objects, entry{Ref: ref})
			}
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsMethodNotSupported(err) {
			return fmt.Errorf("make the inventories again: list %s: %w", r.GroupVersionResource, err)
		}
	}
	return nil
}

// write keeps a ConfigMap of the books, when its data changed; empty data removes it.
func (w *work) write(ctx context.Context, name, label, app, data string) error {
	w.mu.Lock()
	same := w.raw[name] == data
	w.mu.Unlock()
	if same {
		return nil
	}
	maps := w.client.dyn.Resource(configMaps.GroupVersionResource).Namespace(Namespace)
	err := again(ctx, w.cfg.ObjectWait, transient, func() error {
		if data == "" {
			err := maps.Delete(ctx, name, metav1.DeleteOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
		u, err := toUnstructured(&corev1.ConfigMap{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: Namespace, Labels: map[string]string{label: app}},
			Data:       map[string]string{booksKey: data},
		})
		if err != nil {
			return err
		}
		_, err = maps.Apply(ctx, name, u, metav1.ApplyOptions{FieldManager: Manager, Force: true})
		if apierrors.IsNotFound(err) { // the namespace: first time on this site
			ns, convert := toUnstructured(&corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: Namespace}})
			if convert != nil {
				return convert
			}
			if _, made := w.client.dyn.Resource(namespaces.GroupVersionResource).Apply(ctx, Namespace, ns, metav1.ApplyOptions{FieldManager: Manager, Force: true}); made != nil {
				return made
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep the books in ConfigMap %s/%s: %w", Namespace, name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.raw[name] = data; data == "" {
		delete(w.raw, name)
	}
	return nil
}

func (w *work) keepInventory(ctx context.Context, inv *inventory) error {
	if err := w.write(ctx, inventoryName(inv.App), inventoryLabel, inv.App, inv.encode()); err != nil {
		return err
	}
	w.setBooks(inv.App, inv)
	return nil
}

func (w *work) dropInventory(ctx context.Context, app string) error {
	if err := w.write(ctx, inventoryName(app), inventoryLabel, app, ""); err != nil {
		return err
	}
	w.setBooks(app, nil)
	return nil
}

// onceOf returns a copy of an app's books of what happens once.
func (w *work) onceOf(app string) *once {
	o := &once{Version: 1, Jobs: map[string]string{}}
	if have := w.once[onceName(app)]; have != nil {
		maps.Copy(o.Jobs, have.Jobs)
		o.Deletes = slices.Clone(have.Deletes)
	}
	return o
}

func (w *work) keepOnce(ctx context.Context, app string, o *once) error {
	data := o.encode()
	if len(o.Jobs) == 0 && len(o.Deletes) == 0 {
		data = ""
	}
	return w.write(ctx, onceName(app), onceLabel, app, data)
}

func toUnstructured(o any) (*unstructured.Unstructured, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	delete(m, "status")
	delete(m, "spec")
	unstructured.RemoveNestedField(m, "metadata", "creationTimestamp")
	return &unstructured.Unstructured{Object: m}, nil
}
