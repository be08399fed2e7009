package hub

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/hub/quarantine"
	"github.com/holdfast-edge/holdfast/link"
)

// alpn is what the one port speaks, in the order in which we choose.
var alpn = []string{string(link.Control), string(link.Bulk), string(link.Relay), string(link.API), "h2", link.HTTP}

// accept takes connections from one listener until ctx ends.
func (h *Hub) accept(ctx context.Context, l net.Listener) error {
	gate := link.NewGate(l, h.cfg.Gate)
	h.metrics.watchGate(gate)
	stop := context.AfterFunc(ctx, func() { gate.Close() })
	defer stop()
	wait := time.Duration(0)
	for {
		conn, err := gate.Accept()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			// Out of descriptors, most likely: those who are connected matter more.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			h.log.Warn("accept a connection", "err", err, "retry", wait)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			continue
		}
		wait = 0
		h.work.Go(func() { h.greet(ctx, conn) })
	}
}

// greet finds out what a connection is for, by what its first message says in
// clear, and hands it on. It owns conn.
func (h *Hub) greet(ctx context.Context, conn net.Conn) {
	from := addressOf(conn)
	hello, conn, err := link.ClientHello(conn)
	if err != nil {
		h.refuse("hello", from, err)
		return
	}
	if name, ok := link.ParseRelayName(hello.ServerName); ok {
		h.relay(ctx, conn, name)
		return
	}
	visit := &visit{Conn: conn}
	secure, err := link.Handshake(ctx, visit, h.tls)
	if err != nil {
		h.refuse("handshake", from, err)
		return
	}
	switch class := link.Class(secure.ConnectionState().NegotiatedProtocol); class {
	case link.Control, link.Bulk, link.Relay:
		h.welcome(ctx, secure, class)
	default:
		leave, ok := h.guests.enter(from)
		if !ok {
			h.refuse("guests", from, errCrowded)
			secure.Close()
			return
		}
		visit.leave = leave
		link.Admit(secure, false)
		if class == link.API {
			h.people.Give(link.HTTPConn(secure))
			return
		}
		h.people.Give(secure) // net/http knows these, and finds HTTP/2 by itself
	}
}

// refuse notes a connection that we did not serve. Strangers make many: no more
// than a count and a line for whoever looks closely.
func (h *Hub) refuse(reason string, from netip.Addr, err error) {
	h.metrics.refused.WithLabelValues(reason).Inc()
	h.log.Debug("connection refused", "reason", reason, "from", from, "err", err)
}

func addressOf(conn net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

var errCrowded = errors.New("too many connections")

// crowd counts connections of one kind, in all and by network.
type crowd struct {
	total, perNetwork int

	mu       sync.Mutex
	n        int
	networks map[netip.Prefix]int
}

func newCrowd(total, perNetwork int) *crowd {
	return &crowd{total: total, perNetwork: perNetwork, networks: map[netip.Prefix]int{}}
}

// enter takes a place; leave gives it back, once.
func (c *crowd) enter(from netip.Addr) (leave func(), ok bool) {
	network := quarantine.Network(from)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n >= c.total || c.networks[network] >= c.perNetwork {
		return nil, false
	}
	c.n++
	c.networks[network]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.n--
		if c.networks[network]--; c.networks[network] == 0 {
			delete(c.networks, network)
		}
	}), true
}

func (c *crowd) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// visit is a connection that gives its place in a crowd back when it is closed.
type visit struct {
	net.Conn
	leave func() // set before others see the connection; nil: it has no place
}

func (v *visit) Close() error {
	if v.leave != nil {
		v.leave()
	}
	return v.Conn.Close()
}

// NetConn gives the connection beneath, for link.Admit.
func (v *visit) NetConn() net.Conn { return v.Conn }
