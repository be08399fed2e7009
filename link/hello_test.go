package link

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// helloBytes is what a client sends first.
func helloBytes(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	config.InsecureSkipVerify = true
	go func() {
		tls.Client(client, config).Handshake()
		client.Close()
	}()
	buffer := make([]byte, 64<<10)
	n, err := server.Read(buffer)
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	return buffer[:n]
}

func TestClientHello(t *testing.T) {
	first := helloBytes(t, &tls.Config{ServerName: "berlin.kube.example", NextProtos: []string{"http/1.1", "h2"}})
	// The same hello in records of 100 bytes, as a middlebox may cut it.
	var cut []byte
	for body := first[5:]; len(body) > 0; {
		n := min(100, len(body))
		cut = append(cut, first[0], first[1], first[2], 0, byte(n))
		cut = append(cut, body[:n]...)
		body = body[n:]
	}
	for _, c := range []struct {
		name string
		sent []byte
	}{{"in one record", first}, {"in many records", cut}} {
		t.Run(c.name, func(t *testing.T) {
			sent := append(slices.Clone(c.sent), "and what follows"...)
			client, server := net.Pipe()
			go func() {
				for _, b := range sent { // dripped
					client.Write([]byte{b})
				}
				client.Close()
			}()
			hello, conn, err := ClientHello(server)
			if err != nil {
				t.Fatal(err)
			}
			if hello.ServerName != "berlin.kube.example" || !slices.Equal(hello.SupportedProtos, []string{"http/1.1", "h2"}) {
				t.Errorf("got %q %q", hello.ServerName, hello.SupportedProtos)
			}
			got, err := io.ReadAll(conn)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, sent) {
				t.Error("the connection does not yield what was sent")
			}
		})
	}
}

func TestClientHelloRefuses(t *testing.T) {
	hello := helloBytes(t, &tls.Config{ServerName: "x.example"})
	oversized := []byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff} // a hello that promises 64 KiB
	for len(oversized) < helloMaxBytes+100 {
		oversized = append(oversized, 22, 3, 1, 0x3f, 0xff)
		oversized = append(oversized, make([]byte, 0x3fff)...)
	}
	for _, c := range []struct {
		name string
		sent []byte
	}{
		{"nothing", nil},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"cut short", hello[:len(hello)-1]},
		{"oversized", oversized},
		{"an alert", []byte{21, 3, 3, 0, 2, 2, 40}},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := net.Pipe()
			go func() {
				client.Write(c.sent)
				client.Close()
			}()
			_, _, err := ClientHello(server)
			wantError(t, err, ErrHello)
			if _, err := server.Write([]byte("x")); err == nil {
				t.Error("the connection is still open")
			}
		})
	}
}

func TestClientHelloSlowloris(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		var dripping sync.WaitGroup
		defer dripping.Wait()
		dripping.Go(func() {
			for _, b := range append([]byte{22, 3, 1, 1, 0, 1, 0, 0, 0xf0}, make([]byte, 1000)...) {
				if _, err := client.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		begun := time.Now()
		_, _, err := ClientHello(server)
		wantError(t, err, ErrHello)
		if took := time.Since(begun); took > helloTimeout+time.Second {
			t.Errorf("held for %s", took)
		}
	})
}

func FuzzClientHello(f *testing.F) {
	f.Add(helloBytes(f, &tls.Config{ServerName: "berlin.kube.example", NextProtos: []string{"h2"}}))
	f.Add(helloBytes(f, &tls.Config{ServerName: strings.Repeat("a", 60) + ".machine.example", MaxVersion: tls.VersionTLS12}))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		hello, read, err := parseHello(bytes.NewReader(data))
		if err != nil {
			if hello != nil {
				t.Error("an error and a hello")
			}
			return
		}
		if len(read) > helloMaxBytes || !bytes.HasPrefix(data, read) {
			t.Errorf("%d bytes read are not the %d sent", len(read), len(data))
		}
		again, _, err := parseHello(bytes.NewReader(read))
		if err != nil || again.ServerName != hello.ServerName {
			t.Errorf("what was replayed reads as %v, %v", again, err)
		}
		if name, ok := ParseRelayName(hello.ServerName); ok && !strings.EqualFold(name.String(), hello.ServerName) {
			t.Errorf("relay name %q is not %q", name, hello.ServerName)
		}
	})
}

func FuzzParseRelayName(f *testing.F) {
	f.Add("berlin.kube.000102030405060708090a0b0c0d0e0f")
	f.Add(strings.Repeat("a", 52) + ".machine.000102030405060708090a0b0c0d0e0f")
	f.Add("www.example.com")
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := ParseRelayName(s)
		if !ok {
			return
		}
		again, ok := ParseRelayName(name.String())
		if !ok || again != name || !strings.EqualFold(name.String(), s) {
			t.Errorf("%q is %v, then %v", s, name, again)
		}
	})
}
