package supervise

import (
	"reflect"
	"slices"
	"time"
)

// The core: what is known of each child, and what follows from an event. No I/O, no clock.

type event interface{}

type (
	evApply   struct{ children []Child } // the whole set that should run
	evRestart struct{ name string }
	evStop    struct{} // everything, in reverse order
	evTick    struct{}
	evStarted struct {
		name string
		run  int
		pid  int
	}
	evReady struct {
		name string
		run  int
	}
	evExited struct { // also a start that failed
		name string
		run  int
		exit Exit
	}
)

type verb int

const (
	doStart  verb = iota // start process number run of the child, and probe it
	doSignal             // ask it to end
	doKill               // make it end
)

type effect struct {
	do   verb
	name string
	run  int
	spec Child // for doStart and doSignal
}

// life is one child. Its run number tells a late word of an earlier process from a word of this one.
type life struct {
	spec     Child
	next     *Child // replaces spec once the process is gone
	state    State
	since    time.Time
	until    time.Time // when the state's deadline passes; zero: none
	want     bool      // should be running
	gone     bool      // leaves the set once stopped
	run      int
	pid      int
	failed   string // why a Stopping child is being stopped although it is wanted
	fails    int    // in a row, for the pause
	crashes  []time.Time
	restarts int
	started  time.Time
	last     *Exit
}

type core struct {
	backoff Backoff
	loop    CrashLoop
	random  func() float64 // [0, 1)
	lives   []*life        // in the order given
	closing bool
}

// step takes one event and returns what to do, in order.
func (c *core) step(now time.Time, e event) []effect {
	var out []effect
	switch e := e.(type) {
	case evApply:
		out = c.apply(now, e.children)
	case evRestart:
		if l := c.find(e.name); l != nil {
			out = c.renew(now, l)
		}
	case evStop:
		c.closing = true
		for _, l := range c.lives {
			l.want = false
		}
	case evStarted:
		if l := c.current(e.name, e.run); l != nil {
			l.pid = e.pid
			if l.state == Starting && l.spec.Ready == nil {
				c.ready(now, l)
			}
		}
	case evReady:
		if l := c.current(e.name, e.run); l != nil && l.state == Starting {
			c.ready(now, l)
		}
	case evExited:
		if l := c.current(e.name, e.run); l != nil && l.alive() {
			c.exited(now, l, e.exit)
		}
	}
	return append(out, c.settle(now)...)
}

// apply makes the set of children that of the list. A child whose description is the same is not touched.
func (c *core) apply(now time.Time, children []Child) []effect {
	var out []effect
	if c.closing {
		return nil
	}
	var lives []*life
	for _, spec := range children {
		l := c.find(spec.Name)
		if l == nil {
			l = &life{spec: spec, state: Waiting, since: now}
		}
		l.want, l.gone = true, false
		if l.state == Stopped {
			l.enter(now, Waiting, time.Time{})
		}
		latest := l.spec
		if l.next != nil {
			latest = *l.next
		}
		if !same(latest, spec) {
			l.next = &spec
			out = append(out, c.renew(now, l)...)
		}
		lives = append(lives, l)
	}
	for _, l := range c.lives {
		if !slices.Contains(lives, l) {
			l.want, l.gone = false, true
			lives = append(lives, l)
		}
	}
	c.lives = lives
	return out
}

// same compares descriptions. Functions cannot be compared: a caller whose Ready changes changes the description's Revision.
func same(a, b Child) bool {
	if (a.Ready == nil) != (b.Ready == nil) {
		return false
	}
	a.Ready, b.Ready = nil, nil
	return reflect.DeepEqual(a, b)
}

// renew gets a child a new process, at once where none runs.
func (c *core) renew(now time.Time, l *life) []effect {
	l.fails = 0
	switch l.state {
	case Starting, Running:
		return c.stop(now, l)
	case Pausing:
		l.enter(now, Waiting, time.Time{})
	}
	return nil
}

func (c *core) stop(now time.Time, l *life) []effect {
	l.enter(now, Stopping, now.Add(l.spec.grace()))
	return []effect{{doSignal, l.spec.Name, l.run, l.spec}}
}

func (c *core) ready(now time.Time, l *life) { l.enter(now, Running, time.Time{}) }

// exited decides what the end of a process means.
func (c *core) exited(now time.Time, l *life, exit Exit) {
	exit.At, exit.Ran = now, now.Sub(l.started)
	wished := l.state == Stopping && l.failed == ""
	if l.failed != "" {
		exit.Reason = l.failed
	}
	exit.Expected = wished
	l.failed, l.pid, l.last = "", 0, &exit
	switch {
	case !l.want:
		l.enter(now, Stopped, time.Time{})
	case wished:
		l.enter(now, Waiting, time.Time{})
	default:
		if exit.Ran >= c.backoff.Reset {
			l.fails = 0
		}
		l.fails++
		l.crashes = append(l.crashes, now)
		l.enter(now, Pausing, now.Add(c.pause(l.fails)))
	}
}

