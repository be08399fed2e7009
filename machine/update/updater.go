package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/machine/slots"
)

// What a class says where it says nothing.
const (
	DefaultDeadline = 10 * time.Minute // of each of the two boots, to become healthy
	DefaultSoak     = time.Minute      // healthy in one go; twice that in the second boot
)

// Notice is the level of how far an update is: consoles show it, as it is told to
// whoever stands before the machine, and it is no warning.
const Notice = slog.LevelInfo + 2

// ErrRebooting is what Start, Begin and Observe return when the machine is on its
// way down: the caller stops what it does and lets it go.
var ErrRebooting = errors.New("the machine reboots")

// Slots is what an update needs of the boot slots; *slots.Slots has it.
type Slots interface {
	Idle() slots.Slot
	Clean(keep slots.Slot) error
	Entry(slots.Slot) (slots.Entry, bool, error)
	Staged(slots.Slot) (slots.Entry, bool)
	Path(file string) string
	Arm(slots.Slot) error
	Rearm() error
	Bless() error
	Condemn(slots.Slot) error
	Mirror(context.Context) error
}

// Notes are the small notes that outlive the disks; box.Box has them.
type Notes interface {
	ReadNote(name string) ([]byte, error)
	WriteNote(name string, data []byte) error
}

// Platform is the machine that is updated.
type Platform struct {
	Running System // the OS that runs
	Slots   Slots
	Notes   Notes

	// Install writes an OS into the idle slot and leaves its UKI staged there.
	Install func(ctx context.Context, idle slots.Slot, t Target) (System, error)
	// Seal makes the disks open for what boots from that UKI; nil: nothing is sealed.
	Seal func(ctx context.Context, slot slots.Slot, uki string) error
	// Reboot begins an orderly reboot, cold, and returns.
	Reboot func(ctx context.Context, reason string) error
	// Adopt makes the configuration of the trial the applied one; again if asked again.
	Adopt func(slice string) error

	// Uptime is the running time; nil: since this program began.
	Uptime func() time.Duration
	Log    *slog.Logger // nil: slog.Default()
}

// Updater does what Decide says. Its methods may be called from any goroutine, and
// from the functions of its Platform but for Start, Begin and Observe, which do their
// work in the caller's.
type Updater struct {
	Platform
	dir  string
	disk rim

	// Whoever does something has work; who changes what follows has mu, too.
	work    sync.Mutex
	mu      sync.Mutex
	record  *Record // never changed, only replaced
	refused *Refusal
	note    note

	// Under work.
	leaving bool
	adopted bool
	booted  bool          // the first decision of this boot is made
	health  []string      // as last observed
	since   time.Duration // healthy since; -1: not
	seen    time.Duration // uptime of the last observation
	saved   time.Duration // Used in the record on disk
}

// rim is how the updater writes; tests put one in between that fails.
type rim struct {
	read   func(path string) ([]byte, error)
	write  func(path string, data []byte, perm fs.FileMode) error
	remove func(path string) error
}

// note is os.json, beside the anchor.
type note struct {
	Floor string `json:"floor,omitempty"` // oldest OS that may run
	Trial string `json:"trial,omitempty"` // slice that is on trial
}

const noteName = "os.json"

// Refusal is an OS that was tried with an effect, and sent back.
type Refusal struct {
	Effect  string `json:"effect"`
	Version string `json:"version"`
	Reason  string `json:"reason"`
}

// ErrFloor: an OS is older than this machine may run.
var ErrFloor = errors.New("older than the oldest OS that this machine may run")

// FloorError says how far below. It is an ErrFloor.
type FloorError struct{ Version, Floor string }

func (e *FloorError) Error() string {
	return fmt.Sprintf("OS %s: %v, which is %s", e.Version, ErrFloor, e.Floor)
}
func (e *FloorError) Unwrap() error { return ErrFloor }

// CheckFloor refuses a version below the floor that the notes hold, with a FloorError.
func CheckFloor(notes Notes, version string) error {
	n, err := readNote(notes)
	if err != nil {
		return err
	}
	return n.allows(version)
}

func (n note) allows(version string) error {
	if n.Floor != "" && slots.CompareVersions(version, n.Floor) < 0 {
		return &FloorError{version, n.Floor}
	}
	return nil
}

