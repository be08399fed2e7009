package render

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Class says how much a change disturbs a site; the greater, the more.
type Class int

const (
	None     Class = iota // same effect: the site does nothing
	Apply                 // objects change
	Restart               // network or cluster settings change: Kubernetes restarts
	Reboot                // another OS version
	Destroys              // data goes that nothing brings back
)

var classNames = [...]string{"none", "apply", "restart", "reboot", "destroys"}

func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		return fmt.Sprintf("class(%d)", int(c))
	}
	return classNames[c]
}

// MarshalText writes the class as its word.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Action is what happens to an app or an object.
type Action string

const (
	Added   Action = "added"
	Changed Action = "changed"
	Removed Action = "removed" // pruned: nothing is lost with it
	// Orphaned: it holds data, so it stays in the cluster and is reported.
	Orphaned Action = "orphaned"
	// Deleted: a `delete:` entry says so.
	Deleted Action = "deleted"
)

// Change is what a release would do to a site.
type Change struct {
	Site     string        `json:"site"`
	Class    Class         `json:"class"`
	Settings []FieldChange `json:"settings,omitempty"`
	Apps     []AppChange   `json:"apps,omitempty"`     // only those that change
	Delete   []Ref         `json:"delete,omitempty"`   // what apps ask to remove that are gone
	Fetch    []Image       `json:"fetch,omitempty"`    // app images that the old rendering did not have
	Destroys []string      `json:"destroys,omitempty"` // apps whose data goes
}

// AppChange is what happens to an app.
type AppChange struct {
	Name       string         `json:"name"`
	Action     Action         `json:"action"`
	OldVersion string         `json:"oldVersion,omitempty"`
	NewVersion string         `json:"newVersion,omitempty"`
	Class      Class          `json:"class"`
	Fields     []FieldChange  `json:"fields,omitempty"` // of the app itself: needs, deadline, …
	Objects    []ObjectChange `json:"objects,omitempty"`
}

// ObjectChange is what happens to an object.
type ObjectChange struct {
	Object Ref           `json:"object"`
	Action Action        `json:"action"`
	Fields []FieldChange `json:"fields,omitempty"`
}

