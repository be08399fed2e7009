package fleet_test

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

var addrCmp = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func member(i int) fleet.Machine {
	return fleet.Machine{Name: "till-" + string(rune('0'+i)), ID: fleetgen.MachineID(0, i), Role: "worker", Protection: "none"}
}

// Each case has the file as it was, and as it is with till-7 added and machine
// 0 (where it is a member) moved to the tombstones.
func TestEditMachines(t *testing.T) {
	paths, _ := filepath.Glob("testdata/machines/*.txtar")
	if len(paths) == 0 {
		t.Fatal("no cases")
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := fleet.AddMember([]byte(section(a, "machines.yaml")), member(7))
			if err == nil {
				got, err = fleet.AddTombstone(got, fleet.Tombstone{ID: fleetgen.MachineID(0, 0), Verb: "retire", Since: "2026-11-22"})
			}
			if err != nil {
				got = []byte(err.Error() + "\n")
			}
			golden(t, path, a, string(got))
		})
	}
}

func TestAddMemberKeepsLineEnds(t *testing.T) {
	in := "\ufeffapiVersion: holdfast.dev/v1alpha1\r\nkind: Machines\r\nspec:\r\n  members: # all of them\r\n"
	got, err := fleet.AddMember([]byte(in), member(1))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(got), in) || strings.Count(string(got), "\n") != strings.Count(string(got), "\r\n") {
		t.Errorf("%q", got)
	}
}

func TestAddMemberCountsAddresses(t *testing.T) {
	var data []byte
	for i := range 9 {
		var err error
		if data, err = fleet.AddMemberIn(data, member(i), netip.MustParsePrefix("10.9.8.0/28")); err != nil {
			if i == 4 && strings.Contains(err.Error(), "are taken") {
				return // .11 to .14
			}
			t.Fatalf("machine %d: %v", i, err)
		}
		m, err := fleet.ParseMachines("machines.yaml", data)
		if err != nil {
			t.Fatal(err)
		}
		want := member(i)
		want.SiteAddress = netip.AddrFrom4([4]byte{10, 9, 8, byte(11 + i)})
		if d := cmp.Diff(want, m.Members[i], addrCmp); d != "" {
			t.Errorf("machine %d: -want +got:\n%s", i, d)
		}
	}
	t.Error("a range of 14 addresses took nine machines")
}

func TestAddMemberRefuses(t *testing.T) {
	data, err := fleet.AddMember(nil, member(1))
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]fleet.Machine{
		"the same id":   {Name: "x", ID: member(1).ID, Role: "worker"},
		"the same name": {Name: member(1).Name, ID: member(2).ID, Role: "worker"},
		"no role":       {Name: "x", ID: member(2).ID},
		"no name":       {ID: member(2).ID, Role: "worker"},
		"a trick":       {Name: "x\n  tombstones: []", ID: member(2).ID, Role: "worker"},
	} {
		if got, err := fleet.AddMember(data, m); err == nil {
			t.Errorf("%s: taken:\n%s", name, got)
		}
	}
	if _, err := fleet.AddMember([]byte("spec: ["), member(2)); err == nil {
		t.Error("a broken file: taken")
	}
}

func TestCheckRemovals(t *testing.T) {
	load := func(change func(files map[string][]byte)) *fleet.Fleet {
		files := fleetgen.Files(3)
		change(files)
		f, err := fleet.Load(fleetgen.FS(files))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	dir := fleetgen.SiteDir(1)
	old := load(func(files map[string][]byte) {
		data, err := fleet.AddMember(files[dir+"/machines.yaml"], member(9))
		if err != nil {
			t.Fatal(err)
		}
		files[dir+"/machines.yaml"] = data
	})
	for name, c := range map[string]struct {
		change func(files map[string][]byte)
		want   string
	}{
		"gone":      {func(map[string][]byte) {}, "machine till-9 (" + string(member(9).ID) + ") is gone without a tombstone"},
		"site gone": {func(files map[string][]byte) { delete(files, dir+"/site.yaml"); delete(files, dir+"/machines.yaml") }, "the site with 2 machines is gone"},
		"buried": {func(files map[string][]byte) {
			files[dir+"/machines.yaml"], _ = fleet.AddTombstone(files[dir+"/machines.yaml"], fleet.Tombstone{ID: member(9).ID, Verb: "stolen"})
		}, ""},
		"moved folder": {func(files map[string][]byte) {
			for _, f := range []string{"site.yaml", "machines.yaml"} {
				files["sites/new/there-1/"+f] = files[dir+"/"+f]
				delete(files, dir+"/"+f)
			}
			files["sites/new/there-1/machines.yaml"], _ = fleet.AddMember(files["sites/new/there-1/machines.yaml"], member(9))
		}, ""},
	} {
		got := fleet.CheckRemovals(old, load(c.change))
		if (c.want == "") != (len(got) == 0) || !strings.Contains(got.Error(), c.want) {
			t.Errorf("%s: got %q, want %q", name, got.Error(), c.want)
		}
	}
}
