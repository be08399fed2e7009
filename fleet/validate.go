package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Validation across documents: what no single field of one document shows.

func (l *loader) checkFleet(h Header, n *node) {
	if name := h.Metadata.Name; name == "" {
		l.faults.at(n, "metadata.name", "is missing", "the fleet's name, a DNS label")
	} else if !checks["label"].ok(name) {
		l.faults.at(n, "metadata.name", fmt.Sprintf("%q %s", shorten(name), checks["label"].problem), checks["label"].fix)
	}
	hubs := once{}
	for i, x := range elements(n.get("hubs")) {
		hubs.see(&l.faults, x.get("url").str(), x.get("url"), index("spec.hubs", i)+".url", "stands here twice")
	}
	vars := n.get("vars")
	for name, decl := range l.f.Vars {
		d := vars.get(name)
		def := d.get("default")
		if def == nil || def.kind == null || decl.Type == "" {
			continue
		}
		if fix := varFault(def, decl); fix != "" {
			l.faults.at(def, join(join("spec.vars", name), "default"), noVar(def, decl), fix)
		} else if decl.Required {
			l.faults.warn(def, join(join("spec.vars", name), "default"), "is never missing", "required or default, not both")
		}
	}
}

func noVar(n *node, decl VarDecl) string {
	if n.kind == list && decl.Type == "list" {
		return "has elements that are no text"
	}
	return fmt.Sprintf("%s is no %s", shown(n), decl.Type)
}

func shown(n *node) string {
	switch n.kind {
	case mapping, list, null:
		return n.kind.String()
	case text:
		return fmt.Sprintf("%q", shorten(n.text))
	}
	return n.text
}

func (l *loader) checkRing(r *Ring) {
	if r.spec.path("defaults", "ring") != nil {
		l.faults.at(r.spec.path("defaults", "ring"), "spec.defaults.ring", "a ring cannot choose the ring", "remove it; fleet, class or site.yaml choose")
	}
	names := once{}
	for i, w := range elements(r.spec.get("waves")) {
		names.see(&l.faults, w.get("name").str(), w.get("name"), index("spec.waves", i)+".name", "is the name of two waves")
	}
	for i, x := range r.Freezes {
		if n := r.spec.get("freezes"); n != nil && x.From != "" && x.To != "" && x.From > x.To {
			l.faults.at(n.items[i].get("to"), index("spec.freezes", i)+".to", "is before from", "the last day of the freeze")
		}
	}
	if !l.whole {
		return
	}
	if n := r.spec.get("os"); checks["version"].ok(n.str()) && l.f.os[r.OS] == nil && !slices.Contains(l.found.os, r.OS) {
		l.faults.at(n, "spec.os", fmt.Sprintf("there is no os/%s.yaml", shorten(n.text)), oneOf(n.text, l.found.os))
	}
	apps := r.spec.get("apps")
	if apps == nil || apps.kind != mapping {
		return
	}
	for i, k := range apps.keys {
		l.checkVersion(k, apps.items[i], join("spec.apps", k.text))
	}
}

// checkEdition checks that the machines of a ring can render the tree.
func (l *loader) checkEdition(r *Ring) {
	if os := l.f.os[r.OS]; os != nil && len(os.Editions) > 0 && !slices.Contains(os.Editions, l.f.Edition) {
		l.faults.at(r.spec.get("os"), "spec.os", fmt.Sprintf("OS %s does not render edition %d, which fleet.yaml names", r.OS, l.f.Edition), "an OS version that does")
	}
}

// checkVersion checks that the app and this version of it are there.
func (l *loader) checkVersion(app, version *node, at string) {
	if !checks["label"].ok(app.str()) {
		return
	}
	if !slices.Contains(l.found.apps, app.text) {
		l.faults.at(app, at, fmt.Sprintf("there is no app %q", shorten(app.text)), oneOf(app.text, l.found.apps))
		return
	}
	if checks["version"].ok(version.str()) && !slices.Contains(l.versions[app.text], version.text) {
		l.faults.at(version, at, fmt.Sprintf("there is no folder apps/%s/%s", app.text, shorten(version.text)), oneOf(version.text, l.versions[app.text]))
	}
}

