package clock

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/machine/faults"
)

var (
	built = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC) // the OS image: the floor
	today = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
)

const year = 365 * 24 * time.Hour

// box is a machine with a clock of its own: now is what it believes, and the
// truth goes on beside it.
type box struct {
	mu      sync.Mutex
	began   time.Time     // on the bubble's clock
	offset  time.Duration // of the machine's clock to the truth
	battery time.Time     // what the hardware clock says
	noRTC   bool
	lies    map[string]time.Duration // by source: how far its clock is off
	sets    int
}

func (b *box) truth() time.Time { return today.Add(time.Since(b.began)) }
func (b *box) now() time.Time   { b.mu.Lock(); defer b.mu.Unlock(); return b.truth().Add(b.offset) }
func (b *box) set(t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offset = t.Sub(b.truth())
	b.sets++
	return nil
}
func (b *box) slew(d time.Duration) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.offset += d
	return nil
}
func (b *box) rtc() (time.Time, error) {
	if b.noRTC {
		return time.Time{}, errors.New("no hardware clock")
	}
	return b.battery, nil
}
func (b *box) setRTC(t time.Time) error { b.mu.Lock(); defer b.mu.Unlock(); b.battery = t; return nil }
func (b *box) ask(_ context.Context, servers []string) []Sample {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Sample
	for _, s := range servers {
		if lie, ok := b.lies[s]; ok {
			out = append(out, Sample{s, lie - b.offset, time.Millisecond})
		}
	}
	return out
}

func (b *box) lie(lies map[string]time.Duration) { b.mu.Lock(); defer b.mu.Unlock(); b.lies = lies }

// wrong is how far the machine's clock is off the truth.
func (b *box) wrong() time.Duration { return b.now().Sub(b.truth()).Round(time.Second) }

// boot boots a machine whose hardware clock says rtc, asks each of the sources, and runs it.
func boot(t *testing.T, rtc time.Time, lies map[string]time.Duration, story func(b *box, c *Clock, list *faults.List)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &box{began: time.Now(), battery: rtc, lies: lies}
		list := faults.NewList(nil)
		c := newClock(Options{Floor: built, Servers: func() []string { return []string{"a", "b", "c"} }, Faults: list, Log: slog.New(slog.DiscardHandler)}, b)
		if err := c.Set(); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Run(ctx) }()
		synctest.Wait()
		story(b, c, list)
		if b.now().Before(c.State().Floor) {
			t.Errorf("the clock is %v, below its floor", b.now())
		}
		cancel()
		<-done
	})
}

func has(list *faults.List, code faults.Code) bool {
	all, _ := list.Now()
	for _, f := range all {
		if f.Code == code {
			return true
		}
	}
	return false
}

func TestHardwareClockSays1970(t *testing.T) {
	boot(t, time.Unix(0, 0), nil, func(b *box, c *Clock, list *faults.List) {
		if !b.now().Equal(built) || c.Known() || !has(list, faults.ClockFloor) {
			t.Errorf("without servers: %v, %+v", b.now(), c.State())
		}
		b.lie(map[string]time.Duration{"a": 0, "b": 300 * time.Millisecond})
		time.Sleep(lazy)
		synctest.Wait()
		if b.wrong() != 0 || c.State().Source != FromNTP || has(list, faults.ClockFloor) || b.battery.Sub(b.truth()).Abs() > lazy {
			t.Errorf("with servers: off by %v, %+v, hardware %v", b.wrong(), c.State(), b.battery)
		}
	})
}

func TestHardwareClockIsTenYearsAhead(t *testing.T) {
	boot(t, today.Add(10*year), nil, func(b *box, c *Clock, _ *faults.List) {
		if b.wrong() != 10*year || c.State().Source != FromRTC || !c.State().Floor.Equal(built) {
			t.Errorf("without servers: off by %v, %+v", b.wrong(), c.State())
		}
		b.lie(map[string]time.Duration{"a": 0, "b": 0})
		time.Sleep(lazy)
		synctest.Wait()
		if b.wrong() != 0 {
			t.Errorf("not set back: off by %v", b.wrong())
		}
	})
}

