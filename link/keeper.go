package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Hub is a place that a Keeper dials.
type Hub struct {
	Address    string // host:port
	ServerName string // see DialConfig
	Pins       []Pin
}

// KeeperConfig says how a machine stays in touch.
type KeeperConfig struct {
	Identity *Identity
	// Hubs is asked before each dial, since a release may change the answer; they
	// are tried in turn. While it returns none the Keeper waits for Redial.
	Hubs func() []Hub
	// Proxy returns the CONNECT proxy to use; nil or empty: none.
	Proxy func() string
	// Greet runs when a control session was dialed, with its streams being served
	// already: it says hello. Its error ends the session and counts as a failed
	// dial. Nil: nothing is said.
	Greet func(ctx context.Context, s Session) error
	// Serve answers the streams that the hub opens, on sessions of every class,
	// until the session or ctx ends. Nil: sessions only open streams.
	Serve func(ctx context.Context, s Session)
	// State is told each change, one call at a time; it must not wait for the
	// Keeper. Nil: nobody is told.
	State func(State)

	LeastWait time.Duration // ceiling of the first back-off; default 1 s
	MostWait  time.Duration // ceiling of all; default 60 s
	IdleAfter time.Duration // bulk and relay close when unused so long; default 60 s
	// ProbePatience is what Redial grants a living session to show that it lives;
	// default 5 s.
	ProbePatience time.Duration

	Log  *slog.Logger                                             // nil: slog.Default
	Dial func(ctx context.Context, c DialConfig) (Session, error) // nil: Dial
}

// State is what a Keeper tells of the control session.
type State struct {
	Connected bool
	Hub       string        // address, of the session or of the failed dial
	Peer      Pin           // while connected
	Since     time.Time     // of this state
	Err       error         // why not connected; nil before the first dial
	Failures  int           // dials failed in a row
	Retry     time.Duration // how long until the next dial
}

// Keeper keeps a machine's control session alive and dials bulk and relay when
// they are needed. Use NewKeeper; Run does the work.
type Keeper struct {
	config KeeperConfig
	redial chan struct{} // holds one wish
	bulk   onDemand
	relay  onDemand

	mu      sync.Mutex
	control Session       // nil while there is none; guarded by mu
	hub     Hub           // of control; guarded by mu
	changed chan struct{} // closed and replaced when control changes; guarded by mu
}

// NewKeeper fills in defaults. It dials nothing.
func NewKeeper(config KeeperConfig) *Keeper {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&config.LeastWait, time.Second)
	set(&config.MostWait, time.Minute)
	set(&config.IdleAfter, time.Minute)
	set(&config.ProbePatience, 5*time.Second)
	if config.Log == nil {
		config.Log = slog.Default()
	}
	if config.Dial == nil {
		config.Dial = Dial
	}
	if config.Proxy == nil {
		config.Proxy = func() string { return "" }
	}
	if config.State == nil {
		config.State = func(State) {}
	}
	k := &Keeper{config: config, redial: make(chan struct{}, 1), changed: make(chan struct{})}
	k.bulk = onDemand{keeper: k, class: Bulk, turn: make(chan struct{}, 1)}
	k.relay = onDemand{keeper: k, class: Relay, turn: make(chan struct{}, 1)}
	return k
}

