package fleet

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// isSiteDir holds for clean paths below sites/.
func isSiteDir(dir string) bool {
	return fs.ValidPath(dir) && strings.HasPrefix(dir, "sites/") && isPath(dir)
}

// Closure lists the paths that the site in folder dir needs of the tree: files,
// and folders that are taken whole; sorted, none inside another.
//
// A machine computes it from its slice and refuses a slice that holds more or
// less, so it reads nothing but what it lists (and listings on the way), and
// gives the same answer on the whole tree as on the slice. It reads less
// strictly than Load: an unknown field in fleet.yaml must not keep a machine
// that is one version behind from seeing which site it is.
//
// Apps that others need are not pulled in: a site must select them itself, and
// Load says so. What is listed but not there is for Load to report; only
// rules.yaml is listed when the tree has it.
func Closure(tree fs.FS, dir string) ([]string, error) {
	if !isSiteDir(dir) {
		return nil, fmt.Errorf("closure of %q: a site is a clean path below sites/", dir)
	}
	paths, faults := closureOf(tree, dir)
	if faults, _ = faults.split(); len(faults) > 0 {
		return nil, fmt.Errorf("closure of %s: %w", dir, faults)
	}
	return paths, nil
}

// closureOf gives what it could find of the closure even with faults.
func closureOf(tree fs.FS, dir string) ([]string, Faults) {
	c := closure{tree: tree, f: &Fleet{classes: map[string]*node{}, rings: map[string]*Ring{}}}
	if exists(tree, "rules.yaml") {
		c.paths = append(c.paths, "rules.yaml")
	}
	c.paths = append(c.paths, "trust.yaml", dir)
	c.f.spec = c.spec("fleet.yaml", false)
	site := c.spec(dir+"/site.yaml", true)
	s := &Site{Dir: dir, layer: site.without("uid", "layers", "machines")}
	for _, x := range elements(site.get("layers")) {
		if name := c.name(x, "className"); name != "" && c.f.classes[name] == nil {
			c.f.classes[name] = c.spec("classes/"+name+".yaml", false)
			s.Layers = append(s.Layers, name)
		}
	}
	c.ring(s)
	for _, a := range c.f.selected(s) {
		if !checks["label"].ok(a.name) || !checks["version"].ok(a.version) {
			c.faults.at(a.node, "apps", fmt.Sprintf("%q in version %q cannot be a folder", shorten(a.name), shorten(a.version)), checks["version"].fix)
			continue
		}
		c.paths = append(c.paths, "apps/"+a.name+"/app.yaml", "apps/"+a.name+"/"+a.version)
	}
	slices.Sort(c.paths)
	return slices.Compact(c.paths), c.faults
}

type closure struct {
	tree   fs.FS
	f      *Fleet
	paths  []string
	faults Faults
}

// spec reads the spec of a document that the closure has (in a folder that is
// taken whole when inside is true).
func (c *closure) spec(file string, inside bool) *node {
	layer := ""
	if inside {
		layer = siteLayer
	} else {
		c.paths = append(c.paths, file)
	}
	data, err := readFile(c.tree, file)
	if err != nil {
		c.faults.file(file, "cannot be read: "+err.Error(), "")
		return nil
	}
	n, faults := parse(&source{file: file, layer: layer}, data)
	c.faults = append(c.faults, faults...)
	return n.get("spec")
}

// name is the text of n if it may become a path.
func (c *closure) name(n *node, kind string) string {
	if n == nil {
		return ""
	}
	if n.kind != text || !checks[kind].ok(n.text) {
		c.faults.at(n, "", fmt.Sprintf("%q %s", shorten(n.text), checks[kind].problem), checks[kind].fix)
		return ""
	}
	return n.text
}

func (c *closure) ring(s *Site) {
	s.Ring = c.f.ringOf(s.layer, s.Layers)
	if s.Ring == "" {
		return
	}
	if !checks["label"].ok(s.Ring) {
		c.faults.file(s.Dir, fmt.Sprintf("the ring %q %s", shorten(s.Ring), checks["label"].problem), checks["label"].fix)
		return
	}
	spec := c.spec("rings/"+s.Ring+".yaml", false)
	c.f.rings[s.Ring] = &Ring{Name: s.Ring, spec: spec, layer: spec.get("defaults")}
	if os := c.name(spec.get("os"), "version"); os != "" {
		c.paths = append(c.paths, "os/"+os+".yaml")
		c.stones(os, map[string]bool{os: true})
	}
}