// pause before start number fails+1: doubling, and up to half shorter by chance, so that children which crash together do not start together for ever.
func (c *core) pause(fails int) time.Duration {
	d := c.backoff.Min
	for range fails - 1 {
		if d = 2 * d; d >= c.backoff.Max {
			d = c.backoff.Max
			break
		}
	}
	return d - time.Duration(c.random()*float64(d)/2)
}

// settle moves every child as far as the present allows.
func (c *core) settle(now time.Time) []effect {
	var out []effect
	for changed := true; changed; {
		changed = false
		for _, l := range c.lives {
			before := l.state
			out = append(out, c.advance(now, l)...)
			changed = changed || l.state != before
		}
	}
	c.lives = slices.DeleteFunc(c.lives, func(l *life) bool { return l.gone && l.state == Stopped })
	return out
}

func (c *core) advance(now time.Time, l *life) []effect {
	due := !l.until.IsZero() && !now.Before(l.until)
	switch l.state {
	case Waiting, Pausing:
		switch {
		case !l.want:
			l.enter(now, Stopped, time.Time{})
		case l.state == Pausing && due:
			l.enter(now, Waiting, time.Time{})
		case l.state == Waiting && c.mayStart(l):
			return c.start(now, l)
		}
	case Starting:
		if due && l.want {
			l.failed = "not ready in " + l.spec.ReadyWithin.String()
			return c.stop(now, l)
		}
		fallthrough
	case Running:
		if !l.want && c.mayStop(l) {
			return c.stop(now, l)
		}
	case Stopping:
		if due {
			l.until = now.Add(killAgain)
			return []effect{{doKill, l.spec.Name, l.run, l.spec}}
		}
	}
	return nil
}

// killAgain is how often a process that does not even die of SIGKILL (it hangs in the kernel) is killed once more.
const killAgain = 5 * time.Second

func (c *core) start(now time.Time, l *life) []effect {
	if l.next != nil {
		l.spec, l.next = *l.next, nil
	}
	l.run++
	if l.run > 1 {
		l.restarts++
	}
	l.started = now
	var until time.Time
	if l.spec.Ready != nil && l.spec.ReadyWithin > 0 {
		until = now.Add(l.spec.ReadyWithin)
	}
	l.enter(now, Starting, until)
	return []effect{{doStart, l.spec.Name, l.run, l.spec}}
}

// mayStart: everything it comes after is ready. Names that are not in the set do not hold it up, so that a set can be cut down.
func (c *core) mayStart(l *life) bool {
	spec := &l.spec
	if l.next != nil {
		spec = l.next
	}
	return !slices.ContainsFunc(c.lives, func(o *life) bool {
		return slices.Contains(spec.After, o.spec.Name) && o.state != Running
	})
}

// mayStop: nobody who comes after it is alive and on the way down as well.
func (c *core) mayStop(l *life) bool {
	return !slices.ContainsFunc(c.lives, func(o *life) bool {
		return o != l && slices.Contains(o.spec.After, l.spec.Name) && o.alive() && !o.want
	})
}

// alive: there is, or is about to be, a process.
func (l *life) alive() bool { return l.state == Starting || l.state == Running || l.state == Stopping }

func (l *life) enter(now time.Time, s State, until time.Time) {
	l.state, l.since, l.until = s, now, until
}

func (c *core) find(name string) *life {
	for _, l := range c.lives {
		if l.spec.Name == name {
			return l
		}
	}
	return nil
}

func (c *core) current(name string, run int) *life {
	if l := c.find(name); l != nil && l.run == run {
		return l
	}
	return nil
}

// wake is when settle has something to do without an event; zero: never.
func (c *core) wake() time.Time {
	var first time.Time
	for _, l := range c.lives {
		if t := l.until; !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
		// Crashes are forgotten, and a crash loop ends, with time alone; whoever watches should see it.
		if len(l.crashes) > 0 {
			if t := l.crashes[0].Add(c.loop.Window + 1); first.IsZero() || t.Before(first) {
				first = t
			}
		}
	}
	return first
}

func (c *core) done() bool {
	return c.closing && !slices.ContainsFunc(c.lives, func(l *life) bool { return l.state != Stopped })
}

// status also forgets crashes that are older than the window.
func (c *core) status(now time.Time) []Status {
	all := make([]Status, 0, len(c.lives))
	for _, l := range c.lives {
		l.crashes = slices.DeleteFunc(l.crashes, func(t time.Time) bool { return now.Sub(t) > c.loop.Window })
		s := Status{Name: l.spec.Name, State: l.state, PID: l.pid, Since: l.since, Restarts: l.restarts, LastExit: l.last,
			Crashes: len(l.crashes), CrashLoop: c.loop.Exits > 0 && len(l.crashes) >= c.loop.Exits}
		if l.state == Pausing {
			s.Next = l.until
		}
		if l.state == Waiting {
			for _, o := range c.lives {
				if slices.Contains(l.spec.After, o.spec.Name) && o.state != Running {
					s.WaitsFor = append(s.WaitsFor, o.spec.Name)
				}
			}
		}
		all = append(all, s)
	}
	return all
}