func readNote(notes Notes) (n note, err error) {
	data, err := notes.ReadNote(noteName)
	if errors.Is(err, fs.ErrNotExist) {
		return note{}, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		return note{}, fmt.Errorf("read the note %s: %w", noteName, err)
	}
	return n, nil
}

// Open reads what is remembered in dir, a folder of its own on STATE. It decides
// nothing yet: see Start.
func Open(dir string, p Platform) (*Updater, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Clean(dir); err != nil {
		return nil, err
	}
	return open(dir, p, rim{os.ReadFile, durable.WriteFile, durable.Remove})
}

func open(dir string, p Platform, disk rim) (*Updater, error) {
	if p.Log == nil {
		p.Log = slog.Default()
	}
	if p.Uptime == nil {
		began := time.Now()
		p.Uptime = func() time.Duration { return time.Since(began) }
	}
	u := &Updater{Platform: p, dir: dir, disk: disk, since: -1}
	var err error
	if u.note, err = readNote(p.Notes); err != nil {
		return nil, err
	}
	u.record = readLenient[Record](u, "trial.json")
	u.refused = readLenient[Refusal](u, "refused.json")
	if u.record != nil {
		u.saved = u.record.Used
		u.record.Deadline = orDefault(u.record.Deadline, DefaultDeadline)
		u.record.Soak = orDefault(u.record.Soak, DefaultSoak)
	}
	return u, nil
}

func orDefault(d, standard time.Duration) time.Duration {
	if d <= 0 {
		return standard
	}
	return d
}

// readLenient reads a file of ours, which another version of us may have written.
// One that cannot be read is worth nothing: the slots tell the rest.
func readLenient[T any](u *Updater, name string) *T {
	data, err := u.disk.read(filepath.Join(u.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	v := new(T)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		u.Log.Error("read what is remembered of an update", "file", name, "err", err)
		return nil
	}
	return v
}

func (u *Updater) writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return u.disk.write(filepath.Join(u.dir, name), append(data, '\n'), 0o600)
}

// Start is called once at boot, before anything is applied. It brings the ESP in
// order and goes on with a trial where there is one. ErrRebooting: do nothing
// more. Any other error is one of the disks; the machine runs what is applied, and
// Observe tries again.
func (u *Updater) Start(ctx context.Context) error {
	u.work.Lock()
	defer u.work.Unlock()
	var keep slots.Slot
	if u.record != nil && u.record.Phase == Armed {
		keep = u.record.To.Slot
	}
	if err := u.Slots.Clean(keep); err != nil {
		return err
	}
	u.seen = u.Uptime()
	return u.drive(ctx)
}

// Trial is the configuration that the machine runs while an OS is on trial.
type Trial struct {
	Slice   string // digest
	Encoded []byte // the slice, as it was given to Begin
}

// Trial returns what to make true instead of what is applied; ok is false when no
// OS is on trial in the slot that runs, or when the box does not know that slice.
func (u *Updater) Trial() (t Trial, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.record
	if r == nil || r.Slice == "" || !u.inNew() || r.Phase == Lifting || u.note.Trial != r.Slice {
		return Trial{}, false
	}
	data, err := u.disk.read(filepath.Join(u.dir, "trial.slice"))
	if err != nil {
		u.Log.Error("read the configuration on trial", "err", err)
		return Trial{}, false
	}
	return Trial{Slice: r.Slice, Encoded: data}, true
}

func (u *Updater) inNew() bool {
	return u.record != nil && u.record.To.Slot == u.Running.Slot && u.record.To.Root == u.Running.Root
}

// OnTrial says that the OS that runs is not blessed: nothing else is begun.
func (u *Updater) OnTrial() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.record != nil
}

// Hold is the Kubernetes minor that this machine speaks and writes, where it is
// not its own: that of the slot before, until the new one is blessed.
func (u *Updater) Hold() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r := u.record; u.inNew() && r.minor() && r.Phase != Lifting {
		return r.From.Kubernetes
	}
	return ""
}

// Lifting says that the hold is being lifted: healthy then also means that the
// data has followed.
func (u *Updater) Lifting() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.record != nil && u.record.Phase == Lifting
}

// Status is what people see of an update.
type Status struct {
	Record  *Record  // nil: none
	Refused *Refusal // nil: none
	Floor   string
}

