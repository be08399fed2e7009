package render_test

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/example"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/fleet/render"
)

var update = flag.Bool("update", false, "record testdata/edition0 anew; the run fails, so that nobody records by mistake")

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMbu/PZ2xa/SH5eU2pPIDT1KQGHD4rGOAXVwDgkAZYzt a@example.com"

func exampleFiles(t testing.TB) map[string][]byte {
	t.Helper()
	p := example.Params{FleetName: "coffee", FleetID: "00112233445566778899aabbccddeeff", SignerKey: key, Images: map[string]fleet.LockedImage{}}
	for i, name := range example.Images() {
		p.Images[name] = fleet.LockedImage{Digest: fmt.Sprintf("sha256:%064x", i+1), Size: 3<<20 + int64(i), Platforms: []string{"linux/amd64"}}
	}
	files, err := example.Files(p)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func treeOf(files map[string][]byte) fstest.MapFS {
	m := fstest.MapFS{}
	for name, data := range files {
		m[name] = &fstest.MapFile{Data: data}
	}
	return m
}

func resolve(t testing.TB, tree fs.FS, name string) *fleet.Resolved {
	t.Helper()
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	s, ok := f.Site(name)
	if !ok {
		t.Fatalf("there is no site %s", name)
	}
	r, err := f.Resolve(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustRender(t testing.TB, tree fs.FS, r *fleet.Resolved) *render.Rendering {
	t.Helper()
	out, err := render.Site(tree, r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// recorded are the sites of the example that edition 0 is held to: between
// them they have every layer, plain manifests and Kustomize, and values of
// their own.
var recorded = []string{"berlin-mitte", "geneva-rive", "lugano-lago"}

// Each folder testdata/editionN holds a tree and what its sites rendered to.
// Both stay as they are for ever, edition 0 until the first public version.
func TestGolden(t *testing.T) {
	if *update {
		record(t)
		t.Fatal("testdata/edition0 is recorded; look at the difference and run again without -update")
	}
	inputs, err := filepath.Glob("testdata/edition*/input.txtar")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("there are no golden files (%v)", err)
	}
	for _, input := range inputs {
		archive, err := txtar.ParseFile(input)
		if err != nil {
			t.Fatal(err)
		}
		tree := fstest.MapFS{}
		for _, f := range archive.Files {
			tree[f.Name] = &fstest.MapFile{Data: f.Data}
		}
		outputs, _ := filepath.Glob(filepath.Join(filepath.Dir(input), "*.yaml"))
		if len(outputs) < 2 {
			t.Errorf("%s has %d renderings, want at least 2", filepath.Dir(input), len(outputs))
		}
		for _, output := range outputs {
			site := strings.TrimSuffix(filepath.Base(output), ".yaml")
			t.Run(filepath.Base(filepath.Dir(input))+"/"+site, func(t *testing.T) {
				want, err := os.ReadFile(output)
				if err != nil {
					t.Fatal(err)
				}
				got := mustRender(t, tree, resolve(t, tree, site)).YAML()
				if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); d != "" {
					t.Errorf("the rendering of this edition has changed (-want +got):\n%s", d)
				}
			})
		}
	}
}

func record(t *testing.T) {
	files := exampleFiles(t)
	archive := &txtar.Archive{Comment: []byte("The example fleet as edition 0 was recorded with it.\n\n")}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if name != "README.md" {
			archive.Files = append(archive.Files, txtar.File{Name: name, Data: files[name]})
		}
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join("testdata/edition0", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("testdata/edition0", 0o755); err != nil {
		t.Fatal(err)
	}
	write("input.txtar", txtar.Format(archive))
	tree := treeOf(files)
	for _, site := range recorded {
		write(site+".yaml", mustRender(t, tree, resolve(t, tree, site)).YAML())
	}
}

// A machine sees its site's closure and nothing else, and must come to the
// bytes that the CLI showed from the whole tree; so must the next run, and a
// Renderer that has seen other sites.
func TestPure(t *testing.T) {
	for name, files := range map[string]map[string][]byte{"Example": exampleFiles(t), "Generated": fleetgen.Files(21)} {
		t.Run(name, func(t *testing.T) {
			whole := treeOf(files)
			f, err := fleet.Load(whole)
			if err != nil {
				t.Fatal(err)
			}
			shared := render.New(whole)
			var wg sync.WaitGroup
			for _, s := range f.Sites() {
				wg.Go(func() {
					r, err := f.Resolve(s)
					if err != nil {
						t.Error(err)
						return
					}
					want, err := render.Site(whole, r)
					if err != nil {
						t.Error(err)
						return
					}
					again, err := shared.Site(r)
					if d := cmp.Diff(want, again); d != "" || err != nil {
						t.Errorf("%s: a shared Renderer differs (%v):\n%s", s.Name, err, d)
					}
					slice, err := closure(files, whole, s.Dir)
					if err != nil {
						t.Error(err)
						return
					}
					alone, err := fleet.LoadSite(slice, s.Dir)
					if err != nil {
						t.Error(err)
						return
					}
					r, err = alone.Resolve(alone.Sites()[0])
					if err != nil {
						t.Error(err)
						return
					}
					got, err := render.Site(slice, r)
					if d := cmp.Diff(want, got); d != "" || err != nil {
						t.Errorf("%s: the slice renders otherwise than the tree (%v):\n%s", s.Name, err, d)
					}
				})
			}
			wg.Wait()
		})
	}
}

func closure(files map[string][]byte, whole fs.FS, dir string) (fstest.MapFS, error) {
	paths, err := fleet.Closure(whole, dir)
	if err != nil {
		return nil, err
	}
	slice := fstest.MapFS{}
	for name, data := range files {
		if slices.ContainsFunc(paths, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
			slice[name] = &fstest.MapFile{Data: data}
		}
	}
	return slice, nil
}

// Line ends and byte-order marks of other systems change nothing but
// themselves.
func TestLineEnds(t *testing.T) {
	files := exampleFiles(t)
	want := mustRender(t, treeOf(files), resolve(t, treeOf(files), "zurich-hb"))
	for name, data := range files {
		if strings.HasSuffix(name, ".yaml") {
			files[name] = append([]byte("\ufeff"), bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))...)
		}
	}
	tree := treeOf(files)
	got := mustRender(t, tree, resolve(t, tree, "zurich-hb"))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("CRLF renders otherwise:\n%s", d)
	}
}

func renderAll(t *testing.T, tree fs.FS) map[string]*render.Rendering {
	t.Helper()
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	all, renderer := map[string]*render.Rendering{}, render.New(tree)
	for _, s := range f.Sites() {
		r, err := f.Resolve(s)
		if err != nil {
			t.Fatal(err)
		}
		if all[s.Name], err = renderer.Site(r); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// A change of one line that concerns one site changes one site, and says how.
func TestOneLine(t *testing.T) {
	files := exampleFiles(t)
	before := treeOf(files)
	files["sites/de/munich-ost/site.yaml"] = bytes.Replace(files["sites/de/munich-ost/site.yaml"], []byte("Grüß Gott"), []byte("Servus"), 1)
	after := treeOf(files)
	was, is := renderAll(t, before), renderAll(t, after)
	for name, r := range is {
		c := render.Diff(was[name], r)
		if want := name == "munich-ost"; (c.Class == render.Apply) != want || (c.Class == render.None) == want {
			t.Errorf("%s: class %s", name, c.Class)
		}
		if name != "munich-ost" {
			continue
		}
		var got []string
		for _, a := range c.Apps {
			for _, o := range a.Objects {
				for _, x := range o.Fields {
					got = append(got, fmt.Sprintf("%s: %s: %s: %s -> %s", a.Name, o.Object, x.Path, x.Old, x.New))
				}
			}
		}
		if want := `hello: Deployment hello/hello: spec.template.spec.containers[name=hello].env[name=GREETING].value: "Grüß Gott" -> "Servus"`; !slices.Contains(got, want) {
			t.Errorf("fields are\n%s\nwant among them\n%s", strings.Join(got, "\n"), want)
		}
	}
}

// BenchmarkFleet renders 10 000 sites; its budget is well under 10 s on two cores.
func BenchmarkFleet(b *testing.B) {
	generated := fleetgen.Tree(10000)
	many := exampleFiles(b)
	for i := range 10000 {
		format := []string{"cafe", "bar"}[i%2]
		many[fmt.Sprintf("sites/x/r%02d/shop-%05d/site.yaml", i/200, i)] = fmt.Appendf(nil, "apiVersion: holdfast.dev/v1alpha1\nkind: Site\nspec:\n  uid: many-%05d\n  layers: [country/ch, format/%s, hardware/mini]\n", i, format)
	}
	own := map[string][]byte{}
	for name, data := range many {
		if strings.HasPrefix(name, "sites/x/") && bytes.Contains(data, []byte("bar")) {
			data = fmt.Appendf(bytes.Clone(data), "  vars: {greeting: hello from %s}\n", name)
		}
		own[name] = data
	}
	for _, c := range []struct {
		name string
		tree fs.FS
	}{{"generated", generated}, {"example", fleetgen.FS(many)}, {"example-own-values", fleetgen.FS(own)}} {
		f, err := fleet.Load(c.tree)
		if err != nil {
			b.Fatal(err)
		}
		resolved := make([]*fleet.Resolved, 0, 10000)
		for _, s := range f.Sites() {
			r, err := f.Resolve(s)
			if err != nil {
				b.Fatal(err)
			}
			resolved = append(resolved, r)
		}
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				renderer := render.New(c.tree)
				var wg sync.WaitGroup
				for w := range 2 {
					wg.Go(func() {
						for i := w; i < len(resolved); i += 2 {
							if _, err := renderer.Site(resolved[i]); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			b.ReportMetric(float64(len(resolved)), "sites/op")
		})
	}
}
