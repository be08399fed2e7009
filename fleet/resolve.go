package fleet

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// Resolved is one site with all layers laid over one another: what is rendered.
type Resolved struct {
	Fleet   string
	FleetID ID
	Edition int

	Site, UID, Dir, Ring string
	Labels               map[string]string

	OS   string         // the OS image version that the ring names, "" when hosted only
	Vars map[string]any // string, int64, bool or []string, as declared

	Network    Network
	Kubernetes Kubernetes
	Class      MachineClass

	Apps    []App       // selected and enabled, ordered by needs, then name
	Deletes []ObjectRef // what apps that are no longer enabled ask to remove

	Machines   []Machine
	Tombstones []Tombstone

	perBox map[string]MachineClass
}

// App is an app as it runs at a site.
type App struct {
	Name, Version string
	Dir           string // apps/NAME/VERSION
	Namespace     string
	Needs         []string
	Critical      bool
	OnFailure     string
	Deadline      time.Duration
	Devices       []string
	Substitute    []string
	PodSecurity   string
	Values        map[string]any
	Patches       []Patch
	Delete        []ObjectRef
}

// Patch changes an object of an app: either a file or Inline.
type Patch struct {
	File   string         // path in the tree
	Inline map[string]any // a merge patch
	Target ObjectRef
	Reason string
}

// ClassOf is Class as it is for one machine.
func (r *Resolved) ClassOf(machine string) MachineClass {
	if c, ok := r.perBox[machine]; ok {
		return c
	}
	return r.Class
}

// Resolve lays the layers of a site over one another: what is built in, fleet
// defaults, the site's layers in order, ring, site. The error is Faults.
func (f *Fleet) Resolve(s *Site) (*Resolved, error) {
	var faults Faults
	r, missing := f.resolve(s, f.merged(s), &faults)
	faults = append(faults, missing...)
	if faults, _ = faults.split(); len(faults) > 0 {
		return nil, faults
	}
	return r, nil
}

// resolve gives the faults that only all layers together show apart from those
// that reading the documents has shown already.
func (f *Fleet) resolve(s *Site, merged *node, faults *Faults) (r *Resolved, missing Faults) {
	var layer Layer
	d := decoder{merged: true}
	d.decode(&layer, merged, "spec")
	*faults = append(*faults, d.faults...)
	r = &Resolved{
		Fleet: f.Name, FleetID: f.ID, Edition: f.Edition,
		Site: s.Name, UID: s.UID, Dir: s.Dir, Ring: s.Ring, Labels: s.Labels,
		Network: layer.Network, Kubernetes: layer.Kubernetes, Class: layer.Machine,
		Machines: s.Machines, Tombstones: s.Tombstones,
	}
	if !r.Network.APIAddress.IsValid() && r.Network.SiteRange.IsValid() {
		r.Network.APIAddress = r.Network.SiteRange.Addr().Next()
	}
	r.Kubernetes.Version = defaultKubernetes
	if ring := f.rings[s.Ring]; ring != nil {
		r.OS = ring.OS
		if os := f.os[ring.OS]; os != nil {
			r.Kubernetes.Version = os.Kubernetes
		}
	}
	missing = d.missing
	r.Vars = f.vars(s, merged, &missing)
	r.apps(f, s, layer.Apps)
	r.boxes(s, merged, faults)
	return r, missing
}

// vars are the values of the declared variables; a required one without is a fault.
func (f *Fleet) vars(s *Site, merged *node, faults *Faults) map[string]any {
	values := merged.get("vars")
	out := make(map[string]any, len(f.Vars))
	for name, decl := range f.Vars {
		switch v := values.get(name); {
		case v != nil && v.kind != null && varFault(v, decl) == "":
			out[name] = varValue(v, decl)
		case v == nil && decl.Required:
			faults.at(s.spec, join("spec.vars", name), "is required and has no value", "a value in site.yaml, or in a layer of the site")
		}
	}
	return out
}