// Status returns a copy of what is remembered.
func (u *Updater) Status() Status {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := Status{Floor: u.note.Floor}
	if u.record != nil {
		r := *u.record
		s.Record = &r
	}
	if u.refused != nil {
		r := *u.refused
		s.Refused = &r
	}
	return s
}

// Retry forgets what was refused.
func (u *Updater) Retry() error {
	if err := u.disk.remove(filepath.Join(u.dir, "refused.json")); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.refused = nil
	return nil
}

// Plan is an update to make: where to, with which configuration, why.
type Plan struct {
	Target
	Slice    string // digest of the configuration that is tried with it
	Encoded  []byte
	Effect   string
	Deadline time.Duration // 0: DefaultDeadline
	Soak     time.Duration // 0: DefaultSoak
}

// Begin writes the idle slot and reboots into it: it returns ErrRebooting. After
// any other error the machine is as it was, but for its idle slot. ErrTrial: an OS
// is on trial already. ErrFloor, ErrRefused: as Wanted says.
func (u *Updater) Begin(ctx context.Context, p Plan) error {
	u.work.Lock()
	defer u.work.Unlock()
	if err := u.mayBegin(p); err != nil {
		return err
	}
	idle := u.Slots.Idle()
	to, err := u.Install(ctx, idle, p.Target)
	if err != nil {
		return fmt.Errorf("install OS %s: %w", p.Version, err)
	}
	staged, ok := u.Slots.Staged(idle)
	if !ok || to.Slot != idle || staged.Version != to.Version || to.Version != p.Version {
		return fmt.Errorf("install OS %s: slot %s holds OS %q after it", p.Version, idle, staged.Version)
	}
	if err := u.seal(ctx, idle, staged.File); err != nil {
		return fmt.Errorf("seal the disks to OS %s: %w", p.Version, err)
	}
	to.Kubernetes, to.Digest = p.Kubernetes, p.Digest
	if err := u.disk.write(filepath.Join(u.dir, "trial.slice"), p.Encoded, 0o600); err != nil {
		return err
	}
	if err := u.setNote(note{Floor: u.note.Floor, Trial: p.Slice}); err != nil {
		return err
	}
	if err := u.save(&Record{Format: format, Phase: Armed, From: u.Running, To: to, Slice: p.Slice, Effect: p.Effect,
		Deadline: orDefault(p.Deadline, DefaultDeadline), Soak: orDefault(p.Soak, DefaultSoak)}); err != nil {
		return err
	}
	return u.drive(ctx)
}

// ErrTrial: another OS is on trial.
var ErrTrial = errors.New("an OS is on trial")

func (u *Updater) mayBegin(p Plan) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.leaving:
		return ErrRebooting
	case u.record != nil:
		return fmt.Errorf("begin an update to OS %s: %w: %s (%s)", p.Version, ErrTrial, u.record.To.Version, u.record.Phase)
	case u.refusal(p.Effect, p.Version) != nil:
		return fmt.Errorf("begin an update to OS %s: %w: %s", p.Version, ErrRefused, u.refused.Reason)
	}
	return u.note.allows(p.Version)
}

func (u *Updater) seal(ctx context.Context, slot slots.Slot, file string) error {
	if u.Seal == nil {
		return nil
	}
	return u.Platform.Seal(ctx, slot, u.Slots.Path(file))
}

// Observe tells how the machine is: faults is nil when machine, kubelet, API,
// network and critical apps are as they should be. It is called every few seconds,
// also when nothing is on trial. ErrRebooting: the machine goes down.
func (u *Updater) Observe(ctx context.Context, faults []string) error {
	if !u.work.TryLock() {
		return nil // an update begins: nothing is on trial
	}
	defer u.work.Unlock()
	now := u.Uptime()
	passed := max(now-u.seen, 0)
	u.seen, u.health = now, faults
	switch {
	case len(faults) > 0:
		u.since = -1
	case u.since < 0:
		u.health, u.since = nil, now
	default:
		u.health = nil
	}
	if u.leaving {
		return ErrRebooting
	}
	if u.record == nil && u.booted {
		return nil
	}
	if u.record != nil {
		r := *u.record
		r.Used += passed
		u.remember(&r)
		if r.Used-u.saved >= saveEvery {
			if err := u.save(&r); err != nil {
				return err
			}
		}
	}
	return u.drive(ctx)
}

