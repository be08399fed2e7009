package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Load reads a whole fleet repo and validates everything in it across
// documents. The error is Faults, all of them; the Fleet holds what could be
// read, as far as it could.
func Load(tree fs.FS) (*Fleet, error) {
	l := newLoader(tree)
	l.whole = true
	l.walk()
	l.common()
	for _, v := range l.found.os {
		l.os(v)
	}
	for _, a := range l.found.apps {
		l.app(a, nil)
	}
	for _, c := range l.found.classes {
		l.class(c)
	}
	for _, r := range l.found.rings {
		l.ring(r)
	}
	l.checkLayers()
	l.sites(l.found.sites)
	l.across()
	return l.finish()
}

// LoadSite reads what one site needs, and nothing else, so tree may be a slice
// or the whole. It validates all that the site alone can show.
func LoadSite(tree fs.FS, dir string) (*Fleet, error) {
	l := newLoader(tree)
	if !isSiteDir(dir) {
		l.faults.file(dir, "is no folder of a site", "a clean path below sites/")
		return l.finish()
	}
	paths, faults := closureOf(tree, dir)
	l.tree = within{tree, paths}
	if l.exists("rules.yaml") {
		l.rules()
	}
	l.common()
	s := l.site(dir, &l.faults)
	if s == nil {
		return l.finish()
	}
	for _, c := range s.Layers {
		if checks["className"].ok(c) {
			l.class(c)
		}
	}
	l.follow(s)
	l.ring(s.Ring)
	if r := l.f.rings[s.Ring]; r != nil && r.OS != "" {
		l.os(r.OS)
		l.checkEdition(r)
	}
	for _, file := range paths { // and the versions that it may follow
		if v, ok := strings.CutPrefix(file, "os/"); ok && l.f.os[strings.TrimSuffix(v, ".yaml")] == nil && exists(tree, file) {
			l.os(strings.TrimSuffix(v, ".yaml"))
		}
	}
	for _, a := range l.f.selected(s) {
		if checks["label"].ok(a.name) && checks["version"].ok(a.version) {
			l.app(a.name, []string{a.version})
		}
	}
	l.layers = append(l.layers, layerDoc{s.layer, "spec"})
	l.checkLayers()
	l.f.sites = []*Site{s}
	shared, own := sharedFaults{sites: map[Fault][]string{}}, Faults{}
	l.validateSite(s, &own)
	l.faults = append(append(l.faults, shared.keep(s, own)...), shared.faults()...)
	if len(l.faults) == 0 {
		l.faults = faults
	}
	return l.finish()
}

// within is a tree that opens nothing but a closure and the folders on the way:
// LoadSite reads strictly and Closure does not, and where documents have faults
// they could come to different answers about what the site needs.
type within struct {
	fs.FS
	closure []string
}

