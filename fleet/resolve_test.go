package fleet_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

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
