package render

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Object is one Kubernetes object, ready to be applied. Namespace is empty for
// kinds that have none, and for custom resources that name none and whose
// definition the app does not bring: who applies it then takes the app's
// namespace if the API server says that the kind has one.
type Object struct {
	APIVersion, Kind, Namespace, Name string
	JSON                              []byte // canonical: sorted keys, no insignificant space
}

// Ref is the object's name without its content.
func (o Object) Ref() fleet.ObjectRef {
	return fleet.ObjectRef{APIVersion: o.APIVersion, Kind: o.Kind, Namespace: o.Namespace, Name: o.Name}
}

// App is one app at one site.
type App struct {
	Name, Version, Namespace string
	Needs                    []string
	Critical                 bool
	OnFailure                string
	Deadline                 time.Duration
	Devices                  []string          // host devices that its pods see, sorted
	Objects                  []Object          // in the order in which they are applied
	Delete                   []fleet.ObjectRef // removed from the cluster, with the data that they hold
	Images                   []string          // registry/repo:tag@sha256:…, sorted
	Digest                   string            // lower-case hex, over all of the above
}

// Image is an app image that must be at the site before an object changes.
type Image struct {
	Ref    string // registry/repo:tag
	Digest string // sha256:…
	Size   int64
}

// Rendering is everything that a release makes of a site.
type Rendering struct {
	Site     string
	Edition  int
	Settings []byte // canonical JSON of OS, network, Kubernetes and machine class
	Apps     []App  // in the order of their needs
	// What apps that are no longer selected ask to remove, with its data.
	// A namespace that is left out here stays so: the app that knew it is gone.
	Delete []fleet.ObjectRef
	Images []Image // of all apps, sorted
	Effect Effect
}

// Effect is what waves, judging and refusals go by: two releases with the same
// effect do the same to a site. Digests are lower-case hex SHA-256.
type Effect struct {
	Digest   string            `json:"digest"` // over the two below
	Settings string            `json:"settings"`
	Apps     map[string]string `json:"apps"`
}

// Site renders one site. A *fleet.Resolved comes from the same tree, or from
// the slice of it that the site has: the result is the same.
// What is wrong with the files comes back as fleet.Faults, all at once.
func Site(tree fs.FS, r *fleet.Resolved) (*Rendering, error) {
	return New(tree).Site(r)
}

// Renderer renders many sites of one tree; what sites have in common is done
// once. It may be used by several goroutines. The tree must not change.
type Renderer struct {
	tree    fs.FS
	collect *collector // nil but for References

	mu       sync.Mutex
	versions map[string]*versionOnce // by folder and substituted files
	bases    map[string]*baseOnce    // by version and values
}

type versionOnce struct {
	once    sync.Once
	version *version
	err     error
}

type baseOnce struct {
	once sync.Once
	base *base
	err  error
}

// maxBases bounds the memory for fleets where each site has values of its own.
const maxBases = 2048

// New makes a Renderer for a tree.
func New(tree fs.FS) *Renderer {
	return &Renderer{tree: tree, versions: map[string]*versionOnce{}, bases: map[string]*baseOnce{}}
}

// Site renders one site.
func (rr *Renderer) Site(r *fleet.Resolved) (*Rendering, error) {
	out := &Rendering{Site: r.Site, Edition: r.Edition, Settings: settings(r), Apps: make([]App, 0, len(r.Apps)), Delete: sortedRefs(r.Deletes)}
	if err := reservedVars(r); err != nil {
		return nil, err
	}
	bases := make([]*base, len(r.Apps))
	errs := make([]error, len(r.Apps))
	for i := range r.Apps {
		bases[i], errs[i] = rr.base(r, &r.Apps[i])
	}
	if err := join(errs...); err != nil {
		return nil, err
	}
	shared, err := sharedObjects(r, bases)
	if err != nil {
		return nil, err
	}
	owners := map[identity]string{}
	images := map[Image]bool{}
	for i := range r.Apps {
		app, err := rr.finish(r, &r.Apps[i], bases[i], shared[i])
		if err == nil {
			err = claim(owners, app)
		}
		if err != nil {
			errs[i] = err
			continue
		}
		for _, image := range bases[i].images {
			images[image] = true
		}
		out.Apps = append(out.Apps, app)
	}
	if err := join(errs...); err != nil {
		return nil, err
	}
	out.Images = sortedImages(images)
	out.Effect = effect(out)
	return out, nil
}

