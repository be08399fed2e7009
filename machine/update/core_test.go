package update

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/machine/slots"
)

func TestDecide(t *testing.T) {
	counted := func(left int) slots.Count { return slots.Count{Counted: true, Left: left, Done: 3 - left} }
	entry := func(s slots.Slot, c slots.Count) *slots.Entry {
		return &slots.Entry{Slot: s, Count: c, Verity: verityOf(string(s))}
	}
	record := func(p Phase, change ...func(*Record)) *Record {
		r := &Record{Format: 1, Phase: p, Boots: 1, Deadline: 10 * time.Minute, Soak: time.Minute,
			From: System{Version: "1.0", Kubernetes: "1.36", Slot: slots.A, Root: "ra"}, To: System{Version: "1.1", Kubernetes: "1.36", Slot: slots.B, Root: "rb"}}
		for _, c := range change {
			c(r)
		}
		return r
	}
	inOld := func(idle *slots.Entry) Facts {
		return Facts{Slot: slots.A, Root: "ra", Self: entry(slots.A, slots.Count{}), Idle: idle}
	}
	inNew := func(left int, change ...func(*Facts)) Facts {
		f := Facts{Slot: slots.B, Root: "rb", Self: entry(slots.B, counted(left)), Idle: entry(slots.A, slots.Count{}), Health: []string{"starting"}}
		for _, c := range change {
			c(&f)
		}
		return f
	}
	well := func(d time.Duration) func(*Facts) {
		return func(f *Facts) { f.Health, f.Steady = nil, d }
	}
	boot := func(f *Facts) { f.Boot = true }
	used := func(d time.Duration) func(*Record) { return func(r *Record) { r.Used = d } }
	tests := []struct {
		name  string
		r     *Record
		f     Facts
		do    Verb
		phase Phase
	}{
		{"NothingIsOnTrial", nil, inOld(nil), Wait, ""},
		{"CounterWithoutRecord", nil, inNew(2), Wait, First},
		{"SpentWithoutRecord", nil, inNew(0), Wait, ""},
		{"CopyOfADamagedSlot", nil, inNew(0, func(f *Facts) { f.Idle.Verity = f.Self.Verity }), Bless, ""},
		{"ArmedNotYetNamed", record(Armed), func() Facts { f := inOld(nil); f.Staged = true; return f }(), Arm, Armed},
		{"ArmedAndLost", record(Armed), inOld(nil), Forget, Armed},
		{"ArmedAndReady", record(Armed), inOld(entry(slots.B, counted(3))), Reboot, Armed},
		{"ArmedAndPanicked", record(Armed), inOld(entry(slots.B, counted(0))), Refuse, Armed},
		{"ArmedAndPassedOver", record(Armed, func(r *Record) { r.Boots = 2 }), func() Facts { f := inOld(entry(slots.B, counted(3))); f.Boot = true; return f }(), Refuse, Armed},
		{"FirstBoot", record(Armed), inNew(2, boot), Wait, First},
		{"NotHealthyYet", record(First, used(time.Minute)), inNew(2), Wait, First},
		{"HealthyNotSteady", record(First), inNew(2, well(59*time.Second)), Wait, First},
		{"HealthyAndLate", record(First, used(time.Hour)), inNew(2, well(59*time.Second)), Wait, First},
		{"Steady", record(First), inNew(2, well(time.Minute)), Wait, Second},
		{"SecondToCome", record(Second, func(r *Record) { r.Boots = 0 }), inNew(2), Rearm, Second},
		{"SecondRearmed", record(Second, func(r *Record) { r.Boots = 0 }), inNew(3), Reboot, Second},
		{"SecondNeverComes", record(Second, func(r *Record) { r.Boots, r.Used = 0, time.Hour }), inNew(3), Wait, Failing},
		{"ArmedAndStuck", record(Armed, used(time.Hour)), inOld(entry(slots.B, counted(3))), Refuse, Armed},
		{"SecondBoot", record(Second, func(r *Record) { r.Boots = 0 }), inNew(2, boot), Wait, Second},
		{"SecondNotSteady", record(Second), inNew(2, well(119*time.Second)), Wait, Second},
		{"SecondSteady", record(Second), inNew(2, well(2*time.Minute)), Wait, Blessing},
		{"TooLate", record(First, used(10*time.Minute)), inNew(2), Wait, Failing},
		{"TooManyBoots", record(First, func(r *Record) { r.Boots = 3 }), inNew(2, boot), Wait, Failing},
		{"FailingTakesItsTries", record(Failing), inNew(2), Condemn, Failing},
		{"FailingGoes", record(Failing), inNew(0), Reboot, Failing},
		{"FailingWithNoWayBack", record(Failing), inNew(2, func(f *Facts) { f.Idle = nil }), Refuse, Failing},
		{"FailingBack", record(Failing), inOld(entry(slots.B, counted(0))), Refuse, Failing},
		{"FirstBack", record(First), inOld(entry(slots.B, counted(0))), Refuse, First},
		{"SecondBack", record(Second), inOld(entry(slots.B, counted(0))), Refuse, Second},
		{"BlessingName", record(Blessing), inNew(2), Bless, Blessing},
		{"BlessingFloor", record(Blessing), inNew(2, func(f *Facts) { f.Self.Count = slots.Count{} }), Raise, Blessing},
		{"BlessingAdopts", record(Blessing), inNew(2, func(f *Facts) { f.Self.Count, f.Floor = slots.Count{}, "1.0" }), Adopt, Blessing},
		{"BlessingEnds", record(Blessing), inNew(2, func(f *Facts) { f.Self.Count, f.Floor, f.Adopted = slots.Count{}, "1.0", true }), Forget, Blessing},
		{"BlessingLifts", record(Blessing, func(r *Record) { r.To.Kubernetes = "1.37" }), inNew(2, func(f *Facts) { f.Self.Count, f.Floor, f.Adopted = slots.Count{}, "1.1", true }), Wait, Lifting},
		{"BlessingBack", record(Blessing), inOld(entry(slots.B, counted(0))), Refuse, Blessing},
		{"LiftingGoesOn", record(Lifting), inNew(2), Wait, Lifting},
		{"Lifted", record(Lifting), inNew(2, well(time.Minute)), Forget, Lifting},
		{"PhaseOfANewerProgram", record("polishing"), inNew(2), Refuse, "polishing"},
		{"PhaseOfANewerProgramBack", record("polishing"), inOld(entry(slots.B, counted(2))), Refuse, "polishing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := Decide(tt.r, tt.f)
			phase := Phase("")
			if s.Next != nil {
				phase = s.Next.Phase
			}
			if s.Do != tt.do || phase != tt.phase {
				t.Errorf("do %d in phase %q (%s), want %d in %q", s.Do, phase, s.Why, tt.do, tt.phase)
			}
		})
	}
}

