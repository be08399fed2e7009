// Package sites tells, for one release, which machine lives at which site.
//
// The hub asks it for every session and every relayed connection. An index is built
// once per release from the tree objects; what has the tree id that it had in
// the release before is taken over unread, so that a one-line change among ten
// thousand sites reads a handful of objects.
//
// It reads leniently, on purpose: only names, ids, roles and tombstones, which every
// version of the format has. A hub that is older or newer than the release still
// delivers it; whether it is right is judged by the machines. A site whose list
// cannot be read has no machines here and is named in Faults.
package sites

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/release"
)

// ID is the id of a Git object.
type ID = release.ObjectID

// Bounds of what is read. A release is signed, but a hub must not fall over a mistake.
const (
	maxDepth    = 12      // folders below sites/
	maxMachines = 4 << 20 // bytes of one machines.yaml
)

// Site is one site in one release. It is shared: do not change it.
type Site struct {
	Name string
	Dir  string // from the root of the fleet repo, slash-separated
	Tree ID     // of Dir
	*Machines
}

// Machines is the content of a machines.yaml, as far as the hub needs it.
type Machines struct {
	Members    []Member
	Tombstones []Tombstone
}

// Member is a machine that the site lists.
type Member struct {
	Name       string          `yaml:"name"`
	ID         fleet.MachineID `yaml:"id"`
	Role       string          `yaml:"role"`
	Protection string          `yaml:"protection"`
	Unverified bool            `yaml:"unverified"`
}

// ControlPlane tells whether the machine answers for the site's cluster.
func (m Member) ControlPlane() bool { return m.Role == "control-plane" }

// Tombstone is a machine that the site buries.
type Tombstone struct {
	ID   fleet.MachineID `yaml:"id"`
	Verb string          `yaml:"verb"`
}

// Place is where a machine stands in a release.
type Place struct {
	Site   *Site
	Member Member // the id alone when Gone
	Gone   bool   // only a tombstone names it
}

// Index answers for one release. It does not change once built.
type Index struct {
	Faults []string // what could not be read, for the log

	sites  []*Site // by Dir
	byName map[string]*Site
	byID   map[fleet.MachineID]Place
	nodes  map[ID]*node
}

// node is a folder below sites/, wherever it stands.
type node struct {
	machines *Machines // not nil: the folder is a site
	fault    string
	children []child
}

type child struct {
	name string
	id   ID
	node *node
}

// Build reads the tree of a release. Previous may be nil.
func Build(src release.Source, root ID, previous *Index) (*Index, error) {
	b := builder{src: src, nodes: map[ID]*node{}}
	if previous != nil {
		b.old = previous.nodes
	}
	x := &Index{byName: map[string]*Site{}, byID: map[fleet.MachineID]Place{}, nodes: b.nodes}
	top, err := b.entries(root)
	if err != nil {
		return nil, fmt.Errorf("index the sites of tree %x: %w", root, err)
	}
	for _, e := range top {
		if e.Name != "sites" || e.Mode != release.ModeFolder {
			continue
		}
		n, err := b.folder(e.ID, 0)
		if err != nil {
			return nil, fmt.Errorf("index the sites of tree %x: %w", root, err)
		}
		x.add("sites", e.ID, n)
	}
	slices.SortFunc(x.sites, func(a, b *Site) int { return cmp.Compare(a.Dir, b.Dir) })
	x.place()
	return x, nil
}

type builder struct {
	src   release.Source
	old   map[ID]*node
	nodes map[ID]*node
}

func (b *builder) entries(id ID) ([]release.Entry, error) {
	kind, data, err := b.src.Object(id)
	if err != nil {
		return nil, fmt.Errorf("read tree %x: %w", id, err)
	}
	if kind != release.KindTree {
		return nil, fmt.Errorf("read tree %x: it is a %s", id, kind)
	}
	return release.ParseTree(data)
}

func (b *builder) folder(id ID, depth int) (*node, error) {
	if n, ok := b.nodes[id]; ok {
		return n, nil
	}
	if n, ok := b.old[id]; ok {
		b.keep(id, n)
		return n, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("folders are nested deeper than %d", maxDepth)
	}
	entries, err := b.entries(id)
	if err != nil {
		return nil, err
	}
	n := &node{}
	if slices.ContainsFunc(entries, func(e release.Entry) bool { return e.Name == "site.yaml" && e.Mode != release.ModeFolder }) {
		err = b.site(n, entries)
	} else {
		err = b.children(n, entries, depth)
	}
	if err != nil {
		return nil, err
	}
	b.nodes[id] = n
	return n, nil
}

