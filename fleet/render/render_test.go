package render

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// locked is an images.lock with r.example/a:1 and r.example/b:1.
const locked = `apiVersion: holdfast.dev/v1alpha1
kind: ImagesLock
spec:
  images:
    - {name: "r.example/a:1", digest: "` + digestA + `", size: 10, platforms: [linux/amd64]}
    - {name: "r.example/b:1", digest: "` + digestB + `", size: 20, platforms: [linux/amd64]}
`

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: web
        image: r.example/a:1
`

// tree makes files of a txtar text; names are below apps/a/1/ unless they
// begin with a slash. A lock is there unless the text has one.
func tree(text string) fstest.MapFS {
	t := fstest.MapFS{}
	for _, f := range txtar.Parse([]byte(text)).Files {
		name, rooted := strings.CutPrefix(f.Name, "/")
		if !rooted {
			name = "apps/a/1/" + name
		}
		t[name] = &fstest.MapFile{Data: f.Data}
	}
	if _, ok := t["apps/a/1/images.lock"]; !ok {
		t["apps/a/1/images.lock"] = &fstest.MapFile{Data: []byte(locked)}
	}
	return t
}

// site is a site with one app "a" in version 1.
func site(change ...func(*fleet.App)) *fleet.Resolved {
	app := fleet.App{Name: "a", Version: "1", Dir: "apps/a/1", Namespace: "a", OnFailure: "undo-app", PodSecurity: "baseline", Substitute: []string{"sub.yaml", "*.conf"}}
	for _, c := range change {
		c(&app)
	}
	return &fleet.Resolved{Fleet: "f", Site: "s", Dir: "sites/s", Apps: []fleet.App{app},
		Vars: map[string]any{"greeting": `say: "hi" # now`, "port": int64(30080), "open": true, "tags": []string{"x", "y"}}}
}

func render(t *testing.T, tree fs.FS, r *fleet.Resolved) *Rendering {
	t.Helper()
	out, err := Site(tree, r)
	if err != nil {
		t.Fatalf("render: %v", err)
	}
	return out
}

