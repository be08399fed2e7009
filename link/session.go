package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Session is one authenticated connection of one class, cut into streams. All
// methods may be called at the same time.
type Session interface {
	// Open starts a stream to the peer. It waits, until ctx ends, while as many
	// streams are open as the class allows.
	Open(ctx context.Context) (net.Conn, error)
	// Accept waits for a stream that the peer opened; it returns an error once
	// the session has ended. AcceptContext also ends with ctx.
	Accept() (net.Conn, error)
	AcceptContext(ctx context.Context) (net.Conn, error)
	// Close ends the session and all its streams, and waits for its goroutines.
	Close() error
	// Done is closed when the session has ended; Err then says why.
	Done() <-chan struct{}
	// Err is nil while the session lives.
	Err() error

	Class() Class
	// Peer is the pin of the peer's identity key, Machine the same key's ID.
	Peer() Pin
	Machine() fleet.MachineID
	PeerSPKI() []byte
	RemoteAddr() net.Addr
	// Bytes counts what passed below TLS, handshake included.
	Bytes() (sent, received uint64)
	// Streams counts the open ones, both ways. Idle is nothing while there are
	// any, else the time since the last was closed.
	Streams() int
	Idle() time.Duration
	// Exporter derives a secret that only the two ends of this connection know.
	Exporter(label string, length int) ([]byte, error)
	// Probe asks the peer for a sign of life and ends the session when none
	// comes within patience.
	Probe(patience time.Duration)
}

// Sign of life. Only the machine, which knows its NAT, sends keepalives; the
// hub cuts what it has not heard for SilenceLimit. Both count any byte.
const (
	KeepalivePeriod  = 2 * time.Minute
	KeepalivePatient = time.Minute
	SilenceLimit     = 2*KeepalivePeriod + KeepalivePatient
)

// Why a session ended.
var (
	ErrClosed     = errors.New("session is closed")
	ErrPeerClosed = errors.New("peer closed the session")
	ErrSilent     = errors.New("peer is silent")
)

// Serve makes a handshaken server-side connection a Session.
func Serve(conn *tls.Conn) (Session, error) { return serve(conn, classLimits) }

// ServeQuarantined is Serve for a peer whose key is not known: two streams,
// 64 KiB at once, 256 bytes per second after that.
func ServeQuarantined(conn *tls.Conn) (Session, error) {
	return serve(conn, func(Class) limits { return quarantineLimits() })
}

func serve(conn *tls.Conn, limit func(Class) limits) (Session, error) {
	cs := conn.ConnectionState()
	class := Class(cs.NegotiatedProtocol)
	if !cs.HandshakeComplete || !class.machines() {
		return nil, fmt.Errorf("serve %s: %w: %q carries no streams", conn.RemoteAddr(), ErrALPN, class)
	}
	spki, err := identityOf(cs.PeerCertificates, false)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", conn.RemoteAddr(), err)
	}
	s, err := newSession(conn, class, spki, limit(class), false)
	if err != nil {
		return nil, err
	}
	s.watchSilence(SilenceLimit, SilenceLimit)
	return s, nil
}

// session is the one Session: yamux over TLS over TCP.
type session struct {
	tls   *tls.Conn
	wire  *countedConn // below tls; nil counts nothing
	mux   *yamux.Session
	class Class
	spki  []byte

	outgoing, incoming chan struct{} // one token per open stream
	open               atomic.Int32
	began              time.Time
	lastUse            atomic.Int64 // since began, when a stream last opened or closed

	mu         sync.Mutex
	err        error          // first reason to end; guarded by mu
	closing    bool           // no goroutine starts any more; guarded by mu
	background sync.WaitGroup // grows under mu, while not closing
	watch      *time.Timer    // guarded by mu
}