// maxStones bounds how many OS versions a site's slice may describe.
const maxStones = 64

// stones adds the OS versions that version may follow, as far as the tree has
// them, and those that they may follow: a machine that slept for a year goes by
// way of them. What is wrong in them is for Load to say.
func (c *closure) stones(version string, seen map[string]bool) {
	data, err := readFile(c.tree, "os/"+version+".yaml")
	if err != nil {
		return
	}
	n, _ := parse(&source{file: "os/" + version + ".yaml"}, data)
	for _, before := range elements(n.get("spec").get("follows")) {
		v := before.str()
		if !checks["version"].ok(v) || seen[v] || len(seen) >= maxStones || !exists(c.tree, "os/"+v+".yaml") {
			continue
		}
		seen[v] = true
		c.paths = append(c.paths, "os/"+v+".yaml")
		c.stones(v, seen)
	}
}

func elements(n *node) []*node {
	if n == nil || n.kind != list {
		return nil
	}
	return n.items
}

// choice is an app that a site selects, in the version that runs there.
type choice struct {
	name, version string
	node          *node // the merged element of apps
	versionNode   *node
}

// base is what sites with the same ring and layers share, merged once.
func (f *Fleet) base(ring string, layers []string) *node {
	key := ring + "\n" + strings.Join(layers, "\n")
	if n, ok := f.bases.Load(key); ok {
		return n.(*node)
	}
	all := []*node{f.spec.get("defaults")}
	for _, c := range layers {
		all = append(all, f.classes[c])
	}
	if r := f.rings[ring]; r != nil {
		all = append(all, r.layer)
	}
	n := layered(all...)
	f.bases.Store(key, n)
	return n
}

// merged is all that the layers say at a site, with the versions of its ring.
func (f *Fleet) merged(s *Site) *node {
	return layered(f.lowest, f.withVersions(layered(f.base(s.Ring, s.Layers), s.layer), s))
}

// withVersions puts the ring's version into each selected app that no later
// layer (the ring's own defaults, the site) gives one.
func (f *Fleet) withVersions(n *node, s *Site) *node {
	apps := n.get("apps")
	r := f.rings[s.Ring]
	if apps == nil || apps.kind != list || r == nil {
		return n
	}
	live := r.spec.get("apps")
	l := *apps
	l.items = make([]*node, len(apps.items))
	for i, a := range apps.items {
		l.items[i] = a
		v := live.get(a.get("name").str())
		if v == nil || a.kind != mapping {
			continue
		}
		m := *a
		own := a.get("version")
		switch {
		case own == nil:
			key := &node{src: v.src, line: v.line, col: v.col, kind: text, text: "version"}
			m.keys, m.items = append(slices.Clip(a.keys), key), append(slices.Clip(a.items), v)
		case own.src.layer == siteLayer || own.src.file == v.src.file:
			m.items = slices.Clone(a.items)
			w, x := *own, *v
			w.prev, x.prev = &x, own.prev
			m.items[indexOf(m.keys, "version")] = &w
		default: // a class is below the ring
			m.items = slices.Clone(a.items)
			w := *v
			w.prev = own
			m.items[indexOf(m.keys, "version")] = &w
		}
		l.items[i] = &m
	}
	m := *n
	m.items = slices.Clone(n.items)
	m.items[indexOf(m.keys, "apps")] = &l
	return &m
}

// selected lists the enabled apps of a site, in the order of the layers.
func (f *Fleet) selected(s *Site) []choice { return choices(f.merged(s)) }

func choices(merged *node) []choice {
	var out []choice
	for _, a := range elements(merged.get("apps")) {
		c := choice{name: a.get("name").str(), version: a.get("version").str(), node: a, versionNode: a.get("version")}
		if e := a.get("enabled"); c.name == "" || e != nil && e.kind == boolean && e.text == "false" {
			continue
		}
		out = append(out, c)
	}
	return out
}