func find(t *testing.T, r *Rendering, kind, name string) map[string]any {
	t.Helper()
	for _, a := range r.Apps {
		for _, o := range a.Objects {
			if o.Kind == kind && o.Name == name {
				return decoded(o.JSON).(map[string]any)
			}
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

func TestRefusals(t *testing.T) {
	kustomization := func(line string) string {
		return "-- kustomization.yaml --\nresources: [web.yaml]\n" + line + "\n-- web.yaml --" + deployment
	}
	for _, c := range []struct {
		name, tree string
		change     func(*fleet.App)
		want       string // part of the error
	}{
		{"ErrNoVersion", "-- /apps/a/2/web.yaml --", func(a *fleet.App) { a.Dir = "apps/a/3" }, "apps/a/3: there is no such app version"},
		{"ErrNoObject", "-- README.md --\nhello", nil, "apps/a/1: the app version has no object"},
		{"ErrBadYAML", "-- web.yaml --\nkind: A\n---\nkind: B\na: b: c\n", nil, "apps/a/1/web.yaml:4:1: is not YAML: mapping values are not allowed"},
		{"ErrDuplicateKey", "-- web.yaml --\nkind: A\nmetadata: {name: x}\nkind: B\n", nil, "apps/a/1/web.yaml:3:1: is not YAML: key \"kind\" already set"},
		{"ErrNotObject", "-- web.yaml --\n- a\n", nil, "web.yaml:1:1: is not a Kubernetes object"},
		{"ErrNoKind", "-- web.yaml --\n# c\n\napiVersion: v1\nmetadata: {name: x}\n", nil, "web.yaml:3:1: kind: is missing"},
		{"ErrNoName", "-- web.yaml --\napiVersion: v1\nkind: Pod\n", nil, "web.yaml:1:1: metadata.name: is missing"},
		{"ErrGenerateName", "-- web.yaml --\napiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n", nil, "metadata.generateName: makes a new object at each apply"},
		{"ErrDuplicateObject", "-- a.yaml --" + deployment + "-- b.yaml --" + deployment, nil, "apps/a/1/b.yaml:1:1: Deployment a/web is there twice, first at apps/a/1/a.yaml:1"},
		{"ErrUnlockedImage", "-- web.yaml --" + strings.Replace(deployment, "a:1", "c:1", 1), nil, "app image r.example/c:1 has no line in apps/a/1/images.lock: run `holdfast lock`"},
		{"ErrNoLock", "-- web.yaml --" + deployment + "-- images.lock --\napiVersion: holdfast.dev/v1alpha1\nkind: ImagesLock\nspec: {images: []}\n", nil, "has no line in apps/a/1/images.lock"},
		{"ErrOtherDigest", "-- web.yaml --" + strings.Replace(deployment, "a:1", "a:1@"+digestB, 1), nil, "names " + digestB},
		{"ErrImageName", "-- web.yaml --" + strings.Replace(deployment, "r.example/a:1", "A B", 1), nil, `"A B" is not the name of an app image`},
		{"ErrUndeclaredVariable", "-- sub.yaml --\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata:\n  ä: a ${vars.nope}\n", nil, "apps/a/1/sub.yaml:5:8: ${vars.nope}: has no value at this site: declare it under spec.vars in fleet.yaml and set it in a layer; known are: greeting, open, port, tags"},
		{"ErrUnendedReference", "-- sub.yaml --\nkind: ${vars.x\n", nil, "apps/a/1/sub.yaml:1:7: a reference to a variable does not end"},
		{"ErrUnlisted", "-- web.yaml --\n# ${vars.x} is fine here\nkind: ${vars.x}\n", nil, `apps/a/1/web.yaml:2:7: ${vars.: the file is not listed for substitution: add "web.yaml" to spec.substitute in apps/a/app.yaml`},
		{"ErrReservedCharacter", "-- sub.yaml --\nkind: \ue000\n", nil, "sub.yaml:1:7: holds a character of Unicode's private use area"},
		{"ErrChart", "-- Chart.yaml --\nname: x\n", nil, "Chart.yaml: Helm charts cannot be rendered yet"},
		{"ErrMissingValue", "-- sub.yaml --\nkind: ${values.a.b}\napiVersion: v1\nmetadata: {name: x}\n", func(a *fleet.App) { a.Values = map[string]any{"a": map[string]any{"c": 1}} }, "sub.yaml:1:7: ${values.a.b}: has no value at this site: set it in a layer, under values of the app a"},

		{"ErrMissingPatchTarget", "-- web.yaml --" + deployment, patch("Deployment", "wob", map[string]any{"x": 1}), "the target Deployment wob is not in version 1: there are: Deployment a/web"},
		{"ErrPatchRenames", "-- web.yaml --" + deployment, patch("Deployment", "web", map[string]any{"metadata": map[string]any{"name": "other"}}), "would turn Deployment a/web into Deployment a/other"},
		{"ErrPatchImage", "-- web.yaml --" + deployment, patch("Deployment", "web", container("web", "r.example/c:1")), "app image r.example/c:1 has no line"},
		{"ErrNoPatchFile", "-- web.yaml --" + deployment, patchFile("sites/s/patches/x.yaml"), "sites/s/patches/x.yaml: cannot read the patch"},
		{"ErrPatchFileYAML", "-- web.yaml --" + deployment + "-- /sites/s/p.yaml --\na: b: c\n", patchFile("sites/s/p.yaml"), "sites/s/p.yaml:1:1: is not YAML"},
		{"ErrPatchFileList", "-- web.yaml --" + deployment + "-- /sites/s/p.yaml --\n- a\n", patchFile("sites/s/p.yaml"), "sites/s/p.yaml:1:1: a patch is one map"},

		{"ErrRemoteBase", kustomization("components: ['https://github.com/x/y//z?ref=v1']"), nil, "apps/a/1/kustomization.yaml:2:1: components: \"https://github.com/x/y//z?ref=v1\" is remote: rendering has no network"},
		{"ErrRemoteResource", "-- kustomization.yaml --\nresources: [github.com/x/y]\n", nil, `resources: "github.com/x/y" is remote`},
		{"ErrRemoteByUser", "-- kustomization.yaml --\nresources: ['git@example.com:x/y']\n", nil, "is remote"},
		{"ErrRemoteBelow", "-- kustomization.yaml --\nresources: [base]\n-- base/kustomization.yaml --\nresources: ['http://x/y.yaml']\n", nil, "apps/a/1/base/kustomization.yaml:1:1: resources: \"http://x/y.yaml\" is remote"},
		{"ErrRemoteThatExists", "-- kustomization.yaml --\nresources: [github.com/x/y]\n-- github.com/x/y/kustomization.yaml --\nresources: [web.yaml]\n-- github.com/x/y/web.yaml --" + deployment, nil, "is remote"},
		{"ErrEscape", kustomization("components: [../2]"), nil, `components: "../2" leaves the version folder`},
		{"ErrEscapeBelow", "-- kustomization.yaml --\nresources: [base]\n-- base/kustomization.yaml --\nresources: [../../2/web.yaml]\n-- /apps/a/2/web.yaml --" + deployment, nil, "leaves the version folder"},
		{"ErrEscapeByPatch", kustomization("patches: [{path: ../2/p.yaml}]"), nil, "patches: \"../2/p.yaml\" leaves the version folder"},
		{"ErrEscapeByGenerator", kustomization("configMapGenerator: [{name: x, files: [a=../../../trust.yaml]}]"), nil, "configMapGenerator: \"../../../trust.yaml\" leaves the version folder"},
		{"ErrAbsolute", kustomization("crds: [/etc/passwd]"), nil, `crds: "/etc/passwd" is an absolute path`},
		{"ErrExecPlugin", kustomization("transformers: [run.yaml]") + "-- run.yaml --\napiVersion: x\nkind: Run\nmetadata:\n  name: x\n  annotations: {config.kubernetes.io/function: 'exec: {path: ./run}'}\n", nil, "transformers: loads a plugin"},
		{"ErrGenerators", kustomization("generators: [run.yaml]"), nil, "generators: loads a plugin"},
		{"ErrValidators", kustomization("validators: [run.yaml]"), nil, "validators: loads a plugin"},
		{"ErrHelm", kustomization("helmCharts: [{name: x, repo: 'https://x'}]"), nil, "helmCharts: would run helm"},
		{"ErrOpenAPI", kustomization("openapi: {path: x.json}"), nil, "openapi: changes how all other apps"},
		{"ErrBuildMetadata", kustomization("buildMetadata: [managedByLabel]"), nil, "buildMetadata: would write the version"},
		{"ErrDeprecated", kustomization("commonLabels: {a: b}"), nil, "commonLabels: is deprecated: use labels"},
		{"ErrUnknownField", kustomization("resourcez: [x]"), nil, `is not a kustomization: unknown field "resourcez"`},
		{"ErrMissingFile", kustomization("patches: [{path: p.yaml}]"), nil, `patches: "p.yaml" does not exist`},
		{"ErrNoKustomizationOnTop", "-- base/kustomization.yaml --\nresources: [web.yaml]\n-- base/web.yaml --" + deployment, nil, "is a kustomization, but the version folder itself has none"},
		{"ErrKustomize", kustomization("patches: [{target: {kind: Deployment}, patch: '- {op: remove, path: /nope}'}]"), nil, "apps/a/1/kustomization.yaml: kustomize: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := site()
			if c.change != nil {
				c.change(&r.Apps[0])
			}
			_, err := Site(tree(c.tree), r)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error is\n\t%v\nwant\n\t%s", err, c.want)
			}
			var faults fleet.Faults
			if !errors.As(err, &faults) {
				t.Errorf("error is %T, want fleet.Faults", err)
			}
			if strings.ContainsAny(err.Error(), markOpen+markClose) {
				t.Errorf("error shows a mark: %q", err)
			}
		})
	}
}

func patch(kind, name string, merge map[string]any) func(*fleet.App) {
	return func(a *fleet.App) {
		a.Patches = append(a.Patches, fleet.Patch{Inline: merge, Target: fleet.ObjectRef{Kind: kind, Name: name}, Reason: "test"})
	}
}

func patchFile(file string) func(*fleet.App) {
	return func(a *fleet.App) {
		a.Patches = append(a.Patches, fleet.Patch{File: file, Target: fleet.ObjectRef{Kind: "Deployment", Name: "web"}, Reason: "test"})
	}
}

func container(name, image string) map[string]any {
	return map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": name, "image": image}}}}}}
}

func TestSymlinksAreRefused(t *testing.T) {
	for name, link := range map[string]string{"File": "apps/a/1/link.yaml", "Folder": "apps/a/1/folder", "Version": "apps/a/1", "App": "apps/a"} {
		t.Run("Err"+name, func(t *testing.T) {
			m := tree("-- web.yaml --" + deployment)
			for p := range m {
				if strings.HasPrefix(p, link+"/") {
					delete(m, p)
				}
			}
			m[link] = &fstest.MapFile{Data: []byte("../2"), Mode: fs.ModeSymlink}
			if _, err := Site(m, site()); err == nil || !strings.Contains(err.Error(), link+": is a symbolic link") {
				t.Errorf("error is %v, want a refusal of %s", err, link)
			}
		})
	}
	t.Run("ErrSubmodule", func(t *testing.T) {
		m := tree("-- web.yaml --" + deployment)
		m["apps/a/1/sub"] = &fstest.MapFile{Mode: fs.ModeIrregular}
		if _, err := Site(m, site()); err == nil || !strings.Contains(err.Error(), "neither a file nor a folder") {
			t.Errorf("error is %v, want a refusal", err)
		}
	})
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := Site(tree("-- a.yaml --\nkind: Pod\n-- b.yaml --\na: b: c\n"), site())
	var faults fleet.Faults
	if !errors.As(err, &faults) || len(faults) != 3 {
		t.Fatalf("got %d faults, want apiVersion, metadata.name and the syntax:\n%v", len(faults), err)
	}
}

func TestSubstitute(t *testing.T) {
	r := render(t, tree(`-- sub.yaml --
# ${vars.unknown} in a comment is nobody's business
apiVersion: v1
kind: ConfigMap
metadata: {name: x}
data:
  plain: ${vars.greeting}
  quoted: "${vars.port}"
  single: '${vars.port}'
  inside: a ${vars.greeting} b ${vars.open}
  block: |
    ${vars.port}
  escaped: $${vars.greeting} $(X) ${OTHER}
  "key-${vars.port}": v
typed: {deep: ${values.a.b}, port: ${vars.port}, open: ${vars.open}, tags: ${vars.tags}, json: "${vars.tags}"}
---
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "j"}, "port": ${vars.port}}
`), site(func(a *fleet.App) { a.Values = map[string]any{"a": map[string]any{"b": int64(7)}} }))
	got := find(t, r, "ConfigMap", "x")
	want := map[string]any{
		"plain": `say: "hi" # now`, "quoted": "30080", "single": "30080", "inside": `a say: "hi" # now b true`,
		"block": "30080\n", "escaped": "${vars.greeting} $(X) ${OTHER}", "key-30080": "v",
	}
	if d := cmp.Diff(want, got["data"]); d != "" {
		t.Errorf("data (-want +got):\n%s", d)
	}
	if got, want := string(mustCanonical(got["typed"])), `{"deep":7,"json":"[\"x\",\"y\"]","open":true,"port":30080,"tags":["x","y"]}`; got != want {
		t.Errorf("typed = %s, want %s", got, want)
	}
	if got := string(mustCanonical(find(t, r, "ConfigMap", "j")["port"])); got != "30080" {
		t.Errorf("port in JSON = %s, want 30080", got)
	}
}

func TestSubstituteInKustomize(t *testing.T) {
	text := `-- kustomization.yaml --
resources: [sub.yaml]
configMapGenerator:
- name: gen
  files: [app.conf]
-- app.conf --
greeting = ${vars.greeting}
-- sub.yaml --
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: ${vars.port}
  template:
    spec:
      volumes: [{name: v, configMap: {name: gen}}]
      containers: [{name: web, image: "r.example/a:1", args: ["${vars.greeting}"]}]
`
	r := render(t, tree(text), site())
	d := find(t, r, "Deployment", "web")
	if got := string(mustCanonical(at(d, "spec", "replicas"))); got != "30080" {
		t.Errorf("replicas = %s, want 30080", got)
	}
	pod := at(d, "spec", "template", "spec")
	volume := stringAt(at(pod, "volumes").([]any)[0], "configMap", "name")
	if got, want := find(t, r, "ConfigMap", volume)["data"], any(map[string]any{"app.conf": "greeting = say: \"hi\" # now\n"}); !cmp.Equal(got, want) {
		t.Errorf("generated data = %v, want %v", got, want)
	}
	other := site()
	other.Vars["greeting"] = "hello"
	pod = at(find(t, render(t, tree(text), other), "Deployment", "web"), "spec", "template", "spec")
	if stringAt(at(pod, "volumes").([]any)[0], "configMap", "name") == volume {
		t.Errorf("the generated name is %s for both values: pods would not restart", volume)
	}
}

func TestKustomizeFolders(t *testing.T) {
	r := render(t, tree(`-- kustomization.yml --
resources: [overlays/x/]
namespace: elsewhere
-- overlays/x/kustomization.yaml --
resources: [../../base, ./more.yaml]
patches: [{path: ../../shared/p.yaml, target: {kind: Deployment}}]
-- overlays/x/more.yaml --
apiVersion: v1
kind: Service
metadata: {name: more}
-- shared/p.yaml --
- {op: add, path: /spec/replicas, value: 2}
-- base/Kustomization --
resources: [web.yaml]
-- base/web.yaml --`+deployment), site())
	if got := string(mustCanonical(at(find(t, r, "Deployment", "web"), "spec", "replicas"))); got != "2" {
		t.Errorf("replicas = %s, want 2", got)
	}
	if got := stringAt(find(t, r, "Service", "more"), "metadata", "namespace"); got != "elsewhere" {
		t.Errorf("namespace = %s, want elsewhere", got)
	}
}

func TestObjects(t *testing.T) {
	r := render(t, tree(`-- all.yaml --
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: z, creationTimestamp: null}}
- {apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: role, namespace: oops}}
--- # a comment
{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: hook}}
---
{apiVersion: x.example/v1, kind: Thing, metadata: {name: t}}
---
{apiVersion: y.example/v1, kind: Thing, metadata: {name: t}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.x.example}
spec: {group: x.example, scope: Namespaced, names: {kind: Thing}}
...
-- below/web.json --
{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":"other"},"spec":{"template":{"spec":{"containers":[{"image":"r.example/a:1"}],"initContainers":[{"image":"r.example/b:1@`+digestB+`"}]}}}}
-- cron.yaml --
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: c, image: "r.example/b:1"}]}}}}}
`), site())
	var got []string
	for _, o := range r.Apps[0].Objects {
		got = append(got, refString(o.Ref())+" ("+o.APIVersion+")")
	}
	want := []string{
		"CustomResourceDefinition things.x.example (apiextensions.k8s.io/v1)",
		"Namespace a (v1)",
		"ClusterRole role (rbac.authorization.k8s.io/v1)",
		"ConfigMap a/holdfast-site (v1)",
		"ConfigMap a/z (v1)",
		"Deployment other/web (apps/v1)",
		"CronJob a/c (batch/v1)",
		"Thing a/t (x.example/v1)",
		"Thing t (y.example/v1)",
		"ValidatingWebhookConfiguration hook (admissionregistration.k8s.io/v1)",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("objects (-want +got):\n%s", d)
	}
	for _, o := range r.Apps[0].Objects {
		if stringAt(decoded(o.JSON), "metadata", "labels", LabelApp) != "a" {
			t.Errorf("%s has no label %s", refString(o.Ref()), LabelApp)
		}
	}
	if d := cmp.Diff([]Image{{"r.example/a:1", digestA, 10}, {"r.example/b:1", digestB, 20}}, r.Images); d != "" {
		t.Errorf("images (-want +got):\n%s", d)
	}
	if got, want := string(mustCanonical(at(find(t, r, "Deployment", "web"), "spec", "template", "spec"))), `{"containers":[{"image":"r.example/a:1@`+digestA+`"}],"initContainers":[{"image":"r.example/b:1@`+digestB+`"}]}`; got != want {
		t.Errorf("pod = %s, want %s", got, want)
	}
	if got, want := string(mustCanonical(find(t, r, "ConfigMap", "holdfast-site")["data"])), `{"fleet":"f","greeting":"say: \"hi\" # now","open":"true","port":"30080","site":"s","tags":"[\"x\",\"y\"]"}`; got != want {
		t.Errorf("holdfast-site = %s, want %s", got, want)
	}
}

func TestNamespace(t *testing.T) {
	own := "-- ns.yaml --\napiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {x: z}}\n"
	t.Run("Brought", func(t *testing.T) {
		n := find(t, render(t, tree(own), site()), "Namespace", "a")
		if got, want := string(mustCanonical(at(n, "metadata", "labels"))), `{"holdfast.dev/app":"a","pod-security.kubernetes.io/enforce":"baseline","x":"z"}`; got != want {
			t.Errorf("labels = %s, want %s", got, want)
		}
	})
	two := func() *fleet.Resolved {
		r := site()
		b := r.Apps[0]
		b.Name, b.Dir = "b", "apps/b/1"
		r.Apps = append(r.Apps, b)
		return r
	}
	m := tree("-- web.yaml --" + deployment + "-- /apps/b/1/x.yaml --\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
	t.Run("Shared", func(t *testing.T) {
		if got := len(render(t, m, two()).Apps[1].Objects); got != 1 {
			t.Errorf("the second app has %d objects, want its own one", got)
		}
	})
	t.Run("ErrSharedLevels", func(t *testing.T) {
		r := two()
		r.Apps[1].PodSecurity = "privileged"
		if _, err := Site(m, r); err == nil || !strings.Contains(err.Error(), "apps/b/app.yaml: spec.podSecurity: is privileged, but app a") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("ErrSameObject", func(t *testing.T) {
		m := tree("-- web.yaml --" + deployment + "-- /apps/b/1/web.yaml --" + strings.Replace(deployment, "        image: r.example/a:1\n", "", 1))
		if _, err := Site(m, two()); err == nil || !strings.Contains(err.Error(), "apps/b/1: Deployment a/web is also in app a") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("ErrReservedVariable", func(t *testing.T) {
		r := site()
		r.Vars["site"] = "x"
		if _, err := Site(m, r); err == nil || !strings.Contains(err.Error(), "spec.vars.site: is a name that Holdfast sets itself") {
			t.Errorf("error is %v", err)
		}
	})
}

func TestPatch(t *testing.T) {
	m := tree("-- web.yaml --" + deployment + "      - {name: side, image: 'r.example/b:1'}\n-- /sites/s/p.yaml --\nspec:\n  template:\n    spec:\n      containers: [{name: side, $delete: true}]\n")
	r := render(t, m, site(patch("Deployment", "web", container("web", "r.example/b:1")), patchFile("sites/s/p.yaml"), patch("Deployment", "web", map[string]any{"spec": map[string]any{"replicas": 3}})))
	if got, want := string(mustCanonical(find(t, r, "Deployment", "web")["spec"])), `{"replicas":3,"template":{"spec":{"containers":[{"image":"r.example/b:1@`+digestB+`","name":"web"}]}}}`; got != want {
		t.Errorf("spec = %s, want %s", got, want)
	}
}

func TestMerge(t *testing.T) {
	for _, c := range []struct{ name, base, patch, want string }{
		{"Maps", `{"a":1,"b":{"c":2}}`, `{"b":{"d":3}}`, `{"a":1,"b":{"c":2,"d":3}}`},
		{"Null", `{"a":1,"b":2}`, `{"a":null}`, `{"b":2}`},
		{"Delete", `{"a":{"x":1},"b":2}`, `{"a":{"$delete":true}}`, `{"b":2}`},
		{"Lists", `{"a":[1,2]}`, `{"a":[3]}`, `{"a":[3]}`},
		{"Named", `[{"name":"x","v":1},{"name":"y"}]`, `[{"name":"z"},{"name":"x","w":2},{"name":"y","$delete":true}]`, `[{"name":"x","v":1,"w":2},{"name":"z"}]`},
		{"NamedOverPlain", `[1]`, `[{"name":"x"}]`, `[{"name":"x"}]`},
		{"NullInNew", `{}`, `{"a":{"b":null,"c":1}}`, `{"a":{"c":1}}`},
		{"Kinds", `{"a":{"b":1}}`, `{"a":5}`, `{"a":5}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			base, patch := decoded([]byte(c.base)), decoded([]byte(c.patch))
			if got := string(mustCanonical(merge(base, patch))); got != c.want {
				t.Errorf("merge = %s, want %s", got, c.want)
			}
			if string(mustCanonical(base)) != string(mustCanonical(decoded([]byte(c.base)))) {
				t.Error("merge changed its base")
			}
		})
	}
}

func TestDelete(t *testing.T) {
	r := render(t, tree("-- web.yaml --"+deployment+"-- pvc.yaml --\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: data}\n"),
		site(func(a *fleet.App) { a.Delete = []fleet.ObjectRef{{Kind: "PersistentVolumeClaim", Name: "data"}} }))
	if d := cmp.Diff([]fleet.ObjectRef{{Kind: "PersistentVolumeClaim", Namespace: "a", Name: "data"}}, r.Apps[0].Delete); d != "" {
		t.Errorf("Delete (-want +got):\n%s", d)
	}
	for _, o := range r.Apps[0].Objects {
		if o.Kind == "PersistentVolumeClaim" {
			t.Error("the deleted claim is rendered all the same")
		}
	}
}

// Environment variables are read when a container starts, so a value must
// reach the template of the pods that read it, and no other.
func TestValuesReachPods(t *testing.T) {
	m := tree("-- a.yaml --" + deployment + `        env: [{name: G, valueFrom: {configMapKeyRef: {name: holdfast-site, key: greeting}}}]
-- b.yaml --
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: all}
spec: {template: {spec: {containers: [{name: x, image: "r.example/b:1", envFrom: [{configMapRef: {name: holdfast-site}}]}]}}}
-- c.yaml --
apiVersion: apps/v1
kind: Deployment
metadata: {name: none}
spec: {template: {spec: {containers: [{name: x, image: "r.example/b:1"}]}}}
`)
	templates := func(r *fleet.Resolved) [3]string {
		out := render(t, m, r)
		note := func(kind, name string) string {
			return stringAt(find(t, out, kind, name), "spec", "template", "metadata", "annotations", AnnotationValues)
		}
		return [3]string{note("Deployment", "web"), note("DaemonSet", "all"), note("Deployment", "none")}
	}
	was := templates(site())
	if was[0] == "" || was[1] == "" || was[2] != "" {
		t.Fatalf("annotations = %q, want them where values are read", was)
	}
	other := site()
	other.Vars["port"] = int64(1)
	if now := templates(other); now[0] != was[0] || now[1] == was[1] {
		t.Errorf("after a change of port: %q, before %q; want only the second changed", now, was)
	}
	other.Vars["greeting"] = "x"
	if now := templates(other); now[0] == was[0] {
		t.Error("a changed greeting does not reach the pods that read it")
	}
}

func TestFullName(t *testing.T) {
	for name, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "nginx:1": "docker.io/library/nginx:1", "a/b": "docker.io/a/b:latest",
		"localhost/x": "localhost/x:latest", "r:5000/x:2": "r:5000/x:2", "ghcr.io/a/b/c:v1": "ghcr.io/a/b/c:v1", "docker.io/nginx:1": "docker.io/library/nginx:1",
		"": "", "a b": "", "UPPER": "", "x:": "", "https://x/y": "", "x/../y": "",
	} {
		if got, _ := fullName(name); got != want {
			t.Errorf("fullName(%q) = %q, want %q", name, got, want)
		}
	}
}

func FuzzManifests(f *testing.F) {
	for _, s := range []string{deployment, locked, "a: b: c", "---\n...\n--- {a: 1}\n", "kind: List\nitems: [{}]", "\ufeffa: 1\r\n", "a: &x [*x]", "x: ${vars.a} $${b}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var refs []reference
		marked, err := mark(file{path: "f", data: data}, &refs)
		if err != nil {
			return
		}
		docs := split(marked)
		for i := range docs {
			if docs[i], err = typed("f", docs[i]); err != nil {
				return
			}
		}
		found, err := manifests("f", docs)
		if err != nil {
			return
		}
		values := map[string]any{}
		for _, r := range refs {
			values[r.name] = "v: [\"'\n"
		}
		for _, m := range found {
			b := mustCanonical(insert(m.object, refs, values))
			if again := mustCanonical(decoded(b)); string(again) != string(b) {
				t.Errorf("canonical JSON reads back as\n%s\nwant\n%s", again, b)
			}
		}
	})
}
