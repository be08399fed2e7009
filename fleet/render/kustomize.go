package render

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Kustomize would fetch a repository, run a program or read a parent folder
// when a kustomization says so. So every kustomization of an app version is
// read here first, and what names anything but a file of the version is
// refused; then Kustomize runs on a file system in memory that holds the
// version and nothing else. Either would do; together a mistake in one is not
// a hole.

var kustomizationNames = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// kustomizations returns the kustomization files among the files of a version.
func kustomizations(files []file) []file {
	var found []file
	for _, f := range files {
		if slices.Contains(kustomizationNames, path.Base(f.name)) {
			found = append(found, f)
		}
	}
	return found
}

// inspect refuses what a kustomization must not do and returns the files that
// its generators read: their bytes are content, not manifests.
func inspect(f file, exists map[string]bool) (inputs []string, err error) {
	var raw map[string]any
	var k types.Kustomization
	if err := yaml.UnmarshalStrict(f.data, &raw); err != nil {
		return nil, document{line: 1}.fault(f.path, err)
	}
	if err := yaml.UnmarshalStrict(f.data, &k); err != nil {
		return nil, fault(f.path, 0, 0, "", "is not a kustomization: "+firstLine(err), "see the reference of kustomization.yaml for field names")
	}
	in := inspector{file: f, exists: exists}
	in.features(raw)
	in.paths(&k)
	return in.inputs, join(in.errs...)
}

type inspector struct {
	file   file
	exists map[string]bool // files and folders of the version
	inputs []string
	errs   []error
}

func (in *inspector) refuse(field, problem, fix string) {
	in.errs = append(in.errs, fault(in.file.path, lineOf(in.file.data, field), 0, field, problem, fix))
}

// refused are the fields that run programs, depend on how Kustomize was built,
// change state of the whole process, or have a modern spelling.
var refused = []struct{ field, problem, fix string }{
	{"generators", "loads a plugin, which may be a program", "write the objects, or use configMapGenerator and secretGenerator"},
	{"transformers", "loads a plugin, which may be a program", "use the built-in fields (patches, labels, images, replacements)"},
	{"validators", "loads a plugin, which may be a program", "check in CI instead"},
	{"helmCharts", "would run helm", "render the chart into manifests and commit these"},
	{"helmGlobals", "would run helm", "render the chart into manifests and commit these"},
	{"helmChartInflationGenerator", "would run helm", "render the chart into manifests and commit these"},
	{"openapi", "changes how all other apps would be rendered", "remove it; custom resources are merged by plain JSON rules"},
	{"buildMetadata", "would write the version of the program into the objects", "remove it"},
	{"bases", "is deprecated", "use resources"},
	{"imageTags", "is deprecated", "use images"},
	{"commonLabels", "is deprecated", "use labels with includeSelectors: true"},
	{"patchesStrategicMerge", "is deprecated", "use patches"},
	{"patchesJson6902", "is deprecated", "use patches"},
	{"vars", "is deprecated", "use replacements"},
}

func (in *inspector) features(raw map[string]any) {
	for _, r := range refused {
		if _, ok := raw[r.field]; ok {
			in.refuse(r.field, r.problem, r.fix)
		}
	}
}

func (in *inspector) paths(k *types.Kustomization) {
	for _, p := range k.Resources {
		in.path("resources", p)
	}
	for _, p := range k.Components {
		in.path("components", p)
	}
	for _, p := range k.Crds {
		in.path("crds", p)
	}
	for _, p := range k.Configurations {
		in.path("configurations", p)
	}
	for _, p := range k.Patches {
		if p.Path != "" {
			in.path("patches", p.Path)
		}
	}
	for _, r := range k.Replacements {
		if r.Path != "" {
			in.path("replacements", r.Path)
		}
	}
	for _, g := range k.ConfigMapGenerator {
		in.sources("configMapGenerator", g.KvPairSources)
	}
	for _, g := range k.SecretGenerator {
		in.sources("secretGenerator", g.KvPairSources)
	}
}

func (in *inspector) sources(field string, s types.KvPairSources) {
	for _, p := range s.FileSources {
		if _, after, ok := strings.Cut(p, "="); ok {
			p = after
		}
		in.inputs = append(in.inputs, in.path(field, p))
	}
	for _, p := range append(s.EnvSources, s.EnvSource) {
		if p != "" {
			in.inputs = append(in.inputs, in.path(field, p))
		}
	}
}