// varFault says what v should have been, "" when it is right.
func varFault(v *node, decl VarDecl) string {
	switch {
	case decl.Type == "string" && v.kind != text:
		if v.kind == integer || v.kind == float || v.kind == boolean {
			return fmt.Sprintf("should be text: put it in quotes, %q", v.text)
		}
		return "should be text"
	case decl.Type == "int" && v.kind != integer:
		return "should be a whole number"
	case decl.Type == "bool" && v.kind != boolean:
		return "should be true or false"
	case decl.Type == "list":
		if v.kind != list {
			return "should be a list of text"
		}
		for _, x := range v.items {
			if x.kind != text {
				return "should be a list of text: put its elements in quotes"
			}
		}
	}
	return ""
}

func varValue(v *node, decl VarDecl) any {
	if decl.Type != "list" {
		return v.plain()
	}
	l := make([]string, len(v.items))
	for i, x := range v.items {
		l[i] = x.text
	}
	return l
}

func (r *Resolved) apps(f *Fleet, s *Site, selected []AppChoice) {
	apps := map[string]App{}
	for _, c := range selected {
		if c.Enabled != nil && !*c.Enabled {
			r.Deletes = append(r.Deletes, c.Delete...)
			continue
		}
		a := App{Name: c.Name, Version: c.Version, Dir: "apps/" + c.Name + "/" + c.Version, Values: c.Values, Delete: c.Delete}
		if file := f.apps[c.Name]; file != nil {
			a.Namespace, a.Needs, a.Critical, a.OnFailure = file.Namespace, file.Needs, file.Critical, file.OnFailure
			a.Deadline, a.Devices, a.Substitute, a.PodSecurity = file.Deadline, file.Devices, file.Substitute, file.PodSecurity
		}
		for _, p := range c.Patches {
			if p.Merge != nil {
				a.Patches = append(a.Patches, Patch{Inline: p.Merge, Target: p.Target, Reason: p.Reason})
			}
			if p.File != "" {
				a.Patches = append(a.Patches, Patch{File: path.Join(s.Dir, p.File), Target: p.Target, Reason: p.Reason})
			}
		}
		apps[a.Name] = a
	}
	r.Apps = inOrder(apps)
}

// inOrder sorts apps by needs, then name. What is part of a cycle (a fault that
// validation names) comes last, by name.
func inOrder(apps map[string]App) []App {
	left := slices.Sorted(maps.Keys(apps))
	out := make([]App, 0, len(apps))
	done := map[string]bool{}
	for len(left) > 0 {
		i := slices.IndexFunc(left, func(name string) bool {
			return !slices.ContainsFunc(apps[name].Needs, func(n string) bool { _, here := apps[n]; return here && !done[n] })
		})
		i = max(i, 0)
		done[left[i]] = true
		out = append(out, apps[left[i]])
		left = slices.Delete(left, i, i+1)
	}
	return out
}

func (r *Resolved) boxes(s *Site, merged *node, faults *Faults) {
	for _, b := range elements(s.spec.get("machines")) {
		name := b.get("name").str()
		if name == "" || b.get("machine") == nil {
			continue
		}
		n := merge(merged.get("machine"), b.get("machine"), planFor[MachineClass](), nil)
		if n == nil {
			continue
		}
		c := MachineClass{}
		d := decoder{merged: true}
		d.decode(&c, n, "spec.machines."+name)
		*faults = append(*faults, d.faults...)
		if r.perBox == nil {
			r.perBox = map[string]MachineClass{}
		}
		r.perBox[name] = c
	}
}

// Provenance tells where a value came from.
type Provenance struct {
	Field        string // dotted path; elements of named lists go by their name
	Value        any
	File         string // "(built in)" for what no file says
	Line, Column int    // 0 for what is built in
	Layer        string // built in, fleet, class NAME, ring NAME, site, machine NAME
	Overrides    []Provenance
}

