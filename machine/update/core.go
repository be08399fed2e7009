package update

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/osimage"
)

// System is an OS version as it lies in a slot.
type System struct {
	Version    string     `json:"version"`
	Kubernetes string     `json:"kubernetes"` // minor, such as 1.36
	Slot       slots.Slot `json:"slot"`
	Root       string     `json:"root"` // verity root hash, hex
	Digest     string     `json:"digest,omitempty"`
}

// Phase is how far a trial is.
type Phase string

// The phases, in order. Armed ends with the first boot of the new slot; Failing
// with a boot of the old one.
const (
	Armed    Phase = "armed"    // the slot is written and gets its tries
	First    Phase = "first"    // first boot, judged
	Second   Phase = "second"   // second boot, judged
	Failing  Phase = "failing"  // judged bad: on the way back
	Blessing Phase = "blessing" // judged good: no way back from here
	Lifting  Phase = "lifting"  // blessed; the data is following
)

// Record is what a machine remembers of a trial. The old OS reads what the new one
// wrote: fields are only added.
type Record struct {
	Format   int           `json:"format"`
	Phase    Phase         `json:"phase"`
	From     System        `json:"from"`
	To       System        `json:"to"`
	Slice    string        `json:"slice"`  // digest of the configuration that is tried with it
	Effect   string        `json:"effect"` // what the release renders here
	Deadline time.Duration `json:"deadline"`
	Soak     time.Duration `json:"soak"`
	Boots    int           `json:"boots"` // in this phase
	Used     time.Duration `json:"used"`  // running time in this phase
	Reason   string        `json:"reason,omitempty"`
}

// format is the one that this program writes.
const format = 1

// maxBoots is how often one phase may be booted: power cuts included, as nobody
// can tell them from a crash.
const maxBoots = slots.Tries

// Facts are what a machine sees.
type Facts struct {
	Slot   slots.Slot // that runs
	Root   string     // that runs
	Boot   bool       // nothing was decided yet since the machine booted
	Self   *slots.Entry
	Idle   *slots.Entry // nil: the other slot has no UKI
	Staged bool         // the idle slot has one under its hidden name
	Health []string     // what is wrong; nil: healthy
	Steady time.Duration
	Floor  string // oldest OS that may run

	Adopted bool // the trial's configuration is what is applied; known since this boot
}

// Verb is what to do next.
type Verb int

// The verbs.
const (
	Wait    Verb = iota // until something is observed
	Arm                 // the idle slot
	Reboot              // into what the loader takes
	Rearm               // the running slot gets all its tries again
	Condemn             // the running slot: the loader is to take the other one
	Bless               // the running slot
	Raise               // the floor, to Step.Floor
	Adopt               // the configuration of the trial is what is applied
	Refuse              // remember that this effect was refused, and forget the trial
	Forget              // the trial
)

// Step is a decision: remember Next, then do Do, then decide again.
type Step struct {
	Do    Verb
	Next  *Record
	Why   string
	Floor string
}

// Decide is the core: no I/O, no clock.
func Decide(r *Record, f Facts) Step {
	if r == nil {
		return unrecorded(f)
	}
	inNew := f.Slot == r.To.Slot && f.Root == r.To.Root
	if !inNew {
		return returned(*r, f)
	}
	switch r.Phase {
	case Armed:
		return remember(*r, First, Wait, "")
	case First, Second:
		return judged(*r, f)
	case Failing:
		return failing(*r, f)
	case Blessing:
		return blessing(*r, f)
	case Lifting:
		if f.Health == nil && f.Steady >= r.Soak {
			return Step{Do: Forget, Next: r, Why: "blessed, and the hold is lifted"}
		}
		return Step{Do: Wait, Next: r}
	}
	// A phase of a newer program, which this one was booted in place of.
	return refuse(*r, fmt.Sprintf("the trial was in a phase %q that this OS does not know", r.Phase))
}

// remember is a step into another phase.
func remember(r Record, to Phase, do Verb, why string) Step {
	r.Phase, r.Used, r.Reason = to, 0, why
	r.Boots = 0
	if to == First {
		r.Boots = 1
	}
	return Step{Do: do, Next: &r, Why: why}
}

func refuse(r Record, why string) Step {
	if r.Reason != "" {
		why = r.Reason
	}
	r.Reason = why
	return Step{Do: Refuse, Next: &r, Why: why}
}

// unrecorded: no trial is known. A counter on the running slot then is one that a
// lost STATE, or a cut between two steps, left.
func unrecorded(f Facts) Step {
	switch {
	case f.Self == nil || !f.Self.Count.Counted:
		return Step{Do: Wait}
	case spent(f.Self) && f.Idle != nil && f.Idle.Verity == f.Self.Verity:
		return Step{Do: Bless} // a copy of a slot that is damaged: it is the good one now
	case spent(f.Self):
		return Step{Do: Wait} // the loader takes the other slot, if there is one
	}
	// On trial, and nothing is known of it: it is judged like any other.
	r := Record{Format: format, Phase: First, Boots: 1, Deadline: DefaultDeadline, Soak: DefaultSoak,
		To: System{Version: f.Self.Version, Slot: f.Slot, Root: f.Root}}
	if f.Idle != nil {
		r.From = System{Version: f.Idle.Version, Slot: f.Idle.Slot, Root: root(f.Idle.Verity)}
	}
	return Step{Do: Wait, Next: &r, Why: "the slot is on trial, and no record says why"}
}

