package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake starts no processes: each does what its behaviour says, on the bubble's clock. It polices that a child has one process at a time.
type fake struct {
	t     *testing.T
	start time.Time

	mu        sync.Mutex
	behaviour map[string]behaviour
	live      map[string]*fakeProcess
	story     []string
	pids      int
}

type behaviour struct {
	dies     time.Duration // by itself after; 0: never
	deaf     bool          // ignores the polite signal
	slow     time.Duration // from the polite signal to the end
	noStart  error
	lastWord string
}

type fakeProcess struct {
	f    *fake
	name string
	id   int
	end  chan Exit
	once sync.Once
}

func (f *fake) say(format string, args ...any) {
	f.story = append(f.story, fmt.Sprintf("%6.1fs ", time.Since(f.start).Seconds())+fmt.Sprintf(format, args...))
}

func (f *fake) launch(spec Child) (process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.behaviour[spec.Name]
	if b.noStart != nil {
		f.say("%s cannot start", spec.Name)
		return nil, b.noStart
	}
	if f.live[spec.Name] != nil {
		f.t.Errorf("%s is started while it runs", spec.Name)
	}
	f.pids++
	p := &fakeProcess{f: f, name: spec.Name, id: f.pids, end: make(chan Exit, 1)}
	f.live[spec.Name] = p
	f.say("%s starts", spec.Name)
	if b.dies > 0 {
		time.AfterFunc(b.dies, func() { p.die(Exit{Code: 1, Output: []string{b.lastWord}}) })
	}
	return p, nil
}

func (p *fakeProcess) die(e Exit) {
	p.once.Do(func() {
		p.f.mu.Lock()
		defer p.f.mu.Unlock()
		p.f.say("%s ends", p.name)
		delete(p.f.live, p.name)
		p.end <- e
	})
}

func (p *fakeProcess) pid() int   { return p.id }
func (p *fakeProcess) wait() Exit { return <-p.end }
func (p *fakeProcess) signal(spec Child, kill bool) {
	p.f.mu.Lock()
	b := p.f.behaviour[p.name]
	p.f.mu.Unlock()
	switch {
	case kill:
		p.die(Exit{Code: -1, Signal: "SIGKILL"})
	case !b.deaf:
		time.AfterFunc(b.slow, func() { p.die(Exit{}) })
	}
}

func (f *fake) kill(name string) {
	f.mu.Lock()
	p := f.live[name]
	f.mu.Unlock()
	if p != nil {
		p.die(Exit{Code: -1, Signal: "SIGKILL"})
	}
}

func (f *fake) isLive(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[name] != nil
}

// supervised runs a supervisor in a bubble and stops it at the end.
func supervised(t *testing.T, c Config, b map[string]behaviour, children []Child, f func(*testing.T, *Supervisor, *fake)) []string {
	t.Helper()
	var fk *fake
	synctest.Test(t, func(t *testing.T) {
		fk = &fake{t: t, start: time.Now(), behaviour: b, live: map[string]*fakeProcess{}}
		c.Log = slog.New(slog.DiscardHandler)
		s := build(c, func(Config) launcher { return fk })
		s.core.random = func() float64 { return 0 }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		if err := s.Apply(ctx, children); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		f(t, s, fk)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(fk.live) > 0 {
			t.Errorf("still running after the end: %v", fk.live)
		}
	})
	return fk.story
}

