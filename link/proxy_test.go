package link

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// proxy answers one CONNECT as a test says; ok passes the bytes on.
func proxy(t *testing.T, answer func(conn net.Conn, r *http.Request) (ok bool)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil || !answer(conn, r) {
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		Splice(context.Background(), conn, to)
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	h := newTestHub(t, Serve)
	seen := make(chan *http.Request, 1)
	at := proxy(t, func(conn net.Conn, r *http.Request) bool {
		seen <- r
		io.WriteString(conn, "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
		return true
	})
	config := h.config(newTestIdentity(t), Control)
	config.Proxy = "http://anna:se:cret@" + at
	s, err := Dial(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	hub := <-h.sessions
	go echo(hub)
	stream, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "through")
	got := make([]byte, 7)
	if _, err := io.ReadFull(stream, got); err != nil || string(got) != "through" {
		t.Errorf("got %q, %v", got, err)
	}
	r := <-seen
	if r.Method != http.MethodConnect || r.Host != config.Address {
		t.Errorf("proxy was asked to %s %s", r.Method, r.Host)
	}
	r.Header.Set("Authorization", r.Header.Get("Proxy-Authorization"))
	if user, password, _ := r.BasicAuth(); user != "anna" || password != "se:cret" {
		t.Errorf("proxy saw user %q, password %q", user, password)
	}
	s.Close()
	hub.Close()
}

func TestProxyRefuses(t *testing.T) {
	say := func(s string) func(net.Conn, *http.Request) bool {
		return func(conn net.Conn, _ *http.Request) bool { io.WriteString(conn, s); return false }
	}
	for _, c := range []struct {
		name   string
		answer func(net.Conn, *http.Request) bool
		want   error
	}{
		{"forbidden", say("HTTP/1.1 403 Forbidden\r\n\r\n"), ErrProxy},
		{"wants a password", say("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"), ErrProxy},
		{"is no proxy", say("220 mail.example ESMTP\r\n"), ErrProxy},
		{"hangs up", say(""), ErrProxy},
		{"speaks for the hub", say("HTTP/1.1 200 OK\r\n\r\nhello"), ErrProxy},
		{"never ends its header", say("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*proxyMaxHeader)), ErrProxy},
		{"says nothing", func(conn net.Conn, _ *http.Request) bool { io.Copy(io.Discard, conn); return false }, context.DeadlineExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := Dial(ctx, DialConfig{
				Address: "127.0.0.1:1", Class: Control, Identity: newTestIdentity(t), Pins: []Pin{{}},
				Proxy: "http://user:verysecret@" + proxy(t, c.answer),
			})
			wantError(t, err, c.want)
			if strings.Contains(err.Error(), "verysecret") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
	for _, url := range []string{"proxy:3128", "https://user:verysecret@proxy:3128", "http://", "http://user:verysecret@pro xy"} {
		_, err := Dial(t.Context(), DialConfig{Address: "hub:443", Class: Control, Identity: newTestIdentity(t), Proxy: url})
		if err == nil || strings.Contains(err.Error(), "verysecret") {
			t.Errorf("proxy %q: got error %v", url, err)
		}
	}
}