// identity is what makes two objects the same one; versions of an API are
// views of one object.
type identity struct{ group, kind, namespace, name string }

func (o Object) identity() identity {
	return identity{group(o.APIVersion), o.Kind, o.Namespace, o.Name}
}

// claim refuses an object that two apps of a site bring: each would undo the
// other.
func claim(owners map[identity]string, app App) error {
	var errs []error
	for _, o := range app.Objects {
		if other, taken := owners[o.identity()]; taken {
			errs = append(errs, fault(path.Join("apps", app.Name, app.Version), 0, 0, "", fmt.Sprintf("%s is also in app %s", refString(o.Ref()), other),
				"keep it in one app and let the other name that one under needs"))
			continue
		}
		owners[o.identity()] = app.Name
	}
	return join(errs...)
}

func sortedImages(set map[Image]bool) []Image {
	list := make([]Image, 0, len(set))
	for image := range set {
		list = append(list, image)
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if a.Ref != b.Ref {
			return a.Ref < b.Ref
		}
		return a.Digest < b.Digest
	})
	return list
}

// version is an app version as it stands in the tree, read and parsed.
type version struct {
	app      string
	dir      string
	files    []file // with marks; the lock apart
	refs     []reference
	listed   map[string]bool // files with marks
	exists   map[string]bool // files and folders
	inputs   map[string]bool // files that a kustomization's generators read
	kustomed bool
	found    []manifest // of plain manifests, with marks
	used     []string   // variables and values
	usedSet  map[string]bool
	lock     lock
}

func (rr *Renderer) version(app *fleet.App) (*version, error) {
	key := app.Name + "\x00" + app.Dir + "\x00" + strings.Join(app.Substitute, "\x00")
	rr.mu.Lock()
	entry, ok := rr.versions[key]
	if !ok {
		entry = &versionOnce{}
		rr.versions[key] = entry
	}
	rr.mu.Unlock()
	entry.once.Do(func() { entry.version, entry.err = parse(rr.tree, app, rr.collect) })
	return entry.version, entry.err
}

// parse reads an app version: everything that no site has a say in.
func parse(tree fs.FS, app *fleet.App, collect *collector) (*version, error) {
	files, err := readVersion(tree, app.Dir)
	if err != nil {
		return nil, err
	}
	v := &version{app: app.Name, dir: app.Dir, listed: map[string]bool{}, inputs: map[string]bool{}, usedSet: map[string]bool{}}
	if v.lock, files, err = takeLock(app, files); err != nil {
		return nil, err
	}
	v.lock.collect = collect
	if err := v.mark(app, files); err != nil {
		return nil, err
	}
	if err := v.read(); err != nil {
		return nil, err
	}
	for name := range v.usedSet {
		v.used = append(v.used, name)
	}
	slices.Sort(v.used)
	return v, nil
}

// mark puts marks into the files that are listed for substitution. A listed
// file that this version does not have is none of its business: versions with
// different files stand side by side under one app.yaml.
func (v *version) mark(app *fleet.App, files []file) error {
	var errs []error
	for _, f := range files {
		if !listed(app.Substitute, f.name) {
			errs = append(errs, unlisted(f, app.Name))
			v.files = append(v.files, f)
			continue
		}
		data, err := mark(f, &v.refs)
		errs = append(errs, err)
		f.data = data
		v.listed[f.name] = true
		v.files = append(v.files, f)
	}
	return join(errs...)
}

// listed says whether a file is among the names and patterns of `substitute`.
func listed(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, name)
		return ok && err == nil
	})
}