// returned: another slot runs than the one on trial.
func returned(r Record, f Facts) Step {
	switch {
	case r.Phase == Lifting:
		return Step{Do: Wait, Next: &r, Why: "the slot before runs, and the data has followed the new one"}
	case r.Phase != Armed || f.Slot != r.From.Slot:
		return refuse(r, cameBack(r))
	case r.Used >= r.Deadline:
		return refuse(r, fmt.Sprintf("the machine could not be sealed to it, armed and rebooted within %s", r.Deadline))
	case f.Idle == nil && f.Staged:
		return Step{Do: Arm, Next: &r}
	case f.Idle == nil:
		return Step{Do: Forget, Next: &r, Why: "the slot was lost before it was armed"}
	case f.Idle.Count.Counted && f.Idle.Count.Left == 0:
		return refuse(r, fmt.Sprintf("it was booted %d times and did not come up once", f.Idle.Count.Done))
	case f.Boot && r.Boots+1 >= maxBoots:
		return refuse(r, fmt.Sprintf("the boot loader did not take it in %d boots", maxBoots))
	case f.Boot:
		r.Boots++
	}
	return Step{Do: Reboot, Next: &r, Why: "to try OS " + r.To.Version}
}

func cameBack(r Record) string {
	switch r.Phase {
	case First:
		return "its first boot ended before it was judged, and it did not come up again"
	case Second:
		return "it was healthy in its first boot and did not come up in its second"
	case Blessing:
		return "it did not come up again while it was blessed"
	}
	return "the slot on trial is gone"
}

// need is how long the machine must be healthy in one go. The second boot is
// watched for longer: what broke after a first healthy minute breaks again.
func (r *Record) need() time.Duration {
	if r.Phase == Second {
		return 2 * r.Soak
	}
	return r.Soak
}

// judged: the new slot runs and is on trial.
func judged(r Record, f Facts) Step {
	if f.Boot {
		if r.Boots++; r.Boots > maxBoots {
			return remember(r, Failing, Wait, fmt.Sprintf("it ended %d times before it was judged (%s boot)", maxBoots, r.Phase))
		}
		return Step{Do: Wait, Next: &r}
	}
	if r.Phase == Second && r.Boots == 0 { // the reboot is still to come
		if r.Used >= r.Deadline {
			return remember(r, Failing, Wait, fmt.Sprintf("the machine could not be sealed to it and rebooted within %s", r.Deadline))
		}
		if f.Self != nil && f.Self.Count.Counted && f.Self.Count.Left < slots.Tries {
			return Step{Do: Rearm, Next: &r}
		}
		return Step{Do: Reboot, Next: &r, Why: "for the second boot of OS " + r.To.Version}
	}
	switch {
	case f.Health == nil && f.Steady >= r.need():
		if r.Phase == First {
			return remember(r, Second, Wait, "")
		}
		return remember(r, Blessing, Wait, "")
	case f.Health != nil && r.Used >= r.Deadline:
		return remember(r, Failing, Wait, fmt.Sprintf("not healthy within %s of its %s boot: %s", r.Deadline, r.Phase, shorten(f.Health)))
	}
	return Step{Do: Wait, Next: &r}
}

// failing: the new slot runs and is bad.
func failing(r Record, f Facts) Step {
	if f.Boot {
		r.Boots++
	}
	switch {
	case f.Idle == nil, r.Boots >= maxBoots:
		// No way back: better here than in a ring.
		return refuse(r, r.Reason+" (and the slot before cannot be booted)")
	case f.Self != nil && !spent(f.Self):
		return Step{Do: Condemn, Next: &r, Why: r.Reason}
	}
	return Step{Do: Reboot, Next: &r, Why: "back to OS " + r.From.Version + ": " + r.Reason}
}

// blessing: the new slot runs, twice judged good. The file's name first, then the
// floor: as long as the old slot may be booted, it may run.
func blessing(r Record, f Facts) Step {
	floor := r.floor(f.Floor)
	switch {
	case f.Self != nil && f.Self.Count.Counted:
		return Step{Do: Bless, Next: &r}
	case floor != f.Floor:
		return Step{Do: Raise, Next: &r, Floor: floor}
	case !f.Adopted:
		return Step{Do: Adopt, Next: &r}
	case r.minor():
		return remember(r, Lifting, Wait, "")
	}
	return Step{Do: Forget, Next: &r, Why: "OS " + r.To.Version + " is blessed"}
}

// floor is the oldest version that may run once r is blessed: the one before, or
// the new one where the data follows it to another minor.
func (r *Record) floor(now string) string {
	to := r.From.Version
	if r.minor() {
		to = r.To.Version
	}
	if slots.CompareVersions(to, r.To.Version) > 0 || slots.CompareVersions(to, now) <= 0 {
		return now
	}
	return to
}

// minor says that the trial crosses a Kubernetes minor.
func (r *Record) minor() bool {
	return r.From.Kubernetes != "" && r.To.Kubernetes != "" && r.From.Kubernetes != r.To.Kubernetes
}

func root(v osimage.Verity) string { return hex.EncodeToString(v.RootHash[:]) }

func spent(e *slots.Entry) bool { return e.Count.Counted && e.Count.Left == 0 }

func shorten(faults []string) string {
	const most = 3
	text := ""
	for i, f := range faults {
		if i == most {
			return text + fmt.Sprintf(" and %d more", len(faults)-most)
		}
		if i > 0 {
			text += "; "
		}
		text += f
	}
	return text
}
