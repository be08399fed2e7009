package link

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// fakeSession is a session over nothing, for bubbles.
type fakeSession struct {
	class   Class
	done    chan struct{}
	mu      sync.Mutex // guards all below
	err     error
	opened  time.Time
	streams int
	dead    bool // does not answer probes
}

func newFakeSession(class Class) *fakeSession {
	return &fakeSession{class: class, done: make(chan struct{}), opened: time.Now()}
}

func (s *fakeSession) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.done)
	}
}

func (s *fakeSession) Open(context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.streams++
	a, b := net.Pipe()
	b.Close()
	return a, nil
}
func (s *fakeSession) Accept() (net.Conn, error) { return s.AcceptContext(context.Background()) }
func (s *fakeSession) AcceptContext(ctx context.Context) (net.Conn, error) {
	select {
	case <-s.done:
	case <-ctx.Done():
	}
	return nil, ErrClosed
}
func (s *fakeSession) Close() error          { s.end(ErrClosed); return nil }
func (s *fakeSession) Done() <-chan struct{} { return s.done }
func (s *fakeSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
func (s *fakeSession) Class() Class             { return s.class }
func (s *fakeSession) Peer() Pin                { return Pin{} }
func (s *fakeSession) Machine() fleet.MachineID { return "" }
func (s *fakeSession) PeerSPKI() []byte         { return nil }
func (s *fakeSession) RemoteAddr() net.Addr     { return &net.TCPAddr{} }
func (s *fakeSession) Bytes() (uint64, uint64)  { return 0, 0 }
func (s *fakeSession) Streams() int             { s.mu.Lock(); defer s.mu.Unlock(); return s.streams }
func (s *fakeSession) Idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams > 0 {
		return 0
	}
	return time.Since(s.opened)
}
func (s *fakeSession) Exporter(string, int) ([]byte, error) { return nil, nil }
func (s *fakeSession) Probe(patience time.Duration) {
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	if dead {
		time.AfterFunc(patience, func() { s.end(ErrSilent) })
	}
}

// bench runs a Keeper whose dials a test answers.
type bench struct {
	*Keeper
	mu     sync.Mutex // guards all below
	dials  []time.Time
	hubs   []string
	states []State
	last   map[Class]*fakeSession
	fail   error // of dials
}

var oneHub = func() []Hub { return []Hub{{Address: "hub:443"}} }

func runKeeper(t *testing.T, config KeeperConfig) (*bench, func()) {
	b := &bench{last: make(map[Class]*fakeSession)}
	config.Log = slog.New(slog.DiscardHandler)
	if config.Hubs == nil {
		config.Hubs = oneHub
	}
	config.State = func(s State) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.states = append(b.states, s)
	}
	config.Dial = func(ctx context.Context, c DialConfig) (Session, error) {
		time.Sleep(100 * time.Millisecond)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.dials = append(b.dials, time.Now())
		b.hubs = append(b.hubs, c.Address)
		if b.fail != nil {
			return nil, b.fail
		}
		b.last[c.Class] = newFakeSession(c.Class)
		return b.last[c.Class], nil
	}
	b.Keeper = NewKeeper(config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	}()
	return b, func() { cancel(); <-done }
}

func (b *bench) setFail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *bench) session(c Class) *fakeSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last[c]
}

func (b *bench) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.dials)
}

func (b *bench) state() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.states) == 0 {
		return State{}
	}
	return b.states[len(b.states)-1]
}

func TestBackoffIsFullJitter(t *testing.T) {
	var ceilings []time.Duration
	b := backoff{least: time.Second, most: time.Minute, draw: func(n int64) int64 {
		ceilings = append(ceilings, time.Duration(n-1))
		return n - 1
	}}
	for range 70 {
		b.next()
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		if ceilings[i] != want*time.Second {
			t.Errorf("ceiling %d is %s, want %s", i, ceilings[i], want*time.Second)
		}
	}
	if last := ceilings[69]; last != time.Minute {
		t.Errorf("ceiling after many failures is %s", last)
	}
	b.reset()
	if b.next(); ceilings[70] != time.Second {
		t.Errorf("ceiling after reset is %s", ceilings[70])
	}
}

func TestKeeperComesBackWithinAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := runKeeper(t, KeeperConfig{})
		defer stop()
		b.setFail(errors.New("no route"))
		time.Sleep(12 * time.Hour) // a night without uplink
		n := b.count()
		if n < 12*60/2 || n > 12*60*4 {
			t.Errorf("%d dials in 12 hours without uplink", n)
		}
		if s := b.state(); s.Connected || s.Failures == 0 || s.Err == nil {
			t.Errorf("state %+v", s)
		}
		b.setFail(nil)
		time.Sleep(61 * time.Second)
		if s := b.state(); !s.Connected || s.Hub != "hub:443" {
			t.Errorf("a minute after the hub is back: %+v", s)
		}
		if _, err := b.Control(t.Context()); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		begun := time.Now()
		b.session(Control).end(ErrPeerClosed) // the hub restarts
		for {
			time.Sleep(10 * time.Millisecond)
			if b.state().Connected {
				break
			}
		}
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("after a long session the first wait was %s", took)
		}
	})
}

func TestKeeperRedialsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := runKeeper(t, KeeperConfig{LeastWait: time.Hour, MostWait: time.Hour})
		defer stop()
		b.setFail(errors.New("no route"))
		time.Sleep(time.Second)
		b.setFail(nil)
		b.Redial() // while waiting
		time.Sleep(time.Second)
		if !b.state().Connected {
			t.Fatal("not connected a second after Redial")
		}
		before := b.count()
		b.Redial() // while connected and well
		time.Sleep(time.Minute)
		if b.count() != before {
			t.Error("a living session was given up")
		}
		first := b.session(Control)
		first.mu.Lock()
		first.dead = true
		first.mu.Unlock()
		b.Redial() // while connected to a hub that the new network cannot reach
		time.Sleep(6 * time.Second)
		if first.Err() == nil {
			t.Error("a dead session was kept")
		}
	})
}

func TestKeeperTriesHubsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := runKeeper(t, KeeperConfig{Hubs: func() []Hub { return []Hub{{Address: "a:443"}, {Address: "b:443"}} }})
		defer stop()
		b.setFail(errors.New("refused"))
		time.Sleep(10 * time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		if got := strings.Join(b.hubs[:4], " "); got != "a:443 b:443 a:443 b:443" {
			t.Errorf("dialed %s", got)
		}
	})
}

func TestKeeperDistrustsAHubThatHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, stop := runKeeper(t, KeeperConfig{Greet: func(context.Context, Session) error { return errors.New("go away") }})
		defer stop()
		time.Sleep(time.Hour)
		if n := b.count(); n > 4*60 {
			t.Errorf("%d dials in an hour", n)
		}
		if s := b.state(); s.Connected || !strings.Contains(s.Err.Error(), "go away") {
			t.Errorf("state %+v", s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := b.OpenBulk(ctx)
		wantError(t, err, context.DeadlineExceeded)
	})
}

func TestKeeperDialsOnDemandAndHangsUpIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		served := map[Class]int{}
		b, stop := runKeeper(t, KeeperConfig{Serve: func(ctx context.Context, s Session) {
			mu.Lock()
			served[s.Class()]++
			mu.Unlock()
			<-s.Done()
		}})
		defer stop()
		time.Sleep(time.Second)
		if n := b.count(); n != 1 {
			t.Fatalf("%d dials before anything was asked for", n)
		}
		var wg sync.WaitGroup
		for range 10 { // at the same time: one dial
			wg.Go(func() {
				if _, err := b.OpenBulk(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		relay, err := b.Relay(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := b.count(); n != 3 {
			t.Fatalf("%d dials, want one per class", n)
		}
		bulk := b.session(Bulk)
		time.Sleep(time.Hour)
		if bulk.Err() != nil {
			t.Error("bulk was closed while streams were open")
		}
		if relay.Err() == nil {
			t.Error("relay was not closed though nobody used it")
		}
		bulk.mu.Lock()
		bulk.streams = 0
		bulk.mu.Unlock()
		time.Sleep(3 * time.Minute)
		if bulk.Err() == nil {
			t.Error("bulk was not closed though nobody used it")
		}
		if _, err := b.OpenBulk(t.Context()); err != nil { // and again
			t.Error(err)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if served[Control] != 1 || served[Bulk] != 2 || served[Relay] != 1 {
			t.Errorf("served %v", served)
		}
	})
}

func TestKeeperOnTheRealThing(t *testing.T) {
	h := newTestHub(t, Serve)
	greeted := make(chan struct{}, 8)
	k := NewKeeper(KeeperConfig{
		Identity:  newTestIdentity(t),
		Hubs:      func() []Hub { return []Hub{{Address: h.listener.Addr().String(), Pins: []Pin{h.id.Pin()}}} },
		LeastWait: time.Millisecond,
		Greet: func(ctx context.Context, s Session) error {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+Host+"/v1/hello", nil)
			if err != nil {
				return err
			}
			response, err := Client(s.Open, 0).Do(r)
			if err != nil {
				return err
			}
			greeted <- struct{}{}
			return response.Body.Close()
		},
		Serve: func(ctx context.Context, s Session) {
			ServeHTTP(ctx, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "machine") }))
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan struct{})
	go func() { defer close(running); k.Run(ctx) }()
	var hubs []Session
	for range 3 { // the hub restarts twice
		s := <-h.sessions
		hubs = append(hubs, s)
		go ServeHTTP(ctx, s, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }))
		<-greeted
		response, err := Client(s.Open, 0).Get("http://" + Host + "/")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(response.Body); string(got) != "machine" {
			t.Errorf("got %q", got)
		}
		response.Body.Close()
		if len(hubs) < 3 {
			s.Close()
		}
	}
	bulk := make(chan Session, 1)
	go func() { s := <-h.sessions; bulk <- s; echo(s) }()
	stream, err := k.OpenBulk(ctx)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "x")
	if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	cancel()
	<-running
	for _, s := range append(hubs, <-bulk) {
		s.Close()
	}
	h.listener.Close()
	wantNoGoroutines(t)
}