// read parses what can be parsed before values are known, and finds out which
// variables matter.
func (v *version) read() error {
	v.exists = map[string]bool{".": true}
	for _, f := range v.files {
		for p := f.name; p != "."; p = path.Dir(p) {
			v.exists[p] = true
		}
	}
	if v.exists["Chart.yaml"] {
		return fault(path.Join(v.dir, "Chart.yaml"), 0, 0, "", "Helm charts cannot be rendered yet", "commit the output of `helm template`, or write manifests")
	}
	var errs []error
	found := kustomizations(v.files)
	for _, f := range found {
		inputs, err := inspect(f, v.exists)
		errs = append(errs, err)
		for _, name := range inputs {
			v.inputs[name] = true
		}
		v.kustomed = v.kustomed || path.Dir(f.name) == "."
	}
	if len(found) > 0 && !v.kustomed {
		errs = append(errs, fault(found[0].path, 0, 0, "", "is a kustomization, but the version folder itself has none", "add "+path.Join(v.dir, "kustomization.yaml")))
	}
	if err := join(errs...); err != nil {
		return err
	}
	for i := range v.files {
		errs = append(errs, v.readFile(&v.files[i]))
	}
	if err := join(errs...); err != nil {
		return err
	}
	if !v.kustomed && len(v.found) == 0 {
		return fault(v.dir, 0, 0, "", "the app version has no object", "add at least one manifest (*.yaml or *.json)")
	}
	return nil
}

func (v *version) readFile(f *file) error {
	if v.inputs[f.name] || !isManifest(f.name) {
		v.use(string(f.data))
		return nil
	}
	if v.kustomed && !v.listed[f.name] {
		return nil // Kustomize reads it; it may be anything
	}
	docs := split(f.data)
	var errs []error
	for i := range docs {
		var err error
		docs[i], err = typed(f.path, docs[i])
		errs = append(errs, err)
	}
	if err := join(errs...); err != nil {
		return err
	}
	if !v.kustomed {
		found, err := manifests(f.path, docs)
		v.found = append(v.found, found...)
		for _, m := range found {
			v.use(m.object)
		}
		return err
	}
	f.data = nil // put together again for each set of values
	for _, d := range docs {
		value, err := d.decode(f.path)
		errs = append(errs, err)
		v.use(value)
		f.data = append(append(append(f.data, "---\n"...), mustCanonical(value)...), '\n')
	}
	return join(errs...)
}

func (v *version) use(value any) { references(value, v.refs, v.usedSet) }

// manifests gives the objects of a version with values in their places. The
// trees may be shared with other sites and are not to be changed.
func (v *version) manifests(values map[string]any) ([]manifest, error) {
	if v.kustomed {
		return v.kustomize(values)
	}
	if len(v.used) == 0 {
		return v.found, nil
	}
	found := make([]manifest, len(v.found))
	for i, m := range v.found {
		found[i] = m
		found[i].object, _ = insert(m.object, v.refs, values).(map[string]any)
		if err := check(found[i].object, m.file, m.line); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// kustomize puts values into the files and builds. Documents go in as JSON,
// which is YAML that no value can break; inputs of generators as text.
func (v *version) kustomize(values map[string]any) ([]manifest, error) {
	files := slices.Clone(v.files)
	for i, f := range files {
		if !v.listed[f.name] {
			continue
		}
		if v.inputs[f.name] || !isManifest(f.name) {
			files[i].data = []byte(insertText(string(f.data), v.refs, values))
			continue
		}
		var data []byte
		for _, line := range strings.SplitAfter(string(f.data), "\n") {
			if !strings.HasPrefix(line, "{") && !strings.HasPrefix(line, "[") {
				data = append(data, line...)
				continue
			}
			value, err := decodeJSON([]byte(line))
			if err != nil {
				return nil, fmt.Errorf("read %s again: %w", f.path, err)
			}
			data = append(append(data, mustCanonical(insert(value, v.refs, values))...), '\n')
		}
		files[i].data = data
	}
	for _, f := range kustomizations(files) {
		if _, err := inspect(f, v.exists); v.listed[f.name] && err != nil { // values may say more than marks did
			return nil, err
		}
	}
	return kustomize(v.dir, files)
}
