package link

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestRelayName(t *testing.T) {
	f := fleet.ID("000102030405060708090a0b0c0d0e0f")
	machine := fleet.MachineIDOf([]byte("a key"))
	for _, want := range []RelayName{MachineName(machine, f), KubeName("berlin", f)} {
		got, ok := ParseRelayName(strings.ToUpper(want.String()))
		if !ok || got != want {
			t.Errorf("got %v, %t; want %v", got, ok, want)
		}
	}
	for _, s := range []string{
		"", "hub.example.com", "berlin.kube." + string(f)[1:], "berlin.kube." + string(f) + ".", "ber_lin.kube." + string(f),
		"-berlin.kube." + string(f), ".kube." + string(f), "a.b.kube." + string(f), "berlin.machine." + string(f), "berlin.shell." + string(f),
		strings.Repeat("a", 64) + ".kube." + string(f),
	} {
		if name, ok := ParseRelayName(s); ok {
			t.Errorf("%q was read as %v", s, name)
		}
	}
}

// An operator's TLS connection runs through a hub that reads its SNI and passes
// it on, and ends at the machine.
func TestRelayTerminatesNothing(t *testing.T) {
	machine, hub := pair(t, Relay)
	machineID := newTestIdentity(t)
	f := fleet.ID("000102030405060708090a0b0c0d0e0f")
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { // the machine
		stream, err := machine.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		target, err := AcceptRelay(stream)
		if err != nil || target != MachineTarget {
			t.Errorf("got target %q, %v", target, err)
		}
		conn, err := Handshake(context.Background(), stream, ServerTLS(machineID, string(API)))
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(conn, conn)
		conn.Close()
	})
	operatorSide, hubSide := net.Pipe()
	wg.Go(func() { // the hub
		hello, conn, err := ClientHello(hubSide)
		if err != nil {
			t.Error(err)
			return
		}
		name, ok := ParseRelayName(hello.ServerName)
		if !ok || name.Label != string(machineID.ID()) {
			t.Errorf("got %v from %q", name, hello.ServerName)
		}
		stream, err := OpenRelay(context.Background(), hub, name.Target)
		if err != nil {
			t.Error(err)
			return
		}
		Splice(context.Background(), conn, stream)
	})
	conn, err := DialTLS(t.Context(), DialConfig{
		Address: "hub:443", ServerName: MachineName(machineID.ID(), f).String(), Class: API, Pins: []Pin{machineID.Pin()},
		Dialer: func(context.Context, string, string) (net.Conn, error) { return operatorSide, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	secret := "for the machine's eyes"
	io.WriteString(conn, secret)
	got := make([]byte, len(secret))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != secret {
		t.Errorf("got %q, %v", got, err)
	}
	conn.Close()
}

func TestAcceptRelayRefuses(t *testing.T) {
	for _, line := range []string{"shell\n", "\n", "machine", strings.Repeat("k", 100), ""} {
		a, b := net.Pipe()
		go func() { io.WriteString(a, line); a.Close() }()
		if target, err := AcceptRelay(b); err == nil {
			t.Errorf("%q was read as %q", line, target)
		}
		b.Close()
	}
}

func TestSpliceEndsWithContext(t *testing.T) {
	a, farA := net.Pipe()
	b, farB := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, _, err := Splice(ctx, a, b)
	wantError(t, err, context.Canceled)
	for _, far := range []net.Conn{farA, farB} {
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("an end is still open")
		}
	}
}
