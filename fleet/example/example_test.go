package example

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	yaml "go.yaml.in/yaml/v4"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
)

const signer = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMbu/PZ2xa/SH5eU2pPIDT1KQGHD4rGOAXVwDgkAZYzt a@example.com"
const operator = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICnO3dHHFYXhB9oBxLR7LRzYk0FFfL3dU4Tq7VZzVZQX b@example.com"

func params() Params {
	p := Params{
		FleetName: "coffee", FleetID: "00112233445566778899aabbccddeeff", SignerKey: signer + "\n", OperatorKey: operator, Person: `Ann "A" O'Neil`,
		HubPins:            []string{"sha256:" + strings.Repeat("1", 64), "sha256:" + strings.Repeat("2", 64)},
		RecoveryRecipients: []string{"age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"},
		Images:             map[string]fleet.LockedImage{},
	}
	for i, name := range Images() {
		p.Images[name] = fleet.LockedImage{Digest: "sha256:" + strings.Repeat(string(rune('a'+i)), 64), Size: 3 << 20, Platforms: []string{"linux/amd64"}}
	}
	return p
}

func tree(t *testing.T, files map[string][]byte, err error) fstest.MapFS {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	m := fstest.MapFS{}
	for name, data := range files {
		m[name] = &fstest.MapFile{Data: data}
	}
	return m
}

func example(t *testing.T) fstest.MapFS {
	files, err := Files(params())
	return tree(t, files, err)
}

func load(t *testing.T, tree fs.FS) *fleet.Fleet {
	t.Helper()
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatalf("the example has faults:\n%v", err)
	}
	if w := f.Warnings(); len(w) > 0 {
		t.Fatalf("the example has warnings:\n%v", w)
	}
	return f
}