func after(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func never(context.Context) error { return errors.New("not yet") }

func child(name string, after ...string) Child {
	return Child{Name: name, Path: "/" + name, After: after}
}

func TestOrderUpAndDown(t *testing.T) {
	api, node, dns := child("api"), child("node", "api"), child("dns", "api", "node")
	api.Ready = after(3 * time.Second)
	story := supervised(t, Config{}, map[string]behaviour{"dns": {slow: 2 * time.Second}, "node": {slow: time.Second}}, []Child{dns, node, api},
		func(t *testing.T, s *Supervisor, f *fake) {
			if err := s.WaitReady(t.Context(), "api", "node", "dns"); err != nil {
				t.Error(err)
			}
		})
	want := []string{"   0.0s api starts", "   3.0s node starts", "   3.0s dns starts", "   5.0s dns ends", "   6.0s node ends", "   6.0s api ends"}
	if d := cmp.Diff(want, story); d != "" {
		t.Error(d)
	}
}

func TestBackoffDoublesAndStartsAnew(t *testing.T) {
	c := Config{Backoff: Backoff{Min: time.Second, Max: 4 * time.Second, Reset: time.Minute}, CrashLoop: CrashLoop{Exits: 4}}
	b := map[string]behaviour{"a": {dies: time.Second, lastWord: "out of luck"}}
	story := supervised(t, c, b, []Child{child("a")}, func(t *testing.T, s *Supervisor, f *fake) {
		time.Sleep(14500 * time.Millisecond)
		st := s.Status()[0]
		if !st.CrashLoop || st.LastExit == nil || !slices.Equal(st.LastExit.Output, []string{"out of luck"}) {
			t.Errorf("status: %+v", st)
		}
		f.mu.Lock()
		b["a"] = behaviour{dies: 2 * time.Minute}
		f.mu.Unlock()
		time.Sleep(3 * time.Minute)
	})
	want := []string{"   0.0s a starts", "   1.0s a ends", "   2.0s a starts", "   3.0s a ends", "   5.0s a starts", "   6.0s a ends",
		"  10.0s a starts", "  11.0s a ends", "  15.0s a starts", " 135.0s a ends", " 136.0s a starts", " 194.5s a ends"}
	if d := cmp.Diff(want, story); d != "" {
		t.Error(d)
	}
}

func TestCrashLoopIsMarkedAndForgotten(t *testing.T) {
	c := Config{CrashLoop: CrashLoop{Exits: 3, Window: time.Minute}}
	b := map[string]behaviour{"a": {dies: time.Second}}
	supervised(t, c, b, []Child{child("a")}, func(t *testing.T, s *Supervisor, f *fake) {
		time.Sleep(1100 * time.Millisecond)
		if st := s.Status()[0]; st.CrashLoop || st.Crashes != 1 {
			t.Errorf("after one crash: %+v", st)
		}
		time.Sleep(5 * time.Second)
		if st := s.Status()[0]; !st.CrashLoop {
			t.Errorf("after many crashes: %+v", st)
		}
		f.mu.Lock()
		delete(b, "a")
		f.mu.Unlock()
		time.Sleep(3 * time.Minute)
		if st := s.Status()[0]; st.CrashLoop || st.Crashes != 0 || st.State != Running {
			t.Errorf("after a calm time: %+v", st)
		}
	})
}

func TestNotReadyInTimeIsAFailure(t *testing.T) {
	a := child("a")
	a.Ready, a.ReadyWithin, a.Grace = never, 10*time.Second, 5*time.Second
	supervised(t, Config{}, map[string]behaviour{"a": {deaf: true}}, []Child{a, child("b", "a")}, func(t *testing.T, s *Supervisor, f *fake) {
		time.Sleep(15*time.Second + time.Millisecond)
		st := s.Status()
		if st[0].State != Pausing || st[0].Crashes != 1 || st[0].LastExit.Reason != "not ready in 10s" || st[0].LastExit.Signal != "SIGKILL" {
			t.Errorf("a: %+v %+v", st[0], st[0].LastExit)
		}
		if st[1].State != Waiting || !slices.Equal(st[1].WaitsFor, []string{"a"}) {
			t.Errorf("b: %+v", st[1])
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.WaitReady(ctx, "b", "c"); err == nil || !strings.Contains(err.Error(), "b (waiting)") || !strings.Contains(err.Error(), "c (unknown)") {
			t.Errorf("WaitReady: got %v", err)
		}
	})
}

func TestRestartIsNoCrash(t *testing.T) {
	var exits []Exit
	c := Config{OnExit: func(name string, e Exit) { exits = append(exits, e) }}
	story := supervised(t, c, map[string]behaviour{"a": {slow: time.Second}}, []Child{child("a"), child("b", "a")}, func(t *testing.T, s *Supervisor, f *fake) {
		s.Restart(t.Context(), "a")
		time.Sleep(2 * time.Second)
		if st := s.Status()[0]; st.State != Running || st.Crashes != 0 || st.Restarts != 1 {
			t.Errorf("got %+v", st)
		}
	})
	want := []string{"   0.0s a starts", "   0.0s b starts", "   1.0s a ends", "   1.0s a starts", "   2.0s b ends", "   3.0s a ends"}
	if d := cmp.Diff(want, story); d != "" {
		t.Error(d)
	}
	if len(exits) != 3 || !exits[0].Expected {
		t.Errorf("exits seen: %+v", exits)
	}
}

func TestApplyTouchesOnlyWhatChanged(t *testing.T) {
	merged, node := child("control-plane"), child("node", "control-plane")
	story := supervised(t, Config{}, nil, []Child{merged, node}, func(t *testing.T, s *Supervisor, f *fake) {
		s.Apply(t.Context(), []Child{merged, node}) // again: nothing
		time.Sleep(time.Second)
		split := merged
		split.Args = []string{"--alone"}
		s.Apply(t.Context(), []Child{split, node, child("controllers", "control-plane")})
		time.Sleep(time.Second)
		s.Apply(t.Context(), []Child{split})
		time.Sleep(time.Second)
		if st := s.Status(); len(st) != 1 || st[0].State != Running {
			t.Errorf("got %+v", st)
		}
	})
	want := []string{"   0.0s control-plane starts", "   0.0s node starts", "   1.0s control-plane ends", "   1.0s control-plane starts",
		"   1.0s controllers starts", "   2.0s node ends", "   2.0s controllers ends", "   3.0s control-plane ends"}
	slices.Sort(want[5:7])
	if len(story) == len(want) {
		slices.Sort(story[5:7])
	}
	if d := cmp.Diff(want, story); d != "" {
		t.Error(d)
	}
}

func TestCannotStart(t *testing.T) {
	b := map[string]behaviour{"a": {noStart: errors.New("no such file")}}
	supervised(t, Config{}, b, []Child{child("a")}, func(t *testing.T, s *Supervisor, f *fake) {
		if st := s.Status()[0]; st.State != Pausing || st.LastExit.Reason != "no such file" || st.LastExit.Code != -1 {
			t.Errorf("got %+v", st)
		}
		f.mu.Lock()
		delete(b, "a")
		f.mu.Unlock()
		if err := s.WaitReady(t.Context(), "a"); err != nil {
			t.Error(err)
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, row := range []struct {
		name     string
		children []Child
		want     string
	}{
		{"named twice", []Child{child("a"), child("a")}, "named twice"},
		{"no path", []Child{{Name: "a"}}, "name and path are needed"},
		{"comes after itself", []Child{child("a", "b"), child("b", "c"), child("c", "a")}, "comes after itself"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := New(Config{}).Apply(t.Context(), row.children); err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
		})
	}
}

// TestChaos kills, restarts and changes at random for an hour of the bubble's time; the fake sees that no child ever has two processes, and in the end, left
// in peace, everything runs.
func TestChaos(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			names := []string{"a", "b", "c", "d"}
			set := func() []Child {
				var children []Child
				for i, n := range names {
					if c := child(n, names[:r.IntN(i+1)]...); r.IntN(4) > 0 {
						c.Revision, c.Ready = fmt.Sprint(r.IntN(3)), after(time.Duration(r.IntN(3000))*time.Millisecond)
						c.ReadyWithin = time.Duration(r.IntN(5)) * time.Second
						children = append(children, c)
					}
				}
				return children
			}
			b := map[string]behaviour{"a": {slow: time.Second}, "b": {deaf: true}, "c": {slow: 20 * time.Second}}
			supervised(t, Config{}, b, set(), func(t *testing.T, s *Supervisor, f *fake) {
				for range 500 {
					switch r.IntN(5) {
					case 0:
						s.Apply(t.Context(), set())
					case 1:
						s.Restart(t.Context(), names[r.IntN(len(names))])
					case 2, 3:
						f.kill(names[r.IntN(len(names))])
					case 4:
						time.Sleep(time.Duration(r.IntN(20000)) * time.Millisecond)
					}
				}
				final := []Child{child("a"), child("b", "a"), child("c"), child("d", "c")}
				s.Apply(t.Context(), final)
				if err := s.WaitReady(t.Context(), names...); err != nil {
					t.Error(err)
				}
				time.Sleep(5 * time.Minute)
				for _, st := range s.Status() {
					if st.State != Running || !f.isLive(st.Name) {
						t.Errorf("in the end: %+v", st)
					}
				}
			})
		})
	}
}
