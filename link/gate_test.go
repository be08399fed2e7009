package link

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// inboundPipes is a listener of pipes that seem to come from given addresses.
type inboundPipes struct{ conns chan net.Conn }

func (l inboundPipes) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l inboundPipes) Close() error   { return nil }
func (l inboundPipes) Addr() net.Addr { return &net.TCPAddr{} }

type fromAddress struct {
	net.Conn
	ip string
}

func (f fromAddress) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.ip), Port: 1} }

func (l inboundPipes) dial(ip string) net.Conn {
	a, b := net.Pipe()
	l.conns <- fromAddress{b, ip}
	return a
}

func testGate(config GateConfig) (*Gate, inboundPipes, chan net.Conn) {
	l := inboundPipes{make(chan net.Conn)}
	g := NewGate(l, config)
	accepted := make(chan net.Conn, 100)
	go func() {
		defer close(accepted)
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	return g, l, accepted
}

func TestGateBoundsNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l, accepted := testGate(GateConfig{Strangers: 5, PerNetwork: 2, Known: 2})
		defer close(l.conns)
		var conns []net.Conn
		for _, ip := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "2001:db8::3", "198.51.100.1", "203.0.113.1"} {
			conns = append(conns, l.dial(ip))
		}
		synctest.Wait()
		if g.Pending() != 5 || g.Refused() != 3 {
			t.Errorf("%d pending, %d refused; want 5 and 3", g.Pending(), g.Refused())
		}
		// A listed machine was seen from a network: it has a budget of its own.
		known := <-accepted
		Admit(known, true)
		if g.Pending() != 4 {
			t.Errorf("%d pending after one was admitted, want 4", g.Pending())
		}
		conns = append(conns, l.dial("198.51.100.2"), l.dial("192.0.2.9"), l.dial("192.0.2.8"))
		synctest.Wait()
		if g.Pending() != 7 {
			t.Errorf("%d pending, want the full 5 strangers and 2 of a known network", g.Pending())
		}
		time.Sleep(HandshakeTimeout + time.Second)
		synctest.Wait()
		if g.Pending() != 0 {
			t.Errorf("%d pending after the time is over", g.Pending())
		}
		g.mu.Lock()
		if len(g.networks) != 0 {
			t.Errorf("networks are remembered: %v", g.networks)
		}
		g.mu.Unlock()
		go io.Copy(io.Discard, conns[0])
		if _, err := known.Write([]byte("x")); err != nil {
			t.Errorf("the admitted one was cut: %v", err)
		}
		for _, c := range conns {
			c.Close()
		}
		known.Close()
	})
}

func TestGateBoundsBytesAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, l, accepted := testGate(GateConfig{Bytes: 100, Time: 5 * time.Second})
		defer close(l.conns)
		flood := l.dial("192.0.2.1")
		go flood.Write(make([]byte, 200))
		got, err := io.ReadAll(<-accepted)
		wantError(t, err, ErrGate)
		if len(got) != 100 {
			t.Errorf("read %d bytes, want 100", len(got))
		}
		flood.Close()
		slow := l.dial("192.0.2.1")
		begun := time.Now()
		if _, err := io.ReadAll(<-accepted); !errors.Is(err, io.ErrClosedPipe) || time.Since(begun) != 5*time.Second {
			t.Errorf("got %v after %s, want to be cut after 5 s", err, time.Since(begun))
		}
		slow.Close()
		friend := l.dial("192.0.2.1")
		c := <-accepted
		Admit(&replayed{Conn: counted(c)}, false) // however wrapped
		time.Sleep(time.Minute)
		go func() { friend.Write(make([]byte, 1000)); friend.Close() }()
		if got, err := io.ReadAll(c); len(got) != 1000 || err != nil {
			t.Errorf("admitted: got %d bytes, %v", len(got), err)
		}
		c.Close()
		if g.Pending() != 0 {
			t.Errorf("%d pending", g.Pending())
		}
	})
}

func TestGateRemembersFewNetworks(t *testing.T) {
	g := NewGate(inboundPipes{}, GateConfig{})
	for i := range maxFriends + 10 {
		g.befriend(networkOf(&net.TCPAddr{IP: net.IPv4(10, byte(i>>16), byte(i>>8), byte(i)), Port: 1}))
		g.befriend(networkOf(&net.TCPAddr{IP: append([]byte{0x20, 1, byte(i >> 16), byte(i >> 8), byte(i)}, bytes.Repeat([]byte{1}, 11)...), Port: 1}))
	}
	if len(g.friends) > maxFriends {
		t.Errorf("%d networks remembered, want at most %d", len(g.friends), maxFriends)
	}
}

func TestGateWithRealHandshakes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := NewGate(l, GateConfig{})
	hub := newTestIdentity(t)
	done := make(chan Session)
	go func() {
		raw, err := g.Accept()
		if err != nil {
			return
		}
		_, conn, err := ClientHello(raw)
		if err != nil {
			t.Error(err)
		}
		c, err := Handshake(context.Background(), conn, ServerTLS(hub, string(Control)))
		if err != nil {
			t.Error(err)
		}
		Admit(c.NetConn(), true)
		s, err := Serve(c)
		if err != nil {
			t.Error(err)
		}
		done <- s
	}()
	machine, err := Dial(t.Context(), DialConfig{Address: l.Addr().String(), Class: Control, Identity: newTestIdentity(t), Pins: []Pin{hub.Pin()}})
	if err != nil {
		t.Fatal(err)
	}
	s := <-done
	go echo(s)
	stream, err := machine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go stream.Write(make([]byte, 200<<10)) // more than a stranger may
	if _, err := io.ReadFull(stream, make([]byte, 200<<10)); err != nil {
		t.Error(err)
	}
	if tcpConn(s.(*session).wire) == nil {
		t.Error("no TCP connection is found below the wrappers")
	}
	machine.Close()
	s.Close()
	l.Close()
}
