package apps

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
)

// Status judges one app as it is now, by asking the API server for it.
func (e *Engine) Status(ctx context.Context, app string) (AppStatus, error) {
	books, _ := e.snapshot()
	inv := books[app]
	if inv == nil {
		return AppStatus{}, fmt.Errorf("app %s: nothing of it was applied", app)
	}
	b := newBoard()
	b.expect(app, inv.Release, refsOf(inv))
	for _, k := range kindsOf(inv) {
		if err := e.survey(ctx, k, LabelApp+"="+app, b); err != nil {
			return AppStatus{}, fmt.Errorf("app %s: %w", app, err)
		}
	}
	return b.status(app), nil
}

func refsOf(inv *inventory) []Ref {
	refs := make([]Ref, len(inv.Objects))
	for i, o := range inv.Objects {
		refs[i] = o.Ref
	}
	return refs
}

// kind is a kind to be watched, under the API version that it was applied in.
type kind struct{ apiVersion, kind string }

func kindsOf(invs ...*inventory) []kind {
	var out []kind
	seen := map[kind]bool{}
	for _, inv := range invs {
		for _, o := range inv.Objects {
			k := kind{o.APIVersion, o.Kind}
			if !o.inert() && !seen[k] {
				seen[k] = true
				out = append(out, k)
			}
		}
	}
	return out
}

// survey puts all objects of a kind on the board, page by page; none is kept.
func (e *Engine) survey(ctx context.Context, k kind, selector string, b *board) error {
	_, err := e.surveyFrom(ctx, k, selector, func(seen map[identity]bool, us []unstructured.Unstructured, last bool) {
		for i := range us {
			b.see(&us[i])
		}
		if last {
			b.absent(Ref{APIVersion: k.apiVersion}.group(), k.kind, seen)
		}
	})
	return err
}

// surveyFrom lists a kind and returns the resource version from which a watch goes on.
func (e *Engine) surveyFrom(ctx context.Context, k kind, selector string, page func(seen map[identity]bool, us []unstructured.Unstructured, last bool)) (string, error) {
	seen := map[identity]bool{}
	res, err := e.client.find(ctx, Ref{APIVersion: k.apiVersion, Kind: k.kind})
	if errors.Is(err, errNoKind) {
		page(seen, nil, true)
	}
	if err != nil {
		return "", err
	}
	opts := metav1.ListOptions{LabelSelector: selector, Limit: 100}
	for {
		list, err := e.client.dyn.Resource(res.GroupVersionResource).List(ctx, opts)
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			seen[refOf(&list.Items[i]).identity()] = true
		}
		opts.Continue = list.GetContinue()
		page(seen, list.Items, opts.Continue == "")
		if opts.Continue == "" {
			return list.GetResourceVersion(), nil
		}
	}
}

// news is what a watcher found. Exactly one field is set.
type news struct {
	objects []unstructured.Unstructured
	gone    *unstructured.Unstructured
	all     map[identity]bool // a list ended: everything of the kind that is not in here is missing
	kind    kind
}