func TestFloor(t *testing.T) {
	for name, tt := range map[string]struct {
		from, fromMinor, to, toMinor, floor, want string
	}{
		"OneVersionBack":     {"1.0", "1.36", "1.1", "1.36", "", "1.0"},
		"Rises":              {"1.1", "1.36", "1.2", "1.36", "1.0", "1.1"},
		"NewMinor":           {"1.1", "1.36", "1.2", "1.37", "1.0", "1.2"},
		"DowngradeKeeps":     {"1.2", "1.36", "1.1", "1.36", "1.0", "1.0"},
		"NeverFalls":         {"1.0", "1.36", "1.3", "1.36", "1.2", "1.2"},
		"NothingBeforeKnown": {"", "", "1.3", "1.36", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := Record{From: System{Version: tt.from, Kubernetes: tt.fromMinor}, To: System{Version: tt.to, Kubernetes: tt.toMinor}}
			if got := r.floor(tt.floor); got != tt.want {
				t.Errorf("floor %q, want %q", got, tt.want)
			}
		})
	}
}

func TestRoute(t *testing.T) {
	os := func(minor string, follows ...string) fleet.OSSpec {
		return fleet.OSSpec{Kubernetes: minor, Follows: follows}
	}
	all := map[string]fleet.OSSpec{
		"1.0": os("1.35"), "1.1": os("1.35"), "1.2": os("1.36", "1.1"), "1.3": os("1.36"), "1.4": os("1.37", "1.3", "1.2"), "1.5": os("1.38", "1.4"), "2.0": os("1.38"),
	}
	for name, tt := range map[string]struct{ running, minor, wanted, next string }{
		"Direct":          {"1.2", "1.36", "1.4", "1.4"},
		"SameMinorBack":   {"1.3", "1.36", "1.2", ""}, // 1.2 follows 1.1 alone
		"Back":            {"1.1", "1.35", "1.0", "1.0"},
		"ByStone":         {"1.1", "1.35", "1.4", "1.3"},
		"ByTwoStones":     {"1.1", "1.35", "1.5", "1.3"},
		"UnknownToTree":   {"0.9", "1.35", "1.4", "1.3"},
		"TwoMinorsBack":   {"2.0", "1.38", "1.2", ""},
		"MinorBack":       {"1.4", "1.37", "1.3", ""},
		"NotDescribed":    {"1.4", "1.37", "7.0", ""},
		"SleptTooLong":    {"0.1", "1.20", "2.0", ""},
		"MinorNotKnown":   {"1.1", "", "1.2", ""},
		"ShortestOverNew": {"1.3", "1.36", "2.0", "1.4"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Route(tt.running, tt.minor, tt.wanted, all)
			if got != tt.next || (err == nil) != (tt.next != "") || err != nil && !errors.Is(err, ErrNoWay) {
				t.Errorf("next is %q (%v), want %q", got, err, tt.next)
			}
		})
	}
}

