package render

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

const (
	// LabelApp is on every object of an app.
	LabelApp = "holdfast.dev/app"
	// SiteConfig is the ConfigMap with a site's variables, one in each app's
	// namespace. Beside them stand the keys "site" and "fleet".
	SiteConfig = "holdfast-site"
	// AnnotationValues is on the pod templates that take environment variables
	// from SiteConfig: a digest of the values taken. Without it a changed value
	// would reach a pod only when something else restarts it.
	AnnotationValues = "holdfast.dev/site-values"

	enforceLabel = "pod-security.kubernetes.io/enforce"
)

// base is an app version with values, before a site's patches.
type base struct {
	objects []baseObject
	images  []Image // all lines of the lock: operators start pods that no manifest names
	names   []string
}

type baseObject struct {
	Object
	tree map[string]any // shared between sites: copy before changing
	file string
	line int
	keys []string // what its pods take from SiteConfig; "*" is all
}

// base finds or makes the base of an app for the values that a site gives.
func (rr *Renderer) base(r *fleet.Resolved, app *fleet.App) (*base, error) {
	v, err := rr.version(app)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	for _, name := range v.used {
		if value, ok := lookup(name, app, r.Vars); ok {
			values[name] = jsonValue(value)
		}
	}
	if err := unknown(v.refs, v.usedSet, values, app, r.Vars); err != nil {
		return nil, err
	}
	key := strings.Join([]string{app.Name, app.Dir, app.Namespace, podSecurity(app), strings.Join(app.Substitute, "\x00"), string(mustCanonical(values))}, "\x01")
	rr.mu.Lock()
	entry, ok := rr.bases[key]
	if !ok {
		if len(rr.bases) >= maxBases {
			clear(rr.bases)
		}
		entry = &baseOnce{}
		rr.bases[key] = entry
	}
	rr.mu.Unlock()
	entry.once.Do(func() { entry.base, entry.err = makeBase(v, app, values) })
	return entry.base, entry.err
}

func podSecurity(app *fleet.App) string {
	if app.PodSecurity == "" {
		return "baseline"
	}
	return app.PodSecurity
}

func makeBase(v *version, app *fleet.App, values map[string]any) (*base, error) {
	found, err := v.manifests(values)
	if err != nil {
		return nil, err
	}
	b := &base{}
	seen := map[identity]manifest{}
	custom := customScopes(found)
	var errs []error
	for _, m := range found {
		o, err := makeObject(m, app, v.lock, custom)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if first, twice := seen[o.identity()]; twice {
			errs = append(errs, fault(m.file, m.line, 0, "", fmt.Sprintf("%s is there twice, first at %s:%d", refString(o.Ref()), first.file, first.line), "remove one, or give it another name"))
			continue
		}
		seen[o.identity()] = m
		b.objects = append(b.objects, o)
	}
	for ref, image := range v.lock.images {
		b.images = append(b.images, image)
		b.names = append(b.names, ref+"@"+image.Digest)
	}
	slices.Sort(b.names)
	return b, join(errs...)
}

// makeObject gives a manifest its namespace, label and pinned images.
func makeObject(m manifest, app *fleet.App, l lock, custom map[string]bool) (baseObject, error) {
	tree := clone(m.object).(map[string]any)
	metadata := mapAt(tree, "metadata")
	if namespaced, known := scope(stringAt(tree, "apiVersion"), stringAt(tree, "kind"), custom); known && !namespaced {
		delete(metadata, "namespace")
	} else if known && stringAt(metadata, "namespace") == "" {
		metadata["namespace"] = app.Namespace
	}
	if metadata["creationTimestamp"] == nil {
		delete(metadata, "creationTimestamp") // null, as generators of manifests leave it
	}
	mapAt(metadata, "labels")[LabelApp] = app.Name
	if stringAt(tree, "apiVersion") == "v1" && stringAt(tree, "kind") == "Namespace" && stringAt(metadata, "name") == app.Namespace && at(metadata, "labels", enforceLabel) == nil {
		mapAt(metadata, "labels")[enforceLabel] = podSecurity(app)
	}
	if err := l.pin(tree, m.file, m.line); err != nil {
		return baseObject{}, err
	}
	return baseObject{Object: object(tree), tree: tree, file: m.file, line: m.line, keys: siteKeys(tree)}, nil
}

