package fleet_test

import (
	"fmt"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

func BenchmarkLoadResolve(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		tree := fleetgen.Tree(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f, err := fleet.Load(tree)
				if err != nil {
					b.Fatal(err)
				}
				for _, s := range f.Sites() {
					if _, err := f.Resolve(s); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func TestGeneratedFleetHasNoFaults(t *testing.T) {
	tree := fleetgen.Tree(300)
	f, err := fleet.Load(tree)
	if err != nil {
		t.Fatal(err)
	}
	if w := f.Warnings(); len(w) > 0 {
		t.Errorf("warnings:\n%v", w)
	}
	if got := len(f.Sites()); got != 300 {
		t.Errorf("%d sites, want 300", got)
	}
	s, _ := f.Site("de-00000")
	r, err := f.Resolve(s)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(r.Ring, r.OS, r.Apps[0].Name, r.Apps[1].Version), "canary1.4.2base4.3.0"; got != want {
		t.Errorf("resolved %s, want %s", got, want)
	}
}
