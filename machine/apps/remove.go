package apps

import (
	"context"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

// deletes carries out the app's Delete entries that were not carried out before.
func (r *run) deletes(ctx context.Context) {
	r.once.Deletes = slices.DeleteFunc(r.once.Deletes, func(d Ref) bool { return !slices.Contains(r.app.Delete, d) })
	for _, ref := range r.app.Delete {
		if slices.Contains(r.once.Deletes, ref) {
			continue
		}
		r.delete(ctx, &r.result, r.once, ref, r.app.Namespace)
	}
}

// delete removes what an entry names, and notes that it has been done.
func (w *work) delete(ctx context.Context, out *AppResult, o *once, ref Ref, namespace string) {
	fail := func(err error) {
		out.Failed++
		out.say(ref, reasonOf(err), "delete: %v", err)
	}
	res, err := w.client.find(ctx, ref)
	if errors.Is(err, errNoKind) {
		o.Deletes = append(o.Deletes, ref)
		return
	}
	if err != nil {
		fail(err)
		return
	}
	if res.namespaced && ref.Namespace == "" {
		if namespace == "" {
			fail(errors.New("the entry must say in which namespace"))
			return
		}
		where := ref
		where.Namespace = namespace
		w.deleteAt(ctx, out, o, ref, where, res, fail)
		return
	}
	w.deleteAt(ctx, out, o, ref, ref, res, fail)
}

func (w *work) deleteAt(ctx context.Context, out *AppResult, o *once, as, ref Ref, res resource, fail func(error)) {
	m, err := w.client.get(ctx, res, ref.Namespace, ref.Name)
	if err == nil && m != nil && m.DeletionTimestamp == nil {
		if err = w.client.remove(ctx, res, m); err == nil {
			out.Deleted++
		}
	}
	if err != nil {
		fail(err)
		return
	}
	o.Deletes = append(o.Deletes, as)
}

// prune removes what the books have and the plan has not.
func (r *run) prune(ctx context.Context) {
	if r.result.Failed > 0 {
		return
	}
	r.now.Objects = r.sweep(ctx, &r.result, r.app.Name, r.now.Objects, nil)
}

// leftovers deals with apps that are not in the plan any more, after what the release says about their data.
func (w *work) leftovers(ctx context.Context) []AppResult {
	books, _ := w.snapshot()
	var out []AppResult
	o := w.onceOf("")
	o.Deletes = slices.DeleteFunc(o.Deletes, func(d Ref) bool { return !slices.Contains(w.plan.Delete, d) })
	var asked AppResult
	for _, ref := range w.plan.Delete {
		if slices.Contains(o.Deletes, ref) {
			continue
		}
		if _, wanted := w.wanted[ref.identity()]; wanted {
			asked.Failed++
			asked.say(ref, Refused, "the release both brings and deletes it")
			continue
		}
		w.delete(ctx, &asked, o, ref, w.namespaceOf(books, ref))
	}
	if err := w.keepOnce(ctx, "", o); err != nil {
		asked.Failed++
		asked.say(Ref{}, reasonOf(err), "%v", err)
	}
	if asked.Deleted+asked.Failed > 0 {
		if asked.State = Applied; asked.Failed > 0 {
			asked.State = Failed
		}
		out = append(out, asked)
	}
	var names []string
	for app := range books {
		if _, in := w.result[app]; !in {
			names = append(names, app)
		}
	}
	slices.Sort(names)
	for _, app := range names {
		r := w.removeApp(ctx, books[app])
		out = append(out, r)
		if w.cfg.Done != nil {
			w.cfg.Done(r)
		}
	}
	return out
}

// namespaceOf finds the namespace of an object that an app which is gone had brought.
func (w *work) namespaceOf(books map[string]*inventory, ref Ref) string {
	for _, inv := range books {
		for _, e := range inv.Objects {
			if e.group() == ref.group() && e.Kind == ref.Kind && e.Name == ref.Name {
				return e.Namespace
			}
		}
	}
	return ""
}

// removeApp takes a whole app away, or leaves all of it in place when it has claims.
func (w *work) removeApp(ctx context.Context, inv *inventory) AppResult {
	r := AppResult{App: inv.App, State: Failed}
	claims, err := w.claimsOf(ctx, inv)
	if err != nil {
		r.Failed++
		r.say(Ref{}, reasonOf(err), "it is not in the release any more; whether it has claims is not known: %v", err)
		return r
	}
	left := w.sweep(ctx, &r, inv.App, inv.Objects, claims)
	if len(left) == 0 {
		err = w.dropInventory(ctx, inv.App)
	} else {
		err = w.keepInventory(ctx, &inventory{Version: 1, App: inv.App, Release: inv.Release, Objects: left})
	}
	switch {
	case err != nil:
		r.Failed++
		r.say(Ref{}, reasonOf(err), "%v", err)
	case r.Failed > 0:
	case r.Orphaned > 0:
		r.State = Orphaned
	case len(left) > 0:
		r.State = Removing
	default:
		r.State = Removed
	}
	return r
}

// sweep removes what may be removed of the entries, last stage first, and returns what stays in the books.
func (w *work) sweep(ctx context.Context, out *AppResult, app string, entries []entry, claims []string) (left []entry) {
	var old []entry
	for _, e := range entries {
		if w.wanted[w.place(e.Ref).identity()] == app {
			left = append(left, e)
			continue
		}
		old = append(old, e)
	}
	stages := inStages(old, func(e entry) Ref { return e.Ref })
	slices.Reverse(stages)
	for i, stage := range stages {
		removed := map[types.UID]removal{}
		for _, e := range stage {
			w.sweepOne(ctx, out, app, e, claims, &left, removed)
		}
		// Custom resources have finalizers that need their controllers, which are in a later stage of this walk.
		if len(stage) > 0 && !builtIn(stage[0].group()) && len(removed) > 0 && i < len(stages)-1 {
			if err := w.waitGone(ctx, removed); err != nil {
				for _, later := range stages[i+1:] {
					left = append(left, later...)
				}
				out.say(Ref{}, Orphan, "what made its custom resources stays until they are gone: %v", err)
				return left
			}
		}
	}
	return left
}

// removal is something that was just deleted.
type removal struct {
	res  resource
	meta *metav1.PartialObjectMetadata
}

// sweepOne decides about one entry and carries it out.
func (w *work) sweepOne(ctx context.Context, out *AppResult, app string, e entry, claims []string, left *[]entry, removed map[types.UID]removal) {
	c, res, m, err := w.facts(ctx, app, e)
	if err != nil {
		out.Failed++
		out.say(e.Ref, reasonOf(err), "remove: %v", err)
		*left = append(*left, e)
		return
	}
	what, why := decide(c, app, claims)
	switch what {
	case forget:
	case orphan:
		out.Orphaned++
		out.say(e.Ref, Orphan, "stays in place: %s", why)
		*left = append(*left, e)
	case remove:
		*left = append(*left, e) // until it is seen to be gone, or the next Apply finds nothing
		if c.Going {
			out.Going++
			return
		}
		if err := w.client.remove(ctx, res, m); err != nil {
			out.Failed++
			out.say(e.Ref, reasonOf(err), "remove: %v", err)
			return
		}
		out.Pruned++
		if now, err := w.client.get(ctx, res, m.Namespace, m.Name); err == nil && (now == nil || now.UID != m.UID) {
			*left = (*left)[:len(*left)-1]
			return
		}
		out.Going++
		removed[m.UID] = removal{res, m}
	}
}

func (w *work) waitGone(ctx context.Context, removed map[types.UID]removal) error {
	return again(ctx, w.cfg.GoneWait, func(error) bool { return true }, func() error {
		for uid, r := range removed {
			now, err := w.client.get(ctx, r.res, r.meta.Namespace, r.meta.Name)
			if err != nil {
				return err
			}
			if now != nil && now.UID == uid {
				return fmt.Errorf("%s %s/%s is still there", r.res.Resource, now.Namespace, now.Name)
			}
			delete(removed, uid)
		}
		return nil
	})
}

// place is a reference as the plan's would be spelt, for comparing the two.
func (w *work) place(ref Ref) Ref {
	if _, ok := w.wanted[ref.identity()]; !ok {
		bare := ref
		bare.Namespace = ""
		if _, ok := w.wanted[bare.identity()]; ok {
			return bare
		}
	}
	return ref
}

// facts gathers what decides about an entry. Nothing is asked that cannot matter any more.
func (w *work) facts(ctx context.Context, app string, e entry) (candidate, resource, *metav1.PartialObjectMetadata, error) {
	c := candidate{entry: e}
	_, c.Wanted = w.wanted[w.place(e.Ref).identity()]
	res, err := w.client.find(ctx, e.Ref)
	if errors.Is(err, errNoKind) {
		return c, res, nil, nil // its definition is gone, and it with it
	}
	if err != nil {
		return c, res, nil, err
	}
	m, err := w.client.get(ctx, res, e.Namespace, e.Name)
	if err != nil || m == nil {
		return c, res, nil, err
	}
	c.Live, c.Going, c.Owner, c.Annotations = true, m.DeletionTimestamp != nil, m.Labels[LabelApp], m.Annotations
	if what, _ := decide(c, app, nil); what != remove || c.Going {
		return c, res, m, nil
	}
	switch {
	case e.is("Job", "StatefulSet"):
		u, err := w.client.dyn.Resource(res.GroupVersionResource).Namespace(e.Namespace).Get(ctx, e.Name, metav1.GetOptions{})
		if err != nil {
			return c, res, m, err
		}
		_, started, _ := unstructured.NestedString(u.Object, "status", "startTime")
		c.Ran = started
		when, _, _ := unstructured.NestedString(u.Object, "spec", "persistentVolumeClaimRetentionPolicy", "whenDeleted")
		c.DeletesClaim = when == "Delete"
	case e.is("Namespace"):
		c.Claims, c.Foreign, err = w.inside(ctx, e.Name)
		if err != nil {
			c.Unknown = err.Error()
		}
	}
	if e.Namespace != "" && len(c.Claims) == 0 {
		if c.Claims, err = w.claimsUnder(ctx, e.Namespace, m.UID); err != nil {
			c.Unknown = err.Error()
		}
	}
	return c, res, m, nil
}

// inside lists what stands against removing a namespace.
func (w *work) inside(ctx context.Context, namespace string) (claims, foreign []string, err error) {
	all, err := w.client.listable(ctx, true)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range all {
		err := w.client.list(ctx, r.resource, namespace, "", func(m *metav1.PartialObjectMetadata) {
			ref := Ref{r.GroupVersion().String(), r.kind, m.Namespace, m.Name}
			c := content{ref, len(m.OwnerReferences) > 0, m.DeletionTimestamp != nil}
			switch {
			case ref.is("PersistentVolumeClaim") && !c.Going:
				claims = append(claims, ref.String())
			case isForeign(c):
				foreign = append(foreign, ref.String())
			}
		})
		if err != nil {
			return nil, nil, fmt.Errorf("list %s in %s: %w", r.Resource, namespace, err)
		}
	}
	return claims, foreign, nil
}

// claimsUnder lists the claims that the garbage collector would delete after the object uid, through however many owners.
// Claims of a pod are scratch: they go with every restart.
func (w *work) claimsUnder(ctx context.Context, namespace string, uid types.UID) (names []string, err error) {
	err = w.client.list(ctx, claimsAt, namespace, "", func(m *metav1.PartialObjectMetadata) {
		if err == nil && m.DeletionTimestamp == nil {
			var under bool
			if under, err = w.under(ctx, namespace, m.OwnerReferences, uid, 8); under {
				names = append(names, "PersistentVolumeClaim "+namespace+"/"+m.Name)
			}
		}
	})
	return names, err
}

func (w *work) under(ctx context.Context, namespace string, owners []metav1.OwnerReference, uid types.UID, depth int) (bool, error) {
	if depth == 0 {
		return false, errors.New("owners nest too deep")
	}
	for _, o := range owners {
		if o.UID == uid {
			return true, nil
		}
		if o.Kind == "Pod" {
			continue
		}
		ref := Ref{o.APIVersion, o.Kind, namespace, o.Name}
		res, err := w.client.find(ctx, ref)
		if errors.Is(err, errNoKind) {
			continue
		}
		if err != nil {
			return false, err
		}
		m, err := w.client.get(ctx, res, namespace, o.Name)
		if err != nil {
			return false, err
		}
		if m == nil || m.UID != o.UID {
			continue
		}
		if found, err := w.under(ctx, namespace, m.OwnerReferences, uid, depth-1); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// claimsOf lists the data of a whole app: its own claims and volumes, those that its StatefulSets made, those in its namespaces, and those that
// hang on its objects. What is being deleted does not count.
func (w *work) claimsOf(ctx context.Context, inv *inventory) ([]string, error) {
	var found []string
	spaces := map[string]bool{} // to: the namespace itself is the app's
	sets := map[string][]string{}
	templates := map[string][]string{}
	owners := map[string][]types.UID{}
	for _, e := range inv.Objects {
		res, err := w.client.find(ctx, e.Ref)
		if errors.Is(err, errNoKind) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, err := w.client.get(ctx, res, e.Namespace, e.Name)
		if err != nil {
			return nil, err
		}
		if e.Namespace != "" {
			spaces[e.Namespace] = spaces[e.Namespace] || false
		}
		if m == nil || m.Labels[LabelApp] != inv.App {
			continue
		}
		owners[e.Namespace] = append(owners[e.Namespace], m.UID)
		switch {
		case e.is("PersistentVolume") && m.DeletionTimestamp == nil:
			found = append(found, e.String())
		case e.is("Namespace"):
			spaces[e.Name] = true
		case e.is("StatefulSet"):
			sets[e.Namespace] = append(sets[e.Namespace], e.Name)
			if templates[e.Namespace+"/"+e.Name], err = w.claimTemplates(ctx, res, e); err != nil {
				return nil, err
			}
		}
	}
	for space, own := range spaces {
		var inner error
		err := w.client.list(ctx, claimsAt, space, "", func(m *metav1.PartialObjectMetadata) {
			app := m.Labels[LabelApp]
			mine := app == inv.App || app == "" && own
			for _, set := range sets[space] {
				mine = mine || isClaimOf(m.Name, set, templates[space+"/"+set])
			}
			for _, uid := range owners[space] {
				if !mine && len(m.OwnerReferences) > 0 && inner == nil {
					mine, inner = w.under(ctx, space, m.OwnerReferences, uid, 8)
				}
			}
			if scratch := slices.ContainsFunc(m.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "Pod" }); mine && !scratch && m.DeletionTimestamp == nil {
				found = append(found, "PersistentVolumeClaim "+space+"/"+m.Name)
			}
		})
		if err = errors.Join(err, inner); err != nil {
			return nil, fmt.Errorf("list claims in %s: %w", space, err)
		}
	}
	return found, nil
}

// claimTemplates returns the names of a StatefulSet's claim templates.
func (w *work) claimTemplates(ctx context.Context, res resource, e entry) ([]string, error) {
	u, err := w.client.dyn.Resource(res.GroupVersionResource).Namespace(e.Namespace).Get(ctx, e.Name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	list, _, _ := unstructured.NestedSlice(u.Object, "spec", "volumeClaimTemplates")
	var names []string
	for _, t := range list {
		if m, ok := t.(map[string]any); ok {
			name, _, _ := unstructured.NestedString(m, "metadata", "name")
			names = append(names, name)
		}
	}
	return names, nil
}