func (l *loader) checkOS(o *OS) {
	if images := o.spec.get("images"); images == nil || len(images.keys) == 0 {
		l.faults.at(o.spec, "spec.images", "is missing", "an image for amd64 or arm64")
	}
}

// checkLayers checks every layer but those of sites.
func (l *loader) checkLayers() {
	for _, d := range l.layers {
		l.checkLayer(d, &l.faults)
	}
}

// checkLayer checks one layer by itself against what fleet.yaml declares and
// which apps there are. Many run at once.
func (l *loader) checkLayer(d layerDoc, faults *Faults) {
	if d.n == nil || d.n.kind != mapping {
		return
	}
	l.checkVars(d, faults)
	isSite := d.n.src.layer == siteLayer
	for i, a := range elements(d.n.get("apps")) {
		at := index(d.at+".apps", i)
		name := a.get("name")
		if l.whole && name.str() != "" && checks["label"].ok(name.text) && a.get(deleteKey) == nil {
			if v := a.get("version"); v.str() != "" {
				l.checkVersion(name, v, at)
			} else {
				l.checkVersion(name, nil, at+".name")
			}
		}
		for j, p := range elements(a.get("patches")) {
			file := p.get("file")
			if file != nil && !isSite {
				faults.at(file, index(at+".patches", j)+".file", "a file of its own can only be had by a site", "write the change under merge")
			}
			if file == nil && p.get("merge") == nil && p.get(deleteKey) == nil {
				faults.at(p, index(at+".patches", j), "changes nothing", "the change under merge, or a file in the site's folder")
			}
			if file != nil && p.get("merge") != nil {
				faults.at(file, index(at+".patches", j)+".file", "stands beside merge", "one of the two")
			}
			if isSite && file.str() != "" && isPath(file.text) {
				dir := strings.TrimSuffix(d.n.src.file, "site.yaml")
				if !exists(l.tree, dir+file.text) {
					faults.at(file, index(at+".patches", j)+".file", fmt.Sprintf("there is no %s", shorten(dir+file.text)), "a file in the site's folder, such as patches/till.yaml")
				}
			}
		}
	}
}

func (l *loader) checkVars(d layerDoc, faults *Faults) {
	vars := d.n.get("vars")
	if vars == nil || vars.kind != mapping || l.f.spec == nil {
		return
	}
	declared := l.f.spec.get("vars")
	for i, k := range vars.keys {
		if k.text == deleteKey || vars.items[i].get(deleteKey) != nil {
			continue
		}
		at := join(d.at+".vars", k.text)
		decl, ok := l.f.Vars[k.text]
		switch {
		case ok:
			if fix := varFault(vars.items[i], decl); fix != "" && decl.Type != "" {
				faults.at(vars.items[i], at, noVar(vars.items[i], decl), fix)
			}
		case declared == nil || declared.get(k.text) == nil:
			var known []string
			if declared != nil {
				for _, x := range declared.keys {
					known = append(known, x.text)
				}
			}
			faults.at(k, at, "is not declared in fleet.yaml", oneOf(k.text, known))
		}
	}
	l.users.Lock()
	for _, k := range vars.keys {
		l.users.vars[k.text] = true
	}
	l.users.Unlock()
}