// The figures that the example promises.
func TestExample(t *testing.T) {
	m := example(t)
	f := load(t, m)
	countries, layers, rings := map[string]bool{}, map[string]map[string]bool{}, map[string]bool{}
	renderer := render.New(m)
	for _, s := range f.Sites() {
		countries[strings.Split(s.Dir, "/")[1]] = true
		rings[s.Ring] = true
		for _, l := range s.Layers {
			group, name := path.Split(l)
			if layers[group] == nil {
				layers[group] = map[string]bool{}
			}
			layers[group][name] = true
		}
		if n := bytes.Count(m[s.Dir+"/site.yaml"].Data, []byte("\n")); n > 12 {
			t.Errorf("%s/site.yaml has %d lines, want at most 12", s.Dir, n)
		}
		r, err := f.Resolve(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := renderer.Site(r); err != nil {
			t.Errorf("render %s: %v", s.Name, err)
		}
	}
	got := []int{len(f.Sites()), len(countries), len(layers["country/"]), len(layers["format/"]), len(layers["hardware/"]), len(rings)}
	if d := cmp.Diff([]int{12, 3, 3, 2, 2, 3}, got); d != "" {
		t.Errorf("sites, countries, their layers, formats, hardware, rings (-want +got):\n%s", d)
	}
	if got, want := f.Trust.Signers[0].Person, params().Person; got != want {
		t.Errorf("person = %q, want %q", got, want)
	}
}

func TestEmpty(t *testing.T) {
	for name, p := range map[string]Params{"Full": params(), "Least": {FleetName: "x", FleetID: params().FleetID, SignerKey: signer}} {
		t.Run(name, func(t *testing.T) {
			p.OperatorKey = "" // one person for both
			files, err := EmptyFiles(p)
			if len(files) != 4 {
				t.Errorf("there are %d files, want fleet, trust, one ring, one class", len(files))
			}
			load(t, tree(t, files, err))
		})
	}
}

// A new shop as the README has it.
func TestNewShop(t *testing.T) {
	m := example(t)
	_, shop, ok := strings.Cut(string(m["README.md"].Data), "    # sites/ch/basel-sbb/site.yaml\n")
	if !ok {
		t.Fatal("README.md does not show a new shop")
	}
	shop, _, _ = strings.Cut(shop, "\n\n")
	shop = strings.ReplaceAll("\n"+shop, "\n    ", "\n")
	if n := strings.Count(shop, "\n"); n > 12 {
		t.Errorf("a new shop takes %d lines, want at most 12", n)
	}
	m["sites/ch/basel-sbb/site.yaml"] = &fstest.MapFile{Data: []byte(shop)}
	f := load(t, m)
	s, ok := f.Site("basel-sbb")
	if !ok {
		t.Fatal("the new shop is not in the fleet")
	}
	r, err := f.Resolve(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := render.Site(m, r); err != nil {
		t.Error(err)
	}
}

// No value stands in two places: what one layer says of a variable, a setting
// or an identity, no other layer says with the same words, and a site repeats
// nothing that its layers say already.
func TestNoValueTwice(t *testing.T) {
	m := example(t)
	places := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if name != "fleet.yaml" && !strings.HasPrefix(name, "classes/") && !strings.HasPrefix(name, "sites/") {
			continue // rings say what is live in each: that is their purpose
		}
		var doc struct{ Spec map[string]any }
		if err := yaml.Unmarshal(m[name].Data, &doc); err != nil {
			t.Fatal(err)
		}
		leaves(doc.Spec, "", func(field string, v any) {
			field = strings.TrimPrefix(field, ".defaults")
			if rest, ok := strings.CutSuffix(field, ".default"); ok {
				field = rest // a declaration's default is a layer, too
			}
			if strings.HasPrefix(field, ".layers") || field == ".ring" || strings.HasSuffix(field, ".type") || strings.HasSuffix(field, ".required") {
				return // references and types
			}
			key := fmt.Sprintf("%s = %v", field, v)
			places[key] = append(places[key], name)
		})
	}
	for value, files := range places {
		if len(files) > 1 {
			t.Errorf("%s stands in %v", value, files)
		}
	}
	if len(places) < 25 {
		t.Errorf("the test saw only %d values", len(places))
	}
}

func leaves(v any, at string, f func(string, any)) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			leaves(e, at+"."+k, f)
		}
	case []any:
		for _, e := range v {
			leaves(e, at, f)
		}
	default:
		f(at, v)
	}
}

// Every file says what it is for, as far as it is not plain from its neighbours.
func TestFilesTeach(t *testing.T) {
	for name, f := range example(t) {
		quiet := strings.HasPrefix(name, "sites/") || strings.HasPrefix(name, "classes/country/") || path.Ext(name) == ".txt" || path.Base(name) == "README.md" ||
			strings.HasPrefix(name, "apps/pos/2.0.0/") && path.Base(name) != "kustomization.yaml"
		if !quiet && !bytes.Contains(f.Data, []byte("# ")) {
			t.Errorf("%s has no comment", name)
		}
		if bytes.ContainsRune(f.Data, '\t') || bytes.Contains(f.Data, []byte("@HUB")) || bytes.Contains(f.Data, []byte("@FLEET")) {
			t.Errorf("%s has a tab or a placeholder left", name)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, params()); err != nil {
		t.Fatal(err)
	}
	load(t, os.DirFS(dir))
	t.Run("ErrThereAlready", func(t *testing.T) {
		if err := Write(dir, params()); err == nil || !strings.Contains(err.Error(), "is there already") {
			t.Errorf("error is %v, want a refusal to replace files", err)
		}
	})
	t.Run("ErrImageMissing", func(t *testing.T) {
		p := params()
		delete(p.Images, Images()[0])
		if err := Write(t.TempDir(), p); err == nil || !strings.Contains(err.Error(), "holdfast.local/hello:1.0.0 is not among those given") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("NoImages", func(t *testing.T) {
		p := params()
		p.Images = nil
		files, err := Files(p)
		load(t, tree(t, files, err))
		if _, ok := files["apps/hello/1.0.0/images.lock"]; ok {
			t.Error("a lock was written without images")
		}
	})
}
