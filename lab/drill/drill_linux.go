package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
)

// Options are what a drill works on, and how.
type Options struct {
	Lab      lab.Lab
	Machine  string // of the lab: a virtual one
	Site     Site
	Port     uint16 // where the app answers on the machine's LAN; 0: no app is asked
	Seed     uint64 // of what is random; 0: by the clock
	Cuts     int    // of the power
	Install  bool   // power: also cut while a blank copy of the disk is filled; what the site wrote goes
	Saboteur string // bad-os, upgrade: the program that stands in the place of others
	Next     string // upgrade: the program kube of the next minor of Kubernetes
	Only     string // bad-os, upgrade, power: one way of it, of those in Kinds; "": all
	// Patience is how long the machine may take for anything; default 15 minutes,
	// as without KVM all is slow. Nothing is held against the clock but this.
	Patience time.Duration
	// Began and Done are called for each step; they may be nil.
	Began func(did string)
	Done  func(Step)
	Log   *slog.Logger
}

// drill is one that runs.
type drill struct {
	Options
	machine lab.Machine
	dice    *rand.Rand
	verdict *Verdict
	counter *counter
	luks    string // STATE's identity
	built   time.Time
	spare   *OSBuild // power: what is written to the idle slot again and again
	good    *OSBuild // upgrade: what is well, and forced back
	program string   // Kubernetes of it

	architecture string
}

// steps of each drill. They begin and end with a machine that is well.
var kinds = map[string]func(*drill, context.Context) error{
	"power":    (*drill).power,
	"tamper":   (*drill).tamper,
	"theft":    (*drill).theft,
	"clock":    (*drill).clock,
	"unlock":   (*drill).unlock,
	"rollback": (*drill).rollback,
	"update":   (*drill).update,
	"upgrade":  (*drill).upgrade,
	"bad-os":   (*drill).badOS,
	"disk":     (*drill).disk,
}

// Run does a drill. The verdict is there also with an error: ErrBroken when a
// promise broke, another when the drill itself could not be done.
func Run(ctx context.Context, name string, o Options) (*Verdict, error) {
	do, ok := kinds[name]
	if !ok {
		return nil, fmt.Errorf("no drill %q", name)
	}
	if ways := Ways(name); o.Only != "" && !slices.Contains(ways, o.Only) {
		return nil, fmt.Errorf("drill %s has no part %q: want one of %q", name, o.Only, ways)
	}
	w, err := o.Lab.Wanted()
	if err != nil {
		return nil, err
	}
	m, err := w.Find(o.Machine)
	if err != nil {
		return nil, err
	}
	if !m.Virtual() {
		return nil, &lab.NotVirtual{Machine: m.Key(), What: "hardware to drill on"}
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano()) % 1e9
	}
	if o.Patience == 0 {
		o.Patience = 15 * time.Minute
	}
	if o.Cuts <= 0 {
		o.Cuts = 4
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	began := time.Now()
	d := &drill{Options: o, machine: *m, dice: rand.New(rand.NewPCG(o.Seed, 0)), verdict: &Verdict{Drill: name, Machine: m.Key(), Seed: o.Seed, Steps: []Step{}}}
	err = d.begin(ctx)
	if err == nil {
		err = do(d, ctx)
	}
	d.verdict.Kept = err == nil
	d.verdict.Seconds = time.Since(began).Seconds()
	return d.verdict, err
}

// step does one thing and notes it. seen is told also with an error.
func (d *drill) step(ctx context.Context, did, expected string, do func(context.Context) (seen, lost string, err error)) error {
	return d.stepIn(ctx, d.Patience, did, expected, do)
}

// longStep is a step in which the machine fetches an OS and boots more than once.
func (d *drill) longStep(ctx context.Context, did, expected string, do func(context.Context) (seen, lost string, err error)) error {
	return d.stepIn(ctx, 2*d.Patience, did, expected, do)
}

