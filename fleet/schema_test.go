package fleet_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/example"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

func compiled(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	out := map[string]*jsonschema.Schema{}
	for name, b := range fleet.Schemas() {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource("https://holdfast.test/"+name, doc); err != nil {
			t.Fatal(err)
		}
		s, err := c.Compile("https://holdfast.test/" + name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[strings.TrimSuffix(name, ".schema.json")] = s
	}
	return out
}

// document gives a document as JSON would have it, and its kind in lower case.
func document(t *testing.T, data []byte) (any, string) {
	t.Helper()
	var y any
	if err := yaml.Load(data, &y); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(y)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	m, _ := v.(map[string]any)
	return v, strings.ToLower(fmt.Sprint(m["kind"]))
}

func isDocument(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	switch {
	case path.Base(name) == "images.lock":
		return true
	case top == "apps":
		return path.Base(name) == "app.yaml"
	case top == "sites":
		return path.Base(name) == "site.yaml" || path.Base(name) == "machines.yaml"
	}
	return strings.HasSuffix(name, ".yaml")
}

// What Load takes, the schemas take.
func TestSchemasTakeGoodDocuments(t *testing.T) {
	schemas := compiled(t)
	trees := map[string]fs.FS{"generated": fleetgen.Tree(20)}
	cases, _ := filepath.Glob("testdata/resolve/*.txtar")
	for _, c := range append(cases, "testdata/faults/none.txtar") {
		_, trees[c] = readCase(t, c)
	}
	files, err := example.Files(example.Params{FleetName: "coffee", FleetID: "00112233445566778899aabbccddeeff", SignerKey: anna})
	if err != nil {
		t.Fatal(err)
	}
	trees["example"] = fleetgen.FS(files)
	trees["network"] = os.DirFS("testdata/network")
	seen := map[string]bool{}
	for where, tree := range trees {
		err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !isDocument(name) {
				return err
			}
			data, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			v, kind := document(t, data)
			if schemas[kind] == nil {
				t.Errorf("%s: %s: no schema for %s", where, name, kind)
				return nil
			}
			seen[kind] = true
			if err := schemas[kind].Validate(v); err != nil {
				t.Errorf("%s: %s: %v", where, name, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for kind := range schemas {
		if !seen[kind] {
			t.Errorf("no document of kind %s was tried", kind)
		}
	}
}

// What one document shows to be wrong, its schema refuses, too.
func TestSchemasRefuseBadDocuments(t *testing.T) {
	schemas := compiled(t)
	for _, c := range []struct{ fault, file string }{
		{"unknown-fields", "sites/de/0417-berlin/site.yaml"},
		{"unknown-fields", "fleet.yaml"},
		{"wrong-types", "sites/de/0417-berlin/site.yaml"},
		{"wrong-types", "rings/stable.yaml"},
		{"escaping-names", "rings/canary.yaml"},
		{"headers", "fleet.yaml"},
		{"delete", "fleet.yaml"},
		{"machines", "sites/de/0417-berlin/machines.yaml"},
		{"trust", "trust.yaml"},
		{"images-lock", "apps/pos/4.2.1/images.lock"},
		{"os", "os/1.4.2.yaml"},
	} {
		_, tree := readCase(t, "testdata/faults/"+c.fault+".txtar")
		v, kind := document(t, tree[c.file].Data)
		if err := schemas[kind].Validate(v); err == nil {
			t.Errorf("%s: the schema takes %s", c.fault, c.file)
		}
	}
}

func TestSchemasExplainEveryField(t *testing.T) {
	for name, b := range fleet.Schemas() {
		var s struct {
			Defs map[string]struct {
				Properties map[string]struct{ Description string }
			} `json:"$defs"`
		}
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		for def, d := range s.Defs {
			for field, p := range d.Properties {
				if p.Description == "" && field != "$delete" {
					t.Errorf("%s: %s.%s says nothing", name, def, field)
				}
			}
		}
	}
}
