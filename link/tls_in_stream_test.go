package link

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestTLSInsideAStreamLivesThroughManyRequests: net/http ends each request by
// letting a read deadline pass, which must not end the TLS connection above.
func TestTLSInsideAStreamLivesThroughManyRequests(t *testing.T) {
	machine, hub := pair(t, Relay)
	id := newTestIdentity(t)
	conns := NewConns(machine.RemoteAddr())
	srv := APIServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }), nil)
	go srv.Serve(conns)
	t.Cleanup(func() { srv.Close() })
	go func() {
		stream, err := machine.Accept()
		if err != nil {
			return
		}
		conn, err := Handshake(context.Background(), stream, ServerTLS(id, string(API)))
		if err == nil {
			conns.Give(HTTPConn(conn))
		}
	}()
	stream, err := hub.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(stream, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{string(API)}, MinVersion: tls.VersionTLS13})
	transport := &http.Transport{MaxConnsPerHost: 1, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return HTTPConn(conn), nil }}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	for i := range 3 {
		response, err := client.Get("https://" + Host + "/")
		if err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
		response.Body.Close()
	}
}