// validateSite checks what a site is once its layers are laid over one another.
func (l *loader) validateSite(s *Site, faults *Faults) {
	f := l.f
	seen := once{}
	for i, x := range elements(s.spec.get("layers")) {
		at := index("spec.layers", i)
		seen.see(faults, x.str(), x, at, "stands here twice")
		if l.whole && x.str() != "" && checks["className"].ok(x.text) && !slices.Contains(l.found.classes, x.text) {
			faults.at(x, at, fmt.Sprintf("there is no classes/%s.yaml", shorten(x.text)), oneOf(x.text, l.found.classes))
		}
	}
	if !l.complete(s) {
		return
	}
	merged := f.merged(s)
	l.checkRingOf(s, merged, faults)
	chosen := choices(merged)
	f.checkApps(s, chosen, l.whole, faults)
	var found Faults // those that decoding the documents has shown
	r, missing := f.resolve(s, merged, &found)
	*faults = append(*faults, missing...)
	checkNetwork(s, merged, r, faults)
	checkPorts(s, merged, r, faults)
	checkDisks(s, merged, r, faults)
	f.checkBoxes(s, r, faults)
	f.checkMachines(s, r, faults)
}

// complete tells whether every document that the site is laid together from could
// be read. Where one could not, which is a fault of its own, what the site lacks
// may stand in there, and to name it would lead people away from the one fault.
func (l *loader) complete(s *Site) bool {
	for _, x := range s.Layers {
		if l.f.classes[x] == nil && slices.Contains(l.found.classes, x) {
			return false
		}
	}
	if l.f.rings[s.Ring] == nil && slices.Contains(l.found.rings, s.Ring) {
		return false
	}
	return l.f.spec != nil
}

func (l *loader) checkRingOf(s *Site, merged *node, faults *Faults) {
	ring := merged.get("ring")
	switch {
	case ring == nil:
		fix := "a ring in site.yaml, or in a layer"
		if l.whole {
			fix += "; " + oneOf("", l.found.rings)
		}
		faults.at(s.spec, "spec.ring", "is missing", fix)
	case l.whole && ring.str() != "" && !slices.Contains(l.found.rings, ring.text) && checks["label"].ok(ring.text):
		faults.at(ring, "spec.ring", fmt.Sprintf("there is no rings/%s.yaml", shorten(ring.text)), oneOf(ring.text, l.found.rings))
	}
}

func (f *Fleet) checkApps(s *Site, chosen []choice, whole bool, faults *Faults) {
	here := map[string]bool{}
	for _, c := range chosen {
		here[c.name] = true
		if c.version == "" && f.rings[s.Ring] != nil && (f.apps[c.name] != nil || !whole) {
			faults.at(c.node.get("name"), "spec.apps."+c.name, fmt.Sprintf("ring %s has no version of it", s.Ring), fmt.Sprintf("a line %s: VERSION under apps in rings/%s.yaml", c.name, s.Ring))
		}
	}
	for _, c := range chosen {
		a := f.apps[c.name]
		if a == nil {
			continue
		}
		for _, n := range a.Needs {
			if !here[n] {
				faults.at(c.node.get("name"), "spec.apps."+c.name, fmt.Sprintf("it needs %s, which is not selected", n), fmt.Sprintf("select it, too: a line \"- name: %s\" under apps", n))
			}
		}
	}
}