func (w within) Open(name string) (fs.File, error) {
	if !w.has(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return w.FS.Open(name)
}

func (w within) ReadDir(name string) ([]fs.DirEntry, error) {
	if !w.has(name) {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	return fs.ReadDir(w.FS, name)
}

func (w within) has(name string) bool {
	return name == "." || slices.ContainsFunc(w.closure, func(c string) bool {
		return name == c || strings.HasPrefix(name, c+"/") || strings.HasPrefix(c, name+"/")
	})
}

// siteLayer is the layer of every site.yaml: that of the site itself.
const siteLayer = "site"

type loader struct {
	tree   fs.FS
	f      *Fleet
	faults Faults
	whole  bool // all of the fleet is there, so that a name can be looked for
	layers []layerDoc
	found  struct{ os, rings, classes, apps, sites []string }
	users  struct {
		sync.Mutex
		vars map[string]bool
	}
	versions map[string][]string // app -> folders
}

// layerDoc is a layer together with where in its document it stands.
type layerDoc struct {
	n  *node
	at string
}

func newLoader(tree fs.FS) *loader {
	l := &loader{tree: tree, versions: map[string][]string{}, f: &Fleet{
		classes: map[string]*node{}, rings: map[string]*Ring{}, os: map[string]*OS{}, apps: map[string]*AppFile{}, byName: map[string]*Site{},
	}}
	l.users.vars = map[string]bool{}
	return l
}

func (l *loader) finish() (*Fleet, error) {
	slices.SortFunc(l.f.sites, func(a, b *Site) int { return strings.Compare(a.Name+"\x00"+a.Dir, b.Name+"\x00"+b.Dir) })
	for _, s := range l.f.sites {
		if l.f.byName[s.Name] == nil {
			l.f.byName[s.Name] = s
		}
	}
	faults, warnings := l.faults.split()
	l.f.warnings = warnings
	return l.f, faults.err()
}

// exists asks the listing of the folder: in a slice the bytes may be elsewhere.
func (l *loader) exists(name string) bool { return exists(l.tree, name) }

func exists(tree fs.FS, name string) bool {
	entries, err := fs.ReadDir(tree, path.Dir(name))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == path.Base(name) })
}

// read gives the bytes of a document. A missing one is a fault with the fix given.
func (l *loader) read(file string, faults *Faults, fix string) ([]byte, bool) {
	data, err := readFile(l.tree, file)
	switch {
	case err == nil:
		return data, true
	case errors.Is(err, fs.ErrNotExist):
		faults.file(file, "is not there", fix)
	default:
		faults.file(file, "cannot be read: "+err.Error(), "")
	}
	return nil, false
}

func readFile(tree fs.FS, file string) ([]byte, error) {
	f, err := tree.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is no regular file")
	}
	var b bytes.Buffer
	b.Grow(int(min(max(info.Size(), 0), maxDocument)) + bytes.MinRead)
	if _, err := io.Copy(&b, io.LimitReader(f, maxDocument+1)); err != nil {
		return nil, err
	}
	if b.Len() > maxDocument {
		return nil, fmt.Errorf("it is larger than %d bytes", maxDocument)
	}
	return b.Bytes(), nil
}

// document reads file strictly into spec (a pointer to its struct) and gives the
// header and the spec's node, nil when there is nothing to work with.
func (l *loader) document(file, layer, kind, name string, spec any, faults *Faults, fix string) (Header, *node) {
	data, ok := l.read(file, faults, fix)
	if !ok {
		return Header{}, nil
	}
	n, fs := parse(&source{file: file, layer: layer}, data)
	*faults = append(*faults, fs...)
	d := decoder{}
	h, body := d.header(n, kind, name)
	if body != nil {
		d.decode(spec, body, "spec")
	}
	*faults = append(*faults, d.faults...)
	if body != nil && body.kind != mapping && body.kind != null {
		body = nil
	}
	return h, body
}

// common reads what every site needs: fleet.yaml and trust.yaml.
func (l *loader) common() {
	var spec FleetSpec
	h, n := l.document("fleet.yaml", "fleet", "Fleet", "", &spec, &l.faults, "make a fleet repo with holdfast init")
	f := l.f
	f.Name, f.ID, f.Edition, f.Hubs, f.Mirrors, f.Vars = h.Metadata.Name, spec.ID, spec.Edition, spec.Hubs, spec.Mirrors, spec.Vars
	f.spec = n
	f.lowest = layered(builtInLayer(), varDefaults(n))
	if n != nil {
		l.checkFleet(h, n)
		l.layers = append(l.layers, layerDoc{n.get("defaults"), "spec.defaults"})
	}
	if data, ok := l.read("trust.yaml", &l.faults, "holdfast init writes the first one"); ok {
		t, faults := parseTrust("trust.yaml", data)
		l.f.Trust, l.faults = t, append(l.faults, faults...)
	}
}

