package link

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
)

// rawDial is a client of the attacker's making.
func rawDial(t *testing.T, h *testHub, config *tls.Config) error {
	t.Helper()
	config.InsecureSkipVerify = true
	conn, err := tls.Dial("tcp", h.listener.Addr().String(), config)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Read(make([]byte, 1)) // TLS 1.3 tells of a refused key only now
	return err
}

func TestHubRefuses(t *testing.T) {
	h := newTestHub(t, Serve)
	id := newTestIdentity(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate(""), certificate(""), p384.Public(), p384)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := id.Delegate()
	if err != nil {
		t.Fatal(err)
	}
	control := []string{string(Control)}
	for _, c := range []struct {
		name   string
		config *tls.Config
		want   string
	}{
		{"TLS 1.2", &tls.Config{MaxVersion: tls.VersionTLS12, NextProtos: control, Certificates: []tls.Certificate{id.cert}}, "unsupported versions"},
		{"wrong ALPN", &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{id.cert}}, "unsupported application protocols"},
		{"no ALPN", &tls.Config{Certificates: []tls.Certificate{id.cert}}, ErrALPN.Error()},
		{"no client certificate", &tls.Config{NextProtos: control}, "didn't provide a certificate"},
		{"P-384 key", &tls.Config{NextProtos: control, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: p384}}}, ErrPeerKey.Error()},
		{"boot key", &tls.Config{NextProtos: control, Certificates: []tls.Certificate{boot.cert}}, ErrPeerKey.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := rawDial(t, h, c.config); err == nil {
				t.Error("the client sees no refusal")
			}
			if err := <-h.refused; !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want %q", err, c.want)
			}
		})
	}
	s, err := Dial(t.Context(), h.config(id, Control))
	if err != nil {
		t.Fatalf("an honest machine right after: %v", err)
	}
	s.Close()
}

func TestMachineRefuses(t *testing.T) {
	id := newTestIdentity(t)
	// serve is a hub of the attacker's making.
	serve := func(t *testing.T, config *tls.Config) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			tls.Server(conn, config).Handshake()
		}()
		return l.Addr().String()
	}
	hub := newTestIdentity(t)
	for _, c := range []struct {
		name   string
		config *tls.Config
		pins   []Pin
		want   error
	}{
		{"wrong pin", ServerTLS(newTestIdentity(t), string(Control)), []Pin{hub.Pin(), {}}, ErrPin},
		{"no pins", ServerTLS(hub, string(Control)), nil, ErrPin},
		{"no ALPN", &tls.Config{Certificates: []tls.Certificate{hub.cert}}, []Pin{hub.Pin()}, ErrALPN},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{hub.cert}, MaxVersion: tls.VersionTLS12}, []Pin{hub.Pin()}, ErrHandshake},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Dial(t.Context(), DialConfig{Address: serve(t, c.config), Class: Control, Identity: id, Pins: c.pins})
			wantError(t, err, c.want)
		})
	}
	t.Run("second pin of two", func(t *testing.T) {
		boot, err := hub.Delegate()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := DialTLS(t.Context(), DialConfig{
			Address: serve(t, ServerTLS(boot, string(API))), Class: API, Identity: id, Pins: []Pin{{1}, hub.Pin()},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if pin, err := PeerPin(conn.ConnectionState()); err != nil || pin != hub.Pin() {
			t.Errorf("got pin %s, %v; want %s", pin, err, hub.Pin())
		}
	})
	t.Run("hub that says nothing", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err = Dial(ctx, DialConfig{Address: l.Addr().String(), Class: Control, Identity: id, Pins: []Pin{hub.Pin()}})
		wantError(t, err, context.DeadlineExceeded)
	})
}

func TestHandshakeGivesUp(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Handshake(ctx, b, ServerTLS(newTestIdentity(t), string(Control)))
	wantError(t, err, ErrHandshake)
	if _, err := b.Write([]byte("x")); !errors.Is(err, net.ErrClosed) && err == nil {
		t.Error("the connection is still open")
	}
}