func checkNetwork(s *Site, merged *node, r *Resolved, faults *Faults) {
	net := merged.get("network")
	// where a value stands; the site itself for what nobody wrote
	place := func(name string) *node {
		if n := net.get(name); n != nil && n.src != builtInLayer().src {
			return n
		}
		return s.spec
	}
	ranges := []struct {
		name string
		p    netip.Prefix
	}{{"siteRange", r.Network.SiteRange}, {"podRange", r.Network.PodRange}, {"serviceRange", r.Network.ServiceRange}}
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if a.p.IsValid() && b.p.IsValid() && a.p.Overlaps(b.p) {
				at, name := place(a.name), a.name
				if at == s.spec {
					at, name = place(b.name), b.name
				}
				faults.at(at, "spec.network."+name, fmt.Sprintf("%s %s and %s %s overlap", a.name, a.p, b.name, b.p), "ranges apart from one another")
			}
		}
	}
	if p := r.Network.SiteRange; p.IsValid() && (p.Bits() < 16 || p.Bits() > 28) {
		faults.at(place("siteRange"), "spec.network.siteRange", fmt.Sprintf("%s is no good size", p), "a range from /16 to /28")
	}
	if p := r.Network.PodRange; p.IsValid() && p.Bits() > 24 {
		faults.at(place("podRange"), "spec.network.podRange", fmt.Sprintf("%s is too small", p), "a range of /24 or larger; each machine takes a part of it")
	}
	if p := r.Network.ServiceRange; p.IsValid() && (p.Bits() < 12 || p.Bits() > 24) {
		faults.at(place("serviceRange"), "spec.network.serviceRange", fmt.Sprintf("%s is no good size", p), "a range from /12 to /24")
	}
	if a := r.Network.APIAddress; a.IsValid() && r.Network.SiteRange.IsValid() && !usable(r.Network.SiteRange, a) {
		faults.at(place("apiAddress"), "spec.network.apiAddress", fmt.Sprintf("%s is no address of siteRange %s", a, r.Network.SiteRange), "an address inside, such as its first")
	}
}

// checkBoxes checks that the ring's OS image exists for the site's boxes, and how
// they judge another one.
func (f *Fleet) checkBoxes(s *Site, r *Resolved, faults *Faults) {
	if u := r.Class.Update; u.Deadline < time.Minute || u.Deadline > 24*time.Hour {
		faults.at(s.spec, "spec.machine.update.deadline", fmt.Sprintf("%s is no good time", u.Deadline), "from 1m to 24h")
	} else if u.Soak < 10*time.Second || u.Soak > u.Deadline {
		faults.at(s.spec, "spec.machine.update.soak", fmt.Sprintf("%s is no good time", u.Soak), "from 10s to the deadline, "+u.Deadline.String())
	}
	os := f.os[r.OS]
	if os == nil || len(os.Images) == 0 || r.Class.Architecture == "" {
		return
	}
	if _, ok := os.Images[r.Class.Architecture]; !ok {
		faults.at(s.spec, "spec.machine.architecture", fmt.Sprintf("OS %s, which ring %s names, has no image for %s", r.OS, s.Ring, r.Class.Architecture),
			fmt.Sprintf("another architecture, or an image in os/%s.yaml", r.OS))
	}
}

// usable holds for the addresses of a range that a host can have.
func usable(p netip.Prefix, a netip.Addr) bool {
	return p.Contains(a) && a != p.Addr() && p.Contains(a.Next())
}

func (f *Fleet) checkMachines(s *Site, r *Resolved, faults *Faults) {
	if s.machines == nil {
		return
	}
	planes := 0
	for i, m := range s.Machines {
		n, at := item(s.machines, "members", i)
		if m.Role == "control-plane" {
			planes++
		}
		switch a := m.SiteAddress; {
		case !a.IsValid() || !r.Network.SiteRange.IsValid():
		case !usable(r.Network.SiteRange, a):
			faults.at(n.get("siteAddress"), at+".siteAddress", fmt.Sprintf("%s is no address of the site's range %s", a, r.Network.SiteRange), "an address inside; it never changes again")
		case a == r.Network.APIAddress:
			faults.at(n.get("siteAddress"), at+".siteAddress", fmt.Sprintf("%s is the address of the API", a), "another address of "+r.Network.SiteRange.String())
		}
		if m.Unverified {
			faults.warn(n.get("unverified"), at+".unverified", fmt.Sprintf("nobody checked that %s is the box that was meant", m.Name), "compare the code on its console, then adopt it again")
		}
	}
	members := s.machines.get("members")
	switch {
	case len(s.Machines) > 0 && planes == 0:
		faults.at(members, "spec.members", "none is a control plane", "1 or 3 with role: control-plane")
	case planes > 5:
		faults.at(members, "spec.members", fmt.Sprintf("%d are control planes", planes), "1 or 3, at most 5")
	case planes > 0 && planes%2 == 0:
		faults.warn(members, "spec.members", fmt.Sprintf("%d are control planes, which is no safer than %d", planes, planes-1), "1, 3 or 5")
	}
	for i, b := range s.perBox {
		if b.Name != "" && !slices.ContainsFunc(s.Machines, func(m Machine) bool { return m.Name == b.Name }) {
			n, at := item(s.spec, "machines", i)
			faults.at(n.get("name"), at+".name", fmt.Sprintf("no machine of the site is called %q", b.Name), oneOf(b.Name, names(s.Machines)))
		}
	}
}