// varDefaults is the layer that the declarations of variables make.
func varDefaults(spec *node) *node {
	vars := spec.get("vars")
	if vars == nil || vars.kind != mapping {
		return nil
	}
	m := &node{src: vars.src, line: vars.line, col: vars.col, kind: mapping}
	for i, k := range vars.keys {
		if v := vars.items[i].get("default"); v != nil && v.kind != null {
			m.keys, m.items = append(m.keys, k), append(m.items, v)
		}
	}
	if len(m.keys) == 0 {
		return nil
	}
	key := &node{src: vars.src, line: vars.line, col: vars.col, kind: text, text: "vars"}
	return &node{src: vars.src, line: vars.line, col: vars.col, kind: mapping, keys: []*node{key}, items: []*node{m}}
}

// rules refuses rules.yaml: people who wrote one rely on it, and this version
// does not hold machines to it.
func (l *loader) rules() {
	l.faults.file("rules.yaml", "path rules are not enforced by this version", "remove it until a version that enforces it; the threshold in trust.yaml decides")
}

func (l *loader) class(name string) {
	if l.f.classes[name] != nil {
		return
	}
	file := "classes/" + name + ".yaml"
	var spec ClassSpec
	_, n := l.document(file, "class "+name, "Class", path.Base(name), &spec, &l.faults, "a class that the site lists")
	if n == nil {
		return
	}
	l.f.classes[name] = n
	l.layers = append(l.layers, layerDoc{n, "spec"})
}

func (l *loader) ring(name string) {
	if l.f.rings[name] != nil || !checks["label"].ok(name) {
		return
	}
	r := &Ring{Name: name}
	_, n := l.document("rings/"+name+".yaml", "ring "+name, "Ring", name, &r.RingSpec, &l.faults, "the ring that the site follows")
	if n == nil {
		return
	}
	r.spec, r.layer = n, n.get("defaults")
	if r.StopAfter.Failures == 0 {
		r.StopAfter.Failures = 1
	}
	l.f.rings[name] = r
	l.layers = append(l.layers, layerDoc{r.layer, "spec.defaults"})
	l.checkRing(r)
	l.checkEdition(r)
}

func (l *loader) os(version string) {
	o := &OS{Version: version}
	_, n := l.document("os/"+version+".yaml", "os "+version, "OS", version, &o.OSSpec, &l.faults, "the OS version that the ring names")
	if n == nil {
		return
	}
	o.spec = n
	l.f.os[version] = o
	l.checkOS(o)
}

func (l *loader) app(name string, versions []string) {
	if versions == nil {
		versions = l.versions[name]
	}
	a := &AppFile{Name: name, Versions: versions}
	_, n := l.document("apps/"+name+"/app.yaml", "app "+name, "App", name, &a.AppSpec, &l.faults, "what every app says of itself")
	if n == nil {
		return
	}
	a.spec = n
	a.defaults()
	l.f.apps[name] = a
	for _, v := range versions {
		l.version(name, v)
	}
}

func (a *AppFile) defaults() {
	if a.Namespace == "" {
		a.Namespace = a.Name
	}
	if a.OnFailure == "" {
		a.OnFailure = defaultOnFailure
	}
	if a.Deadline == 0 {
		a.Deadline = defaultDeadline
	}
	if a.PodSecurity == "" {
		a.PodSecurity = defaultPodSecurity
	}
}

// version looks at one version of an app; its manifests are render's to judge.
func (l *loader) version(app, version string) {
	dir := "apps/" + app + "/" + version
	entries, err := fs.ReadDir(l.tree, dir)
	if err != nil {
		l.faults.file(dir, "is not there", "a folder with the manifests of this version")
		return
	}
	for _, e := range entries {
		if e.Name() != "images.lock" {
			continue
		}
		if data, ok := l.read(dir+"/images.lock", &l.faults, ""); ok {
			_, faults := parseImagesLock(dir+"/images.lock", data)
			l.faults = append(l.faults, faults...)
		}
	}
}

