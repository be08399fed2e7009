package link

import (
	"net"
	"sync/atomic"
	"time"
)

// countedConn counts what passes below TLS, and remembers when the peer was
// last heard.
type countedConn struct {
	net.Conn
	sent, received atomic.Uint64
	heard, spoke   atomic.Int64 // time since start, monotonic
	start          time.Time
}

// counted wraps conn, once.
func counted(conn net.Conn) *countedConn {
	if c, ok := conn.(*countedConn); ok {
		return c
	}
	return &countedConn{Conn: conn, start: time.Now()}
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.received.Add(uint64(n))
		c.heard.Store(int64(time.Since(c.start)))
	}
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(uint64(n))
	c.spoke.Store(int64(time.Since(c.start)))
	return n, err
}

// silence is how long the peer has not been heard.
func (c *countedConn) silence() time.Duration {
	return time.Since(c.start) - time.Duration(c.heard.Load())
}

// quiet is how long at least one direction has not been used.
func (c *countedConn) quiet() time.Duration {
	return time.Since(c.start) - time.Duration(min(c.heard.Load(), c.spoke.Load()))
}

// NetConn gives the connection beneath, for socket options.
func (c *countedConn) NetConn() net.Conn { return c.Conn }

// tcpConn digs through wrappers; nil if there is no TCP at the bottom.
func tcpConn(conn net.Conn) *net.TCPConn {
	for {
		switch c := conn.(type) {
		case *net.TCPConn:
			return c
		case interface{ NetConn() net.Conn }:
			conn = c.NetConn()
		default:
			return nil
		}
	}
}

// tuneTCP turns off the kernel's keepalive, which at Go's 15 s would cost half a
// megabyte a day, since sessions keep themselves alive; and lets the kernel give
// up on bytes that nobody acknowledges.
func tuneTCP(conn net.Conn) {
	if tcp := tcpConn(conn); tcp != nil {
		tcp.SetKeepAlive(false)
		setUserTimeout(tcp, KeepalivePeriod)
	}
}
