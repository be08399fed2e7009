package link

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// DialConfig says whom to dial, and as whom.
type DialConfig struct {
	Address    string    // host:port
	ServerName string    // sent as SNI, in clear; empty: the host of Address when it is a name
	Class      Class     // what the connection is for
	Identity   *Identity // who dials; may be nil for API
	Pins       []Pin     // keys of which the peer must show one
	Proxy      string    // http://[user:password@]host:port of a CONNECT proxy; empty: none

	// Dialer opens the TCP connection, to the proxy where there is one.
	// Nil: a net.Dialer with a time limit of 15 s.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial opens a session of a machine's class. The session keeps itself alive.
// In TLS 1.3 the dialer cannot see that the peer refuses its key: such a
// session ends at its first use.
func Dial(ctx context.Context, config DialConfig) (Session, error) {
	if !config.Class.machines() {
		return nil, fmt.Errorf("dial %s: class %q carries no streams", config.Address, config.Class)
	}
	conn, err := DialTLS(ctx, config)
	if err != nil {
		return nil, err
	}
	spki, err := identityOf(conn.ConnectionState().PeerCertificates, true)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("dial %s: %w", config.Address, err)
	}
	s, err := newSession(conn, config.Class, spki, classLimits(config.Class), true)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", config.Address, err)
	}
	s.start(func() { s.keepalive(KeepalivePeriod, KeepalivePatient) })
	return s, nil
}

// DialTLS opens a pinned TLS connection of any class; operators' clients use it
// with API.
func DialTLS(ctx context.Context, config DialConfig) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout+dialTimeout)
	defer cancel()
	raw, err := dialRaw(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", config.Address, err)
	}
	conn := tls.Client(counted(raw), clientTLS(config.Identity, config.Class, config.serverName(), config.Pins))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial %s: %w: %w", config.Address, ErrHandshake, err)
	}
	return conn, nil
}

const dialTimeout = 15 * time.Second

func dialRaw(ctx context.Context, config DialConfig) (net.Conn, error) {
	dial := config.Dialer
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: -1}).DialContext
	}
	if config.Proxy != "" {
		return dialProxy(ctx, dial, config.Proxy, config.Address)
	}
	return dial(ctx, "tcp", config.Address)
}

func (c DialConfig) serverName() string {
	if c.ServerName != "" {
		return c.ServerName
	}
	host, _, err := net.SplitHostPort(c.Address)
	if err != nil || net.ParseIP(host) != nil {
		return ""
	}
	return host
}
