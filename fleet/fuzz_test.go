package fleet_test

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// seeds gives all documents of the unit tests.
func seeds(f *testing.F, add func(data []byte)) {
	paths, _ := filepath.Glob("testdata/*/*.txtar")
	n := 0
	for _, path := range append(paths, "testdata/base.txtar") {
		a, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, x := range a.Files {
			if x.Name != "want" {
				add(x.Data)
				n++
			}
		}
	}
	if n < 50 {
		f.Fatalf("only %d seeds", n)
	}
}

// documents are places where a fleet repo has each kind of document.
var documents = []string{
	"fleet.yaml", "trust.yaml", "os/1.4.2.yaml", "rings/canary.yaml", "classes/country/de.yaml", "apps/pos/app.yaml",
	"apps/pos/4.3.0/images.lock", fleetgen.SiteDir(0) + "/site.yaml", fleetgen.SiteDir(0) + "/machines.yaml",
}

// Whatever the bytes are and wherever they stand: no panic, every fault has a
// place, nothing outside is read, and a site that loads resolves.
func FuzzLoad(f *testing.F) {
	i := 0
	seeds(f, func(data []byte) {
		for range 2 { // two places each; the fuzzer finds the others
			f.Add(data, uint8(i%len(documents)))
			i++
		}
	})
	base := fleetgen.Files(1)
	dir := fleetgen.SiteDir(0)
	f.Fuzz(func(t *testing.T, data []byte, at uint8) {
		name := documents[int(at)%len(documents)]
		files := maps.Clone(base)
		files[name] = data
		tree := fleetgen.FS(files)
		all, err := fleet.Load(tree)
		places(t, files, err)
		if err == nil {
			for _, s := range all.Sites() {
				if _, err := all.Resolve(s); err != nil {
					t.Errorf("%s loads, but does not resolve: %v", name, err)
				}
				if _, err := all.Explain(s, ""); err != nil {
					t.Errorf("%s loads, but is not explained: %v", name, err)
				}
			}
		}
		closure, errClosure := fleet.Closure(tree, dir)
		if errClosure != nil {
			if err == nil {
				t.Errorf("%s loads, but has no closure: %v", name, errClosure)
			}
			return
		}
		var outside []string
		_, errSite := fleet.LoadSite(slice{tree, closure, &outside}, dir)
		places(t, files, errSite)
		if err == nil && errSite != nil {
			t.Errorf("%s loads, but not the site alone: %v", name, errSite)
		}
		again, err := fleet.Closure(slice{tree, closure, &outside}, dir)
		if err != nil || !slices.Equal(again, closure) || len(outside) > 0 {
			t.Errorf("%s: closure %v on the slice, %v on the tree, %v; read outside: %v", name, again, closure, err, outside)
		}
	})
}

func places(t *testing.T, files map[string][]byte, err error) {
	t.Helper()
	var faults fleet.Faults
	if err != nil && !errors.As(err, &faults) {
		t.Errorf("no Faults: %v", err)
	}
	for _, x := range faults {
		lines := strings.Count(string(files[x.File]), "\n") + 1
		if x.File == "" || x.Line < 0 || x.Line > 0 && (x.Column < 1 || x.Line > lines+1) || x.Problem == "" {
			t.Errorf("a fault without a place: %#v", x)
		}
		if strings.ContainsAny(x.String(), "\n\r") {
			t.Errorf("a fault of two lines: %q", x.String())
		}
	}
}

func FuzzParseTrust(f *testing.F) {
	seeds(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		trust, err := fleet.ParseTrust("trust.yaml", data)
		places(t, map[string][]byte{"trust.yaml": data}, err)
		if (trust == nil) != (err != nil) {
			t.Errorf("trust %v and error %v", trust, err)
		}
		if trust == nil {
			return
		}
		for _, s := range trust.Signers {
			if _, err := fleet.Fingerprint(s.Key); err != nil {
				t.Errorf("a signer without a fingerprint: %v", err)
			}
		}
	})
}

// What is edited reads back as what it was and the new machine, or is refused.
func FuzzAddMember(f *testing.F) {
	seeds(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		old, err := fleet.ParseMachines("machines.yaml", data)
		if err != nil {
			return
		}
		out, err := fleet.AddMember(data, member(7))
		if err != nil {
			return
		}
		got, err := fleet.ParseMachines("machines.yaml", out)
		if err != nil || len(got.Members) != len(old.Members)+1 || len(got.Tombstones) != len(old.Tombstones) {
			t.Errorf("%q became %q: %v", data, out, err)
		}
	})
}

func FuzzImagesLock(f *testing.F) {
	seeds(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := fleet.ParseImagesLock("images.lock", data)
		places(t, map[string][]byte{"images.lock": data}, err)
		if err != nil {
			return
		}
		one := fleet.EncodeImagesLock(*l)
		again, err := fleet.ParseImagesLock("images.lock", one)
		if err != nil {
			t.Fatalf("encodes to what does not parse: %v\n%s", err, one)
		}
		if two := fleet.EncodeImagesLock(*again); string(one) != string(two) {
			t.Errorf("two spellings:\n%s\n%s", one, two)
		}
	})
}

func FuzzIDs(f *testing.F) {
	f.Add("00112233445566778899aabbccddeeff")
	f.Add(string(fleetgen.MachineID(0, 0)))
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := fleet.ParseID(s); err == nil && string(id) != s {
			t.Errorf("%q became %q", s, id)
		}
		if id, err := fleet.ParseMachineID(s); err == nil && string(id) != s {
			t.Errorf("%q became %q", s, id)
		}
	})
}