// Explain lists each value at a site with the place that it came from and what
// it overrode there. field is a dotted path or the beginning of one, "" means all.
func (f *Fleet) Explain(s *Site, field string) ([]Provenance, error) {
	var out []Provenance
	all := func(n *node, p *plan, at string) { explain(n, p, nil, at, &out) }
	merged := f.merged(s)
	all(merged, planFor[Layer](), "")
	if merged.path("network", "apiAddress") == nil {
		if n := merged.path("network", "siteRange"); n != nil {
			r, _ := f.Resolve(s)
			if r != nil {
				p := provenance(n, "network.apiAddress")
				p.Value, p.Overrides = r.Network.APIAddress.String(), nil
				out = append(out, p)
			}
		}
	}
	if r := f.rings[s.Ring]; r != nil && r.spec.get("os") != nil {
		all(r.spec.get("os"), nil, "os")
		if os := f.os[r.OS]; os != nil {
			all(os.spec.get("kubernetes"), nil, "kubernetes.version")
		}
	}
	for _, b := range elements(s.spec.get("machines")) {
		out = append(out, explainBox(merged, b)...)
	}
	slices.SortStableFunc(out, func(a, b Provenance) int { return strings.Compare(a.Field, b.Field) })
	if field == "" {
		return out, nil
	}
	match := slices.DeleteFunc(slices.Clone(out), func(p Provenance) bool {
		return p.Field != field && !strings.HasPrefix(p.Field, field+".") && !strings.HasPrefix(p.Field, field+"[")
	})
	if len(match) == 0 {
		return nil, fmt.Errorf("explain %s of site %s: no value has this name: %s", field, s.Name, oneOf(field, prefixes(out)))
	}
	return match, nil
}

// explainBox lists what one machine of a site has for itself.
func explainBox(merged, box *node) []Provenance {
	n, p := box.get("machine"), planFor[MachineClass]()
	at := "machines." + box.get("name").str() + ".machine"
	var all, own []Provenance
	explain(merge(merged.get("machine"), n, p, nil), p, nil, at, &all)
	for _, x := range all {
		if v := n.get(x.Field[len(at)+1:]); v != nil && v.get(deleteKey) == nil {
			x.Layer = "machine " + box.get("name").str()
			own = append(own, x)
		}
	}
	return own
}

func prefixes(all []Provenance) []string {
	var out []string
	for _, p := range all {
		for i, c := range p.Field {
			if c == '.' {
				out = append(out, p.Field[:i])
			}
		}
		out = append(out, p.Field)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func explain(n *node, p *plan, f *field, at string, out *[]Provenance) {
	switch {
	case n == nil:
	case n.kind == mapping && len(n.keys) > 0:
		for i, k := range n.keys {
			sub, sf := p.below(k.text)
			explain(n.items[i], sub, sf, join(at, k.text), out)
		}
	case n.kind == list && listKey(n, n, p, f) != "" && listKey(n, n, p, f) != "*":
		key := listKey(n, n, p, f)
		for _, x := range n.items {
			below := x.without(key)
			if p != nil && p.form == listForm && key == "name" {
				below = x // which layer selected an app is worth a line
			}
			explain(below, elemOf(p), nil, join(at, unquoted(named(key, x))), out)
		}
	default:
		*out = append(*out, provenance(n, at))
	}
}

func unquoted(s string) string { return strings.Trim(s, `"`) }

func provenance(n *node, at string) Provenance {
	p := Provenance{Field: at, Value: n.plain(), File: n.src.file, Line: int(n.line), Column: int(n.col), Layer: n.src.layer}
	if n.src == builtInLayer().src {
		p.Line, p.Column = 0, 0
	}
	for o := n.prev; o != nil; o = o.prev {
		q := provenance(&node{src: o.src, line: o.line, col: o.col, kind: o.kind, text: o.text, keys: o.keys, items: o.items}, at)
		p.Overrides = append(p.Overrides, q)
	}
	return p
}