// keep takes a folder of the previous index over, with all below it.
func (b *builder) keep(id ID, n *node) {
	if _, ok := b.nodes[id]; ok {
		return
	}
	b.nodes[id] = n
	for _, c := range n.children {
		b.keep(c.id, c.node)
	}
}

func (b *builder) children(n *node, entries []release.Entry, depth int) error {
	for _, e := range entries {
		if e.Mode != release.ModeFolder {
			continue
		}
		below, err := b.folder(e.ID, depth+1)
		if err != nil {
			return err
		}
		n.children = append(n.children, child{e.Name, e.ID, below})
	}
	return nil
}

func (b *builder) site(n *node, entries []release.Entry) error {
	n.machines = &Machines{}
	for _, e := range entries {
		if e.Name != "machines.yaml" || e.Mode == release.ModeFolder {
			continue
		}
		_, data, err := b.src.Object(e.ID)
		if err != nil {
			return fmt.Errorf("read machines.yaml %x: %w", e.ID, err)
		}
		if n.machines, err = ParseMachines(data); err != nil {
			n.machines, n.fault = &Machines{}, err.Error()
		}
	}
	return nil
}

// ParseMachines reads a machines.yaml leniently.
func ParseMachines(data []byte) (*Machines, error) {
	if len(data) > maxMachines {
		return nil, fmt.Errorf("machines.yaml has %d bytes, more than %d", len(data), maxMachines)
	}
	var doc struct {
		Spec Machines `yaml:"spec"`
	}
	if err := yaml.Unmarshal(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), &doc); err != nil {
		return nil, fmt.Errorf("machines.yaml: %w", err)
	}
	for _, m := range doc.Spec.Members {
		if _, err := fleet.ParseMachineID(string(m.ID)); err != nil {
			return nil, fmt.Errorf("machines.yaml: member %q: %w", m.Name, err)
		}
	}
	for _, t := range doc.Spec.Tombstones {
		if _, err := fleet.ParseMachineID(string(t.ID)); err != nil {
			return nil, fmt.Errorf("machines.yaml: tombstone: %w", err)
		}
	}
	return &doc.Spec, nil
}

// add lists the sites below a folder.
func (x *Index) add(dir string, id ID, n *node) {
	if n.machines != nil {
		x.sites = append(x.sites, &Site{Name: path.Base(dir), Dir: dir, Tree: id, Machines: n.machines})
		if n.fault != "" {
			x.Faults = append(x.Faults, dir+": "+n.fault)
		}
	}
	for _, c := range n.children {
		x.add(dir+"/"+c.name, c.id, c.node)
	}
}

// place notes where each machine stands. A machine that moved is a member of one
// site and buried at another: the living place counts. Two sites that claim one
// machine are a fault of the release; the first by folder has it.
func (x *Index) place() {
	for _, s := range x.sites {
		if other := x.byName[s.Name]; other != nil {
			x.Faults = append(x.Faults, s.Dir+": has the name of "+other.Dir)
		} else {
			x.byName[s.Name] = s
		}
		for _, m := range s.Members {
			if p, ok := x.byID[m.ID]; ok {
				x.Faults = append(x.Faults, fmt.Sprintf("%s: lists machine %s, which %s lists", s.Dir, m.ID, p.Site.Dir))
				continue
			}
			x.byID[m.ID] = Place{Site: s, Member: m}
		}
	}
	for _, s := range x.sites {
		for _, t := range s.Tombstones {
			if _, ok := x.byID[t.ID]; !ok {
				x.byID[t.ID] = Place{Site: s, Member: Member{ID: t.ID}, Gone: true}
			}
		}
	}
}

// Machine returns where a machine stands; false when no site names it.
func (x *Index) Machine(id fleet.MachineID) (Place, bool) {
	if x == nil {
		return Place{}, false
	}
	p, ok := x.byID[id]
	return p, ok
}

// Site returns a site by its name.
func (x *Index) Site(name string) (*Site, bool) {
	if x == nil {
		return nil, false
	}
	s, ok := x.byName[name]
	return s, ok
}

// Sites returns all sites, by folder.
func (x *Index) Sites() []*Site {
	if x == nil {
		return nil
	}
	return x.sites
}
