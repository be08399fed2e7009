package fleet_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-edge/holdfast/fleet"
)

// The golden files show one site as resolved, then each value with its origin.
func TestResolveAndExplain(t *testing.T) {
	paths, err := filepath.Glob("testdata/resolve/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, tree := readCase(t, path)
			f, err := fleet.Load(tree)
			if err != nil {
				t.Fatal(err)
			}
			s, _ := f.Site("0417-berlin")
			r, err := f.Resolve(s)
			if err != nil {
				t.Fatal(err)
			}
			one, err := fleet.LoadSite(tree, s.Dir)
			if err != nil {
				t.Fatal(err)
			}
			got := show(r) + fmt.Sprintf("class of m1: %+v\n\n", r.ClassOf("m1"))
			if alone, err := one.Resolve(one.Sites()[0]); err != nil || show(alone) != show(r) {
				t.Errorf("LoadSite resolves differently: %v\n%s", err, show(alone))
			}
			all, err := f.Explain(s, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range all {
				got += explained(p)
			}
			golden(t, path, a, got)
		})
	}
}

func show(r *fleet.Resolved) string {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(b) + "\n"
}

func explained(p fleet.Provenance) string {
	s := fmt.Sprintf("%s = %v  (%s, %s:%d:%d)\n", p.Field, p.Value, p.Layer, p.File, p.Line, p.Column)
	for _, o := range p.Overrides {
		s += "    over " + explained(o)
	}
	return s
}

func TestExplainByField(t *testing.T) {
	_, tree := readCase(t, "testdata/resolve/layers.txtar")
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := f.Site("0417-berlin")
	for field, want := range map[string]int{"vars": 4, "vars.shop": 1, "apps.base": 9, "ring": 1, "network.apiAddress": 1, "kubernetes.version": 1} {
		got, err := f.Explain(s, field)
		if err != nil || len(got) != want {
			t.Errorf("%s: %d values, %v, want %d: %v", field, len(got), err, want, got)
		}
	}
	if _, err := f.Explain(s, "vars.shp"); err == nil || !strings.Contains(err.Error(), `did you mean "vars.shop"?`) {
		t.Errorf("no suggestion: %v", err)
	}
}

// What a machine is before a release names it: an OS image is built with it.
func TestBox(t *testing.T) {
	_, tree := readCase(t, "testdata/base.txtar")
	tree["fleet.yaml"].Data = []byte(strings.Replace(string(tree["fleet.yaml"].Data), "    ring: stable\n", "    ring: stable\n    machine: {disk: {bySize: smallest, minSize: 32Gi}}\n", 1))
	for name, disk := range map[string]string{"nuc": "{model: \"Samsung*\", bySize: largest}", "kiosk": "{wipe: true, maxSize: 16Gi}", "plain": "{minSize: {$delete: true}}"} {
		tree["classes/hardware/"+name+".yaml"] = &fstest.MapFile{Data: []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Class\nspec: {machine: {disk: " + disk + "}}\n")}
	}
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		classes string
		want    fleet.DiskRule
		text    string
	}{
		{"", fleet.DiskRule{BySize: "smallest", MinSize: 32 << 30}, "the smallest one with at least 32Gi, if it is blank"},
		{"hardware/nuc", fleet.DiskRule{Model: "Samsung*", BySize: "largest", MinSize: 32 << 30}, "the largest one with model Samsung*, at least 32Gi, if it is blank"},
		{"hardware/nuc hardware/plain", fleet.DiskRule{Model: "Samsung*", BySize: "largest"}, "the largest one with model Samsung*, if it is blank"},
		{"hardware/plain hardware/kiosk", fleet.DiskRule{BySize: "smallest", MaxSize: 16 << 30, Wipe: true}, "the smallest one with at most 16Gi, erased where it holds something else"},
	} {
		box, err := f.Box(strings.Fields(c.classes)...)
		if err != nil || box.Disk != c.want || box.Disk.String() != c.text || box.StateSize != 2<<30 {
			t.Errorf("%s: got %+v, %q, %v", c.classes, box, box.Disk.String(), err)
		}
	}
	_, err = f.Box("hardware/nope", "hardware/kiosk")
	for _, want := range []string{"classes/hardware/nope.yaml: there is no such class", "maxSize: no disk is as large as minSize, 32Gi, and as small as 16Gi"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestQuantity(t *testing.T) {
	for text, want := range map[string]fleet.Quantity{"0": 0, "1000": 1000, "1Ki": 1024, "640Mi": 640 << 20, "1Gi": 1 << 30, "3Ti": 3 << 40} {
		if q, err := fleet.ParseQuantity(text); err != nil || q != want || q.String() != text {
			t.Errorf("%s: got %v, %v", text, q, err)
		}
	}
	for _, text := range []string{"", "-1", "1G", "1.5Gi", "Gi", "9999999Ti", "1 Gi"} {
		if q, err := fleet.ParseQuantity(text); err == nil {
			t.Errorf("%s: got %v", text, q)
		}
	}
}