func TestHardwareClockIsAbsurd(t *testing.T) {
	boot(t, today.Add(139*year), nil, func(b *box, c *Clock, _ *faults.List) {
		if !b.now().Equal(built) || c.Known() {
			t.Errorf("believed: %v", b.now())
		}
	})
}

func TestNoHardwareClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &box{began: time.Now(), noRTC: true, offset: -20 * year}
		c := newClock(Options{Floor: built, Log: slog.New(slog.DiscardHandler)}, b)
		if err := c.Set(); err != nil || !b.now().Equal(built) || c.Known() {
			t.Errorf("%v, %v", b.now(), err)
		}
	})
}

func TestOneLiarAmongSources(t *testing.T) {
	for _, rtc := range []time.Time{today, time.Unix(0, 0), today.Add(10 * year)} {
		for _, lie := range []time.Duration{10 * year, -10 * year, -10 * 24 * time.Hour, 5 * time.Hour, time.Minute} {
			boot(t, rtc, map[string]time.Duration{"a": lie, "b": 0, "c": 0}, func(b *box, c *Clock, list *faults.List) {
				if b.wrong() != 0 {
					t.Errorf("hardware clock %v, one lies by %v: off by %v", rtc, lie, b.wrong())
				}
				if below := b.truth().Add(lie).Before(built); has(list, faults.ClockDisagrees) == below {
					t.Errorf("one lies by %v: fault %v", lie, !below)
				}
			})
		}
	}
}

func TestOneLiarAndOneHonestSource(t *testing.T) {
	boot(t, today, map[string]time.Duration{"a": 10 * year, "b": 0}, func(b *box, _ *Clock, _ *faults.List) {
		if b.wrong() != 0 {
			t.Errorf("off by %v", b.wrong())
		}
	})
	boot(t, time.Unix(0, 0), map[string]time.Duration{"a": 10 * year, "b": 0}, func(b *box, c *Clock, list *faults.List) {
		if !b.now().Equal(built) || c.Known() || !has(list, faults.ClockDisagrees) {
			t.Errorf("chose between two: %v", b.now())
		}
	})
}

func TestOneSourceAloneCannotMakeABigStep(t *testing.T) {
	for _, lie := range []time.Duration{10 * year, 25 * time.Hour, -25 * time.Hour} {
		boot(t, today, map[string]time.Duration{"a": lie}, func(b *box, _ *Clock, list *faults.List) {
			if b.wrong() != 0 || !has(list, faults.ClockDisagrees) {
				t.Errorf("%v: off by %v", lie, b.wrong())
			}
		})
	}
	boot(t, today, map[string]time.Duration{"a": 23 * time.Hour}, func(b *box, _ *Clock, _ *faults.List) {
		if b.wrong() != 23*time.Hour {
			t.Errorf("a smaller step: off by %v", b.wrong())
		}
	})
}

// One source that says the same under one name many times is one.
func TestOneSourceThatAnswersTwice(t *testing.T) {
	d := Decide(today, built, []Sample{{"a", 10 * year, 0}, {"a", 10*year + time.Second, 0}})
	if d.Known {
		t.Errorf("got %+v", d)
	}
}

func TestTwoLiarsAreUndoneLater(t *testing.T) {
	boot(t, today, map[string]time.Duration{"a": 10 * year, "b": 10 * year, "c": 0}, func(b *box, c *Clock, _ *faults.List) {
		if b.wrong() != 10*year || !c.State().Floor.Equal(built) {
			t.Errorf("off by %v, %+v", b.wrong(), c.State())
		}
		b.lie(map[string]time.Duration{"a": 0, "b": 0, "c": 0})
		time.Sleep(normal)
		synctest.Wait()
		if b.wrong() != 0 {
			t.Errorf("not set back: off by %v", b.wrong())
		}
	})
}

