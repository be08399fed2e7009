package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"rsc.io/qr"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

func testReporter(t testing.TB) *reporter {
	c := newConsole(filepath.Join(t.TempDir(), "console"), nil)
	c.identify(fleetgen.MachineID(1, 0))
	return newReporter(c)
}

func TestReportTellsChangesOnly(t *testing.T) {
	r := testReporter(t)
	first, changed := r.now()
	if first.Phase != wire.Quarantined || first.Seq == 0 {
		t.Fatalf("a new machine says %+v", first)
	}
	r.update(func(*wire.Report) {})
	r.state(wire.Quarantined, "")
	r.condition("release", nil)
	if got, _ := r.now(); got.Seq != first.Seq || closed(changed) {
		t.Errorf("nothing changed, and it tells %d after %d", got.Seq, first.Seq)
	}
	r.state(wire.OK, "all is\x1b[31m well\n")
	got, next := r.now()
	if got.Seq != first.Seq+1 || !closed(changed) || closed(next) {
		t.Errorf("seq %d after %d, told %v", got.Seq, first.Seq, closed(changed))
	}
	if strings.ContainsAny(got.Detail, "\x1b\n") {
		t.Errorf("detail %q would reach a terminal", got.Detail)
	}
}

func TestReportIsInOrderAndItsOwn(t *testing.T) {
	r := testReporter(t)
	r.update(func(n *wire.Report) {
		n.Apps = append(n.Apps, wire.AppStatus{Name: "pos", Phase: wire.OK}, wire.AppStatus{Name: "base", Phase: wire.OK})
	})
	r.condition("release", errors.New("refused"))
	r.condition("disk", errors.New("full"))
	held, _ := r.now()
	want := []string{"base", "pos", "disk", "release"}
	if diff := cmp.Diff(want, []string{held.Apps[0].Name, held.Apps[1].Name, held.Conditions[0].Name, held.Conditions[1].Name}); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.update(func(n *wire.Report) { n.Apps[0].Phase = wire.Failed })
	r.condition("disk", nil)
	if held.Apps[0].Phase != wire.OK || len(held.Conditions) != 2 {
		t.Errorf("a report that was handed out changed: %+v", held)
	}
	now, _ := r.now()
	if len(now.Conditions) != 1 || now.Apps[0].Phase != wire.Failed {
		t.Errorf("got %+v", now)
	}
	back, err := wire.Diff(&held, now).Apply(&held)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(now, *back); diff != "" {
		t.Errorf("what the hub would hold (-want +got):\n%s", diff)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestTimingsAreBounded(t *testing.T) {
	r := testReporter(t)
	for range 1000 {
		r.timed("apply", time.Now())
	}
	if n := len(r.phases()); n > 256 {
		t.Errorf("%d timings are kept", n)
	}
}

// What changes within half a second goes out together; a change that comes while
// a report is under way goes with the next.
func TestReportsAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := testReporter(t)
		u := &uplink{Machine: &Machine{reporter: r, log: quiet()}, kick: make(chan struct{}, 1), listed: true}
		var sent []uint64
		u.deliver = func(_ context.Context, _ *wire.Report, now wire.Report) error {
			u.mu.Lock()
			sent = append(sent, now.Seq)
			u.sent = &now
			u.mu.Unlock()
			return nil
		}
		all := func() []uint64 {
			synctest.Wait()
			u.mu.Lock()
			defer u.mu.Unlock()
			return slices.Clone(sent)
		}
		first, _ := r.now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); u.reports(ctx) }()
		synctest.Wait()
		began := time.Now()
		for i := range 10 { // a change each 40 ms
			r.update(func(n *wire.Report) { n.N = uint64(i) + 1 })
			time.Sleep(40 * time.Millisecond)
			synctest.Wait()
		}
		if sent := all(); len(sent) != 1 {
			t.Errorf("after %s: sent %v", time.Since(began), sent)
		}
		time.Sleep(time.Second)
		if diff := cmp.Diff([]uint64{first.Seq, first.Seq + 10}, all()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		time.Sleep(time.Hour)
		if sent := all(); len(sent) != 2 {
			t.Errorf("an hour of nothing: sent %v", sent)
		}
		u.mu.Lock()
		u.sent, u.listed = nil, false // dialed again, as a stranger
		u.mu.Unlock()
		u.kick <- struct{}{}
		time.Sleep(time.Minute)
		if sent := all(); len(sent) != 2 {
			t.Errorf("a stranger reports: %v", sent)
		}
		u.mu.Lock()
		u.listed = true // and adopted
		u.mu.Unlock()
		u.kick <- struct{}{}
		if sent := all(); len(sent) != 3 {
			t.Errorf("adopted: sent %v", sent)
		}
		cancel()
		<-done
	})
}