// Run keeps the control session until ctx ends, then closes every session and
// waits for what served them.
func (k *Keeper) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, d := range []*onDemand{&k.bulk, &k.relay} {
		serving.Go(func() { d.run(ctx) })
	}
	wait := backoff{least: k.config.LeastWait, most: k.config.MostWait}
	for turn := 0; ; turn++ {
		hub, err := k.session(ctx, turn, &wait)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		pause := wait.next()
		k.config.Log.Info("link is down", "hub", hub, "err", err, "retry", pause)
		k.config.State(State{Hub: hub, Since: time.Now(), Err: err, Failures: wait.failures, Retry: pause})
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-k.redial:
			wait.reset()
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

var errNoHub = errors.New("no hub is known")

// settled is how long a session must live before its end is forgiven: a hub
// that greets and hangs up is a failing hub.
const settled = 30 * time.Second

// session dials, greets and waits for the end of one control session.
func (k *Keeper) session(ctx context.Context, turn int, wait *backoff) (address string, err error) {
	hubs := k.config.Hubs()
	if len(hubs) == 0 {
		return "", errNoHub
	}
	hub := hubs[turn%len(hubs)]
	s, err := k.dial(ctx, hub, Control)
	if err != nil {
		return hub.Address, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer s.Close()
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if k.config.Serve != nil {
		serving.Go(func() { k.config.Serve(ctx, s) })
	}
	if k.config.Greet != nil {
		if err := k.config.Greet(ctx, s); err != nil {
			if reason := s.Err(); reason != nil {
				err = fmt.Errorf("%w (%w)", err, reason)
			}
			return hub.Address, fmt.Errorf("greet %s: %w", hub.Address, err)
		}
	}
	begun := time.Now()
	k.set(s, hub)
	defer k.set(nil, Hub{})
	k.config.Log.Info("link is up", "hub", hub.Address, "peer", s.Peer())
	k.config.State(State{Connected: true, Hub: hub.Address, Peer: s.Peer(), Since: begun})
	for {
		select {
		case <-k.redial:
			s.Probe(k.config.ProbePatience)
			k.bulk.probe()
			k.relay.probe()
			continue
		case <-s.Done():
		}
		if time.Since(begun) >= settled {
			wait.reset()
		}
		return hub.Address, s.Err()
	}
}

func (k *Keeper) dial(ctx context.Context, hub Hub, class Class) (Session, error) {
	return k.config.Dial(ctx, DialConfig{
		Address:    hub.Address,
		ServerName: hub.ServerName,
		Pins:       hub.Pins,
		Class:      class,
		Identity:   k.config.Identity,
		Proxy:      k.config.Proxy(),
	})
}

func (k *Keeper) set(s Session, hub Hub) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.control, k.hub = s, hub
	close(k.changed)
	k.changed = make(chan struct{})
}

// Redial is for when the network changed: a waiting Keeper dials at once, a
// connected one asks the hub for a sign of life and dials if none comes.
func (k *Keeper) Redial() {
	select {
	case k.redial <- struct{}{}:
	default:
	}
}

// Control is the control session, waited for until ctx ends.
func (k *Keeper) Control(ctx context.Context) (Session, error) {
	s, _, err := k.current(ctx)
	return s, err
}

func (k *Keeper) current(ctx context.Context) (Session, Hub, error) {
	for {
		k.mu.Lock()
		s, hub, changed := k.control, k.hub, k.changed
		k.mu.Unlock()
		if s != nil && s.Err() == nil {
			return s, hub, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, Hub{}, fmt.Errorf("wait for the hub: %w", context.Cause(ctx))
		}
	}
}

// OpenControl opens a stream on the control session; it fits Client.
func (k *Keeper) OpenControl(ctx context.Context) (net.Conn, error) {
	s, err := k.Control(ctx)
	if err != nil {
		return nil, err
	}
	return s.Open(ctx)
}

// OpenBulk opens a stream on the bulk session, which it dials if need be, to the
// hub of the control session. It fits Client.
func (k *Keeper) OpenBulk(ctx context.Context) (net.Conn, error) { return k.bulk.open(ctx) }

// Relay sees to it that a relay session is open, as the hub asked.
func (k *Keeper) Relay(ctx context.Context) (Session, error) { return k.relay.get(ctx) }

// onDemand is a session that is dialed when it is asked for and closed when it
// was idle.
type onDemand struct {
	keeper *Keeper
	class  Class
	turn   chan struct{} // one dials at a time; who waits can give up

	mu      sync.Mutex
	ctx     context.Context // of the Keeper's Run; nil before; guarded by mu
	session Session         // guarded by mu
	serving sync.WaitGroup  // grows under mu while ctx lives
}

// run lends the Keeper's life to the session.
func (d *onDemand) run(ctx context.Context) {
	d.mu.Lock()
	d.ctx = ctx
	d.mu.Unlock()
	<-ctx.Done()
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s != nil {
		s.Close()
	}
	d.serving.Wait()
}

func (d *onDemand) probe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil {
		d.session.Probe(d.keeper.config.ProbePatience)
	}
}

func (d *onDemand) open(ctx context.Context) (net.Conn, error) {
	for attempt := 0; ; attempt++ {
		s, err := d.get(ctx)
		if err != nil {
			return nil, err
		}
		conn, err := s.Open(ctx)
		// The session may have been closed as idle since it was got.
		if err == nil || ctx.Err() != nil || s.Err() == nil || attempt == 2 {
			return conn, err
		}
	}
}

func (d *onDemand) living() Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == nil || d.session.Err() != nil {
		return nil
	}
	return d.session
}

func (d *onDemand) get(ctx context.Context) (Session, error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w", d.class, context.Cause(ctx))
	}
	if s := d.living(); s != nil {
		return s, nil
	}
	_, hub, err := d.keeper.current(ctx)
	if err != nil {
		return nil, err
	}
	s, err := d.keeper.dial(ctx, hub, d.class)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil || d.ctx.Err() != nil {
		s.Close()
		return nil, fmt.Errorf("dial %s: %w", d.class, ErrClosed)
	}
	d.session = s
	d.serving.Go(func() { d.serve(d.ctx, s) })
	return s, nil
}

// serve answers the session's streams and closes it once it is idle.
func (d *onDemand) serve(ctx context.Context, s Session) {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer s.Close()
	defer cancel()
	if d.keeper.config.Serve != nil {
		serving.Go(func() { d.keeper.config.Serve(ctx, s) })
	}
	ticker := time.NewTicker(d.keeper.config.IdleAfter)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.Done():
			return
		case <-ticker.C:
			if s.Idle() >= d.keeper.config.IdleAfter {
				return
			}
		}
	}
}