// Left is how long all must stay well until the boot that runs is judged good; ok
// is false where none is judged, or something is wrong. It is for who observes.
func (u *Updater) Left() (left time.Duration, ok bool) {
	if !u.work.TryLock() {
		return 0, false // an update begins
	}
	defer u.work.Unlock()
	r := u.record
	if r == nil || u.since < 0 || u.leaving || !u.inNew() || !(r.Phase == First || r.Phase == Second && r.Boots > 0) {
		return 0, false
	}
	return max(0, r.need()-(u.seen-u.since)), true
}

// Mirror sees to it that the machine has something to boot when the slot that runs
// is damaged: an idle slot without an OS, with one that may not run, or, as damaged
// says, with one that is damaged, becomes a copy of what runs. One with the OS
// before is left, which is as good. While an OS is on trial nothing is done; made
// says whether something was.
func (u *Updater) Mirror(ctx context.Context, damaged bool) (made bool, err error) {
	u.work.Lock()
	defer u.work.Unlock()
	if u.record != nil || u.leaving {
		return false, nil
	}
	self, blessed, err := u.Slots.Entry(u.Running.Slot)
	if err != nil || self.Count.Counted {
		return false, err
	}
	idle := u.Slots.Idle()
	e, ok, err := u.Slots.Entry(idle)
	if err != nil {
		return false, err
	}
	if !blessed && !(damaged && ok && root(e.Verity) == u.Running.Root) { // else: that entry has booted this root
		return false, nil
	}
	if good := !e.Count.Counted && u.note.allows(e.Version) == nil || e.Verity == self.Verity; ok && good && !damaged {
		return false, nil
	}
	if err := u.Slots.Mirror(ctx); err != nil {
		return false, err
	}
	if e, ok, err = u.Slots.Entry(idle); err == nil && ok {
		err = u.seal(ctx, idle, e.File)
	}
	if err != nil {
		return true, fmt.Errorf("seal the disks to slot %s: %w", idle, err)
	}
	return true, nil
}

// Aside runs f while nothing else works on the slots; trial says whether an OS is on
// trial, or about to be.
func (u *Updater) Aside(f func(trial bool) error) error {
	u.work.Lock()
	defer u.work.Unlock()
	return f(u.record != nil || u.leaving)
}

// saveEvery is how much running time a power cut may take from a deadline.
const saveEvery = 10 * time.Second

// drive decides and does, until there is nothing to do.
func (u *Updater) drive(ctx context.Context) error {
	for range 32 { // each step changes what is seen; more would be a ring
		f, err := u.facts()
		if err != nil {
			return err
		}
		step := Decide(u.record, f)
		if step.Next != nil && (u.record == nil || !reflect.DeepEqual(*step.Next, *u.record)) {
			if u.record == nil || step.Next.Phase != u.record.Phase {
				u.since = -1 // each phase is judged by itself
				u.Log.Log(ctx, Notice, "OS update", "version", step.Next.To.Version, "phase", step.Next.Phase, "why", step.Why)
			}
			if err := u.save(step.Next); err != nil {
				return err
			}
			u.booted = true
			if step.Do == Wait {
				continue
			}
		}
		u.booted = true
		if step.Do == Wait {
			return nil
		}
		if err := u.do(ctx, step); err != nil {
			return err
		}
	}
	return fmt.Errorf("an OS update turns in a ring; record %+v", u.record)
}

func (u *Updater) facts() (Facts, error) {
	f := Facts{Slot: u.Running.Slot, Root: u.Running.Root, Boot: !u.booted, Health: u.health, Floor: u.note.Floor, Adopted: u.adopted}
	if u.since >= 0 {
		f.Steady = u.seen - u.since
	} else if f.Health == nil {
		f.Health = []string{"not observed yet"}
	}
	for slot, to := range map[slots.Slot]**slots.Entry{f.Slot: &f.Self, f.Slot.Other(): &f.Idle} {
		e, ok, err := u.Slots.Entry(slot)
		if err != nil {
			return Facts{}, err
		}
		if ok {
			*to = &e
		}
	}
	if r := u.record; r != nil && r.Phase == Armed {
		e, ok := u.Slots.Staged(f.Slot.Other())
		f.Staged = ok && root(e.Verity) == r.To.Root && e.Version == r.To.Version
		if f.Idle != nil && root(f.Idle.Verity) != r.To.Root {
			f.Idle = nil // what lies there is not what was installed
		}
	}
	return f, nil
}

