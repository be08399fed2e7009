package apps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// run is one app within an Apply.
type run struct {
	*work
	app  *App
	old  *inventory // as the books say; empty, never nil
	once *once

	mu     sync.Mutex // the objects of a stage are applied side by side
	now    inventory
	result AppResult
}

// live is what is in the cluster of an app's objects, from their metadata.
type live map[identity]*metav1.PartialObjectMetadata

// app brings one app to what the plan says.
func (w *work) app(ctx context.Context, app *App) AppResult {
	books, _ := w.snapshot()
	r := &run{work: w, app: app, old: books[app.Name], once: w.onceOf(app.Name), result: AppResult{App: app.Name, State: Failed}}
	if r.old == nil {
		r.old = &inventory{Version: 1, App: app.Name}
	}
	if err := r.run(ctx); err != nil {
		r.result.say(Ref{}, reasonOf(err), "%v", err)
	}
	return r.result
}

func (r *run) run(ctx context.Context) error {
	there, err := r.look(ctx)
	if err != nil {
		return err
	}
	if len(r.old.Objects) == 0 && len(there) > 0 { // its book is gone, its objects are not
		found := map[string]*inventory{}
		if err := r.rescan(ctx, found); err != nil {
			return err
		}
		if inv := found[r.app.Name]; inv != nil {
			r.old = inv
		}
	}
	var todo []Object
	for _, o := range r.app.Objects {
		if r.settled(o, there) {
			r.result.Unchanged++
			continue
		}
		todo = append(todo, o)
	}
	r.now = inventory{Version: 1, App: r.app.Name, Release: r.old.Release, Objects: r.union(there)}
	if len(todo) > 0 {
		if missing, err := r.needs(ctx); err != nil {
			r.result.State = Waiting
			r.result.Skipped = len(todo)
			r.result.say(Ref{}, NeedsWait, "needs app %s: %v", missing, err)
			return nil
		}
		r.now.Release = r.plan.Release
		// The books first: a crash from here on leaves no object that they do not know.
		if err := r.keepInventory(ctx, &inventory{Version: 1, App: r.app.Name, Release: r.now.Release, Objects: r.now.Objects}); err != nil {
			return err
		}
		if !r.stages(ctx, todo, there) {
			return r.keep(ctx)
		}
	}
	if !r.plan.KeepOld {
		r.deletes(ctx)
		r.prune(ctx)
	}
	if err := r.keep(ctx); err != nil {
		return err
	}
	if r.result.Failed == 0 {
		r.result.State = Applied
	}
	return nil
}

// keep writes both books, if they changed.
func (r *run) keep(ctx context.Context) error {
	now := r.now
	return errors.Join(r.keepOnce(ctx, r.app.Name, r.once), r.keepInventory(ctx, &now))
}

// union is every object that the books have or the plan wants.
func (r *run) union(there live) []entry {
	all := slices.Clone(r.old.Objects)
	for _, o := range r.app.Objects {
		ref := r.placed(o.Ref())
		_, is := there[ref.identity()]
		i := slices.IndexFunc(all, func(e entry) bool { return e.identity() == ref.identity() })
		if i < 0 {
			all = append(all, entry{Pending: true})
			i = len(all) - 1
		}
		all[i] = entry{ref, all[i].Pending && !is} // perhaps under another version of its API
	}
	return all
}

// look lists what is there of this app, one request for each kind that it has.
func (r *run) look(ctx context.Context) (live, error) {
	there := live{}
	asked := map[resource]bool{}
	for _, o := range r.app.Objects {
		ref := o.Ref()
		res, err := r.client.find(ctx, ref)
		if errors.Is(err, errNoKind) {
			continue // its definition comes with this plan, or it fails later with a name
		}
		if err != nil {
			return nil, err
		}
		if asked[res] {
			continue
		}
		asked[res] = true
		err = again(ctx, r.cfg.ObjectWait, func(err error) bool { return transient(err) && !apierrors.IsNotFound(err) }, func() error {
			return r.client.list(ctx, res, "", LabelApp+"="+r.app.Name, func(m *metav1.PartialObjectMetadata) {
				there[Ref{ref.APIVersion, ref.Kind, m.Namespace, m.Name}.identity()] = m
			})
		})
		if apierrors.IsNotFound(err) { // the definition went away meanwhile
			r.client.forget(ref)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", res.Resource, err)
		}
	}
	return there, nil
}