// plainPath is what a path may look like: no scheme, host, query or drive.
var plainPath = regexp.MustCompile(`^[A-Za-z0-9._ +=,@~-]+(/[A-Za-z0-9._ +=,@~-]+)*/?$`)

// path refuses what is not a file or folder of this version. The order of the
// questions decides only which words a person reads.
func (in *inspector) path(field, p string) string {
	switch clean := path.Join(path.Dir(in.file.name), p); {
	case remote(p):
		in.refuse(field, fmt.Sprintf("%q is remote: rendering has no network", p), "copy it into the version folder and name the copy")
	case path.IsAbs(p) || strings.HasPrefix(p, `\`):
		in.refuse(field, fmt.Sprintf("%q is an absolute path", p), "name a file relative to this one")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		in.refuse(field, fmt.Sprintf("%q leaves the version folder: a site's slice holds only that", p), "copy it into the version folder; versions stand side by side and share nothing")
	case !in.exists[clean]:
		in.refuse(field, fmt.Sprintf("%q does not exist", p), "name a file or folder of this version")
	case !plainPath.MatchString(p):
		in.refuse(field, fmt.Sprintf("%q has characters that Kustomize may read as an address", p), "rename it with letters, digits, dot, dash and underscore")
	default:
		return clean
	}
	return ""
}

// remote is wider than what Kustomize takes for an address, never narrower.
var remote = func() func(string) bool {
	address := regexp.MustCompile(`(?i)://|^[a-z][a-z0-9-]*@|^[^/]*:|^git::|^github\.com[:/]|//|\?|_git/|\.git(/|$)`)
	return address.MatchString
}()

// lineOf finds a top-level field; 0 when it is not spelt plainly.
func lineOf(data []byte, field string) int {
	for i, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(line, field+":") {
			return i + 1
		}
	}
	return 0
}

// kyaml keeps its schema in package variables, so one kustomization runs at a
// time in a process.
var kustomizing sync.Mutex

// kustomize builds the version folder held in files.
func kustomize(dir string, files []file) (found []manifest, err error) {
	fsys := filesys.MakeFsInMemory()
	for _, f := range files {
		if err := fsys.WriteFile("/"+f.name, f.data); err != nil {
			return nil, fmt.Errorf("kustomize %s: %w", dir, err)
		}
	}
	root := path.Join(dir, "kustomization.yaml")
	defer func() {
		// Kustomize panics on some malformed input; that is bad input, not our bug.
		if p := recover(); p != nil {
			found, err = nil, fault(root, 0, 0, "", fmt.Sprintf("kustomize gave up: %v", p), "run `kustomize build` on the folder to narrow it down")
		}
	}()
	kustomizing.Lock()
	defer kustomizing.Unlock()
	options := krusty.MakeDefaultOptions()
	options.Reorder = krusty.ReorderOptionUnspecified // the other choices may log
	options.LoadRestrictions = types.LoadRestrictionsNone
	resources, err := krusty.MakeKustomizer(options).Run(fsys, "/")
	if err != nil {
		return nil, fault(root, 0, 0, "", "kustomize: "+readable(strings.ReplaceAll(err.Error(), "\n", " ")), "`kustomize build` on the folder says the same")
	}
	var errs []error
	for _, r := range resources.Resources() {
		j, err := r.MarshalJSON()
		if err != nil {
			errs = append(errs, fault(root, 0, 0, r.GetName(), "is not a Kubernetes object: "+firstLine(err), "see the object's file"))
			continue
		}
		v, err := decodeJSON(j)
		if err != nil {
			return nil, fmt.Errorf("read what kustomize made of %s: %w", root, err)
		}
		more, err := flatten(v, root, 0)
		found, errs = append(found, more...), append(errs, err)
	}
	return found, join(errs...)
}

func firstLine(err error) string {
	var f fleet.Faults
	if errors.As(err, &f) && len(f) > 0 {
		return f[0].Problem
	}
	s, _, _ := strings.Cut(err.Error(), "\n")
	if i := strings.LastIndex(s, "json: "); i >= 0 {
		s = s[i+len("json: "):]
	}
	return s
}
