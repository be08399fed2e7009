package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

func newTestIdentity(t testing.TB) *Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// testHub accepts sessions on loopback and hands each to the test.
type testHub struct {
	id       *Identity
	listener net.Listener
	sessions chan Session
	refused  chan error
}

func newTestHub(t testing.TB, serve func(*tls.Conn) (Session, error), alpn ...string) *testHub {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if len(alpn) == 0 {
		alpn = []string{string(Control), string(Bulk), string(Relay)}
	}
	h := &testHub{id: newTestIdentity(t), listener: listener, sessions: make(chan Session, 16), refused: make(chan error, 16)}
	config := ServerTLS(h.id, alpn...)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			conn, err := Handshake(context.Background(), raw, config)
			if err != nil {
				h.refused <- err
				continue
			}
			s, err := serve(conn)
			if err != nil {
				conn.Close()
				h.refused <- err
				continue
			}
			h.sessions <- s
		}
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		for {
			select {
			case s := <-h.sessions:
				s.Close()
			default:
				return
			}
		}
	})
	return h
}

func (h *testHub) config(id *Identity, class Class) DialConfig {
	return DialConfig{Address: h.listener.Addr().String(), Class: class, Identity: id, Pins: []Pin{h.id.Pin()}}
}

// pair is a session, both ends.
func pair(t testing.TB, class Class) (machine, hub Session) {
	t.Helper()
	h := newTestHub(t, Serve)
	machine, err := Dial(t.Context(), h.config(newTestIdentity(t), class))
	if err != nil {
		t.Fatal(err)
	}
	hub = <-h.sessions
	t.Cleanup(func() { machine.Close(); hub.Close() })
	return machine, hub
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// wantNoGoroutines waits until none of this package's or its libraries'
// goroutines is left.
func wantNoGoroutines(t *testing.T) {
	t.Helper()
	var stacks string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		buffer := make([]byte, 1<<20)
		stacks = string(buffer[:runtime.Stack(buffer, true)])
		leaked := false
		for _, g := range strings.Split(stacks, "\n\n")[1:] {
			if strings.Contains(g, "holdfast/link.(") || strings.Contains(g, "yamux") || strings.Contains(g, "net/http") {
				leaked = true
			}
		}
		if !leaked {
			return
		}
	}
	t.Fatalf("goroutines left behind:\n%s", stacks)
}

func echo(s Session) {
	for {
		stream, err := s.Accept()
		if err != nil {
			return
		}
		go func() {
			defer stream.Close()
			io.Copy(stream, stream)
		}()
	}
}