// Ref is a fleet.ObjectRef as JSON spells it.
type Ref struct {
	APIVersion string `json:"apiVersion,omitempty"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

// String is kind and name, with the namespace where there is one.
func (r Ref) String() string { return refString(fleet.ObjectRef(r)) }

// FieldChange is one value, as JSON; an empty side has none.
// Values of Secrets are never in it.
type FieldChange struct {
	Path string `json:"path"` // spec.template.spec.containers[name=hello].image
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Diff compares two renderings of a site. A nil old is a site that has nothing
// yet, a nil new one that is closed: closing deletes nothing.
func Diff(old, new *Rendering) Change {
	if old == nil {
		old = &Rendering{}
	}
	if new == nil {
		new = &Rendering{Settings: old.Settings, Site: old.Site}
	}
	c := Change{Site: new.Site}
	if old.Effect.Digest != "" && old.Effect.Digest == new.Effect.Digest {
		return c
	}
	c.diffSettings(old, new)
	c.diffApps(old, new)
	for _, image := range new.Images {
		if !slices.Contains(old.Images, image) {
			c.Fetch = append(c.Fetch, image)
		}
	}
	for _, a := range c.Apps {
		c.raise(a.Class)
		if a.Class == Destroys {
			c.Destroys = append(c.Destroys, a.Name)
		}
	}
	c.diffDelete(old, new)
	return c
}

// diffDelete looks at what apps that are gone ask to remove. The app is the
// one that had the object, or the one whose namespace it is in.
func (c *Change) diffDelete(old, new *Rendering) {
	for _, ref := range new.Delete {
		if slices.Contains(old.Delete, ref) {
			continue
		}
		c.Delete = append(c.Delete, Ref(ref))
		c.raise(Apply)
		if !holdsData(ref.Kind) {
			continue
		}
		c.raise(Destroys)
		owner := refString(ref)
		for _, a := range old.Apps {
			if ref.Namespace == a.Namespace || slices.ContainsFunc(a.Objects, func(o Object) bool { return matches(ref, o, a.Namespace) }) {
				owner = a.Name
			}
		}
		c.Destroys = append(c.Destroys, owner)
	}
	slices.Sort(c.Destroys)
	c.Destroys = slices.Compact(c.Destroys)
}

func (c *Change) raise(class Class) { c.Class = max(c.Class, class) }

func (c *Change) diffSettings(old, new *Rendering) {
	if string(old.Settings) == string(new.Settings) {
		return
	}
	c.Settings = fields(decoded(old.Settings), decoded(new.Settings), false)
	for _, f := range c.Settings {
		if f.Path == "os" {
			c.raise(Reboot)
		} else {
			c.raise(Restart)
		}
	}
}

func (c *Change) diffApps(old, new *Rendering) {
	for _, name := range appNames(old.Apps, new.Apps) {
		o, n := findApp(old.Apps, name), findApp(new.Apps, name)
		if o != nil && n != nil && o.Digest == n.Digest {
			continue
		}
		c.Apps = append(c.Apps, diffApp(name, o, n, new.Delete))
	}
}

func appNames(lists ...[]App) []string {
	var all []string
	for _, list := range lists {
		for _, a := range list {
			all = append(all, a.Name)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func findApp(apps []App, name string) *App {
	if i := slices.IndexFunc(apps, func(a App) bool { return a.Name == name }); i >= 0 {
		return &apps[i]
	}
	return nil
}

// diffApp compares an app. gone are the objects that apps which are no longer
// there ask to remove.
func diffApp(name string, old, new *App, gone []fleet.ObjectRef) AppChange {
	c := AppChange{Name: name, Action: Changed, Class: Apply}
	switch {
	case old == nil:
		c.Action, old = Added, &App{}
	case new == nil:
		c.Action, new = Removed, &App{}
		kept := slices.Clone(old.Objects)
		kept = slices.DeleteFunc(kept, func(o Object) bool { return matchesAny(gone, o, old.Namespace) })
		if hasClaims(kept) {
			c.Action = Orphaned
		}
	}
	c.OldVersion, c.NewVersion = old.Version, new.Version
	if c.Action == Changed {
		c.Fields = fields(appHead(old), appHead(new), false)
	}
	c.diffObjects(old, new)
	if c.Action == Removed || c.Action == Orphaned {
		c.markDeleted(old, gone)
	}
	return c
}

func appHead(a *App) any {
	v, err := normal(map[string]any{
		"namespace": a.Namespace, "needs": list(a.Needs), "critical": a.Critical, "onFailure": a.OnFailure, "deadline": a.Deadline.String(),
	})
	if err != nil {
		panic(err)
	}
	return v
}

func (c *AppChange) diffObjects(old, new *App) {
	before, after := index(old.Objects), index(new.Objects)
	for _, o := range new.Objects {
		was, ok := before[o.identity()]
		switch {
		case !ok:
			c.Objects = append(c.Objects, ObjectChange{Object: Ref(o.Ref()), Action: Added})
		case string(was.JSON) != string(o.JSON):
			c.Objects = append(c.Objects, ObjectChange{Object: Ref(o.Ref()), Action: Changed, Fields: fields(decoded(was.JSON), decoded(o.JSON), secret(o))})
		}
	}
	for _, ref := range new.Delete {
		if slices.Contains(old.Delete, ref) {
			continue // that was done by an earlier release
		}
		c.Objects = append(c.Objects, ObjectChange{Object: Ref(ref), Action: Deleted})
		if holdsData(ref.Kind) {
			c.Class = Destroys
		}
	}
	for _, o := range old.Objects {
		if _, stays := after[o.identity()]; stays || matchesAny(new.Delete, o, new.Namespace) {
			continue
		}
		action := Removed
		if c.Action == Orphaned || holdsData(o.Kind) {
			action = Orphaned
		}
		c.Objects = append(c.Objects, ObjectChange{Object: Ref(o.Ref()), Action: action})
	}
}

// markDeleted turns what happens to the objects of an app that is gone into a
// deletion where one was asked for.
func (c *AppChange) markDeleted(old *App, gone []fleet.ObjectRef) {
	for i, o := range c.Objects {
		ref := fleet.ObjectRef(o.Object)
		if !matchesAny(gone, Object{APIVersion: ref.APIVersion, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}, old.Namespace) {
			continue
		}
		c.Objects[i].Action = Deleted
		if holdsData(ref.Kind) {
			c.Class = Destroys
		}
	}
}

func index(objects []Object) map[identity]Object {
	m := make(map[identity]Object, len(objects))
	for _, o := range objects {
		m[o.identity()] = o
	}
	return m
}

// holdsData says whether deleting an object of a kind loses what no release
// brings back. Absence never deletes these: they are orphaned.
func holdsData(kind string) bool {
	return slices.Contains([]string{"PersistentVolumeClaim", "PersistentVolume", "Namespace", "CustomResourceDefinition"}, kind)
}

// hasClaims says whether an app with these objects keeps data; then it is
// orphaned as a whole.
func hasClaims(objects []Object) bool {
	return slices.ContainsFunc(objects, func(o Object) bool {
		if o.Kind != "StatefulSet" {
			return o.Kind == "PersistentVolumeClaim"
		}
		templates, _ := at(decoded(o.JSON), "spec", "volumeClaimTemplates").([]any)
		return len(templates) > 0
	})
}

func secret(o Object) bool { return o.Kind == "Secret" && group(o.APIVersion) == "" }

func decoded(data []byte) any {
	if len(data) == 0 {
		return nil
	}
	v, err := decodeJSON(data)
	if err != nil {
		panic(fmt.Sprintf("render: an object of our own is no JSON: %v", err))
	}
	return v
}

// fields lists what differs between two values, in path order.
func fields(old, new any, hide bool) []FieldChange {
	d := differ{hide: hide}
	d.walk("", old, new)
	sort.SliceStable(d.found, func(i, j int) bool { return d.found[i].Path < d.found[j].Path })
	return d.found
}

type differ struct {
	hide  bool
	found []FieldChange
}

const hidden = "(hidden)"

func (d *differ) walk(path string, old, new any) {
	if o, ok := old.(map[string]any); ok {
		if n, ok := new.(map[string]any); ok {
			d.maps(path, o, n)
			return
		}
	}
	if o, ok := old.([]any); ok {
		if n, ok := new.([]any); ok {
			d.lists(path, o, n)
			return
		}
	}
	if a, b := show(old), show(new); a != b {
		d.add(path, a, b)
	}
}

func (d *differ) add(path, old, new string) {
	// Of a Secret only its labels are shown: annotations may repeat its data.
	if d.hide && !strings.HasPrefix(path, "metadata.labels") {
		if old != "" {
			old = hidden
		}
		if new != "" {
			new = hidden
		}
	}
	d.found = append(d.found, FieldChange{Path: path, Old: old, New: new})
}

func (d *differ) maps(path string, old, new map[string]any) {
	for k, o := range old {
		d.walk(step(path, k), o, new[k])
	}
	for k, n := range new {
		if _, ok := old[k]; !ok {
			d.walk(step(path, k), nil, n)
		}
	}
}

// lists pairs elements by name where all have one, else by place.
func (d *differ) lists(path string, old, new []any) {
	if len(old) > 0 && len(new) > 0 && named(old) && named(new) && unique(old) && unique(new) {
		byName := func(list []any) map[string]any {
			m := map[string]any{}
			for _, e := range list {
				m["[name="+stringAt(e, "name")+"]"] = e
			}
			return m
		}
		o, n := byName(old), byName(new)
		for k := range o {
			d.walk(path+k, o[k], n[k])
		}
		for k := range n {
			if _, ok := o[k]; !ok {
				d.walk(path+k, nil, n[k])
			}
		}
		return
	}
	for i := range max(len(old), len(new)) {
		var o, n any
		if i < len(old) {
			o = old[i]
		}
		if i < len(new) {
			n = new[i]
		}
		d.walk(fmt.Sprintf("%s[%d]", path, i), o, n)
	}
}

func unique(list []any) bool {
	seen := map[string]bool{}
	for _, e := range list {
		if seen[stringAt(e, "name")] {
			return false
		}
		seen[stringAt(e, "name")] = true
	}
	return true
}

// step writes a key so that the path can be read back: keys with dots or
// slashes stand in brackets.
func step(path, key string) string {
	switch {
	case strings.ContainsAny(key, "./[]= "):
		return path + "[" + key + "]"
	case path == "":
		return key
	}
	return path + "." + key
}

func show(v any) string {
	if v == nil {
		return ""
	}
	b, err := canonical(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