// What an idle slot is worth decides whether it becomes a copy of the one that runs.
func TestMirror(t *testing.T) {
	counted, last := slots.Count{Counted: true, Left: 1}, slots.Count{Counted: true}
	for _, c := range []struct {
		name    string
		self    slots.Count
		idle    *entry
		floor   string
		damaged bool
		trial   bool
		alone   bool // what runs has no entry
		made    bool
	}{
		{name: "what runs was booted by the entry of a damaged slot", alone: true, idle: &entry{"1.5.0", last}, damaged: true, made: true},
		{name: "what runs has no entry", alone: true, idle: &entry{version: "1.4.0"}, damaged: true},
		{name: "an empty slot", made: true},
		{name: "the OS before", idle: &entry{version: "1.4.0"}},
		{name: "the OS before, damaged", idle: &entry{version: "1.4.0"}, damaged: true, made: true},
		{name: "one below the floor", idle: &entry{version: "1.4.0"}, floor: "1.5.0", made: true},
		{name: "one at the floor", idle: &entry{version: "1.4.0"}, floor: "1.4.0"},
		{name: "one that was sent back", idle: &entry{"1.6.0", last}, made: true},
		{name: "a copy", idle: &entry{"1.5.0", last}},
		{name: "a damaged copy", idle: &entry{"1.5.0", last}, damaged: true, made: true},
		{name: "what runs is on trial", self: counted},
		{name: "another one is on trial", trial: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(1, good, system{kind: good, minor: "1.36"}, system{kind: good, minor: "1.36"}, false)
			w.entries[slots.A].count, w.entries[slots.B] = c.self, c.idle
			w.load()
			w.entries[slots.A].count, w.running = c.self, slots.A
			if c.floor != "" {
				w.notes[noteName] = []byte(`{"floor":"` + c.floor + `"}`)
			}
			u, err := open("state", w.platform(), w.rim())
			if err != nil {
				t.Fatal(err)
			}
			if c.trial {
				u.record = &Record{Phase: Armed}
			}
			if c.alone {
				delete(w.entries, slots.A)
			}
			made, err := u.Mirror(t.Context(), c.damaged)
			if err != nil || made != c.made {
				t.Fatalf("made %t, %v; want %t", made, err, c.made)
			}
			if got := w.entries[slots.B]; made && (got == nil || *got != (entry{"1.5.0", last})) || !made && got != c.idle {
				t.Errorf("the idle slot holds %+v", got)
			}
		})
	}
}
