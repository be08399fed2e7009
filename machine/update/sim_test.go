package update

import (
	"fmt"
	"testing"
	"time"
)

// Thousands of lives: each kind of OS, up and down, within a Kubernetes minor and
// to the next, with the power cut at random operations and instants. However it
// goes, the machine ends in a good slot with the configuration that belongs to it.
// One seed gives one run; a failure prints it.
func TestSimulation(t *testing.T) {
	runs := 100
	if testing.Short() {
		runs = 20
	}
	type way struct {
		name     string
		from, to system
		older    bool
	}
	for _, k := range kinds {
		for _, tt := range []way{
			{"SameMinor", system{minor: "1.36"}, system{minor: "1.36"}, false},
			{"NextMinor", system{minor: "1.36"}, system{minor: "1.37"}, false},
			{"Downgrade", system{minor: "1.36"}, system{minor: "1.36"}, true},
		} {
			t.Run(fmt.Sprintf("%s/%s", tt.name, k), func(t *testing.T) {
				t.Parallel()
				blessed := 0
				for seed := range uint64(runs) {
					w := newWorld(seed, k, tt.from, tt.to, tt.older)
					if w.run(int(seed % 4)) {
						blessed++
					}
					if len(w.broken) > 0 {
						t.Fatalf("seed %d: %q\n%s", seed, w.broken, w)
					}
				}
				if !k.good() && blessed > 0 {
					t.Errorf("%d of %d runs kept an OS that %s", blessed, runs, k)
				}
				// A deadline counts running time over power cuts: some are late.
				if k.good() && blessed < runs*8/10 {
					t.Errorf("only %d of %d runs kept a good OS", blessed, runs)
				}
			})
		}
	}
}

// run lives through so many power cuts and then in peace, and says whether the
// new OS was kept.
func (w *world) run(cuts int) bool {
	version := ""
	quiet := 0
	for life := 0; quiet < 3; life++ {
		if life > 80 {
			w.breaks("no end after %d boots", life)
			return false
		}
		if cuts > 0 {
			w.cutIn = w.r.IntN(40)
			cuts--
		} else {
			w.cutIn = -1
		}
		w.boot(40 * time.Minute)
		if len(w.broken) > 0 {
			return false
		}
		if e := w.entries[w.running]; w.off || w.asked || version != e.version || w.files["state/trial.json"] != nil {
			version, quiet = e.version, 0
			continue
		}
		quiet++
	}
	e := w.entries[w.running]
	switch {
	case e.count.Counted:
		w.breaks("at the end the running slot has the counter %+v", e.count)
	case w.applied != "slice of "+e.version:
		w.breaks("at the end OS %s has the %s", e.version, w.applied)
	case w.after > 0:
		w.breaks("%d times a refused effect was tried again", w.after)
	case version != w.wanted && w.files["state/refused.json"] == nil:
		w.breaks("at the end the old OS runs, and nothing is refused")
	}
	return version == w.wanted
}