// Watch calls report with the status of every app, at once and then at each change, until ctx ends. It holds a verdict per object and no objects.
// While the API server cannot be reached it keeps trying, four times a second at first; report is called from one goroutine.
func (e *Engine) Watch(ctx context.Context, report func(AppStatus)) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	if err := e.firstLoad(ctx); err != nil {
		return err
	}
	found := make(chan news)
	b := newBoard()
	running := map[kind]context.CancelFunc{}
	for {
		books, changed := e.snapshot()
		e.retarget(ctx, b, books, running, found, &group)
	drain:
		for {
			for _, s := range b.changes() {
				report(s)
			}
			select {
			case n := <-found:
				b.take(n)
			case <-changed:
				break drain
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// firstLoad reads the books when no Apply has done so, as after a restart of this program.
func (e *Engine) firstLoad(ctx context.Context) error {
	for pause := 50 * time.Millisecond; ; pause = retryPause(pause) {
		e.mu.Lock()
		loaded := e.loaded
		e.mu.Unlock()
		if loaded {
			return nil
		}
		list, err := e.client.dyn.Resource(configMaps.GroupVersionResource).Namespace(Namespace).List(ctx, metav1.ListOptions{LabelSelector: inventoryLabel})
		if err == nil {
			for _, m := range list.Items {
				data, _, _ := unstructured.NestedString(m.Object, "data", booksKey)
				if inv, err := decodeInventory(data); err == nil {
					e.mu.Lock()
					if !e.loaded {
						e.books[inv.App] = inv
					}
					e.mu.Unlock()
				}
			}
			return nil
		}
		if !sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

func retryPause(p time.Duration) time.Duration {
	if p < 250*time.Millisecond {
		return min(p*3/2, 250*time.Millisecond)
	}
	return min(p*21/20, 2*time.Second) // slowly: at a start the server is seconds away
}

// retarget makes board and watchers follow the books.
func (e *Engine) retarget(ctx context.Context, b *board, books map[string]*inventory, running map[kind]context.CancelFunc, found chan<- news, group *sync.WaitGroup) {
	var all []*inventory
	for app, inv := range books {
		b.expect(app, inv.Release, refsOf(inv))
		all = append(all, inv)
	}
	for app := range b.apps {
		if books[app] == nil {
			b.forget(app)
		}
	}
	want := map[kind]bool{}
	for _, k := range kindsOf(all...) {
		want[k] = true
		if running[k] != nil {
			if !b.unseen(k) {
				continue
			}
			running[k]() // its list is older than what is expected now
		}
		ctx, stop := context.WithCancel(ctx)
		running[k] = stop
		group.Go(func() { e.follow(ctx, k, found) })
	}
	for k, stop := range running {
		if !want[k] {
			stop()
			delete(running, k)
		}
	}
}

// follow lists and watches one kind until ctx ends.
func (e *Engine) follow(ctx context.Context, k kind, found chan<- news) {
	tell := func(n news) {
		n.kind = k
		select {
		case found <- n:
		case <-ctx.Done():
		}
	}
	const first = 50 * time.Millisecond
	for pause := first; ctx.Err() == nil; {
		version, err := e.surveyFrom(ctx, k, LabelApp, func(seen map[identity]bool, us []unstructured.Unstructured, last bool) {
			tell(news{objects: us})
			if last {
				tell(news{all: seen})
			}
		})
		if err == nil {
			pause = first
			err = e.stream(ctx, k, version, tell)
		}
		if err != nil && ctx.Err() == nil {
			e.cfg.Log.Debug("watch interrupted", "kind", k.kind, "err", err)
		}
		sleep(ctx, pause)
		pause = retryPause(pause)
	}
}

// stream passes on what happens to one kind, until the server ends the watch.
func (e *Engine) stream(ctx context.Context, k kind, version string, tell func(news)) error {
	res, err := e.client.find(ctx, Ref{APIVersion: k.apiVersion, Kind: k.kind})
	if err != nil {
		return err
	}
	w, err := e.client.dyn.Resource(res.GroupVersionResource).Watch(ctx, metav1.ListOptions{LabelSelector: LabelApp, ResourceVersion: version, AllowWatchBookmarks: true})
	if err != nil {
		return err
	}
	defer w.Stop()
	for ev := range w.ResultChan() {
		u, ok := ev.Object.(*unstructured.Unstructured)
		switch {
		case ev.Type == watch.Error:
			return fmt.Errorf("the API server ended the watch: %v", ev.Object)
		case !ok, ev.Type == watch.Bookmark:
		case ev.Type == watch.Deleted:
			tell(news{gone: u})
		default:
			tell(news{objects: []unstructured.Unstructured{*u}})
		}
	}
	return nil
}

// take puts news on the board.
func (b *board) take(n news) {
	for i := range n.objects {
		b.see(&n.objects[i])
	}
	if n.gone != nil {
		b.gone(n.gone.GetLabels()[LabelApp], refOf(n.gone).identity())
	}
	if n.all != nil {
		b.absent(Ref{APIVersion: n.kind.apiVersion}.group(), n.kind.kind, n.all)
	}
}
