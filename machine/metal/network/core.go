package network

import (
	"time"
)

// Times that decide. They are generous: a switch port may take 30 s to forward,
// and a hub may restart.
const (
	defaultDeadline = 3 * time.Minute  // in which a new configuration must reach the hub
	patience        = 90 * time.Second // for an address, before a proven configuration is left
	settle          = 20 * time.Second // after which a session that is still there proves the new way
)

// core decides which configuration the machine has. It reads no clock and does
// nothing; each event returns what to do.
type core struct {
	deadline time.Duration
	sources  []source // in the order of trying; the last one is DHCP on every port
	hints    string   // digest of network.yaml, "" for none
	base     *Config  // what a release leaves out, this says: network.yaml, of now or of the first contact

	memory    last // what is written down
	remembers bool // memory.Good is there

	current   Config
	source    string
	turn      int // of sources
	since     time.Time
	proven    bool // the hub was reached with current, now or before
	addressed bool // a port has an address
	connected bool // to the hub, as the caller says
	trial     *trial

	// pending waits for contact: without it before, nothing can be judged after.
	// At pendingUntil (if set) it is tried all the same, once: perhaps it is what is missing.
	pending      *Config
	pendingUntil time.Time
}

type source struct {
	name   string
	config Config
	proven bool
}

// trial is a release's configuration that has to prove itself.
type trial struct {
	back       Config
	backSource string
	until      time.Time
	blind      bool // the hub was away before: failing is no proof against it
}

// orders are what an event leads to.
type orders struct {
	Use    *Config   // configure the ports so, and dial anew
	Save   *last     // write this down
	Undone string    // why a trial was undone
	Wake   time.Time // when to ask again; zero: only after an event
}

// Sources of a configuration.
const (
	fromLast    = "last"
	fromHints   = HintsFile
	fromDHCP    = "dhcp"
	fromRelease = "release"
)

// newCore begins. good is what worked last; new hints come before it, for
// somebody has put them there since.
func newCore(now time.Time, deadline time.Duration, good *last, hints *Config) (*core, orders) {
	c := &core{deadline: deadline}
	if hints != nil {
		c.hints = digest(*hints)
	}
	if good != nil {
		c.memory, c.remembers, c.base = *good, true, good.Base
		c.sources = append(c.sources, source{fromLast, good.Good, true})
	}
	if hints != nil {
		c.base = hints
		s := source{fromHints, *hints, false}
		if good != nil && good.Hints != c.hints {
			c.sources = append([]source{s}, c.sources...)
		} else {
			c.sources = append(c.sources, s)
		}
	}
	c.sources = append(c.sources, source{fromDHCP, anyPort(), false})
	return c, c.take(now, 0)
}

// take goes to a source.
func (c *core) take(now time.Time, turn int) orders {
	c.turn = turn % len(c.sources)
	s := c.sources[c.turn]
	return c.use(now, s.config, s.name, s.proven)
}

func (c *core) use(now time.Time, config Config, source string, proven bool) orders {
	c.current, c.source, c.since, c.proven = config, source, now, proven
	return orders{Use: &config, Wake: c.wake(now)}
}

// wake is when tick has something to decide.
func (c *core) wake(now time.Time) time.Time {
	settled := c.since.Add(settle)
	switch {
	case c.connected && settled.After(now) && !c.proven:
		return settled
	case c.trial != nil:
		return c.trial.until
	case c.pending != nil && !c.pendingUntil.IsZero():
		return c.pendingUntil
	case !c.connected && !c.proven && len(c.sources) > 1:
		return c.since.Add(c.deadline)
	case !c.connected && c.proven && !c.addressed && len(c.sources) > 1:
		return c.since.Add(patience)
	}
	return time.Time{}
}

// apply is the release's word. What it leaves out network.yaml says, else DHCP on
// every port.
func (c *core) apply(now time.Time, wanted Config) orders {
	base := anyPort()
	if c.base != nil {
		base = *c.base
	}
	config := over(base, wanted)
	id := digest(config)
	c.pending = nil
	switch {
	case id == digest(c.current):
		if c.trial == nil {
			c.source = fromRelease
		}
	case id == c.memory.Refused:
	case c.trial == nil && c.proven && !c.connected:
		c.pending, c.pendingUntil = &config, now.Add(c.deadline)
	default:
		return c.try(now, config, false)
	}
	return orders{Wake: c.wake(now)}
}

// try uses a release's configuration; what is proven comes back if it fails.
func (c *core) try(now time.Time, config Config, blind bool) orders {
	t := c.trial
	if t == nil && c.proven {
		t = &trial{back: c.current, backSource: c.source}
	}
	c.trial = nil
	if t != nil {
		c.trial = &trial{t.back, t.backSource, now.Add(c.deadline), blind}
	}
	return c.use(now, config, fromRelease, false)
}

// contact is the caller's word on its session to the hub, each time it changes.
func (c *core) contact(now time.Time, connected bool) orders {
	was := c.connected
	c.connected = connected
	if connected && !was { // a session that was there before proves nothing yet
		return c.prove(now)
	}
	return orders{Wake: c.wake(now)}
}

// prove: the hub is reached with the present configuration.
func (c *core) prove(now time.Time) orders {
	c.proven, c.trial = true, nil
	o := orders{Wake: c.wake(now)}
	if c.pending != nil {
		config := *c.pending
		c.pending = nil
		save := c.remember()
		o = c.try(now, config, false)
		o.Save = save
		return o
	}
	o.Save = c.remember()
	return o
}

// remember returns what is to be written down now that the present
// configuration is known to be good; nil when it is there already.
func (c *core) remember() *last {
	if c.remembers && digest(c.memory.Good) == digest(c.current) && c.memory.Hints == c.hints {
		return nil
	}
	c.memory.Good, c.memory.Source, c.memory.Hints, c.memory.Base, c.remembers = c.current, c.source, c.hints, c.base, true
	saved := c.memory
	return &saved
}

// address says whether a port has an address.
func (c *core) address(now time.Time, addressed bool) orders {
	if c.addressed && !addressed {
		c.since = now // patience begins when the last one is lost
	}
	c.addressed = addressed
	return orders{Wake: c.wake(now)}
}

// tick decides what time has decided.
func (c *core) tick(now time.Time) orders {
	switch {
	case c.connected && !c.proven && !now.Before(c.since.Add(settle)):
		return c.prove(now)
	case c.trial != nil && !now.Before(c.trial.until):
		return c.undo(now)
	case c.trial != nil || c.connected:
	case c.pending != nil && !c.pendingUntil.IsZero() && !now.Before(c.pendingUntil):
		return c.try(now, *c.pending, true)
	case !c.proven && len(c.sources) > 1 && !now.Before(c.since.Add(c.deadline)),
		c.proven && !c.addressed && len(c.sources) > 1 && !now.Before(c.since.Add(patience)):
		return c.take(now, c.turn+1)
	}
	return orders{Wake: c.wake(now)}
}

// undo goes back to what worked, and remembers not to try again.
func (c *core) undo(now time.Time) orders {
	t, lost := c.trial, c.current
	c.trial = nil
	o := c.use(now, t.back, t.backSource, true)
	if t.blind {
		c.pending, c.pendingUntil = &lost, time.Time{} // again when the hub is back
		return o
	}
	c.memory.Refused = digest(lost)
	o.Undone = "no contact within " + c.deadline.String()
	if c.remembers {
		saved := c.memory
		o.Save = &saved
	}
	return o
}
