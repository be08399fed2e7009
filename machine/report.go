package machine

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// reporter holds what the machine says of itself: one report, always whole,
// from which the uplink sends what changed. It also keeps how long each phase
// took, for the console and the machine's API.
type reporter struct {
	console *console

	mu      sync.Mutex // guards what follows
	report  wire.Report
	timings []Timing
	faulty  []string // names of the conditions that are faults
	changed chan struct{}
}

// Timing is how long a phase took, and when it began after the machine's start.
type Timing struct {
	Name  string        `json:"name"`
	Began time.Time     `json:"began"`
	Took  time.Duration `json:"took"`
}

func newReporter(c *console) *reporter {
	return &reporter{console: c, changed: make(chan struct{}), report: wire.Report{Seq: firstSeq(), State: wire.State{Phase: wire.Quarantined}}}
}

// firstSeq begins at random, so that a report of this boot is never taken for
// one of an earlier boot.
func firstSeq() uint64 { return uint64(rand.Uint32())<<16 + 1 }

// timed notes that a phase that began then has just ended.
func (r *reporter) timed(name string, began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timings = append(r.timings, Timing{Name: name, Began: began, Took: time.Since(began)})
	if len(r.timings) > 256 {
		r.timings = slices.Delete(r.timings, 0, 128)
	}
}

// phases lists the timings so far.
func (r *reporter) phases() []Timing {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.timings)
}

// update changes the report; the uplink learns of it if something differs.
func (r *reporter) update(f func(*wire.Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.report
	next.Apps = slices.Clone(next.Apps)
	next.Conditions = slices.Clone(next.Conditions)
	f(&next)
	next.Detail = wire.Clean(next.Detail)
	slices.SortFunc(next.Apps, func(a, b wire.AppStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(next.Conditions, func(a, b wire.Condition) int { return strings.Compare(a.Name, b.Name) })
	if next.State == r.report.State && slices.Equal(next.Apps, r.report.Apps) && slices.Equal(next.Conditions, r.report.Conditions) {
		return
	}
	next.Seq++
	next.Time = time.Now().Unix()
	r.report = next
	r.console.show("site", next.Site)
	r.console.show("state", joined(string(next.Phase), next.Detail))
	if next.OS != "" {
		r.console.show("os", joined(next.OS, "slot "+next.Slot, trialText(next.Trial)))
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// state sets phase and detail.
func (r *reporter) state(phase wire.Phase, detail string) {
	r.update(func(n *wire.Report) { n.Phase, n.Detail = phase, detail })
}

// condition sets or clears a named condition: one that is well is not told.
func (r *reporter) condition(name string, err error) {
	r.update(func(n *wire.Report) {
		n.Conditions = slices.DeleteFunc(n.Conditions, func(c wire.Condition) bool { return c.Name == name })
		if err != nil {
			n.Conditions = append(n.Conditions, wire.Condition{Name: name, Detail: wire.Clean(err.Error())})
		}
	})
}

func trialText(phase string) string {
	if phase == "" {
		return ""
	}
	return "on trial: " + phase
}

// faults shows what is wrong with the box and reports it: as conditions named by
// code and subject, those well that are only to be known. Asked for within the
// update, an older list never replaces a newer one.
func (r *reporter) faults(list *faults.List) (changed <-chan struct{}) {
	r.update(func(n *wire.Report) {
		var now []faults.Fault
		now, changed = list.Now()
		r.console.tell(now)
		n.Conditions = slices.DeleteFunc(n.Conditions, func(c wire.Condition) bool { return slices.Contains(r.faulty, c.Name) })
		r.faulty = nil
		for _, f := range now {
			e, _ := faults.Lookup(f.Code)
			if e.Kind == faults.Local {
				continue
			}
			n.Conditions = append(n.Conditions, wire.Condition{Name: f.Name(), OK: e.Kind == faults.Note, Detail: wire.Clean(f.Sentence())})
			r.faulty = append(r.faulty, f.Name())
		}
	})
	return changed
}

// now returns the report and a channel that is closed at the next change.
func (r *reporter) now() (wire.Report, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report, r.changed
}
