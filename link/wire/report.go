package wire

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Phase is where a machine, an app or a site stands.
type Phase string

const (
	OK          Phase = "ok"
	Offline     Phase = "offline"     // said by the hub only
	Staging     Phase = "staging"     // fetching what the release needs
	Applying    Phase = "applying"    // changing objects, or waiting for them to settle
	Waiting     Phase = "waiting"     // for a window, a promotion, a soak, or what it needs
	Refused     Phase = "refused"     // the release or its effect was refused; it runs what it ran
	Failed      Phase = "failed"      // it tried, and is not well
	Evicted     Phase = "evicted"     // a release put it out
	Locked      Phase = "locked"      // its disk does not open, or it has none: it runs nothing
	Quarantined Phase = "quarantined" // no release names it
)

// severity orders phases: what a person must look at first comes last.
var severity = []Phase{OK, Waiting, Staging, Applying, Offline, Quarantined, Evicted, Refused, Failed, Locked}

// Valid tells whether this program knows the phase. A peer may know more: what
// is unknown is kept and shown as it is.
func (p Phase) Valid() bool { return slices.Contains(severity, p) }

// Worst is the phase of the whole whose parts these are; OK of none.
func Worst(phases ...Phase) Phase {
	worst := 0
	for _, p := range phases {
		i := slices.Index(severity, p)
		if i < 0 {
			return p
		}
		worst = max(worst, i)
	}
	return severity[worst]
}

// Report is all that a machine says of itself. The machine keeps the last one
// that a hub has taken and sends the difference (Diff).
type Report struct {
	Seq  uint64 `json:"seq"`  // rises with each report
	Time int64  `json:"time"` // by the machine's clock, Unix seconds; for people
	State
	Apps       []AppStatus `json:"apps,omitempty"`       // by name
	Conditions []Condition `json:"conditions,omitempty"` // by name
}

// State is what a machine says of itself as a whole.
type State struct {
	Site   string `json:"site,omitempty"`
	N      uint64 `json:"n,omitempty"`      // accepted release
	Effect string `json:"effect,omitempty"` // digest, in hex, of what it rendered from N
	Phase  Phase  `json:"phase"`
	Detail string `json:"detail,omitempty"`
	Slice  string `json:"slice,omitempty"` // see Hello; a hub whose slice was just taken knows it, so it is left out then
	OS     string `json:"os,omitempty"`    // version of the OS image; none when hosted
	Slot   string `json:"slot,omitempty"`  // that it booted: a, b or stick
	Trial  string `json:"trial,omitempty"` // phase of the trial that this OS is on
}

// AppStatus is one app on a machine's site.
type AppStatus struct {
	Name      string `json:"name"`
	Version   string `json:"version,omitempty"`
	Phase     Phase  `json:"phase"`
	Detail    string `json:"detail,omitempty"`
	Applied   int    `json:"applied,omitempty"`   // objects written for the current effect
	Unchanged int    `json:"unchanged,omitempty"` // objects that needed no write
	Ready     int    `json:"ready,omitempty"`     // of Wanted
	Wanted    int    `json:"wanted,omitempty"`
	Restarts  int    `json:"restarts,omitempty"`
}

// Condition is something that is or is not well besides apps: disk, clock, a child.
type Condition struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Update is what changed between two reports. Base is the Seq of the older; 0
// means that this is the whole.
type Update struct {
	Seq        uint64      `json:"seq"`
	Base       uint64      `json:"base,omitempty"`
	Time       int64       `json:"time,omitempty"`
	State      *State      `json:"state,omitempty"`
	Apps       []AppStatus `json:"apps,omitempty"`
	Gone       []string    `json:"gone,omitempty"` // apps
	Conditions []Condition `json:"conditions,omitempty"`
	Cleared    []string    `json:"cleared,omitempty"` // conditions
}

// ErrBase is returned by Apply when the hub does not hold what an update is
// based on: it asks for the whole.
var ErrBase = errors.New("update is based on another report")

