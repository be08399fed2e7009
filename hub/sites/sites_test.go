package sites

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/release"
)

// repo is a tree of files as Git objects, which counts its readers.
type repo struct {
	objects release.Objects
	reads   int
}

func (r *repo) put(kind string, data []byte) ID {
	if r.objects == nil {
		r.objects = release.Objects{}
	}
	o := release.Object{Kind: kind, Data: data}
	r.objects[o.ID()] = o
	return o.ID()
}

func (r *repo) Object(id ID) (string, []byte, error) {
	r.reads++
	return r.objects.Object(id)
}

func (r *repo) tree(files map[string]string) ID {
	below := map[string]map[string]string{}
	type line struct {
		key  string
		text []byte
	}
	var lines []line
	for path, text := range files {
		dir, rest, nested := strings.Cut(path, "/")
		if !nested {
			id := r.put("blob", []byte(text))
			lines = append(lines, line{path, append([]byte("100644 "+path+"\x00"), id[:]...)})
			continue
		}
		if below[dir] == nil {
			below[dir] = map[string]string{}
		}
		below[dir][rest] = text
	}
	for dir, files := range below {
		id := r.tree(files)
		lines = append(lines, line{dir + "/", append([]byte("40000 "+dir+"\x00"), id[:]...)})
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.key, b.key) })
	var data []byte
	for _, l := range lines {
		data = append(data, l.text...)
	}
	return r.put("tree", data)
}

func machine(i int) fleet.MachineID { return fleet.MachineIDOf(fmt.Append(nil, i)) }

func members(ids ...int) string {
	text := "apiVersion: holdfast.dev/v1alpha1\nkind: Machines\nspec:\n  members:\n"
	for _, i := range ids {
		text += fmt.Sprintf("  - {name: m%d, id: %s, role: control-plane, siteAddress: 10.213.0.11, somethingNew: [1]}\n", i, machine(i))
	}
	return text
}

func TestIndex(t *testing.T) {
	var r repo
	root := r.tree(map[string]string{
		"fleet.yaml":                      "x",
		"sites/README":                    "x",
		"sites/de/berlin/site.yaml":       "x",
		"sites/de/berlin/machines.yaml":   members(1, 2),
		"sites/de/berlin/patches/p.yaml":  "x",
		"sites/fr/idf/paris/site.yaml":    "x",
		"sites/fr/idf/lyon/site.yaml":     "x",
		"sites/fr/idf/lyon/machines.yaml": "\xef\xbb\xbfspec: {tombstones: [{id: " + string(machine(3)) + ", verb: stolen}, {id: " + string(machine(1)) + ", verb: retire}]}",
		"sites/fr/idf/nice/site.yaml":     "x",
		"sites/fr/idf/nice/machines.yaml": ":\tnot yaml",
	})
	x, err := Build(&r, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, s := range x.Sites() {
		dirs = append(dirs, s.Dir)
	}
	if d := cmp.Diff([]string{"sites/de/berlin", "sites/fr/idf/lyon", "sites/fr/idf/nice", "sites/fr/idf/paris"}, dirs); d != "" {
		t.Errorf("sites (-want +got):\n%s", d)
	}
	p, ok := x.Machine(machine(2))
	if !ok || p.Gone || p.Site.Name != "berlin" || p.Member.Name != "m2" || !p.Member.ControlPlane() {
		t.Errorf("machine 2: %+v %v", p, ok)
	}
	if p, ok := x.Machine(machine(1)); !ok || p.Gone || p.Site.Name != "berlin" {
		t.Errorf("a machine that moved stands at %+v", p)
	}
	if p, ok := x.Machine(machine(3)); !ok || !p.Gone || p.Site.Name != "lyon" {
		t.Errorf("a stolen machine stands at %+v", p)
	}
	if _, ok := x.Machine(machine(9)); ok {
		t.Error("an unlisted machine has a place")
	}
	if s, ok := x.Site("paris"); !ok || len(s.Members) != 0 {
		t.Errorf("paris: %+v", s)
	}
	if len(x.Faults) != 1 || !strings.Contains(x.Faults[0], "nice") {
		t.Errorf("faults = %q", x.Faults)
	}
	var none *Index
	if _, ok := none.Machine(machine(1)); ok || none.Sites() != nil {
		t.Error("no release lists a machine")
	}
}

func TestFaultsOfARelease(t *testing.T) {
	var r repo
	root := r.tree(map[string]string{
		"sites/a/x/site.yaml": "", "sites/a/x/machines.yaml": members(1),
		"sites/b/x/site.yaml": "", "sites/b/x/machines.yaml": members(1),
	})
	x, err := Build(&r, root, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(x.Faults) != 2 {
		t.Errorf("faults = %q", x.Faults)
	}
	if p, _ := x.Machine(machine(1)); p.Site.Dir != "sites/a/x" {
		t.Errorf("place = %+v", p)
	}
}

func TestErrMissingObject(t *testing.T) {
	var r repo
	root := r.tree(map[string]string{"sites/a/site.yaml": "", "sites/a/machines.yaml": members(1)})
	for id := range maps.Clone(r.objects) {
		o := r.objects[id]
		delete(r.objects, id)
		_, err := Build(&r, root, nil)
		if needed := o.Kind == "tree" || bytes.Contains(o.Data, []byte("members")); needed == (err == nil) {
			t.Errorf("%s %q missing: err = %v", o.Kind, o.Data, err)
		}
		r.objects[id] = o
	}
}

func TestErrDeepTree(t *testing.T) {
	var r repo
	root := r.tree(map[string]string{"sites/" + strings.Repeat("d/", 40) + "site.yaml": ""})
	if _, err := Build(&r, root, nil); err == nil || !strings.Contains(err.Error(), "deeper") {
		t.Errorf("err = %v", err)
	}
}

func TestTenThousandSites(t *testing.T) {
	var r repo
	files := map[string]string{}
	for i := range 10_000 {
		dir := fmt.Sprintf("sites/c%02d/s%04d/", i%50, i)
		files[dir+"site.yaml"] = fmt.Sprint(i)
		files[dir+"machines.yaml"] = members(i)
	}
	first := r.tree(files)
	files["sites/c07/s0007/site.yaml"] = "changed"
	files["sites/c07/s0007/machines.yaml"] = members(7, 77777)
	second := r.tree(files)

	began := time.Now()
	x, err := Build(&r, first, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	r.reads = 0
	began = time.Now()
	y, err := Build(&r, second, x)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("whole: %v; after one change: %v, %d objects read", whole, time.Since(began), r.reads)
	if r.reads > 5 {
		t.Errorf("%d objects read after a change of one site", r.reads)
	}
	if len(y.Sites()) != 10_000 || len(y.nodes) > len(x.nodes)+3 {
		t.Errorf("%d sites, %d folders after %d", len(y.Sites()), len(y.nodes), len(x.nodes))
	}
	if _, ok := y.Machine(machine(77777)); !ok {
		t.Error("the new machine has no place")
	}
}

func FuzzParseMachines(f *testing.F) {
	f.Add([]byte(members(1, 2)))
	f.Add([]byte("spec: {tombstones: [{id: x}]}"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMachines(data)
		if err != nil {
			return
		}
		for _, x := range m.Members {
			if _, err := fleet.ParseMachineID(string(x.ID)); err != nil {
				t.Error(err)
			}
		}
	})
}
