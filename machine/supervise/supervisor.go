package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// Config of a Supervisor.
type Config struct {
	Backoff   Backoff
	CrashLoop CrashLoop
	LogDir    string // NAME.log of each child goes here; empty: output is kept only for Exit.Output
	LogSize   int64  // bytes of one log file before it is set aside; default 4 MiB
	LogFiles  int    // how many are kept besides the current one; default 2
	Cgroup    string // parent of the children's groups, from the root of the hierarchies that this process sees
	Log       *slog.Logger
	OnExit    func(name string, e Exit) // called in order, once for each end; must not block
}

// launcher starts processes; tests have one without processes.
type launcher interface {
	launch(spec Child) (process, error)
}

type process interface {
	pid() int
	signal(spec Child, kill bool)
	wait() Exit // once
}

// Supervisor runs children. Make one with New.
type Supervisor struct {
	config   Config
	launcher launcher
	events   chan event
	ended    chan struct{} // Run has returned

	// Owned by Run.
	core  core
	procs map[string]*running

	mu      sync.Mutex
	status  []Status
	changed chan struct{}
	began   bool
}

// running is a started process and what belongs to it.
type running struct {
	process process
	run     int
	cancel  context.CancelFunc // ends its probe
}

// ErrNotRunning is returned by what needs Run when Run has ended.
var ErrNotRunning = errors.New("the supervisor has ended")

// New makes a supervisor without children.
func New(c Config) *Supervisor { return build(c, newRealLauncher) }

func build(c Config, l func(Config) launcher) *Supervisor {
	c.Backoff.Min = cmp.Or(c.Backoff.Min, 100*time.Millisecond)
	c.Backoff.Max = cmp.Or(c.Backoff.Max, 30*time.Second)
	c.Backoff.Reset = cmp.Or(c.Backoff.Reset, time.Minute)
	c.CrashLoop.Exits = cmp.Or(c.CrashLoop.Exits, 5)
	c.CrashLoop.Window = cmp.Or(c.CrashLoop.Window, 5*time.Minute)
	c.LogSize = cmp.Or(c.LogSize, 4<<20)
	c.LogFiles = cmp.Or(c.LogFiles, 2)
	c.Log = cmp.Or(c.Log, slog.Default())
	return &Supervisor{
		config:   c,
		launcher: l(c),
		events:   make(chan event, 64),
		ended:    make(chan struct{}),
		core:     core{backoff: c.Backoff, loop: c.CrashLoop, random: rand.Float64},
		procs:    map[string]*running{},
		changed:  make(chan struct{}),
	}
}

// Run keeps the children running until ctx ends, then stops them in reverse order, each within its grace, and returns when the last is gone.
func (s *Supervisor) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.began {
		s.mu.Unlock()
		return errors.New("supervise: Run was called twice")
	}
	s.began = true
	s.mu.Unlock()
	defer close(s.ended)
	var helpers sync.WaitGroup // probes and waiters
	defer helpers.Wait()
	if os.Getpid() == 1 { // the machine's orphans are ours to bury; children that somebody waits for are not touched
		reaping, stop := context.WithCancel(context.Background())
		defer stop()
		helpers.Go(func() { spawn.Reap(reaping) })
	}
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	end := ctx.Done()
	for !s.core.done() {
		var e event = evTick{}
		select {
		case <-end:
			e, end = evStop{}, nil
		case e = <-s.events:
		case <-alarm.C:
		}
		s.take(e, &helpers)
		if t := s.core.wake(); !t.IsZero() {
			alarm.Reset(time.Until(t))
		} else {
			alarm.Stop()
		}
	}
	return nil
}

// take steps the core and does what it says; a start may bring events of its own at once.
func (s *Supervisor) take(e event, helpers *sync.WaitGroup) {
	for queue := []event{e}; len(queue) > 0; queue = queue[1:] {
		if x, ok := queue[0].(evExited); ok {
			s.bury(x)
		}
		for _, do := range s.core.step(time.Now(), queue[0]) {
			if answer := s.perform(do, helpers); answer != nil {
				queue = append(queue, answer)
			}
		}
		s.announce(queue[0])
	}
}

// bury forgets the process, so that a late signal cannot reach another with its number.
func (s *Supervisor) bury(x evExited) {
	if r := s.procs[x.name]; r != nil && r.run == x.run {
		r.cancel()
		delete(s.procs, x.name)
	}
}

func (s *Supervisor) perform(do effect, helpers *sync.WaitGroup) event {
	if do.do == doStart {
		return s.start(do, helpers)
	}
	if r := s.procs[do.name]; r != nil && r.run == do.run {
		r.cancel()
		r.process.signal(do.spec, do.do == doKill)
		if do.do == doKill {
			s.config.Log.Warn("child did not end in time and is killed", "child", do.name, "grace", do.spec.grace())
		}
	}
	return nil
}