// settled says whether an object needs nothing: it is there with this content, or it is a Job that ran with it.
func (r *run) settled(o Object, there live) bool {
	ref := o.Ref()
	digest := r.digest[ref.identity()]
	m := there[r.placed(ref).identity()]
	same := m != nil && m.Annotations[AnnotationDigest] == digest && m.DeletionTimestamp == nil
	if ref.is("Job") {
		job := ref.Namespace + "/" + ref.Name
		if same {
			r.once.Jobs[job] = digest
		}
		return same || r.once.Jobs[job] == digest
	}
	return same && !r.plan.Repair
}

// placed fills in the namespace of an object whose kind turns out to have one.
func (r *run) placed(ref Ref) Ref {
	r.client.mu.Lock()
	defer r.client.mu.Unlock()
	res, ok := r.client.kinds[ref.gvk().GroupVersion()][ref.Kind]
	if ok && res.namespaced && ref.Namespace == "" {
		ref.Namespace = r.app.Namespace
	}
	if ok && !res.namespaced {
		ref.Namespace = ""
	}
	return ref
}

// needs waits until what the app needs is applied and ready. It returns the app that is not.
func (r *run) needs(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.NeedsWait)
	defer cancel()
	for _, need := range r.app.Needs {
		done, ok := r.done[need]
		if !ok {
			return need, errors.New("it is not in the release")
		}
		select {
		case <-done:
		case <-ctx.Done():
			return need, errors.New("it is not applied yet")
		}
		if s := r.work.result[need].State; s != Applied {
			return need, fmt.Errorf("it is %s", s)
		}
		if err := r.waitReady(ctx, need); err != nil {
			return need, err
		}
	}
	return "", nil
}

// stages applies objects stage by stage; false when something failed, the stages behind it are then not tried.
func (r *run) stages(ctx context.Context, todo []Object, there live) bool {
	all := inStages(todo, Object.Ref)
	for i, stage := range all {
		var group sync.WaitGroup
		for _, o := range stage {
			group.Go(func() {
				r.object(ctx, o, there)
			})
		}
		group.Wait()
		if r.result.Failed > 0 || ctx.Err() != nil {
			for _, later := range all[i+1:] {
				r.result.Skipped += len(later)
			}
			return false
		}
	}
	return true
}

// object applies one object and notes what came of it.
func (r *run) object(ctx context.Context, o Object, there live) {
	wrote, err := r.applyObject(ctx, o, there)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.result.Failed++
		r.result.say(o.Ref(), reasonOf(err), "%s", explain(err))
	case wrote:
		r.result.Applied++
	default:
		r.result.Unchanged++
	}
}

// applyObject says whether the object was written.
func (r *run) applyObject(ctx context.Context, o Object, there live) (bool, error) {
	ref := o.Ref()
	var res resource
	err := again(ctx, r.cfg.KindWait, func(err error) bool { return errors.Is(err, errNoKind) && r.mayCome(ref) || transient(err) }, func() (err error) {
		res, err = r.client.find(ctx, ref)
		return err
	})
	if err != nil {
		return false, err
	}
	ref = r.placed(ref)
	before, err := r.before(ctx, res, ref, there)
	if err != nil {
		return false, err
	}
	ours := before == nil || before.Labels[LabelApp] != "" && before.Annotations[AnnotationDigest] != "" || r.mine(ref)
	u, err := r.dressed(o, ref, before, ours)
	if err != nil {
		return false, err
	}
	if before != nil && ours && before.Annotations[AnnotationDigest] == u.GetAnnotations()[AnnotationDigest] {
		return r.repair(ctx, res, ref, u, before)
	}
	// What is not there is not forced either: whoever makes it in this instant keeps it.
	after, err := r.send(ctx, res, ref, u, ours && before != nil)
	if immutable(err) && before != nil && ours && u.GetAnnotations()[AnnotationRecreate] == "true" && !holdsData(ref) {
		if err = r.recreate(ctx, res, before); err == nil {
			after, err = r.send(ctx, res, ref, u, false)
		}
	}
	if err != nil {
		return false, err
	}
	r.noted(ref, after)
	if ref.is("CustomResourceDefinition") {
		if err := r.established(ctx, res, ref.Name, after); err != nil {
			return true, err
		}
	}
	return true, nil
}

