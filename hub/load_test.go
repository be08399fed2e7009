package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// TestFloodDoesNotKeepListedMachinesOut: strangers who hold every place at the gate
// leave the places of networks from which a listed machine has come.
func TestFloodDoesNotKeepListedMachinesOut(t *testing.T) {
	w := newWorld(t, 3)
	id := linktest.NewIdentity(t)
	w.adopt(0, id.ID())
	cfg := w.config(t)
	cfg.Gate = link.GateConfig{Strangers: 4, PerNetwork: 4, Time: time.Minute}
	r := w.start(t, cfg)
	r.mustPush(w.release())
	first := r.machine(id)
	first.waitRelease(1)
	first.stop()
	var flood []net.Conn
	defer func() {
		for _, c := range flood {
			c.Close()
		}
	}()
	strangers := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 99, 1)}}
	for range 12 {
		c, err := strangers.Dial("tcp", r.addr())
		if err != nil {
			t.Fatal(err)
		}
		flood = append(flood, c)
	}
	if _, err := tls.DialWithDialer(&strangers, "tcp", r.addr(), &tls.Config{InsecureSkipVerify: true}); err == nil {
		t.Error("the flood does not fill the gate: this test shows nothing")
	}
	w.files["x"] = []byte("x")
	second := r.machine(id)
	second.waitRelease(1)
	r.mustPush(w.release())
	second.waitRelease(2)
}

// BenchmarkIdleLinks holds 1000 links of listed machines to one hub and says what
// each costs the hub (and, since both ends are in this process, the machine's end).
func BenchmarkIdleLinks(b *testing.B) {
	const machines = 1000
	w := newWorld(b, machines)
	ids := make([]*link.Identity, machines)
	for i := range ids {
		ids[i] = linktest.NewIdentity(b)
		w.adopt(i, ids[i].ID())
	}
	r := w.hub(b)
	began := time.Now()
	r.mustPush(w.release())
	pushed := time.Since(began)
	for b.Loop() {
		before := memory()
		began = time.Now()
		sessions := make([]link.Session, machines)
		var wg sync.WaitGroup
		at := make(chan int)
		for range 32 {
			wg.Go(func() {
				for i := range at {
					s, err := link.Dial(context.Background(), link.DialConfig{Address: r.addr(), Class: link.Control, Identity: ids[i], Pins: []link.Pin{w.key.Pin()}})
					if err != nil {
						b.Error(err)
						continue
					}
					sessions[i] = s
					hello := wire.Hello{Capability: 1, Fleet: fleetID, Machine: ids[i].ID(), N: 1, Slice: release.Digest{1}.String()}
					hello.Slice = sliceOf(b, r, w, i)
					if err := wire.Call(context.Background(), link.Client(s.Open, 0), "POST", "http://"+link.Host+wire.PathHello, &hello, nil); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for i := range machines {
			at <- i
		}
		close(at)
		wg.Wait()
		up := time.Since(began)
		r.waitFor("all delivered", func() bool { return r.deliverer.size() == 0 })
		after := memory()
		b.ReportMetric(float64(after-before)/machines/1024, "KiB/link(both-ends)")
		b.ReportMetric(float64(runtime.NumGoroutine())/machines, "goroutines/link(both-ends)")
		b.ReportMetric(up.Seconds(), "s/1000-links")
		b.ReportMetric(pushed.Seconds(), "s/first-push")
		for _, s := range sessions {
			if s != nil {
				s.Close()
			}
		}
		r.waitFor("all gone", func() bool { return len(r.roster.online()) == 0 })
	}
}

// sliceOf is the digest of the slice that machine i should hold: nothing is then
// sent, and the link is idle.
func sliceOf(b *testing.B, r *running, w *world, i int) string {
	c, err := r.cutter.cut(context.Background(), r.head().Release, r.head().steps, fleetgen.SiteDir(i))
	if err != nil {
		b.Fatal(err)
	}
	return c.digest.String()
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// BenchmarkRelease10000 takes in a release of ten thousand sites, and then a one-line
// change; and cuts slices of it.
func BenchmarkRelease10000(b *testing.B) {
	w := newWorld(b, 10_000)
	r := w.hub(b)
	tag := w.release()
	for b.Loop() {
		began := time.Now()
		if _, err := r.push(tag); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(began).Seconds(), "s/first")
		w.files[fleetgen.SiteDir(7)+"/site.yaml"] = append(w.files[fleetgen.SiteDir(7)+"/site.yaml"], fmt.Sprintf("# %d\n", w.clock.Unix())...)
		tag = w.release()
		began = time.Now()
		r.mustPush(tag)
		b.ReportMetric(time.Since(began).Seconds(), "s/one-line")
		began = time.Now()
		const cuts = 50
		for i := range cuts {
			if _, err := r.cutter.cut(context.Background(), r.head().Release, nil, fleetgen.SiteDir(i*199)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(time.Since(began).Seconds()*1000/cuts, "ms/slice")
		began = time.Now()
		r.Hub.status(nil)
		b.ReportMetric(time.Since(began).Seconds()*1000, "ms/status")
		tag = w.release()
	}
}