// sites reads all sites, on all cores.
func (l *loader) sites(dirs []string) {
	sites := make([]*Site, len(dirs))
	faults := make([]Faults, runtime.GOMAXPROCS(0))
	shared := sharedFaults{sites: map[Fault][]string{}}
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range faults {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(dirs) {
					return
				}
				if sites[i] = l.site(dirs[i], &faults[w]); sites[i] != nil {
					l.follow(sites[i])
					l.checkLayer(layerDoc{sites[i].layer, "spec"}, &faults[w])
					var own Faults
					l.validateSite(sites[i], &own)
					faults[w] = append(faults[w], shared.keep(sites[i], own)...)
				}
			}
		})
	}
	wg.Wait()
	for _, x := range faults {
		l.faults = append(l.faults, x...)
	}
	l.faults = append(l.faults, shared.faults()...)
	l.f.sites = slices.DeleteFunc(sites, func(s *Site) bool { return s == nil })
}

// sharedFaults gathers what sites find wrong in documents that many have in
// common: one line for the class, and not one for each of ten thousand sites.
type sharedFaults struct {
	mu    sync.Mutex
	sites map[Fault][]string
}

// keep gives back the faults in the site's own folder and holds the others.
func (s *sharedFaults) keep(site *Site, all Faults) Faults {
	var own Faults
	for _, x := range all {
		if strings.HasPrefix(x.File, site.Dir+"/") {
			own = append(own, x)
			continue
		}
		s.mu.Lock()
		s.sites[x] = append(s.sites[x], site.Name)
		s.mu.Unlock()
	}
	return own
}

func (s *sharedFaults) faults() Faults {
	var out Faults
	for x, names := range s.sites {
		x.Problem += " at site " + slices.Min(names)
		if len(names) > 1 {
			x.Problem += fmt.Sprintf(" and %d more", len(names)-1)
		}
		out = append(out, x)
	}
	return out
}

// site reads the documents of one site. It touches nothing of the loader but
// the tree, so that many run at once.
func (l *loader) site(dir string, faults *Faults) *Site {
	s := &Site{Name: path.Base(dir), Dir: dir}
	var spec SiteSpec
	h, n := l.document(dir+"/site.yaml", siteLayer, "Site", s.Name, &spec, faults, "what makes a folder a site")
	if n == nil {
		return nil
	}
	s.UID, s.Layers, s.Labels, s.perBox = spec.UID, spec.Layers, h.Metadata.Labels, spec.Machines
	s.spec, s.layer = n, n.without("uid", "layers", "machines")
	if !checks["label"].ok(s.Name) {
		faults.file(dir, fmt.Sprintf("the folder's name %q, which is the site's, is no DNS label", s.Name), checks["label"].fix)
	}
	if data, err := readFile(l.tree, dir+"/machines.yaml"); err == nil {
		var fs Faults
		var m *MachinesSpec
		m, s.machines, fs = parseMachines(dir+"/machines.yaml", data)
		s.Machines, s.Tombstones = m.Members, m.Tombstones
		*faults = append(*faults, fs...)
	} else if !errors.Is(err, fs.ErrNotExist) {
		faults.file(dir+"/machines.yaml", "cannot be read: "+err.Error(), "")
	}
	return s
}

// follow finds the site's ring: the last of fleet, layers and site that names one.
func (l *loader) follow(s *Site) { s.Ring = l.f.ringOf(s.layer, s.Layers) }

func (f *Fleet) ringOf(site *node, layers []string) string {
	all := []*node{f.spec.get("defaults")}
	for _, c := range layers {
		all = append(all, f.classes[c])
	}
	ring := ""
	for _, n := range append(all, site) {
		switch r := n.get("ring"); {
		case r.get(deleteKey) != nil:
			ring = ""
		case r.str() != "":
			ring = r.text
		}
	}
	return ring
}