// repair applies content that was applied before, and says whether that changed anything. It insists on the version that it has seen: without that, what a
// controller writes in between (a status) would look like a change of ours. Where somebody writes so often that this never succeeds, it goes without,
// and our entry in the managed fields tells, which the API server leaves alone when an apply changes nothing.
func (r *run) repair(ctx context.Context, res resource, ref Ref, u *unstructured.Unstructured, before *metav1.PartialObjectMetadata) (bool, error) {
	for range 3 {
		u.SetResourceVersion(before.ResourceVersion)
		after, err := r.request(ctx, res, ref, u, true)
		if err == nil {
			r.noted(ref, after)
			return after.GetResourceVersion() != before.ResourceVersion, nil
		}
		if !apierrors.IsConflict(err) {
			break // the unconditional way has the patience for everything else, or says what is wrong
		}
		if now, err := r.client.get(ctx, res, ref.Namespace, ref.Name); err == nil && now != nil {
			before = now
		}
	}
	u.SetResourceVersion("")
	after, err := r.send(ctx, res, ref, u, true)
	if err != nil {
		return false, err
	}
	r.noted(ref, after)
	return !ourTime(before.ManagedFields).Equal(ourTime(after.GetManagedFields())), nil
}

// ourTime is when an apply of ours last changed an object, to the second.
func ourTime(fields []metav1.ManagedFieldsEntry) *metav1.Time {
	for _, f := range fields {
		if f.Manager == Manager && f.Operation == metav1.ManagedFieldsOperationApply && f.Subresource == "" {
			return f.Time
		}
	}
	return nil
}

// before is the object as it is now, nil when there is none. One that is on its way out is waited for: what is written to it would go with it.
func (r *run) before(ctx context.Context, res resource, ref Ref, there live) (m *metav1.PartialObjectMetadata, err error) {
	if m = there[ref.identity()]; m != nil && m.DeletionTimestamp == nil {
		return m, nil
	}
	going := errors.New("the old object of this name is still being deleted")
	err = again(ctx, r.cfg.ObjectWait, func(err error) bool { return transient(err) || errors.Is(err, going) }, func() (err error) {
		m, err = r.client.get(ctx, res, ref.Namespace, ref.Name)
		if err == nil && m != nil && m.DeletionTimestamp != nil {
			err = going
		}
		return err
	})
	return m, err
}

// send applies one object, again while the API server, a webhook or the namespace is not there.
func (r *run) send(ctx context.Context, res resource, ref Ref, u *unstructured.Unstructured, force bool) (after *unstructured.Unstructured, err error) {
	err = again(ctx, r.cfg.ObjectWait, transient, func() (err error) {
		after, err = r.request(ctx, res, ref, u, force)
		return err
	})
	if apierrors.IsNotFound(err) {
		r.client.forget(ref)
	}
	return after, err
}

// request is one server-side apply; only so many are under way at a time.
func (r *run) request(ctx context.Context, res resource, ref Ref, u *unstructured.Unstructured, force bool) (*unstructured.Unstructured, error) {
	r.limit <- struct{}{}
	defer func() { <-r.limit }()
	return r.client.dyn.Resource(res.GroupVersionResource).Namespace(ref.Namespace).Apply(ctx, ref.Name, u, metav1.ApplyOptions{FieldManager: Manager, Force: force})
}

// mayCome says whether a kind that is not served yet is a matter of waiting: this app or one that it needs may define it.
func (r *run) mayCome(ref Ref) bool {
	return !builtIn(ref.group()) && (len(r.app.Needs) > 0 || slices.ContainsFunc(r.app.Objects, func(o Object) bool { return o.Ref().is("CustomResourceDefinition") })) ||
		slices.ContainsFunc(r.app.Objects, func(o Object) bool { return o.Ref().is("APIService") })
}

// mine says whether the books have an object as one that was applied.
func (r *run) mine(ref Ref) bool {
	return slices.ContainsFunc(r.old.Objects, func(e entry) bool { return e.identity() == ref.identity() && !e.Pending })
}