func (d *drill) stepIn(ctx context.Context, patience time.Duration, did, expected string, do func(context.Context) (seen, lost string, err error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.Began != nil {
		d.Began(did)
	}
	began := time.Now()
	limited, cancel := context.WithTimeoutCause(ctx, patience, errPatience)
	defer cancel()
	seen, lost, err := do(limited)
	if ctx.Err() != nil { // interrupted: that says nothing of the machine
		return errors.Join(ctx.Err(), err)
	}
	s := Step{Did: did, Expected: expected, Seen: seen, Lost: lost, Seconds: time.Since(began).Seconds(), Kept: err == nil}
	if err != nil {
		if s.Seen != "" {
			s.Seen += "; "
		}
		s.Seen += err.Error()
		if errors.Is(context.Cause(limited), errPatience) {
			err = errors.Join(broken("not within %v", patience), err)
		}
		err = fmt.Errorf("%s: %w", did, err)
	}
	d.verdict.Steps = append(d.verdict.Steps, s)
	if d.Done != nil {
		d.Done(s)
	}
	return err
}

var errPatience = errors.New("patience is at its end")

// until polls do until it returns nil; its last error tells why it never did.
func until(ctx context.Context, do func(context.Context) error) error {
	for {
		err := do(ctx)
		if err == nil || errors.Is(err, ErrBroken) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; at last: %w", context.Cause(ctx), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// afterwards does what has to be done whether or not the drill was interrupted.
func afterwards(ctx context.Context, do func(context.Context) error, err *error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	*err = errors.Join(*err, do(ctx))
}

// mark is the present end of the machine's console.
func (d *drill) mark() int64 {
	info, err := os.Stat(d.Lab.SerialLog(d.machine))
	if err != nil {
		return 0
	}
	return info.Size()
}

// first waits until the console says what one of the patterns matches, and tells
// which of them, and the line.
func (d *drill) first(ctx context.Context, mark int64, patterns ...*regexp.Regexp) (int, string, error) {
	for {
		text := d.console(mark)
		for i, p := range patterns {
			if line := p.FindString(text); line != "" {
				return i, line, nil
			}
		}
		select {
		case <-ctx.Done():
			return 0, "", fmt.Errorf("%w; the console said nothing that matches one of %s", context.Cause(ctx), patterns)
		case <-time.After(50 * time.Millisecond): // the power is cut at what it says
		}
	}
}

// console is what the machine said since mark.
func (d *drill) console(mark int64) string {
	f, err := os.Open(d.Lab.SerialLog(d.machine))
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	if mark > info.Size() { // a long console was begun anew
		mark = 0
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, mark, info.Size()-mark))
	return string(b)
}

// says waits until the console says what one of the patterns matches, at least n
// times, and returns the last such line.
func (d *drill) says(ctx context.Context, mark int64, n int, pattern *regexp.Regexp) (string, error) {
	var line string
	err := until(ctx, func(context.Context) error {
		all := pattern.FindAllString(d.console(mark), -1)
		if len(all) < n {
			return fmt.Errorf("the console said %d times what matches %s", len(all), pattern)
		}
		line = all[len(all)-1]
		return nil
	})
	return line, err
}

// machined is what process 1 says when it has booted.
var machined = regexp.MustCompile(`holdfast: boot: machined runs[^\r\n]*`)

// off switches the machine off without losing what it wrote; on switches it on.
func (d *drill) off(ctx context.Context) error { return d.Lab.Switch(ctx, d.machine.Key(), false) }
func (d *drill) on(ctx context.Context) error  { return d.Lab.Switch(ctx, d.machine.Key(), true) }

// want changes what the lab is to make of the machine, from its next start on.
func (d *drill) want(change func(*lab.Machine)) error {
	w, err := d.Lab.Wanted()
	if err != nil {
		return err
	}
	m, err := w.Find(d.machine.Key())
	if err != nil {
		return err
	}
	change(m)
	return d.Lab.Want(w)
}
