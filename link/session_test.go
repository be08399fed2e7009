package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

func TestSessionCarriesStreamsBothWays(t *testing.T) {
	machine, hub := pair(t, Control)
	for _, c := range []struct {
		name       string
		from, into Session
	}{{"machine to hub", machine, hub}, {"hub to machine", hub, machine}} {
		t.Run(c.name, func(t *testing.T) {
			sent := make([]byte, 700<<10) // more than a window
			rand.Read(sent)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				stream, err := c.into.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer stream.Close()
				io.Copy(stream, stream)
			})
			stream, err := c.from.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			wg.Go(func() {
				stream.Write(sent)
				stream.(*Stream).CloseWrite()
			})
			got, err := io.ReadAll(stream)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, sent) {
				t.Errorf("got %d bytes, not the %d sent", len(got), len(sent))
			}
		})
	}
	if machine.Peer() == hub.Peer() {
		t.Error("both ends see the same peer")
	}
	a, err := machine.Exporter("EXPORTER-test", 32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := hub.Exporter("EXPORTER-test", 32)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the two ends export different secrets")
	}
	sentByMachine, _ := machine.Bytes()
	if _, receivedByHub := hub.Bytes(); sentByMachine < 700<<10 || receivedByHub < 700<<10 {
		t.Errorf("counted %d sent, %d received; want more than was sent", sentByMachine, receivedByHub)
	}
}

func TestSessionCloseLeavesNothing(t *testing.T) {
	h := newTestHub(t, Serve)
	machine, err := Dial(t.Context(), h.config(newTestIdentity(t), Control))
	if err != nil {
		t.Fatal(err)
	}
	hub := <-h.sessions
	var wg sync.WaitGroup
	wg.Go(func() { echo(hub) })
	stream, err := machine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "x")
	io.ReadFull(stream, make([]byte, 1))
	blocked := make(chan error)
	go func() {
		_, err := stream.Read(make([]byte, 1))
		blocked <- err
	}()
	machine.Close()
	wantError(t, <-blocked, ErrClosed)
	wantError(t, machine.Err(), ErrClosed)
	<-hub.Done()
	wantError(t, hub.Err(), ErrPeerClosed)
	if _, err := machine.Open(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("open after close: got %v, want ErrClosed", err)
	}
	if _, err := machine.Accept(); !errors.Is(err, ErrClosed) {
		t.Errorf("accept after close: got %v, want ErrClosed", err)
	}
	wg.Wait()
	hub.Close()
	h.listener.Close()
	wantNoGoroutines(t)
}

func TestSessionBoundsStreams(t *testing.T) {
	machine, hub := pair(t, Control)
	limit := classLimits(Control).streams
	var open []net.Conn
	for range limit {
		stream, err := machine.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, stream)
		if _, err := hub.Accept(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := machine.Open(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("stream %d: got %v, want to wait", limit+1, err)
	}
	open[0].Close()
	if _, err := machine.Open(t.Context()); err != nil {
		t.Fatalf("after one was closed: %v", err)
	}
}

func TestQuarantinedPeerIsCut(t *testing.T) {
	h := newTestHub(t, ServeQuarantined)
	machine, err := Dial(t.Context(), h.config(newTestIdentity(t), Control))
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	hub := <-h.sessions
	defer hub.Close()
	go echo(hub)
	stream, err := machine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stream.Write(make([]byte, 100<<10))
	<-hub.Done()
	wantError(t, hub.Err(), ErrFlood)
}

func TestPingFloodIsCut(t *testing.T) {
	machine, hub := pair(t, Control)
	raw := machine.(*session).tls
	ping := make([]byte, frameHeader)
	ping[1] = framePing
	binary.BigEndian.PutUint16(ping[2:], flagSYN)
	for range 10 * pingBurst {
		raw.Write(ping) // fails once the hub has cut
	}
	<-hub.Done()
	wantError(t, hub.Err(), ErrFlood)
}

// frozenPair is a session through a relay that, once frozen, passes nothing and
// says nothing, as a link does whose far end vanished. (No bubble: yamux shares
// its timers between all sessions of a process.)
func frozenPair(t *testing.T) (machine, hub *session, freeze func()) {
	t.Helper()
	h := newTestHub(t, Serve)
	frozen := make(chan struct{})
	config := h.config(newTestIdentity(t), Control)
	config.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return &freezer{Conn: conn, frozen: frozen, closed: make(chan struct{})}, err
	}
	m, err := Dial(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s := <-h.sessions
	t.Cleanup(func() { m.Close(); s.Close() })
	return m.(*session), s.(*session), func() { close(frozen) }
}

type freezer struct {
	net.Conn
	frozen, closed chan struct{}
	once           sync.Once
}

func (f *freezer) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	select {
	case <-f.frozen:
		<-f.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (f *freezer) Write(b []byte) (int, error) {
	select {
	case <-f.frozen:
		return len(b), nil // into the kernel's buffer, and no further
	default:
		return f.Conn.Write(b)
	}
}

func (f *freezer) Close() error {
	f.once.Do(func() { close(f.closed) })
	select {
	case <-f.frozen:
		return f.Conn.SetReadDeadline(time.Unix(1, 0)) // the peer never hears of it
	default:
		return f.Conn.Close()
	}
}

func TestVanishedPeerIsNoticed(t *testing.T) {
	machine, hub, freeze := frozenPair(t)
	const period, patience, limit = 150 * time.Millisecond, 300 * time.Millisecond, time.Second
	machine.start(func() { machine.keepalive(period, patience) })
	hub.watchSilence(limit, limit)
	time.Sleep(2 * limit)
	if err := errors.Join(machine.Err(), hub.Err()); err != nil {
		t.Fatalf("an idle session ended: %v", err)
	}
	freeze()
	begun := time.Now()
	<-machine.Done()
	wantError(t, machine.Err(), ErrSilent)
	if took := time.Since(begun); took > 2*(period+patience) {
		t.Errorf("machine noticed after %s", took)
	}
	<-hub.Done()
	wantError(t, hub.Err(), ErrSilent)
	if took := time.Since(begun); took > 2*limit {
		t.Errorf("hub noticed after %s", took)
	}
}

func TestIdleMachineIsCheap(t *testing.T) {
	machine, hub := pair(t, Control)
	ping := func() { // and hear the answer
		if _, err := machine.(*session).mux.Ping(); err != nil {
			t.Fatal(err)
		}
	}
	ping()
	before := total(machine)
	ping()
	const packets, header = 3, 52 // ping, answer, acknowledgement; IPv4 and TCP with time stamps
	perDay := (total(machine) - before + packets*header) * uint64(24*time.Hour/KeepalivePeriod)
	t.Logf("an idle machine costs %d kB a day", perDay/1000)
	if perDay > 300_000 {
		t.Errorf("an idle machine costs %d bytes a day, want at most 300 kB", perDay)
	}
	if hub.Err() != nil {
		t.Error(hub.Err())
	}
}

func total(s Session) uint64 {
	sent, received := s.Bytes()
	return sent + received
}

func TestProbe(t *testing.T) {
	machine, _, freeze := frozenPair(t)
	machine.probe(5 * time.Second)
	if err := machine.Err(); err != nil {
		t.Fatalf("a living session did not survive a probe: %v", err)
	}
	freeze()
	machine.Probe(100 * time.Millisecond)
	<-machine.Done()
	wantError(t, machine.Err(), ErrSilent)
}