func (s *Supervisor) start(do effect, helpers *sync.WaitGroup) event {
	p, err := s.launcher.launch(do.spec)
	if err != nil {
		return evExited{do.name, do.run, Exit{Code: -1, Reason: err.Error()}}
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.procs[do.name] = &running{p, do.run, cancel}
	helpers.Go(func() {
		exit := p.wait()
		s.events <- evExited{do.name, do.run, exit} // Run reads until every process has ended
	})
	if do.spec.Ready != nil {
		helpers.Go(func() {
			if probe(ctx, do.spec.Ready) {
				select {
				case s.events <- evReady{do.name, do.run}:
				case <-ctx.Done():
				}
			}
		})
	}
	return evStarted{do.name, do.run, p.pid()}
}

// probe asks until the answer is yes: often at first, since start-up time is felt, later each second.
func probe(ctx context.Context, ready func(context.Context) error) bool {
	for pause := 10 * time.Millisecond; ctx.Err() == nil; pause = min(pause*3/2, time.Second) {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := ready(try)
		cancel()
		if err == nil {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return false
}

// announce publishes the state after an event.
func (s *Supervisor) announce(e event) {
	now := s.core.status(time.Now())
	s.mu.Lock()
	s.status = now
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	switch e := e.(type) {
	case evStarted:
		s.config.Log.Debug("child started", "child", e.name, "pid", e.pid)
	case evReady:
		s.config.Log.Debug("child ready", "child", e.name)
	case evExited:
		s.announceExit(e, now)
	}
}

func (s *Supervisor) announceExit(e evExited, now []Status) {
	exit := e.exit
	exit.Expected = true // who is not in the set any more was asked to go
	if i := slices.IndexFunc(now, func(x Status) bool { return x.Name == e.name }); i >= 0 && now[i].LastExit != nil {
		exit = *now[i].LastExit
		if !exit.Expected {
			s.config.Log.Warn("child ended", "child", e.name, "how", exit.String(), "output", exit.Output, "crashes", now[i].Crashes, "loop", now[i].CrashLoop)
		}
	}
	if s.config.OnExit != nil {
		s.config.OnExit(e.name, exit)
	}
}

// Apply makes the children of the list those that run: new ones start, missing ones stop, changed ones restart, the others are not touched. It returns when
// the supervisor has taken note; see WaitReady.
func (s *Supervisor) Apply(ctx context.Context, children []Child) error {
	if err := check(children); err != nil {
		return err
	}
	return s.send(ctx, evApply{slices.Clone(children)})
}

// Restart stops a child and starts it again at once.
func (s *Supervisor) Restart(ctx context.Context, name string) error {
	return s.send(ctx, evRestart{name})
}

// Alive returns nil when the supervisor has handled an event since the call: its
// loop goes round.
func (s *Supervisor) Alive(ctx context.Context) error {
	changed := s.Changed()
	if err := s.send(ctx, evTick{}); err != nil {
		return err
	}
	select {
	case <-changed:
		return nil
	case <-s.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Supervisor) send(ctx context.Context, e event) error {
	select {
	case <-s.ended:
		return ErrNotRunning
	default:
	}
	select {
	case s.events <- e:
		return nil
	case <-s.ended:
		return ErrNotRunning
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check refuses what could never start.
func check(children []Child) error {
	after := map[string][]string{}
	for _, c := range children {
		if c.Name == "" || c.Path == "" {
			return fmt.Errorf("child %q: name and path are needed", c.Name)
		}
		if _, twice := after[c.Name]; twice {
			return fmt.Errorf("child %s: named twice", c.Name)
		}
		after[c.Name] = c.After
	}
	var path []string
	var visit func(string) error
	visit = func(name string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("child %s: comes after itself: %v", name, append(path, name))
		}
		path = append(path, name)
		for _, a := range after[name] {
			if err := visit(a); err != nil {
				return err
			}
		}
		path = path[:len(path)-1]
		return nil
	}
	for _, c := range children {
		if err := visit(c.Name); err != nil {
			return err
		}
	}
	return nil
}

// Status of every child, in the order of the list.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.status)
}

// Changed is closed at the next change of any status. Take it before Status, so that no change is missed.
func (s *Supervisor) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// WaitReady returns when all the named children are Running. When ctx ends first the error tells what each waits for.
func (s *Supervisor) WaitReady(ctx context.Context, names ...string) error {
	for {
		changed := s.Changed()
		missing := s.missing(names)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-s.ended:
			return ErrNotRunning
		case <-ctx.Done():
			return fmt.Errorf("wait for %v: %w", missing, ctx.Err())
		}
	}
}

func (s *Supervisor) missing(names []string) []string {
	var missing []string
	status := s.Status()
	for _, n := range names {
		i := slices.IndexFunc(status, func(x Status) bool { return x.Name == n })
		switch {
		case i < 0:
			missing = append(missing, n+" (unknown)")
		case status[i].State != Running && status[i].LastExit != nil:
			missing = append(missing, fmt.Sprintf("%s (%s, last: %s)", n, status[i].State, status[i].LastExit))
		case status[i].State != Running:
			missing = append(missing, fmt.Sprintf("%s (%s)", n, status[i].State))
		}
	}
	return missing
}