func (u *Updater) do(ctx context.Context, s Step) error {
	switch s.Do {
	case Arm:
		return u.Slots.Arm(u.Slots.Idle())
	case Rearm:
		return u.Slots.Rearm()
	case Condemn:
		return u.Slots.Condemn(u.Running.Slot)
	case Bless:
		return u.Slots.Bless()
	case Raise:
		return u.setNote(note{Floor: s.Floor, Trial: u.note.Trial})
	case Adopt:
		if s.Next.Slice != "" {
			if err := u.Platform.Adopt(s.Next.Slice); err != nil {
				return fmt.Errorf("adopt the configuration of OS %s: %w", s.Next.To.Version, err)
			}
		}
		u.adopted = true
		return nil
	case Refuse:
		return u.refuse(*s.Next)
	case Forget:
		u.Log.Log(ctx, Notice, "OS update ended", "version", s.Next.To.Version, "why", s.Why)
		return u.forget()
	case Reboot:
		return u.reboot(ctx, s)
	}
	return fmt.Errorf("an OS update wants verb %d, which nobody knows", s.Do)
}

// reboot seals to what comes next and goes down. On the way back a fault of
// sealing is no reason to stay.
func (u *Updater) reboot(ctx context.Context, s Step) error {
	slot := s.Next.To.Slot
	if s.Next.Phase == Failing {
		slot = s.Next.From.Slot
	}
	e, ok, err := u.Slots.Entry(slot)
	if err == nil && ok {
		err = u.seal(ctx, slot, e.File)
	}
	if err != nil {
		if s.Next.Phase != Failing {
			return fmt.Errorf("seal the disks to slot %s: %w", slot, err)
		}
		u.Log.Error("seal the disks to the slot before", "slot", slot, "err", err)
	}
	if err := u.Platform.Reboot(ctx, s.Why); err != nil {
		return fmt.Errorf("reboot %s: %w", s.Why, err)
	}
	u.leaving = true
	return ErrRebooting
}

// refuse puts the slots in order and remembers the effect; the record goes last,
// so that all of it is done again after a cut.
func (u *Updater) refuse(r Record) error {
	u.Log.Error("OS refused", "version", r.To.Version, "why", r.Reason, "runs", u.Running.Version)
	if u.Running.Slot == r.From.Slot {
		if _, ok, err := u.Slots.Entry(r.To.Slot); err != nil {
			return err
		} else if ok {
			if err := u.Slots.Condemn(r.To.Slot); err != nil {
				return err
			}
		}
		if e, ok, err := u.Slots.Entry(u.Running.Slot); err != nil {
			return err
		} else if ok && e.Count.Counted { // put last, for a downgrade
			if err := u.Slots.Bless(); err != nil {
				return err
			}
		}
	}
	refused := &Refusal{Effect: r.Effect, Version: r.To.Version, Reason: r.Reason}
	if err := u.writeJSON("refused.json", refused); err != nil {
		return err
	}
	u.mu.Lock()
	u.refused = refused
	u.mu.Unlock()
	return u.forget()
}

func (u *Updater) forget() error {
	if err := u.disk.remove(filepath.Join(u.dir, "trial.json")); err != nil {
		return err
	}
	u.remember(nil)
	u.saved = 0
	if err := u.disk.remove(filepath.Join(u.dir, "trial.slice")); err != nil {
		return err
	}
	if u.note.Trial == "" {
		return nil
	}
	return u.setNote(note{Floor: u.note.Floor})
}

func (u *Updater) save(r *Record) error {
	if err := u.writeJSON("trial.json", r); err != nil {
		return err
	}
	u.remember(r)
	u.saved = r.Used
	return nil
}

func (u *Updater) remember(r *Record) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.record = r
}

func (u *Updater) setNote(n note) error {
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := u.Notes.WriteNote(noteName, data); err != nil {
		return fmt.Errorf("write the note %s: %w", noteName, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.note = n
	return nil
}