// newSession takes over conn, and closes it on error.
func newSession(conn *tls.Conn, class Class, spki []byte, l limits, client bool) (*session, error) {
	wire, _ := conn.NetConn().(*countedConn)
	s := &session{
		tls: conn, wire: wire, class: class, spki: spki,
		began:    time.Now(),
		outgoing: make(chan struct{}, l.streams),
		incoming: make(chan struct{}, l.streams),
	}
	start := yamux.Server
	if client {
		start = yamux.Client
	}
	mux, err := start(&reasoned{frames: newFrames(conn, l), session: s}, muxConfig(l))
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start session: %w", err)
	}
	s.mux = mux
	if wire != nil {
		tuneTCP(wire.Conn)
	}
	return s, nil
}

// reasoned remembers why reading ended, which yamux would replace by words of
// its own.
type reasoned struct {
	*frames
	session *session
}

func (r *reasoned) Read(b []byte) (int, error) {
	n, err := r.frames.Read(b)
	if err != nil {
		r.session.fail(err)
	}
	return n, err
}

func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if errors.Is(err, io.EOF) { // must not pass for the end of a stream
		err = ErrPeerClosed
	}
	s.err = err
}

// start runs f in a goroutine that Close waits for, unless it closes already.
func (s *session) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.background.Go(f)
	return true
}

func (s *session) Err() error {
	select {
	case <-s.mux.CloseChan():
	default:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return ErrClosed
	}
	return s.err
}

// ended turns yamux's error into ours.
func (s *session) ended(err error) error {
	if reason := s.Err(); reason != nil {
		return reason
	}
	return err
}

func (s *session) Open(ctx context.Context) (net.Conn, error) {
	select {
	case s.outgoing <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("open stream: %w", context.Cause(ctx))
	case <-s.Done():
		return nil, fmt.Errorf("open stream: %w", s.Err())
	}
	type opened struct {
		stream *yamux.Stream
		err    error
	}
	result := make(chan opened)
	// Yamux waits here only while the socket is full; the goroutine ends with
	// that or with the session.
	started := s.start(func() {
		stream, err := s.mux.OpenStream()
		select {
		case result <- opened{stream, err}:
		case <-ctx.Done():
			if err != nil {
				<-s.outgoing
				return
			}
			s.wrap(stream, s.outgoing).Close()
		}
	})
	if !started {
		<-s.outgoing
		return nil, fmt.Errorf("open stream: %w", ErrClosed)
	}
	select {
	case r := <-result:
		if r.err != nil {
			<-s.outgoing
			return nil, fmt.Errorf("open stream: %w", s.ended(r.err))
		}
		return s.wrap(r.stream, s.outgoing), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("open stream: %w", context.Cause(ctx))
	}
}

func (s *session) Accept() (net.Conn, error) { return s.AcceptContext(context.Background()) }

func (s *session) AcceptContext(ctx context.Context) (net.Conn, error) {
	select {
	case s.incoming <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("accept stream: %w", context.Cause(ctx))
	case <-s.Done():
		return nil, fmt.Errorf("accept stream: %w", s.Err())
	}
	stream, err := s.mux.AcceptStreamWithContext(ctx)
	if err != nil {
		<-s.incoming
		return nil, fmt.Errorf("accept stream: %w", s.ended(err))
	}
	return s.wrap(stream, s.incoming), nil
}

func (s *session) wrap(stream *yamux.Stream, tokens chan struct{}) *Stream {
	s.open.Add(1)
	s.lastUse.Store(int64(time.Since(s.began)))
	return &Stream{Stream: stream, session: s, tokens: tokens}
}

func (s *session) Close() error {
	s.fail(ErrClosed)
	s.mu.Lock()
	s.closing = true
	if s.watch != nil {
		s.watch.Stop()
	}
	s.mu.Unlock()
	err := s.mux.Close()
	s.background.Wait()
	return err
}

// cut ends the session for a reason, from one of its own goroutines.
func (s *session) cut(reason error) {
	s.fail(reason)
	s.mux.Close()
}

func (s *session) Done() <-chan struct{}    { return s.mux.CloseChan() }
func (s *session) Class() Class             { return s.class }
func (s *session) Peer() Pin                { return PinOf(s.spki) }
func (s *session) PeerSPKI() []byte         { return append([]byte(nil), s.spki...) }
func (s *session) Machine() fleet.MachineID { return fleet.MachineIDOf(s.spki) }
func (s *session) RemoteAddr() net.Addr     { return s.tls.RemoteAddr() }
func (s *session) Streams() int             { return int(s.open.Load()) }