func TestAllSourcesSayATimeBeforeTheFloor(t *testing.T) {
	boot(t, today, map[string]time.Duration{"a": -year, "b": -year, "c": -year}, func(b *box, _ *Clock, _ *faults.List) {
		if b.wrong() != 0 {
			t.Errorf("off by %v", b.wrong())
		}
	})
}

func TestSignedTimeRaisesTheFloorAndTheClock(t *testing.T) {
	boot(t, time.Unix(0, 0), nil, func(b *box, c *Clock, list *faults.List) {
		signed := today.Add(-time.Hour)
		c.Signed(signed)
		synctest.Wait()
		if !b.now().Equal(signed) || !c.State().Floor.Equal(signed) || c.Known() {
			t.Errorf("%v, %+v", b.now(), c.State())
		}
		c.Signed(built)
		if !c.State().Floor.Equal(signed) {
			t.Error("an older signed time lowered the floor")
		}
		b.lie(map[string]time.Duration{"a": -5 * 24 * time.Hour, "b": -5 * 24 * time.Hour})
		time.Sleep(lazy)
		synctest.Wait()
		if b.now().Before(signed) {
			t.Errorf("set below the signed time: %v", b.now())
		}
	})
}

func TestSmallErrorsAreSlewed(t *testing.T) {
	boot(t, today, map[string]time.Duration{"a": 400 * time.Millisecond, "b": 400 * time.Millisecond}, func(b *box, _ *Clock, _ *faults.List) {
		if b.sets != 1 || b.offset != 400*time.Millisecond {
			t.Errorf("set %d times, off by %v", b.sets, b.offset)
		}
	})
}

func FuzzDecide(f *testing.F) {
	f.Add(int64(0), int64(1), int64(2), int64(0))
	f.Add(int64(10*year), int64(10*year), int64(-year), int64(time.Hour))
	f.Fuzz(func(t *testing.T, a, b, c, e int64) {
		const bound = int64(60 * year)
		var samples []Sample
		for i, o := range []int64{a, b, c} {
			samples = append(samples, Sample{string(rune('a' + i)), time.Duration(o % bound), time.Duration(e % int64(time.Minute)).Abs()})
		}
		d := Decide(today, built, samples)
		if today.Add(d.Offset).Before(built) {
			t.Errorf("below the floor: %+v", d)
		}
		if d.Offset.Abs() > bigStep {
			near := 0
			for _, s := range samples {
				if (s.Offset - d.Offset).Abs() <= 2*(tolerance+2*s.Error)+time.Hour {
					near++
				}
			}
			if near < 2 {
				t.Errorf("a big step that no two agree on: %+v of %+v", d, samples)
			}
		}
	})
}

// TestRealServer asks a time server of our own, through a real socket.
func TestRealServer(t *testing.T) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 512)
		for {
			n, peer, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			r := make([]byte, 48)
			r[0], r[1], r[2], r[3] = 4<<3|4, 2, 6, 0xec // version 4, server, stratum 2
			copy(r[24:32], b[40:48])
			at := time.Now().Add(time.Hour)
			for _, field := range []int{16, 32, 40} { // reference, receive, transmit
				put(r[field:], at)
			}
			_, _ = conn.WriteTo(r, peer)
		}
	}()
	address := conn.LocalAddr().String()
	got := linux{}.ask(t.Context(), []string{address, address, "nowhere.invalid"})
	if len(got) != 1 || got[0].Source != address || (got[0].Offset-time.Hour).Abs() > time.Second {
		t.Errorf("got %+v", got)
	}
	conn.Close()
	<-done
	if _, err := query(strings.Replace(address, "127.0.0.1", "127.0.0.255", 1)); err == nil {
		t.Error("nobody there: no error")
	}
}

// put writes a time as NTP does: seconds since 1900 and their fraction.
func put(b []byte, t time.Time) {
	seconds := uint64(t.Unix()) + 2208988800
	v := seconds<<32 | uint64(t.Nanosecond())<<32/1e9
	for i := range 8 {
		b[i] = byte(v >> (56 - 8*i))
	}
}
