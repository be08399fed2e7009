package clock

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of the judgement.
const (
	bigStep   = 24 * time.Hour // more needs agreement
	tolerance = 2 * time.Second
	smallStep = 500 * time.Millisecond // is slewed: time runs a little faster or slower
	noStep    = 2 * time.Millisecond
	farRTC    = 20 * 365 * 24 * time.Hour // above the floor: a dead hardware clock, not a long winter
)

// Boot is what the clock is set to at boot: the hardware clock, or the floor
// where that is later or the hardware clock absurd.
func Boot(rtc, floor time.Time) (at time.Time, source string) {
	if rtc.Before(floor) || rtc.After(floor.Add(farRTC)) {
		return floor, FromFloor
	}
	return rtc, FromRTC
}

// Sample is the word of one source.
type Sample struct {
	Source string        // an address; two samples of one source count once
	Offset time.Duration // of its clock to ours
	Error  time.Duration // how far off it may be, such as half of the way there and back
}

// Decision is what the samples lead to.
type Decision struct {
	Known    bool          // the time is known by the samples
	Offset   time.Duration // by which to move the clock; only when Known
	Slew     bool          // slowly
	Disagree string        // sources that contradict each other, for people; "" when they do not, or it does not matter
}

// Decide judges the samples of one round. now is our clock.
func Decide(now, floor time.Time, samples []Sample) Decision {
	samples = distinct(samples)
	// Who says a time before the floor is wrong, whatever the others say.
	samples = slices.DeleteFunc(samples, func(s Sample) bool { return now.Add(s.Offset + s.Error).Before(floor) })
	if len(samples) == 0 {
		return Decision{}
	}
	groups := agreeing(samples)
	best := groups[0]
	contested := len(groups) > 1 && len(groups[1].of) == len(best.of)
	d := Decision{Offset: best.offset}
	if len(groups) > 1 {
		d.Disagree = describe(now, groups)
	}
	if best.offset.Abs() > bigStep && (len(best.of) < 2 || contested) {
		if d.Disagree == "" {
			d.Disagree = describe(now, groups) + " and no other source says so"
		}
		return Decision{Disagree: d.Disagree}
	}
	if now.Add(d.Offset).Before(floor) {
		d.Offset = floor.Sub(now)
	}
	d.Known, d.Slew = true, d.Offset.Abs() <= smallStep
	if d.Offset.Abs() < noStep {
		d.Offset = 0
	}
	return d
}

// distinct keeps the most exact sample of each source.
func distinct(samples []Sample) []Sample {
	best := map[string]Sample{}
	for _, s := range samples {
		if old, ok := best[s.Source]; !ok || s.Error < old.Error {
			best[s.Source] = s
		}
	}
	out := make([]Sample, 0, len(best))
	for _, s := range best {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b Sample) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), strings.Compare(a.Source, b.Source))
	})
	return out
}

// group are sources that agree; offset is that of the most exact one.
type group struct {
	of     []Sample
	offset time.Duration
}

// agreeing parts samples, sorted by offset, into groups: the largest first, then
// those that move our clock less.
func agreeing(samples []Sample) []group {
	var groups []group
	for len(samples) > 0 {
		first, count := 0, 0
		for i := range samples { // the window with the most samples
			n := 0
			for _, s := range samples[i:] {
				if s.Offset-samples[i].Offset > tolerance+samples[i].Error+s.Error {
					break
				}
				n++
			}
			if n > count {
				first, count = i, n
			}
		}
		of := slices.Clone(samples[first : first+count])
		exact := slices.MinFunc(of, func(a, b Sample) int { return cmp.Compare(a.Error, b.Error) })
		groups = append(groups, group{of, exact.Offset})
		samples = slices.Delete(samples, first, first+count)
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(len(b.of), len(a.of)), cmp.Compare(a.offset.Abs(), b.offset.Abs()))
	})
	return groups
}

func describe(now time.Time, groups []group) string {
	var out []string
	for _, g := range groups {
		var names []string
		for _, s := range g.of {
			names = append(names, s.Source)
		}
		out = append(out, fmt.Sprintf("%s says %s", strings.Join(names, ", "), now.Add(g.offset).UTC().Format("2006-01-02 15:04:05")))
	}
	return strings.Join(out, "; ")
}
