package render

import (
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/holdfast-edge/holdfast/fleet"
)

// unset stands for a value that nobody gives to an app version which no site
// has. An image name with it in is not known yet.
const unset = "holdfast-unset"

// ImageName is the one spelling of an image name, as images.lock has it:
// registry, repository and tag, with the defaults of every container runtime.
func ImageName(name string) (string, error) { return fullName(name) }

// References finds, for each folder of an app version, the images that its
// objects name: by full name, with the digest that the manifest itself asks for,
// or "". It is what Site would look up in images.lock, over all sites with their
// values and patches; versions that no site has yet are read too.
func References(tree fs.FS, f *fleet.Fleet) (map[string]map[string]string, error) {
	c := &collector{found: map[string]map[string]string{}}
	rr := New(tree)
	rr.collect = c
	var errs []error
	like := map[string]*fleet.Resolved{} // app -> a site that has it, in whichever version
	seen := map[string]bool{}
	for _, s := range f.Sites() {
		r, err := f.Resolve(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for i := range r.Apps {
			like[r.Apps[i].Name] = r
			seen[r.Apps[i].Dir] = true
		}
		_, err = rr.Site(r)
		errs = append(errs, err)
	}
	for _, name := range f.Apps() {
		file, _ := f.App(name)
		for _, v := range file.Versions {
			if dir := path.Join("apps", name, v); !seen[dir] {
				errs = append(errs, rr.unused(file, v, dir, like[name]))
			}
		}
	}
	return c.found, join(errs...)
}

// unused reads a version that no site has, with the values of a site that has
// another one.
func (rr *Renderer) unused(file *fleet.AppFile, version, dir string, like *fleet.Resolved) error {
	app := &fleet.App{Name: file.Name, Version: version, Dir: dir, Namespace: file.Namespace, Substitute: file.Substitute, PodSecurity: file.PodSecurity}
	if app.Namespace == "" {
		app.Namespace = app.Name
	}
	vars := map[string]any{}
	if like != nil {
		vars = like.Vars
		for i := range like.Apps {
			if like.Apps[i].Name == app.Name {
				app.Values = like.Apps[i].Values
			}
		}
	}
	v, err := rr.version(app)
	if err != nil {
		return err
	}
	values := map[string]any{}
	for _, name := range v.used {
		values[name] = unset
		if value, ok := lookup(name, app, vars); ok {
			values[name] = jsonValue(value)
		}
	}
	_, err = makeBase(v, app, values)
	return err
}

// collector gathers names instead of looking them up.
type collector struct {
	mu    sync.Mutex
	found map[string]map[string]string // folder -> full name -> digest
}

func (c *collector) add(dir, name, digest string) {
	if strings.Contains(name, unset) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.found[dir] == nil {
		c.found[dir] = map[string]string{}
	}
	if c.found[dir][name] == "" {
		c.found[dir][name] = digest
	}
}