func object(tree map[string]any) Object {
	return Object{
		APIVersion: stringAt(tree, "apiVersion"), Kind: stringAt(tree, "kind"),
		Namespace: stringAt(tree, "metadata", "namespace"), Name: stringAt(tree, "metadata", "name"),
		JSON: mustCanonical(tree),
	}
}

// rolling are the kinds that replace their pods when the template changes. A
// Job's template cannot change, and a CronJob's next pod reads afresh.
var rolling = []string{"Deployment", "StatefulSet", "DaemonSet"}

// siteKeys names what an object's pods read from SiteConfig at their start.
func siteKeys(tree map[string]any) []string {
	if !slices.Contains(rolling, stringAt(tree, "kind")) {
		return nil
	}
	found := map[string]bool{}
	for _, list := range containerLists {
		containers, _ := at(tree, "spec", "template", "spec", list).([]any)
		for _, c := range containers {
			env, _ := at(c, "env").([]any)
			for _, e := range env {
				if stringAt(e, "valueFrom", "configMapKeyRef", "name") == SiteConfig {
					found[stringAt(e, "valueFrom", "configMapKeyRef", "key")] = true
				}
			}
			from, _ := at(c, "envFrom").([]any)
			for _, e := range from {
				if stringAt(e, "configMapRef", "name") == SiteConfig {
					found["*"] = true
				}
			}
		}
	}
	keys := make([]string, 0, len(found))
	for k := range found {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// finish makes a site's app of a base: patches, deletions, values, order.
func (rr *Renderer) finish(r *fleet.Resolved, app *fleet.App, b *base, shared []Object) (App, error) {
	out := App{
		Name: app.Name, Version: app.Version, Namespace: app.Namespace, Needs: sorted(app.Needs),
		Critical: app.Critical, OnFailure: app.OnFailure, Deadline: app.Deadline,
		Devices: sorted(app.Devices), Images: b.names, Delete: deletions(app),
	}
	objects := slices.Clone(b.objects)
	v, err := rr.version(app)
	if err != nil {
		return App{}, err
	}
	var errs []error
	for _, p := range app.Patches {
		errs = append(errs, rr.patch(objects, app, p, v.lock))
	}
	if err := join(errs...); err != nil {
		return App{}, err
	}
	data := siteData(r)
	out.Objects = make([]Object, 0, len(objects)+len(shared))
	for _, o := range objects {
		if matchesAny(app.Delete, o.Object, app.Namespace) { // a `delete:` entry takes it out
			continue
		}
		if len(o.keys) > 0 {
			o.Object = withValues(o, data)
		}
		out.Objects = append(out.Objects, o.Object)
	}
	for _, o := range shared {
		if !matchesAny(app.Delete, o, app.Namespace) {
			out.Objects = append(out.Objects, o)
		}
	}
	sortObjects(out.Objects)
	out.Digest = appDigest(&out)
	return out, nil
}

// patch changes the one object that a patch names.
func (rr *Renderer) patch(objects []baseObject, app *fleet.App, p fleet.Patch, l lock) error {
	where := p.File
	if where == "" {
		where = app.Dir
	}
	change, err := body(rr.tree, p)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(objects, func(o baseObject) bool { return matches(p.Target, o.Object, app.Namespace) })
	if i < 0 {
		return fault(where, 0, 0, "apps["+app.Name+"].patches", fmt.Sprintf("the target %s is not in version %s", refString(p.Target), app.Version), "there are: "+inventory(objects))
	}
	o := &objects[i]
	tree, _ := merge(o.tree, change).(map[string]any)
	tree, _ = clone(tree).(map[string]any)
	if err := check(tree, where, 0); err != nil {
		return err
	}
	if err := l.pin(tree, where, 0); err != nil {
		return err
	}
	patched := object(tree)
	if patched.identity() != o.identity() {
		return fault(where, 0, 0, "apps["+app.Name+"].patches", fmt.Sprintf("would turn %s into %s", refString(o.Ref()), refString(patched.Ref())), "a patch changes an object; another name is another object")
	}
	o.tree, o.Object, o.keys = tree, patched, siteKeys(tree)
	return nil
}

func inventory(objects []baseObject) string {
	list := make([]string, len(objects))
	for i, o := range objects {
		list[i] = refString(o.Ref())
	}
	slices.Sort(list)
	if len(list) > 10 {
		list = append(list[:10], "…")
	}
	return strings.Join(list, ", ")
}

// deletions fills in the namespace that a reference may leave out.
func deletions(app *fleet.App) []fleet.ObjectRef {
	list := make([]fleet.ObjectRef, 0, len(app.Delete))
	for _, ref := range app.Delete {
		if ref.Namespace == "" && (!clusterKinds[ref.Kind] || ref.APIVersion != "" && !builtIn(ref.APIVersion)) {
			ref.Namespace = app.Namespace
		}
		list = append(list, ref)
	}
	return sortedRefs(list)
}

func sortedRefs(refs []fleet.ObjectRef) []fleet.ObjectRef {
	list := slices.Clone(refs)
	slices.SortFunc(list, func(a, b fleet.ObjectRef) int { return strings.Compare(refKey(a), refKey(b)) })
	return slices.Compact(list)
}

func refKey(r fleet.ObjectRef) string {
	return strings.Join([]string{r.Kind, r.Namespace, r.Name, r.APIVersion}, "\x00")
}

// reservedVars refuses variables that would hide what SiteConfig says anyway.
func reservedVars(r *fleet.Resolved) error {
	var errs []error
	for _, name := range []string{"site", "fleet"} {
		if _, ok := r.Vars[name]; ok {
			errs = append(errs, fault("fleet.yaml", 0, 0, "spec.vars."+name, "is a name that Holdfast sets itself in the ConfigMap "+SiteConfig, "choose another name"))
		}
	}
	return join(errs...)
}

// siteData is what SiteConfig holds.
func siteData(r *fleet.Resolved) map[string]string {
	data := make(map[string]string, len(r.Vars)+2)
	for name, value := range r.Vars {
		data[name] = text(value)
	}
	data["site"], data["fleet"] = r.Site, r.Fleet
	return data
}

// withValues notes on a pod template which values it was started with.
func withValues(o baseObject, data map[string]string) Object {
	taken := map[string]any{}
	for k, v := range data {
		if slices.Contains(o.keys, "*") || slices.Contains(o.keys, k) {
			taken[k] = v
		}
	}
	sum := sha256.Sum256(mustCanonical(taken))
	patch := map[string]any{"spec": map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": map[string]any{AnnotationValues: hex.EncodeToString(sum[:8])}}}}}
	return object(merge(o.tree, patch).(map[string]any))
}

// clusterOwned are the namespaces that Kubernetes makes itself.
var clusterOwned = []string{"default", "kube-node-lease", "kube-public", "kube-system"}

// sharedObjects are what Holdfast adds to apps: in each namespace one
// Namespace object, unless an app brings it, and one SiteConfig. Of apps that
// share a namespace the first one carries both.
func sharedObjects(r *fleet.Resolved, bases []*base) ([][]Object, error) {
	brought := map[string]bool{}
	for _, b := range bases {
		for _, o := range b.objects {
			if o.Kind == "Namespace" && o.APIVersion == "v1" {
				brought[o.Name] = true
			}
		}
	}
	added := make([][]Object, len(r.Apps))
	first := map[string]*fleet.App{}
	var data map[string]any
	for i := range r.Apps {
		app := &r.Apps[i]
		if other, ok := first[app.Namespace]; ok {
			if podSecurity(other) != podSecurity(app) {
				return nil, fault(path.Join("apps", app.Name, "app.yaml"), 0, 0, "spec.podSecurity",
					fmt.Sprintf("is %s, but app %s in the same namespace %s says %s", podSecurity(app), other.Name, app.Namespace, podSecurity(other)), "a namespace has one level: agree on it, or part the apps")
			}
			continue
		}
		first[app.Namespace] = app
		if !brought[app.Namespace] && !slices.Contains(clusterOwned, app.Namespace) {
			added[i] = append(added[i], object(map[string]any{
				"apiVersion": "v1", "kind": "Namespace",
				"metadata": map[string]any{"name": app.Namespace, "labels": map[string]any{LabelApp: app.Name, enforceLabel: podSecurity(app)}},
			}))
		}
		if data == nil {
			data = map[string]any{}
			for k, v := range siteData(r) {
				data[k] = v
			}
		}
		added[i] = append(added[i], object(map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "data": data,
			"metadata": map[string]any{"name": SiteConfig, "namespace": app.Namespace, "labels": map[string]any{LabelApp: app.Name}},
		}))
	}
	return added, nil
}

func sorted(list []string) []string {
	c := slices.Clone(list)
	slices.Sort(c)
	return c
}
