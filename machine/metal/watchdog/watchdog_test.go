package watchdog

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// beast is a watchdog that remembers what was done to it.
type beast struct {
	mu      sync.Mutex
	timeout time.Duration
	fed     time.Time
	bitten  bool
	closed  string
}

func (b *beast) check() {
	if !b.fed.IsZero() && time.Since(b.fed) >= b.timeout {
		b.bitten = true
	}
}

func (b *beast) Timeout(t time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.check()
	b.timeout, b.fed = t, time.Now() // the kernel feeds it too
	return nil
}

func (b *beast) Feed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.check()
	b.fed = time.Now()
	return nil
}

func (b *beast) Close(stop bool) error {
	b.closed = map[bool]string{true: "stopped", false: "running"}[stop]
	return nil
}

func (b *beast) bit() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.check()
	return b.bitten
}

func TestFedWhileThePulsesBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &beast{}
		d := &Dog{device: b, changed: make(chan struct{}, 1)}
		if err := d.SetTimeout(time.Minute); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var told []string
		var asleep, beating Pulse // asleep never began
		go d.Keep(ctx, 90*time.Second, map[string]*Pulse{"loop": &beating, "asleep": &asleep}, func(part string) { told = append(told, part) })
		for range 60 {
			beating.Beat()
			time.Sleep(30 * time.Second)
		}
		if b.bit() || len(told) != 0 {
			t.Fatalf("bitten %v, told %v while all went well", b.bit(), told)
		}
		if err := d.SetTimeout(5 * time.Second); err != nil { // feeding follows at once
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if b.bit() {
			t.Fatal("bitten after the timeout was shortened")
		}
		time.Sleep(2 * time.Minute)
		if !b.bit() || len(told) != 1 || told[0] != "loop" {
			t.Fatalf("after the pulse stopped: bitten %v, told %v", b.bit(), told)
		}
	})
}

func TestRestIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &beast{}
		d := &Dog{device: b, changed: make(chan struct{}, 1)}
		d.SetTimeout(time.Minute)
		var p Pulse
		p.Beat()
		p.Rest()
		ctx, cancel := context.WithCancel(t.Context())
		go d.Keep(ctx, time.Minute, map[string]*Pulse{"loop": &p}, func(string) {})
		time.Sleep(time.Hour)
		if b.bit() {
			t.Error("bitten while the part had ended as it should")
		}
		cancel()
		synctest.Wait()
		if d.Disarm(); b.closed != "stopped" {
			t.Errorf("after Disarm it is %s", b.closed)
		}
		if d.Leave(); b.closed != "running" {
			t.Errorf("after Leave it is %s", b.closed)
		}
	})
}

func TestNoneIsNoFault(t *testing.T) {
	d, err := Open(filepath.Join(t.TempDir(), "watchdog"), time.Minute)
	if d != nil || err != nil {
		t.Fatalf("got %v, %v", d, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range []error{d.SetTimeout(time.Second), d.Keep(ctx, time.Second, nil, nil), d.Disarm(), d.Leave()} {
		if err != nil {
			t.Error(err)
		}
	}
}