// Diff is what a hub that holds old needs to hold new; old may be nil.
func Diff(old *Report, new Report) Update {
	if old == nil {
		old = &Report{}
	}
	u := Update{Seq: new.Seq, Base: old.Seq, Time: new.Time}
	if old.Seq == 0 || old.State != new.State {
		u.State = &new.State
	}
	u.Apps, u.Gone = changed(old.Apps, new.Apps, appName)
	u.Conditions, u.Cleared = changed(old.Conditions, new.Conditions, conditionName)
	return u
}

// Empty tells whether the update says nothing.
func (u Update) Empty() bool {
	return u.Base != 0 && u.State == nil && len(u.Apps)+len(u.Gone)+len(u.Conditions)+len(u.Cleared) == 0
}

// Apply is the report after an update; old may be nil. A report that has more
// apps or conditions than a message may is refused.
func (u Update) Apply(old *Report) (*Report, error) {
	held := Report{}
	if old != nil && u.Base != 0 {
		held = *old
	}
	if u.Base != held.Seq {
		return nil, fmt.Errorf("%w: %d, held is %d", ErrBase, u.Base, held.Seq)
	}
	next := Report{Seq: u.Seq, Time: u.Time, State: held.State}
	if u.State != nil {
		next.State = *u.State
	}
	next.Apps = merged(held.Apps, u.Apps, u.Gone, appName)
	next.Conditions = merged(held.Conditions, u.Conditions, u.Cleared, conditionName)
	return &next, errors.Join(list("apps", next.Apps), list("conditions", next.Conditions))
}

func appName(a AppStatus) string       { return a.Name }
func conditionName(c Condition) string { return c.Name }

func changed[T comparable](old, new []T, key func(T) string) (set []T, gone []string) {
	before := make(map[string]T, len(old))
	for _, v := range old {
		before[key(v)] = v
	}
	for _, v := range new {
		if was, ok := before[key(v)]; !ok || was != v {
			set = append(set, v)
		}
		delete(before, key(v))
	}
	return set, slices.Sorted(maps.Keys(before))
}

func merged[T any](old, set []T, gone []string, key func(T) string) []T {
	now := make(map[string]T, len(old)+len(set))
	for _, v := range old {
		now[key(v)] = v
	}
	for _, k := range gone {
		delete(now, k)
	}
	for _, v := range set {
		now[key(v)] = v
	}
	return slices.SortedFunc(maps.Values(now), func(a, b T) int { return strings.Compare(key(a), key(b)) })
}

// Validate checks what a machine sent, and cleans what people will read.
func (u *Update) Validate() error {
	errs := []error{
		list("apps", u.Apps), list("gone", u.Gone),
		list("conditions", u.Conditions), list("cleared", u.Cleared),
	}
	if u.Seq == 0 || u.Base >= u.Seq {
		errs = append(errs, fmt.Errorf("seq %d on base %d", u.Seq, u.Base))
	}
	if u.Base == 0 && u.State == nil {
		errs = append(errs, errors.New("a whole report without state"))
	}
	if u.State != nil {
		errs = append(errs, u.State.validate())
	}
	for i := range u.Apps {
		errs = append(errs, u.Apps[i].validate())
	}
	for i := range u.Conditions {
		errs = append(errs, name("condition", u.Conditions[i].Name))
		u.Conditions[i].Detail = Clean(u.Conditions[i].Detail)
	}
	for _, n := range slices.Concat(u.Gone, u.Cleared) {
		errs = append(errs, name("gone", n))
	}
	return errors.Join(errs...)
}

func (s *State) validate() error {
	s.Detail = Clean(s.Detail)
	return errors.Join(name("site", s.Site), name("phase", string(s.Phase)), digest("effect", s.Effect), digest("slice", s.Slice),
		name("os", s.OS), name("slot", s.Slot), name("trial", s.Trial))
}

func (a *AppStatus) validate() error {
	a.Detail = Clean(a.Detail)
	return errors.Join(name("app", a.Name), name("version", a.Version), name("phase", string(a.Phase)))
}
