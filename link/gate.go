package link

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// GateConfig bounds what strangers can hold before they have shown who they are.
type GateConfig struct {
	Strangers  int           // unauthenticated connections in all; default 512
	PerNetwork int           // of them from one /24 or /64; default 32
	Known      int           // a budget of its own for networks that Admit called known; default 512
	Bytes      int64         // a connection may send so much unauthenticated; default 64 KiB
	Time       time.Duration // and live so long; default 20 s
}

// Gate is a listener whose connections are cut when they do not authenticate in
// time, in few bytes, and in small numbers. Whoever authenticates a connection
// calls Admit, which lifts the bounds.
//
// Networks from which a known key has come draw on a budget of their own, so
// that strangers who flood cannot keep a listed machine from its handshake.
type Gate struct {
	net.Listener
	config GateConfig

	mu        sync.Mutex // guards all below
	strangers int
	known     int
	networks  map[netip.Prefix]int // unauthenticated, by network
	friends   map[netip.Prefix]time.Time
	refused   uint64
}

// maxFriends bounds the memory of networks; the longest unseen goes first.
const maxFriends = 16384

// NewGate puts a gate before a listener.
func NewGate(l net.Listener, config GateConfig) *Gate {
	if config.Strangers == 0 {
		config.Strangers = 512
	}
	if config.PerNetwork == 0 {
		config.PerNetwork = 32
	}
	if config.Known == 0 {
		config.Known = 512
	}
	if config.Bytes == 0 {
		config.Bytes = 64 << 10
	}
	if config.Time == 0 {
		config.Time = HandshakeTimeout
	}
	return &Gate{
		Listener: l, config: config,
		networks: make(map[netip.Prefix]int),
		friends:  make(map[netip.Prefix]time.Time),
	}
}

// ErrGate is what reading from a connection returns that the gate has cut.
var ErrGate = errors.New("cut before it authenticated")

// Accept returns the next connection for which there is room; others are closed
// at once, which costs a flood more than us.
func (g *Gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := g.enter(conn); c != nil {
			return c, nil
		}
		conn.Close()
	}
}

// Refused counts connections that found no room.
func (g *Gate) Refused() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// Pending counts connections that have not authenticated.
func (g *Gate) Pending() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.strangers + g.known
}

func (g *Gate) enter(conn net.Conn) *gateConn {
	network := networkOf(conn.RemoteAddr())
	g.mu.Lock()
	defer g.mu.Unlock()
	_, friend := g.friends[network]
	switch {
	case friend && g.known < g.config.Known:
		g.known++
	case g.strangers < g.config.Strangers && g.networks[network] < g.config.PerNetwork:
		friend = false
		g.strangers++
		g.networks[network]++
	default:
		g.refused++
		return nil
	}
	c := &gateConn{Conn: conn, gate: g, network: network, friend: friend, left: g.config.Bytes}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(g.config.Time, c.cut)
	return c
}

func (g *Gate) leave(c *gateConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.friend {
		g.known--
		return
	}
	g.strangers--
	if g.networks[c.network]--; g.networks[c.network] == 0 {
		delete(g.networks, c.network)
	}
}

// Admit lifts the bounds from a connection that came through a Gate, however
// wrapped; for others it does nothing. Known says that the key it showed is one
// that the fleet lists.
func Admit(conn net.Conn, known bool) {
	for conn != nil {
		switch c := conn.(type) {
		case *gateConn:
			c.admit(known)
			return
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return
		}
	}
}

func (g *Gate) befriend(network netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.friends[network]; !ok && len(g.friends) >= maxFriends {
		var oldest netip.Prefix
		var since time.Time
		for n, t := range g.friends {
			if since.IsZero() || t.Before(since) {
				oldest, since = n, t
			}
		}
		delete(g.friends, oldest)
	}
	g.friends[network] = time.Now()
}

// networkOf is what one subscriber usually has: a /24, or a /64.
func networkOf(addr net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Prefix{} // pipes and the like share one
	}
	ip, bits := ap.Addr().Unmap(), 64
	if ip.Is4() {
		bits = 24
	}
	p, _ := ip.WithZone("").Prefix(bits)
	return p
}

// gateConn is a connection under the gate's bounds until it is admitted.
type gateConn struct {
	net.Conn
	gate    *Gate
	network netip.Prefix
	friend  bool // draws on the known budget

	mu       sync.Mutex  // taken after the gate's, if both are
	timer    *time.Timer // guarded by mu
	left     int64       // bytes; guarded by mu
	admitted bool        // guarded by mu
	gone     bool        // its place was given back; guarded by mu
}

func (c *gateConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	if !c.admitted {
		if c.left <= 0 {
			c.mu.Unlock()
			c.Close()
			return 0, ErrGate
		}
		if int64(len(b)) > c.left {
			b = b[:c.left]
		}
	}
	c.mu.Unlock()
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	c.left -= int64(n)
	c.mu.Unlock()
	return n, err
}

func (c *gateConn) admit(known bool) {
	c.mu.Lock()
	first := !c.admitted && !c.gone
	if first {
		c.admitted = true
	}
	c.mu.Unlock()
	if first {
		c.release()
	}
	if known {
		c.gate.befriend(c.network)
	}
}

func (c *gateConn) cut() {
	c.mu.Lock()
	admitted := c.admitted
	c.mu.Unlock()
	if !admitted {
		c.Close()
	}
}

func (c *gateConn) release() {
	c.mu.Lock()
	first := !c.gone
	c.gone = true
	c.timer.Stop()
	c.mu.Unlock()
	if first {
		c.gate.leave(c)
	}
}

func (c *gateConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// NetConn gives the connection beneath, for socket options.
func (c *gateConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends the sending half where the connection beneath can.
func (c *gateConn) CloseWrite() error { return closeWrite(c.Conn) }
