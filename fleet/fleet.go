package fleet

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Fleet is what a fleet repo, or the part of it that one site needs, says. It
// does not change once loaded; its methods may be called from many goroutines.
type Fleet struct {
	Name    string
	ID      ID
	Edition int
	Hubs    []Hub
	Mirrors []string
	Vars    map[string]VarDecl
	Trust   *Trust

	spec     *node // of fleet.yaml
	lowest   *node // what is built in, and the defaults of variables: below all layers, so no $delete reaches it
	classes  map[string]*node
	rings    map[string]*Ring
	os       map[string]*OS
	apps     map[string]*AppFile
	sites    []*Site
	byName   map[string]*Site
	warnings Faults

	bases sync.Map // ring and layers -> *node: what sites with the same ones share
}

// Ring is a document of rings/.
type Ring struct {
	Name string
	RingSpec
	spec  *node
	layer *node // its defaults
}

// OS is a document of os/.
type OS struct {
	Version string
	OSSpec
	spec *node
}

// AppFile is apps/NAME/app.yaml and the versions beside it.
type AppFile struct {
	Name     string
	Versions []string // the folders in apps/NAME; of a slice, only those that the site needs
	AppSpec
	spec *node
}

// Site is a folder below sites/ that has a site.yaml.
type Site struct {
	Name, UID, Dir, Ring string
	Layers               []string
	Labels               map[string]string
	Machines             []Machine
	Tombstones           []Tombstone

	spec     *node // of site.yaml
	layer    *node // the part of it that is a layer
	machines *node // spec of machines.yaml, nil when there is none
	perBox   []MachineLayer
}

// Sites are all sites, by name.
func (f *Fleet) Sites() []*Site { return f.sites }

// Site finds a site by its name.
func (f *Fleet) Site(name string) (*Site, bool) {
	s, ok := f.byName[name]
	return s, ok
}

// Ring finds a ring by its name.
func (f *Fleet) Ring(name string) (*Ring, bool) {
	r, ok := f.rings[name]
	return r, ok
}

// Rings are the names of all rings.
func (f *Fleet) Rings() []string { return slices.Sorted(maps.Keys(f.rings)) }

// Classes are the names of all classes.
func (f *Fleet) Classes() []string { return slices.Sorted(maps.Keys(f.classes)) }

// App finds an app by its name.
func (f *Fleet) App(name string) (*AppFile, bool) {
	a, ok := f.apps[name]
	return a, ok
}

// Apps are the names of all apps.
func (f *Fleet) Apps() []string { return slices.Sorted(maps.Keys(f.apps)) }

// OSVersion finds an OS image version.
func (f *Fleet) OSVersion(version string) (*OS, bool) {
	o, ok := f.os[version]
	return o, ok
}

// OSVersions are all OS image versions that the tree holds, by version.
func (f *Fleet) OSVersions() []*OS {
	var list []*OS
	for _, v := range slices.Sorted(maps.Keys(f.os)) {
		list = append(list, f.os[v])
	}
	return list
}

// Warnings are the faults that do not stop a release.
func (f *Fleet) Warnings() Faults { return f.warnings }

// Matches tells whether a selector chooses the site: a folder under sites/ that
// it is or lies in, or a label such as country=de.
func (s *Site) Matches(selector string) bool {
	if key, value, ok := strings.Cut(selector, "="); ok {
		return s.Labels[key] == value
	}
	return s.Dir == "sites/"+selector || strings.HasPrefix(s.Dir, "sites/"+selector+"/")
}

// builtIn is the layer below all others: what holds where nobody says anything.
const builtIn = `
network:
  siteRange: 10.213.0.0/24
  podRange: 10.214.0.0/16
  serviceRange: 10.215.0.0/16
  domain: cluster.local
  lanTrusted: false
kubernetes:
  maxPods: 110
  diskSlow: false
machine:
  protection: tpm
  secretsUnprotected: false
  architecture: amd64
  stateSize: 2Gi
  dataSize: 16Gi
  update: {deadline: 10m, soak: 1m}
`

// What an app.yaml need not say.
const (
	defaultDeadline    = 10 * time.Minute
	defaultOnFailure   = "undo-app"
	defaultPodSecurity = "baseline"
	// defaultKubernetes is the minor of hosted sites, whose ring names no OS image.
	defaultKubernetes = "1.36"
)

var builtInLayer = sync.OnceValue(func() *node {
	n, faults := parse(&source{file: "(built in)", layer: "built in"}, []byte(builtIn))
	if len(faults) > 0 {
		panic("fleet: built-in layer: " + faults.Error())
	}
	return n
})