func names(all []Machine) []string {
	var out []string
	for _, m := range all {
		out = append(out, m.Name)
	}
	return out
}

// across checks what only all documents together show.
func (l *loader) across() {
	uids, members := once{}, once{}
	dirs := map[string]string{}
	for _, s := range l.f.sites {
		if first, twice := dirs[s.Name]; twice {
			l.faults.file(s.Dir, "has the same name as "+first, "last folders that are different all over the fleet: they are the sites' names")
		} else {
			dirs[s.Name] = s.Dir
		}
		uids.see(&l.faults, s.UID, s.spec.get("uid"), "spec.uid", "is the uid of two sites")
		for i, m := range s.Machines {
			n, at := item(s.machines, "members", i)
			if first := members[string(m.ID)]; first != nil && first.src == s.machines.src {
				continue // twice in one site is said already
			}
			members.see(&l.faults, string(m.ID), n.get("id"), at+".id", "is a member of two sites")
		}
	}
	l.needCycles()
	for name, decl := range l.f.Vars {
		if d := l.f.spec.path("vars", name); !l.users.vars[name] && !decl.Required && (d.get("default") == nil || d.get("default").kind == null) {
			l.faults.warn(d, join("spec.vars", name), "is never given a value", "a default, a value in a layer or site, or remove it")
		}
	}
	for name, a := range l.f.apps {
		for i, n := range elements(a.spec.get("needs")) {
			if n.str() != "" && !slices.Contains(l.found.apps, n.text) {
				l.faults.at(n, index("spec.needs", i), fmt.Sprintf("there is no app %q", shorten(n.text)), oneOf(n.text, l.found.apps))
			}
		}
		if len(a.Versions) == 0 {
			l.faults.file("apps/"+name, "has no version", "a folder with manifests, named like the version")
		}
	}
	l.checkSelectors()
}

// needCycles names each app that needs itself in the end.
func (l *loader) needCycles() {
	for _, name := range l.f.Apps() {
		var path []string
		var walk func(string) bool
		seen := map[string]bool{}
		walk = func(at string) bool {
			a := l.f.apps[at]
			if a == nil || seen[at] {
				return false
			}
			seen[at] = true
			path = append(path, at)
			for _, n := range a.Needs {
				if n == name || walk(n) {
					return true
				}
			}
			path = path[:len(path)-1]
			return false
		}
		if walk(name) && name == slices.Min(path) { // one fault per cycle
			l.faults.at(l.f.apps[name].spec.get("needs"), "spec.needs", "goes in a circle: "+strings.Join(append(path, name), " needs "), "needs that end somewhere")
		}
	}
}

// checkSelectors warns of waves and operators' scopes that no site is in.
func (l *loader) checkSelectors() {
	check := func(n *node, at string) {
		if s := n.str(); s != "" && isSelector(s) && !slices.ContainsFunc(l.f.sites, func(x *Site) bool { return x.Matches(s) }) {
			l.faults.warn(n, at, fmt.Sprintf("%q selects no site", shorten(s)), "a folder under sites/ such as de, or a label such as country=de")
		}
	}
	for _, r := range l.f.rings {
		for i, w := range elements(r.spec.get("waves")) {
			for j, x := range elements(w.get("sites")) {
				check(x, index(index("spec.waves", i)+".sites", j))
			}
		}
	}
}