// dressed is the object with our labels and annotations.
func (r *run) dressed(o Object, ref Ref, before *metav1.PartialObjectMetadata, ours bool) (*unstructured.Unstructured, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(o.JSON); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	if u.GetName() != ref.Name || u.GetKind() != ref.Kind || u.GetAPIVersion() != ref.APIVersion {
		return nil, fmt.Errorf("%s: its content calls it %s", ref, refOf(u))
	}
	u.SetNamespace(ref.Namespace)
	if ref.Namespace == "" {
		unstructured.RemoveNestedField(u.Object, "metadata", "namespace")
	}
	labels, annotations := u.GetLabels(), u.GetAnnotations()
	if labels == nil {
		labels = map[string]string{}
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	labels[LabelApp], labels[LabelRelease] = r.app.Name, fmt.Sprint(r.plan.Release)
	annotations[AnnotationDigest] = r.digest[o.Ref().identity()]
	if before != nil && (!ours || before.Annotations[AnnotationAdopted] == "true") {
		annotations[AnnotationAdopted] = "true"
	}
	if before != nil && before.Annotations[AnnotationDigest] == annotations[AnnotationDigest] && before.Labels[LabelRelease] != "" {
		labels[LabelRelease] = before.Labels[LabelRelease] // a repair: the content is still that release's
	}
	u.SetLabels(labels)
	u.SetAnnotations(annotations)
	return u, nil
}

// noted puts an applied object into the books.
func (r *run) noted(ref Ref, after *unstructured.Unstructured) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bare := ref
	bare.Namespace = "" // as it stood there while its kind was not served
	r.now.Objects = slices.DeleteFunc(r.now.Objects, func(e entry) bool { return e.identity() == ref.identity() || e.identity() == bare.identity() })
	r.now.Objects = append(r.now.Objects, entry{Ref: ref})
	if ref.is("Job") {
		r.once.Jobs[ref.Namespace+"/"+ref.Name] = after.GetAnnotations()[AnnotationDigest]
	}
}

// recreate deletes an object, so that it can be made anew, and waits until it is gone.
func (r *run) recreate(ctx context.Context, res resource, m *metav1.PartialObjectMetadata) error {
	r.cfg.Log.Info("an immutable field changes, making the object anew", "app", r.app.Name, "object", m.Namespace+"/"+m.Name, "resource", res.Resource)
	if err := r.client.remove(ctx, res, m); err != nil {
		return err
	}
	return again(ctx, r.cfg.GoneWait, func(error) bool { return true }, func() error {
		now, err := r.client.get(ctx, res, m.Namespace, m.Name)
		if err == nil && now != nil && now.UID == m.UID {
			err = errors.New("the old object is still being deleted")
		}
		return err
	})
}

// holdsData says for which kinds recreating would be deleting data.
func holdsData(ref Ref) bool {
	return ref.is("PersistentVolumeClaim", "PersistentVolume", "Namespace", "CustomResourceDefinition", "StatefulSet") || !builtIn(ref.group())
}

// established waits until a definition is served, since its objects may follow at once.
func (r *run) established(ctx context.Context, res resource, name string, now *unstructured.Unstructured) error {
	return again(ctx, r.cfg.KindWait, func(error) bool { return true }, func() (err error) {
		if condition(now, "Established") == "True" {
			return nil
		}
		if condition(now, "NamesAccepted") == "False" {
			return fmt.Errorf("its names are taken by another definition")
		}
		if now, err = r.client.dyn.Resource(res.GroupVersionResource).Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		if condition(now, "Established") != "True" {
			return errors.New("the definition is not established yet")
		}
		return nil
	})
}

// reasonOf sorts an error.
func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, errNoKind):
		return NoKind
	case apierrors.HasStatusCause(err, metav1.CauseTypeFieldManagerConflict):
		return Conflict
	case immutable(err):
		return Recreate
	case transient(err), errors.Is(err, context.Canceled):
		return Unreached
	}
	return Refused
}

// explain is the error with the next step.
func explain(err error) string {
	switch reasonOf(err) {
	case Recreate:
		return fmt.Sprintf("needs recreate: true (annotation %s), since a field that cannot be changed is another now: %v", AnnotationRecreate, err)
	case Conflict:
		var fields []string
		var s apierrors.APIStatus
		if errors.As(err, &s) && s.Status().Details != nil {
			for _, c := range s.Status().Details.Causes {
				fields = append(fields, strings.TrimSpace(c.Field+" ("+c.Message+")"))
			}
		}
		return "somebody else made it and owns fields of it; give it another name, or delete it there first: " + some(fields)
	}
	return err.Error()
}

// waitReady waits until an app is ready.
func (e *Engine) waitReady(ctx context.Context, app string) error {
	last := AppStatus{Message: "its status is not known"}
	for pause := 30 * time.Millisecond; ; pause = min(pause*3/2, 300*time.Millisecond) {
		s, err := e.Status(ctx, app)
		if err == nil && s.Health == Ready {
			return nil
		}
		if err == nil {
			last = s
		}
		if !sleep(ctx, pause) {
			return fmt.Errorf("it is not ready: %s: %s", last.Object, last.Message)
		}
	}
}