// While the hub does not take it, the newest report waits; it is tried every two
// seconds and not piled up.
func TestReportWaitsForTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := testReporter(t)
		u := &uplink{Machine: &Machine{reporter: r, log: quiet()}, kick: make(chan struct{}, 1), listed: true}
		away, tries, got := true, 0, uint64(0)
		u.deliver = func(_ context.Context, _ *wire.Report, now wire.Report) error {
			u.mu.Lock()
			defer u.mu.Unlock()
			if tries++; away {
				return errors.New("no hub")
			}
			got, u.sent = now.Seq, &now
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); u.reports(ctx) }()
		for i := range 100 {
			r.update(func(n *wire.Report) { n.N = uint64(i) + 1 })
			time.Sleep(100 * time.Millisecond)
		}
		u.mu.Lock()
		if tries > 6 {
			t.Errorf("%d tries in ten seconds", tries)
		}
		away = false
		u.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		u.mu.Lock()
		if now, _ := r.now(); got != now.Seq {
			t.Errorf("the hub holds %d, the machine says %d", got, now.Seq)
		}
		u.mu.Unlock()
		cancel()
		<-done
	})
}

func TestConsole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console")
	c := newConsole(path, nil)
	id := fleetgen.MachineID(1, 0)
	c.identify(id)
	c.tell([]faults.Fault{faults.New(faults.NoAddress, "eth1"), faults.New(faults.ReleaseRefused, "not signed")})
	c.show("site", "de-00001")
	c.show("hub", "connected to hub.example.com:443")
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(string(b), "\n\n")
		return body
	}
	want := "  machine   " + string(id) + "\n" +
		"  code      " + link.Code(id) + "\n" +
		"  site      de-00001\n" +
		"  hub       connected to hub.example.com:443\n" +
		"  fault     E17 no address on port eth1\n" +
		"  fault     E27 refused a release: not signed\n"
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	c.show("site", "de-00001")
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same picture was drawn again: %v", err)
	}
	c.tell(nil)
	if strings.Contains(read(), "fault") {
		t.Errorf("a fault that is gone:\n%s", read())
	}
}

