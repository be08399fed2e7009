package fleet

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
)

// maxEntries is how many entries a folder may have before a warning: the proof
// of a site carries each listing on its path.
const maxEntries = 256

// top are the folders that a fleet repo gives a meaning.
var top = []string{"os", "rings", "classes", "apps", "sites", "secrets", "hub"}

// walk looks at every name in the tree once: where documents are, which files
// stand where nothing reads them, what is no file at all.
func (l *loader) walk() {
	for _, e := range l.list(".", &l.faults) {
		name := e.Name()
		switch {
		case !e.IsDir():
			l.rootFile(name)
		case name == ".git":
		case name == "os":
			l.found.os = l.flat(name)
		case name == "rings":
			l.found.rings = l.flat(name)
		case name == "classes":
			l.classFolder(name)
		case name == "apps":
			l.appsFolder()
		case name == "sites":
			l.sitesFolder()
		default:
			if near := nearest(name, top); near != "" && name != near && !strings.HasPrefix(name, ".") {
				l.faults.file(name, "is no folder of a fleet repo", fmt.Sprintf("did you mean %q?", near))
			}
			l.deep(name, &l.faults)
		}
	}
}

// list reads a folder, and refuses in it what is neither file nor folder.
func (l *loader) list(dir string, faults *Faults) []fs.DirEntry {
	all, err := fs.ReadDir(l.tree, dir)
	if err != nil {
		faults.file(dir, "cannot be read: "+err.Error(), "")
		return nil
	}
	if len(all) > maxEntries {
		*faults = append(*faults, Fault{Severity: Warning, File: dir, Problem: fmt.Sprintf("has %d entries", len(all)),
			Fix: fmt.Sprintf("nest it, by country or region: at most %d in a folder keep the proofs of sites small", maxEntries)})
	}
	out := make([]fs.DirEntry, 0, len(all))
	folded := map[string]string{}
	for _, e := range all {
		full := path.Join(dir, e.Name())
		if dir == "." && e.Name() == ".git" {
			continue // a folder, or a file in a work tree of its own
		}
		if other, twice := folded[strings.ToLower(e.Name())]; twice {
			faults.file(full, fmt.Sprintf("differs from %s only in upper and lower case", other), "names that are different on every system")
		}
		folded[strings.ToLower(e.Name())] = e.Name()
		switch t := e.Type(); {
		case t&fs.ModeSymlink != 0:
			faults.file(full, "is a symbolic link", "a file: machines take no links")
		case t&fs.ModeIrregular != 0:
			faults.file(full, "is a submodule", "the files themselves: machines take no submodules")
		case !e.IsDir() && !t.IsRegular():
			faults.file(full, "is neither a file nor a folder", "remove it")
		default:
			out = append(out, e)
		}
	}
	return out
}

// deep walks a folder whose files mean nothing here.
func (l *loader) deep(dir string, faults *Faults) {
	for _, e := range l.list(dir, faults) {
		if e.IsDir() {
			l.deep(path.Join(dir, e.Name()), faults)
		}
	}
}

func (l *loader) rootFile(name string) {
	known := []string{"fleet.yaml", "trust.yaml", "rules.yaml"}
	switch {
	case name == "rules.yaml":
		l.rules()
	case slices.Contains(known, name):
	case isYAML(name):
		if near := nearest(name, known); near != "" {
			l.faults.file(name, "is read by nobody", fmt.Sprintf("did you mean %q?", near))
		} else if data, err := readFile(l.tree, name); err == nil && strings.Contains(string(data), "holdfast.dev/") {
			l.faults.file(name, "stands in the wrong place", "a file in os/, rings/, classes/, apps/ or sites/")
		}
	}
}

func isYAML(name string) bool {
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}

// isNote holds for files that people may put anywhere.
func isNote(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".md") || strings.HasSuffix(name, ".txt") || name == "README" || name == "OWNERS" || name == "CODEOWNERS"
}

// flat is a folder of documents, NAME.yaml each.
func (l *loader) flat(dir string) []string {
	var names []string
	for _, e := range l.list(dir, &l.faults) {
		full := path.Join(dir, e.Name())
		name, ok := strings.CutSuffix(e.Name(), ".yaml")
		kind := map[string]string{"os": "version", "rings": "label"}[dir]
		switch {
		case e.IsDir():
			l.faults.file(full, "is a folder", "documents stand in "+dir+"/ itself")
			l.deep(full, &l.faults)
		case ok && checks[kind].ok(name):
			names = append(names, name)
		case ok:
			l.faults.file(full, fmt.Sprintf("%q %s", name, checks[kind].problem), checks[kind].fix)
		default:
			l.stray(full, dir+"/NAME.yaml")
		}
	}
	return names
}

