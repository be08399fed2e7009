package link

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

func serveFor(t testing.TB, s Session, h http.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { ServeHTTP(ctx, s, h) })
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func TestHTTPBothWays(t *testing.T) {
	machine, hub := pair(t, Control)
	answer := func(word string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s, ok := SessionFrom(r.Context())
			if !ok {
				t.Error("no session in the context")
			}
			if r.UserAgent() != "" || r.Header.Get("Accept-Encoding") != "" {
				t.Errorf("headers nobody asked for: %v", r.Header)
			}
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s got %s on %s", word, body, s.Class())
		})
	}
	serveFor(t, machine, answer("machine"))
	serveFor(t, hub, answer("hub"))
	for _, c := range []struct {
		from Session
		want string
	}{{machine, "hub got x on holdfast-control/1"}, {hub, "machine got x on holdfast-control/1"}} {
		client := Client(c.from.Open, 0)
		for range 3 {
			response, err := client.Post("http://"+Host+"/", "", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if string(got) != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if response.Header.Get("Date")+response.Header.Get("Content-Type") != "" {
				t.Errorf("headers nobody asked for: %v", response.Header)
			}
		}
	}
	if n := machine.Streams(); n != 2 {
		t.Errorf("%d streams for 6 calls, want one each way", n)
	}
}

func TestServeHTTPWaitsForHandlers(t *testing.T) {
	machine, hub := pair(t, Control)
	inside, ended := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	served := make(chan error)
	go func() {
		served <- ServeHTTP(ctx, hub, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(inside)
			<-r.Context().Done()
			time.Sleep(20 * time.Millisecond)
			close(ended)
		}))
	}()
	go func() {
		if response, err := Client(machine.Open, 0).Get("http://" + Host + "/"); err == nil {
			response.Body.Close()
		}
	}()
	<-inside
	why := errors.New("going down")
	cancel(why)
	if err := <-served; !errors.Is(err, why) {
		t.Errorf("got %v, want the cause", err)
	}
	select {
	case <-ended:
	default:
		t.Error("ServeHTTP returned before its handler")
	}
}

func TestCallEndsWithSession(t *testing.T) {
	machine, hub := pair(t, Control)
	serveFor(t, hub, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	time.AfterFunc(50*time.Millisecond, func() { machine.Close() })
	_, err := Client(machine.Open, 0).Get("http://" + Host + "/")
	if err == nil {
		t.Fatal("the call succeeded")
	}
}

// lineChange is what one changed line costs on the wire, both ways, below TLS:
// the hub puts a slice, the machine answers and reports.
func lineChange(tb testing.TB, slice, report []byte) uint64 {
	machine, hub := pair(tb, Control)
	drain := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	})
	serveFor(tb, machine, drain)
	serveFor(tb, hub, drain)
	toMachine, toHub := Client(hub.Open, 0), Client(machine.Open, 0)
	exchange := func() {
		for _, c := range []struct {
			client       *http.Client
			method, path string
			body         []byte
			dictionary   string
		}{
			{toMachine, http.MethodPut, "/v1/slice", slice, strings.Repeat("0f", 8)},
			{toHub, http.MethodPost, "/v1/report", report, ""},
		} {
			r, err := http.NewRequestWithContext(tb.Context(), c.method, "http://"+Host+c.path, bytes.NewReader(c.body))
			if err != nil {
				tb.Fatal(err)
			}
			if c.dictionary != "" {
				r.Header.Set("Dict", c.dictionary)
			}
			response, err := c.client.Do(r)
			if err != nil {
				tb.Fatal(err)
			}
			response.Body.Close()
		}
	}
	exchange() // opens the streams
	before := total(machine)
	exchange()
	return total(machine) - before
}

func TestLineChangeFitsABudget(t *testing.T) {
	slice, report := make([]byte, 500), make([]byte, 130)
	rand.Read(slice)
	rand.Read(report)
	cost := lineChange(t, slice, report)
	t.Logf("slice %d + report %d bytes cost %d on the wire: %d of overhead", len(slice), len(report), cost, cost-630)
	if cost > 1000 {
		t.Errorf("a one-line change costs %d bytes, want at most 1000", cost)
	}
}

func BenchmarkLineChange(b *testing.B) {
	slice, report := make([]byte, 500), make([]byte, 300)
	for b.Loop() {
		b.ReportMetric(float64(lineChange(b, slice, report)), "wire-B/change")
	}
}