// Why the hub is not reached, as somebody who stands before the machine needs it:
// a name that nobody resolves is not a firewall, and neither is another's key.
func TestLinkFaults(t *testing.T) {
	m := newMachine(Config{Log: quiet()})
	m.console = newConsole("", nil)
	m.reporter = newReporter(m.console)
	u := &uplink{Machine: m}
	dial := func(err error) error {
		return fmt.Errorf("dial the hub: %w", &net.OpError{Op: "dial", Net: "tcp", Err: err})
	}
	for _, c := range []struct {
		what  string
		state link.State
		want  string
	}{
		{"no route", link.State{Hub: "hub", Err: dial(syscall.EHOSTUNREACH)}, "E18 hub"},
		{"no name", link.State{Hub: "hub", Err: dial(&net.DNSError{Err: "server misbehaving", Name: "hub"})}, "E18 hub,E21"},
		{"names again", link.State{Hub: "hub", Err: dial(syscall.ECONNREFUSED)}, "E18 hub"},
		{"another's key", link.State{Hub: "hub", Err: fmt.Errorf("dial: %w", link.ErrPin)}, "E18 hub,E19 hub"},
		{"no name", link.State{Hub: "hub", Err: dial(&net.DNSError{Name: "hub"})}, "E18 hub,E19 hub,E21"},
		{"there", link.State{Hub: "hub", Connected: true}, ""},
	} {
		u.state(c.state)
		var names []string
		now, _ := m.faults.Now()
		for _, f := range now {
			names = append(names, f.Name())
		}
		if got := strings.Join(names, ","); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
}

// What stands on a screen is read back as the modules of the code, with a white
// margin of four around; and it is the picture that a reader was tried on.
func TestCodePicture(t *testing.T) {
	text := link.Code(fleetgen.MachineID(1, 0))
	lines := codePicture(text)
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		t.Fatal(err)
	}
	if code.Size != 21 {
		t.Errorf("the code has %d modules on a side: a machine's fits 21", code.Size)
	}
	dark := func(x, y int) bool {
		r := []rune(lines[y/2])[x]
		return r == ' ' || r == '▀' && y%2 == 1 || r == '▄' && y%2 == 0
	}
	for y := range code.Size + 8 {
		for x := range code.Size + 8 {
			if dark(x, y) != code.Black(x-4, y-4) {
				t.Fatalf("module %d,%d is wrong:\n%s", x-4, y-4, strings.Join(lines, "\n"))
			}
		}
	}
	for _, l := range lines {
		if n := len([]rune(l)); n != code.Size+8 {
			t.Errorf("a line of %d characters", n)
		}
	}
	golden := filepath.Join("testdata", "code.txt")
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text+"\n"+strings.Join(lines, "\n")+"\n"); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// pictures is a screen: each Write is one.
type pictures chan string

func (p pictures) Write(b []byte) (int, error) { p <- string(b); return len(b), nil }

// A screen gets whole pictures, the newest, and not more often than it can show.
func TestScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		screen := make(pictures)
		c := newConsole("", screen)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.paint(ctx) }()
		c.identify(fleetgen.MachineID(1, 0))
		first := <-screen
		if !strings.Contains(first, "\n  code      "+link.Code(fleetgen.MachineID(1, 0))+"\n") || !strings.Contains(first, "█▀▀▀") && !strings.Contains(first, "▀▀▀") {
			t.Errorf("the first picture:\n%s", first)
		}
		began := time.Now()
		for _, s := range []string{"1 of 9 MB", "5 of 9 MB", "9 of 9 MB"} {
			c.show("state", s)
		}
		second := <-screen
		if !strings.Contains(second, "9 of 9 MB") || strings.Contains(second, "1 of 9") {
			t.Errorf("the second picture:\n%s", second)
		}
		if time.Since(began) < screenRest {
			t.Errorf("it came after %v", time.Since(began))
		}
		cancel()
		<-done
	})
}

// Faults are conditions of the report: what is only to be known is well, and what
// the hub knows better is not told.
func TestFaultsAreReported(t *testing.T) {
	r := testReporter(t)
	l := faults.NewList(nil)
	l.Set(faults.New(faults.NoAddress, "eth1"))
	l.Set(faults.New(faults.Unprotected))
	l.Set(faults.New(faults.NoRoute, "hub:443", "refused"))
	r.condition("other", errors.New("stays"))
	r.faults(l)
	now, _ := r.now()
	want := []wire.Condition{
		{Name: "E11", OK: true, Detail: faults.New(faults.Unprotected).Sentence()},
		{Name: "E17 eth1", Detail: "no address on port eth1"},
		{Name: "other", Detail: "stays"},
	}
	if diff := cmp.Diff(want, now.Conditions); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.faults(l)
	if again, _ := r.now(); again.Seq != now.Seq {
		t.Error("told twice")
	}
	l.Clear(faults.NoAddress)
	l.Clear(faults.Unprotected)
	r.faults(l)
	if now, _ := r.now(); len(now.Conditions) != 1 || now.Conditions[0].Name != "other" {
		t.Errorf("left: %+v", now.Conditions)
	}
}
