package fleet_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// A site's slice describes the OS versions on the way to its own, and no others.
func TestClosureHasTheStones(t *testing.T) {
	files := fleetgen.Files(1)
	dir := fleetgen.SiteDir(0)
	os := func(version, kubernetes, follows string) {
		files["os/"+version+".yaml"] = []byte("apiVersion: holdfast.dev/v1alpha1\nkind: OS\nspec:\n  kubernetes: \"" + kubernetes + "\"\n  follows: [" + follows +
			"]\n  images: {amd64: {digest: sha256:" + strings.Repeat("1", 64) + ", size: 1}}\n")
	}
	f, err := fleet.LoadSite(fleetgen.FS(files), dir)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Resolve(f.Sites()[0])
	if err != nil || r.OS == "" {
		t.Fatalf("OS %q, %v", r.OS, err)
	}
	os(r.OS, "1.37", "2.2.0, 7.7.7")
	os("2.2.0", "1.36", "2.1.0, 2.2.0")
	os("2.1.0", "1.35", r.OS)
	os("3.0.0", "1.36", "")
	want := []string{"os/" + r.OS + ".yaml", "os/2.1.0.yaml", "os/2.2.0.yaml"}
	slices.Sort(want)
	paths, err := fleet.Closure(fleetgen.FS(files), dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range paths {
		if strings.HasPrefix(p, "os/") {
			got = append(got, p)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("closure has %q, want %q", got, want)
	}
	if f, err = fleet.LoadSite(fleetgen.FS(files), dir); err != nil {
		t.Fatal(err)
	}
	if got := len(f.OSVersions()); got != len(want) {
		t.Errorf("the site alone knows %d OS versions, want %d", got, len(want))
	}
}

func TestUpdateTimes(t *testing.T) {
	for value, fault := range map[string]string{
		"{deadline: 5m, soak: 30s}": "",
		"{deadline: 5s}":            "spec.machine.update.deadline",
		"{deadline: 48h}":           "spec.machine.update.deadline",
		"{soak: 1s}":                "spec.machine.update.soak",
		"{soak: 20m}":               "spec.machine.update.soak",
		"{soak: soon}":              "a duration",
	} {
		files := fleetgen.Files(1)
		site := fleetgen.SiteDir(0) + "/site.yaml"
		files[site] = append(files[site], "  machine: {update: "+value+"}\n"...)
		_, err := fleet.LoadSite(fleetgen.FS(files), fleetgen.SiteDir(0))
		if (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("%s: %v, want a fault with %q", value, err, fault)
		}
	}
}
