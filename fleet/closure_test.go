package fleet_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// slice is a tree as a machine has it: folders on the way to the closure can be
// listed and show all that is in them, but what is outside cannot be opened.
type slice struct {
	whole   fs.FS
	closure []string
	outside *[]string // what was asked for all the same
}

var errMissing = errors.New("object missing")

func (s slice) inside(name string) bool {
	for _, c := range s.closure {
		if name == c || strings.HasPrefix(name, c+"/") || strings.HasPrefix(c, name+"/") || name == "." {
			return true
		}
	}
	return false
}

func (s slice) Open(name string) (fs.File, error) {
	f, err := s.whole.Open(name)
	if err == nil && !s.inside(name) { // what the listing does not show is known not to be there
		*s.outside = append(*s.outside, name)
		return nil, &fs.PathError{Op: "open", Path: name, Err: errMissing}
	}
	return f, err
}

// only is the tree that holds the closure and nothing else.
func only(files map[string][]byte, closure []string) fs.FS {
	kept := map[string][]byte{}
	for name, data := range files {
		for _, c := range closure {
			if name == c || strings.HasPrefix(name, c+"/") {
				kept[name] = data
			}
		}
	}
	return fleetgen.FS(kept)
}

// drawFleet changes a generated fleet in ways that move its closures.
func drawFleet(t *rapid.T) map[string][]byte {
	files := fleetgen.Files(6)
	class := rapid.SampledFrom([]string{
		"", "  ring: canary\n", "  ring: {$delete: true}\n  ring2: x\n",
		"  apps:\n    - {name: pos, enabled: false}\n", "  apps:\n    - {name: signage}\n    - {name: pos, $delete: true}\n",
		"  apps: {$delete: true}\n", "  apps: []\n", "  apps:\n    - {name: pos, version: 4.3.0}\n",
	})
	add := func(name, text string) { files[name] = []byte(string(files[name]) + text) }
	files["classes/country/de.yaml"] = []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Class\nspec:\n" + class.Draw(t, "country") + "  kubernetes: {}\n")
	for i := range 6 {
		extra := rapid.SampledFrom([]string{"", "  apps:\n    - {name: base, enabled: false}\n", "  apps:\n    - {name: pos, version: 4.3.0}\n", "  apps:\n    - name: signage\n"}).Draw(t, "site")
		add(fleetgen.SiteDir(i)+"/site.yaml", extra)
		add(fleetgen.SiteDir(i)+"/secrets/a.age", "x")
	}
	if rapid.Bool().Draw(t, "ring without os") {
		files["rings/stable.yaml"] = []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Ring\nspec:\n  apps: {pos: 4.2.1, base: 1.0.0, signage: 2.0.1}\n  defaults:\n    apps:\n      - {name: pos, version: 4.3.0}\n")
	}
	if rapid.Bool().Draw(t, "unknown fields") {
		add("fleet.yaml", "  later: {a: 1}\n")
		add("rings/stable.yaml", "  later: [1]\n")
	}
	if rapid.Bool().Draw(t, "stones") {
		for version, follows := range map[string]string{"1.3.0": "1.2.0, 9.9.9", "1.2.0": "1.3.0, 1.4.2", "0.9.0": ""} {
			files["os/"+version+".yaml"] = []byte("apiVersion: holdfast.dev/v1alpha1\nkind: OS\nspec:\n  kubernetes: \"1.35\"\n  follows: [" + follows + "]\n  images: {amd64: {digest: sha256:" + strings.Repeat("1", 64) + ", size: 1}}\n")
		}
		for name := range files {
			if v := strings.TrimSuffix(strings.TrimPrefix(name, "os/"), ".yaml"); name == "os/"+v+".yaml" && v[0] == '1' && v != "1.3.0" && v != "1.2.0" {
				add(name, "  follows: [1.3.0]\n")
			}
		}
	}
	if rapid.Bool().Draw(t, "rules") {
		files["rules.yaml"] = []byte("apiVersion: holdfast.dev/v1alpha1\n")
	}
	return files
}

func TestClosureIsTheSameOnTheSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := drawFleet(t)
		tree := fleetgen.FS(files)
		for _, i := range []int{0, rapid.IntRange(1, 5).Draw(t, "which")} {
			dir := fleetgen.SiteDir(i)
			want, err := fleet.Closure(tree, dir)
			if err != nil {
				if !strings.Contains(err.Error(), `in version ""`) { // a site without a ring has no versions
					t.Fatal(err)
				}
				continue
			}
			if !slices.IsSorted(want) {
				t.Errorf("not sorted: %v", want)
			}
			got, err := fleet.Closure(only(files, want), dir)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("on the slice %v, %v; on the whole tree %v", got, err, want)
			}
			var outside []string
			machine := slice{tree, want, &outside}
			got, err = fleet.Closure(machine, dir)
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("at the machine %v, %v; on the whole tree %v", got, err, want)
			}
			one, errOne := fleet.LoadSite(machine, dir)
			if len(outside) > 0 {
				t.Fatalf("read outside of the closure: %v", outside)
			}
			all, errAll := fleet.LoadSite(tree, dir)
			if d := cmp.Diff(fmt.Sprint(errAll), fmt.Sprint(errOne)); d != "" {
				t.Fatalf("LoadSite differs on the slice:\n%s", d)
			}
			if errOne != nil {
				continue
			}
			a, _ := one.Resolve(one.Sites()[0])
			b, _ := all.Resolve(all.Sites()[0])
			if show(a) != show(b) {
				t.Fatalf("resolves differently on the slice:\n%s", cmp.Diff(show(b), show(a)))
			}
			for _, app := range a.Apps {
				if !slices.Contains(want, app.Dir) {
					t.Errorf("%s is selected and not in the closure %v", app.Dir, want)
				}
			}
		}
	})
}

// Every site of a fleet resolves the same alone as among all.
func TestSiteAloneResolvesTheSame(t *testing.T) {
	tree := fleetgen.Tree(60)
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range f.Sites() {
		want, err := f.Resolve(s)
		if err != nil {
			t.Fatal(err)
		}
		one, err := fleet.LoadSite(tree, s.Dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := one.Resolve(one.Sites()[0])
		if err != nil || show(got) != show(want) {
			t.Fatalf("%s: %v\n%s", s.Name, err, cmp.Diff(show(want), show(got)))
		}
	}
}

func TestClosureRefuses(t *testing.T) {
	files := fleetgen.Files(1)
	dir := fleetgen.SiteDir(0)
	site := dir + "/site.yaml"
	for name, c := range map[string]struct{ dir, file, text string }{
		"a path above":        {dir: "sites/../os"},
		"not a site":          {dir: "os"},
		"a path with a slash": {dir: dir + "/"},
		"an absolute path":    {dir: "/" + dir},
		"a folder without":    {dir: "sites/de"},
		"an escaping layer":   {dir, site, "spec: {layers: [../../x]}"},
		"an escaping ring":    {dir, site, "spec: {ring: ../x}"},
		"an escaping app":     {dir, site, "spec: {ring: stable, apps: [{name: ../x, version: a}]}"},
		"an escaping version": {dir, site, "spec: {ring: stable, apps: [{name: pos, version: ../../x}]}"},
		"an escaping os":      {dir, "rings/canary.yaml", "spec: {os: ../x}"},
		"an alias":            {dir, site, "spec: {layers: &a [x, *a]}"},
		"no YAML":             {dir, "fleet.yaml", "{"},
	} {
		t.Run(name, func(t *testing.T) {
			all := maps.Clone(files)
			if c.file != "" {
				all[c.file] = []byte(c.text)
			}
			if got, err := fleet.Closure(fleetgen.FS(all), c.dir); err == nil {
				t.Errorf("no error, but %v", got)
			}
		})
	}
}