// stray reports a file that nobody reads.
func (l *loader) stray(full, want string) {
	name := path.Base(full)
	if strings.HasSuffix(name, ".yml") {
		l.faults.file(full, "is read by nobody", fmt.Sprintf("did you mean %q?", strings.TrimSuffix(name, ".yml")+".yaml"))
	} else if !isNote(name) {
		l.faults.file(full, "stands in the wrong place: nobody reads it", want)
	}
}

func (l *loader) classFolder(dir string) {
	for _, e := range l.list(dir, &l.faults) {
		full := path.Join(dir, e.Name())
		name, ok := strings.CutSuffix(strings.TrimPrefix(full, "classes/"), ".yaml")
		switch {
		case e.IsDir():
			l.classFolder(full)
		case ok && checks["className"].ok(name):
			l.found.classes = append(l.found.classes, name)
		case ok:
			l.faults.file(full, fmt.Sprintf("%q %s", name, checks["className"].problem), "lower-case letters and digits, with single . _ - between them")
		default:
			l.stray(full, "classes/GROUP/NAME.yaml")
		}
	}
}

func (l *loader) appsFolder() {
	for _, e := range l.list("apps", &l.faults) {
		app, dir := e.Name(), path.Join("apps", e.Name())
		if !e.IsDir() {
			l.stray(dir, "apps/NAME/app.yaml, apps/NAME/VERSION/")
			continue
		}
		if !checks["label"].ok(app) {
			l.faults.file(dir, fmt.Sprintf("the app's name %q %s", app, checks["label"].problem), checks["label"].fix)
			l.deep(dir, &l.faults)
			continue
		}
		l.found.apps = append(l.found.apps, app)
		for _, e := range l.list(dir, &l.faults) {
			full := path.Join(dir, e.Name())
			switch {
			case e.IsDir() && checks["version"].ok(e.Name()):
				l.versions[app] = append(l.versions[app], e.Name())
				l.deep(full, &l.faults)
			case e.IsDir():
				l.faults.file(full, fmt.Sprintf("%q %s", e.Name(), checks["version"].problem), checks["version"].fix)
				l.deep(full, &l.faults)
			case e.Name() != "app.yaml":
				l.stray(full, "a folder of a version, apps/"+app+"/VERSION/")
			}
		}
	}
}

// sitesFolder walks sites/, each of its folders on a goroutine of its own: there
// may be ten thousand sites on a slow disk.
func (l *loader) sitesFolder() {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, e := range l.list("sites", &l.faults) {
		full := path.Join("sites", e.Name())
		if !e.IsDir() {
			l.stray(full, "sites/COUNTRY/SITE/site.yaml")
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			w := &loader{tree: l.tree}
			w.siteFolder(full)
			mu.Lock()
			l.found.sites = append(l.found.sites, w.found.sites...)
			l.faults = append(l.faults, w.faults...)
			mu.Unlock()
			<-slots
		})
	}
	wg.Wait()
	slices.Sort(l.found.sites)
}

func (l *loader) siteFolder(dir string) {
	entries := l.list(dir, &l.faults)
	isSite := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "site.yaml" && !e.IsDir() })
	if isSite {
		l.found.sites = append(l.found.sites, dir)
	}
	for _, e := range entries {
		full := path.Join(dir, e.Name())
		switch {
		case e.IsDir() && isSite && slices.Contains([]string{"keys", "secrets", "patches"}, e.Name()):
			l.deep(full, &l.faults)
		case e.IsDir() && isSite:
			l.faults.file(full, "is a folder that a site does not have", oneOf(e.Name(), []string{"keys", "secrets", "patches"}))
			l.deep(full, &l.faults)
		case e.IsDir():
			l.siteFolder(full)
		case isSite && (e.Name() == "site.yaml" || e.Name() == "machines.yaml"):
		case isSite:
			if near := nearest(e.Name(), []string{"machines.yaml"}); near != "" {
				l.faults.file(full, "is read by nobody", fmt.Sprintf("did you mean %q?", near))
			} else {
				l.stray(full, "site.yaml, machines.yaml, or a file in keys/, secrets/ or patches/")
			}
		case e.Name() == "machines.yaml":
			l.faults.file(full, "stands in a folder without site.yaml", "a site.yaml beside it")
		default:
			if near := nearest(e.Name(), []string{"site.yaml"}); near != "" {
				l.faults.file(full, "is read by nobody", fmt.Sprintf("did you mean %q?", near))
			} else {
				l.stray(full, "a folder with a site.yaml")
			}
		}
	}
}
