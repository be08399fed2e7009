package clock

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/machine/faults"
)

// Where the time comes from.
const (
	FromFloor = "floor" // only known to be after it: no maintenance window opens
	FromRTC   = "rtc"
	FromNTP   = "ntp"
)

// Options are what a Clock is given.
type Options struct {
	Floor   time.Time       // when the OS image was built
	Servers func() []string // the time servers, names or addresses; asked each round; nil: none
	Faults  *faults.List
	Log     *slog.Logger
}

// Clock keeps the machine's clock.
type Clock struct {
	options Options
	log     *slog.Logger
	system  system

	mu    sync.Mutex // guards what follows, and setting the clock
	floor time.Time
	state State
	kick  chan struct{}
}

// State says what is known of the time.
type State struct {
	Source   string    // FromFloor, FromRTC, FromNTP
	Floor    time.Time // the newest signed time
	Checked  time.Time // when time servers last agreed with the clock; zero: never
	Disagree string    // sources that contradict each other
}

// system is the rim; tests have a clock of their own.
type system interface {
	now() time.Time
	set(time.Time) error
	slew(time.Duration) error
	rtc() (time.Time, error)
	setRTC(time.Time) error
	ask(ctx context.Context, servers []string) []Sample // all at once; who does not answer is left out
}

// New makes a Clock. Set sets it for the first time, Run keeps it.
func New(o Options) *Clock { return newClock(o, linux{}) }

func newClock(o Options, s system) *Clock {
	log := o.Log
	if log == nil {
		log = slog.Default()
	}
	return &Clock{options: o, log: log, system: s, floor: o.Floor, kick: make(chan struct{}, 1)}
}

// Set sets the clock at boot, before anything looks at it: to the hardware
// clock, or to the floor where that is later. An error is that of setting; a
// hardware clock that is not there is none.
func (c *Clock) Set() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	rtc, err := c.system.rtc()
	if err != nil {
		c.log.Error("clock: the hardware clock cannot be read", "err", err)
		rtc = c.system.now()
	}
	at, source := Boot(rtc, c.floor)
	c.state = State{Source: source, Floor: c.floor}
	c.log.Info("clock: set", "to", at.UTC(), "source", source)
	return c.system.set(at)
}

// slight is how far a clock may be behind a signed time and still be right: that of
// a busy machine, or of who signs, is a few seconds off.
const slight = time.Minute

// Signed raises the floor to a time that was signed, and the clock with it where
// it lies below. An earlier time changes nothing.
func (c *Clock) Signed(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !at.After(c.floor) {
		return
	}
	c.floor, c.state.Floor = at, at
	behind := at.Sub(c.system.now())
	if behind <= 0 {
		return
	}
	if err := c.system.set(at); err != nil {
		c.log.Error("clock: not set to the newest signed time", "err", err)
		return
	}
	c.log.Info("clock: set", "to", at.UTC(), "source", "signed time")
	if behind < slight {
		return
	}
	c.state.Source = FromFloor
	select {
	case c.kick <- struct{}{}: // ask the servers again
	default:
	}
}

// State returns what is known now.
func (c *Clock) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// Known is false while the time is only the floor.
func (c *Clock) Known() bool { return c.State().Source != FromFloor }

// How often the servers are asked.
const (
	eager  = 15 * time.Second
	lazy   = 5 * time.Minute
	normal = 17 * time.Minute
)

// Run asks the time servers until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	for pause := eager; ; {
		switch known := c.round(ctx); {
		case known:
			pause = normal
		case pause == normal:
			pause = eager
		default:
			pause = min(2*pause, lazy)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		case <-c.kick:
			timer.Stop()
			pause = eager
		}
	}
}

// round asks once and says whether the time is known by it.
func (c *Clock) round(ctx context.Context) bool {
	var samples []Sample
	if c.options.Servers != nil {
		if servers := c.options.Servers(); len(servers) > 0 {
			samples = c.system.ask(ctx, servers)
		}
	}
	if ctx.Err() != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := Decide(c.system.now(), c.floor, samples)
	c.state.Disagree = d.Disagree
	if d.Known {
		c.move(d)
	}
	if d.Disagree != "" {
		c.options.Faults.Set(faults.New(faults.ClockDisagrees, d.Disagree))
	} else if d.Known {
		c.options.Faults.Clear(faults.ClockDisagrees)
	}
	if c.state.Source == FromFloor {
		c.options.Faults.Set(faults.New(faults.ClockFloor, c.floor.UTC().Format(time.DateOnly)))
	} else {
		c.options.Faults.Clear(faults.ClockFloor)
	}
	return d.Known
}

// move moves the clock, and the hardware clock with it. It is called with mu held.
func (c *Clock) move(d Decision) {
	var err error
	switch {
	case d.Offset == 0:
	case d.Slew:
		err = c.system.slew(d.Offset)
	default:
		now := c.system.now()
		c.log.Info("clock: set", "from", now.UTC(), "to", now.Add(d.Offset).UTC(), "source", FromNTP)
		err = c.system.set(now.Add(d.Offset))
	}
	if err != nil {
		c.log.Error("clock: not set", "by", d.Offset, "err", err)
		return
	}
	c.state.Source, c.state.Checked = FromNTP, c.system.now()
	if err := c.system.setRTC(c.system.now()); err != nil {
		c.log.Error("clock: the hardware clock is not set", "err", err)
	}
}
