package link

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Host is the name under which services are called on streams; it means nothing.
const Host = "h"

// ServeHTTP answers HTTP on the streams that the peer opens, until the session
// ends or ctx does; it returns once every handler has. The peer keeps a stream
// for its next call, so streams end with the session and not by time.
//
// Answers carry no Date and no guessed Content-Type: every header is paid for.
func ServeHTTP(ctx context.Context, s Session, handler http.Handler) error {
	var streams sync.WaitGroup
	base, cancel := context.WithCancel(withSession(ctx, s))
	defer cancel()
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Date"] = nil
			w.Header()["Content-Type"] = nil
			handler.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          quiet,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // called by Serve itself
				streams.Add(1)
			case http.StateClosed, http.StateHijacked:
				streams.Done()
			}
		},
	}
	err := server.Serve(sessionListener{ctx, s})
	cancel()
	server.Close()
	streams.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, http.ErrServerClosed):
		return ErrClosed
	}
	return err
}

// headerTimeout bounds the reading of a header once its first byte is there.
const headerTimeout = 2 * time.Minute

var quiet = log.New(io.Discard, "", 0)

// sessionListener lets net/http accept streams until ctx ends. Closing it does
// not end the session, which is its owner's.
type sessionListener struct {
	ctx     context.Context
	session Session
}

func (l sessionListener) Accept() (net.Conn, error) { return l.session.AcceptContext(l.ctx) }
func (l sessionListener) Close() error              { return nil }
func (l sessionListener) Addr() net.Addr            { return l.session.RemoteAddr() }

// Client calls HTTP services over streams that open opens: Session.Open, or a
// Keeper's OpenBulk. It keeps unused streams for the next call, for the time
// given or, if that is 0, for as long as the session lives: right for control,
// where a new stream costs a hundred bytes, and wrong for bulk, which should
// become idle. URLs are "http://"+Host+"/path". Requests carry no User-Agent
// unless the caller sets one.
func Client(open func(ctx context.Context) (net.Conn, error), keep time.Duration) *http.Client {
	transport := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return open(ctx) },
		DisableCompression:  true,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     keep,
		ReadBufferSize:      4 << 10,
		WriteBufferSize:     4 << 10,
	}
	return &http.Client{
		Transport:     plain{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// plain leaves out what net/http would add.
type plain struct{ *http.Transport }

func (p plain) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, set := r.Header["User-Agent"]; !set {
		r = r.Clone(r.Context())
		r.Header["User-Agent"] = []string{""}
	}
	return p.Transport.RoundTrip(r)
}

type sessionKey struct{}

func withSession(ctx context.Context, s Session) context.Context {
	return context.WithValue(ctx, sessionKey{}, s)
}

// SessionFrom is the session on which a request came that ServeHTTP handles.
func SessionFrom(ctx context.Context) (Session, bool) {
	s, ok := ctx.Value(sessionKey{}).(Session)
	return s, ok
}

// HTTPConn hides that conn is a TLS connection from net/http, which closes those
// whose ALPN it does not know. Use it with ConnContext.
func HTTPConn(conn *tls.Conn) net.Conn { return httpConn{conn} }

type httpConn struct{ *tls.Conn }

type connStateKey struct{}

// ConnContext goes into http.Server.ConnContext, so that ConnState works.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		return context.WithValue(ctx, connStateKey{}, c.ConnectionState)
	}
	return ctx
}

// ConnState is the TLS state of the connection on which a request came.
func ConnState(ctx context.Context) (tls.ConnectionState, bool) {
	state, ok := ctx.Value(connStateKey{}).(func() tls.ConnectionState)
	if !ok {
		return tls.ConnectionState{}, false
	}
	cs := state()
	return cs, cs.HandshakeComplete
}

// APIServer is an http.Server for strangers and operators, with bounds on what
// an unauthenticated caller can hold. Give it connections through Conns.
func APIServer(handler http.Handler, logger *slog.Logger) *http.Server {
	if logger == nil {
		logger = slog.Default()
	}
	return &http.Server{
		Handler:           handler,
		ConnContext:       ConnContext,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

// Conns is a net.Listener fed by hand: whoever accepted and authenticated a
// connection passes it to an http.Server.
type Conns struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

// NewConns makes a listener that says it is at addr.
func NewConns(addr net.Addr) *Conns {
	return &Conns{queue: make(chan net.Conn), closed: make(chan struct{}), addr: addr}
}

// Give hands conn over; it closes it when the listener is closed.
func (c *Conns) Give(conn net.Conn) {
	select {
	case c.queue <- conn:
	case <-c.closed:
		conn.Close()
	}
}

func (c *Conns) Accept() (net.Conn, error) {
	select {
	case conn := <-c.queue:
		return conn, nil
	case <-c.closed:
		return nil, net.ErrClosed
	}
}

func (c *Conns) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *Conns) Addr() net.Addr { return c.addr }