func (s *session) Idle() time.Duration {
	if s.open.Load() > 0 {
		return 0
	}
	return time.Since(s.began) - time.Duration(s.lastUse.Load())
}

func (s *session) Bytes() (sent, received uint64) {
	if s.wire == nil {
		return 0, 0
	}
	return s.wire.sent.Load(), s.wire.received.Load()
}

func (s *session) Exporter(label string, length int) ([]byte, error) {
	cs := s.tls.ConnectionState()
	return cs.ExportKeyingMaterial(label, nil, length)
}

func (s *session) Probe(patience time.Duration) {
	s.start(func() { s.probe(patience) })
}

// probe sends a ping and cuts the session when nothing at all is heard within
// patience: bytes that arrive slowly are life, even when the answer is behind them.
func (s *session) probe(patience time.Duration) {
	answered := make(chan struct{})
	s.start(func() {
		if _, err := s.mux.Ping(); err == nil {
			close(answered)
		}
	})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-answered:
	case <-s.Done():
	case <-timer.C:
		if s.wire == nil || s.wire.silence() >= patience {
			s.cut(fmt.Errorf("%w: no answer within %s", ErrSilent, patience))
		}
	}
}

// keepalive is the machine's: it speaks when the line was quiet for a period in
// either direction, so that the NAT remembers, a dead hub is found, and the hub
// hears a machine that only receives.
func (s *session) keepalive(period, patience time.Duration) {
	timer := time.NewTimer(period)
	defer timer.Stop()
	for {
		select {
		case <-s.Done():
			return
		case <-timer.C:
		}
		if quiet := s.wire.quiet(); quiet < period {
			timer.Reset(period - quiet)
			continue
		}
		s.probe(patience)
		timer.Reset(period)
	}
}

// watchSilence is the hub's: a timer and no goroutine per machine.
func (s *session) watchSilence(limit, wait time.Duration) {
	if s.wire == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing || s.mux.IsClosed() {
		return
	}
	s.watch = time.AfterFunc(wait, func() {
		if quiet := s.wire.silence(); quiet < limit {
			s.watchSilence(limit, limit-quiet)
			return
		}
		s.cut(fmt.Errorf("%w for %s", ErrSilent, limit))
	})
}

// Stream is one stream of a Session, a net.Conn that can close its sending half.
type Stream struct {
	*yamux.Stream
	session *session
	tokens  chan struct{}
	once    sync.Once
}

// Close ends the stream both ways, at once: on a stuck link the peer learns it
// later.
func (st *Stream) Close() error {
	st.once.Do(func() {
		st.session.start(func() { st.Stream.Close() })
		// Yamux would go on reading until the peer closes too.
		st.Stream.SetReadDeadline(time.Unix(1, 0))
		st.session.lastUse.Store(int64(time.Since(st.session.began)))
		st.session.open.Add(-1)
		<-st.tokens
	})
	return nil
}

// CloseWrite ends what this side sends; what the peer sends can still be read,
// for as long as the class lets a half-closed stream live.
func (st *Stream) CloseWrite() error { return st.Stream.Close() }

// Read implements net.Conn; the end of the session reads as its reason. A
// deadline that passed is os.ErrDeadlineExceeded, as on every connection: yamux
// calls it permanent, upon which TLS inside of a stream would never read again
// (net/http lets a deadline pass after each request).
func (st *Stream) Read(b []byte) (int, error) {
	n, err := st.Stream.Read(b)
	if errors.Is(err, yamux.ErrTimeout) {
		return n, os.ErrDeadlineExceeded
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, st.session.ended(err)
	}
	if err == io.EOF && n == 0 {
		if reason := st.session.Err(); reason != nil {
			return 0, reason // a cut stream is not a finished one
		}
	}
	return n, err
}

var _ Session = (*session)(nil)
