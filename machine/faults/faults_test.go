package faults

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Every entry is whole: a code of its own, a sentence that its arguments fill,
// and a next step.
func TestTable(t *testing.T) {
	seen := map[Code]bool{}
	for _, e := range Table() {
		if !regexp.MustCompile(`^E[0-9]{2}$`).MatchString(string(e.Code)) || seen[e.Code] {
			t.Errorf("%s: no code, or twice", e.Code)
		}
		seen[e.Code] = true
		if code, ok := Parse(strings.ToLower(string(e.Code))); !ok || code != e.Code {
			t.Errorf("%s is not read back", e.Code)
		}
		if e.Title == "" || len(e.Title) > 40 || len(e.Explain) < 40 || e.Next == "" || !strings.HasSuffix(e.Explain, ".") || !strings.HasSuffix(e.Next, ".") {
			t.Errorf("%s %s: not all is said", e.Code, e.Title)
		}
		verbs := strings.Count(e.Sentence, "%s")
		if e.Subject && verbs == 0 {
			t.Errorf("%s has a subject that its sentence does not name", e.Code)
		}
		args := make([]any, verbs)
		for i := range args {
			args[i] = fmt.Sprintf("word%d", i)
		}
		f := New(e.Code, args...)
		if strings.Contains(f.String(), "%!") || len(f.String()) > 110 {
			t.Errorf("sentence %q", f)
		}
		if e.Subject != (f.Subject == "word0") {
			t.Errorf("%s: subject %q", e.Code, f.Subject)
		}
	}
	if !slices.IsSortedFunc(Table(), func(a, b Entry) int { return strings.Compare(string(a.Code), string(b.Code)) }) {
		t.Error("the table is not in order")
	}
	for _, bad := range []string{"", "E", "17", "E1", "E177", "EX7", "fr-00001"} {
		if _, ok := Parse(bad); ok {
			t.Errorf("%q is read as a code", bad)
		}
	}
}

func TestFault(t *testing.T) {
	f := New(NoAddress, "eth1")
	if f.String() != "E17 no address on port eth1" || f.Name() != "E17 eth1" {
		t.Errorf("got %q, name %q", f, f.Name())
	}
	if f := New(FromStick); f.Name() != "E10" {
		t.Errorf("name %q", f.Name())
	}
	f = New(ReleaseRefused, errors.New("line\nline\x1b[31m\u009b"+strings.Repeat("x", 1000)))
	if strings.ContainsAny(f.String(), "\n\x1b\u009b") || len([]rune(f.String())) > 200 {
		t.Errorf("it would reach a terminal: %q", f)
	}
	defer func() {
		if recover() == nil {
			t.Error("a code without entry was taken")
		}
	}()
	New("E99")
}

func names(l *List) string {
	var list []string
	now, _ := l.Now()
	for _, f := range now {
		list = append(list, f.Name())
	}
	return strings.Join(list, ",")
}

func TestList(t *testing.T) {
	var log strings.Builder
	l := NewList(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}})))
	step := func(do func(), told bool, want string) {
		t.Helper()
		_, changed := l.Now()
		do()
		closed := false
		select {
		case <-changed:
			closed = true
		default:
		}
		if got := names(l); got != want || closed != told {
			t.Errorf("got %q, told %v; want %q, %v", got, closed, want, told)
		}
	}
	step(func() { l.Set(New(NoAddress, "eth1")) }, true, "E17 eth1")
	step(func() { l.Set(New(NoAddress, "eth1")) }, false, "E17 eth1")
	step(func() { l.Set(New(NoAddress, "eth0")) }, true, "E17 eth0,E17 eth1")
	step(func() { l.Set(New(Locked, "other boot")) }, true, "E06,E17 eth0,E17 eth1")
	step(func() { l.Set(New(Locked, "no TPM")) }, true, "E06,E17 eth0,E17 eth1")
	step(func() { l.Clear(NoAddress, "eth1") }, true, "E06,E17 eth0")
	step(func() { l.Clear(NoAddress, "eth1") }, false, "E06,E17 eth0")
	step(func() { l.Clear(Locked) }, true, "E17 eth0")
	step(func() { l.Clear(Locked) }, false, "E17 eth0")
	step(func() { l.Turn(errors.New("full"), DiskFull, "DATA") }, true, "E17 eth0,E48 DATA")
	step(func() { l.Turn(nil, DiskFull, "STATE") }, false, "E17 eth0,E48 DATA")
	step(func() { l.Turn(nil, DiskFull, "DATA") }, true, "E17 eth0")
	step(func() { l.Turn(errors.New("bad"), ReleaseRefused) }, true, "E17 eth0,E27")
	step(func() { l.Turn(nil, ReleaseRefused) }, true, "E17 eth0")

	// What comes and goes is logged once; that the same is said in other words is not.
	for line, want := range map[string]int{
		`msg=fault code=E17 says="no address on port eth1"`:                 1,
		`msg="fault is gone" code=E17 said="no address on port eth1"`:       1,
		`msg=fault code=E06 says="the disk stays locked: other boot"`:       1,
		`msg="fault is gone" code=E06 said="the disk stays locked: no TPM"`: 1,
		"msg=": 9,
	} {
		if got := strings.Count(log.String(), line); got != want {
			t.Errorf("%s: %d times, want %d; the log:\n%s", line, got, want, log.String())
		}
	}
}

func TestNilAndConcurrent(t *testing.T) {
	var none *List
	none.Set(New(FromStick))
	none.Clear(FromStick)
	none.Turn(nil, FromStick)
	if list, changed := none.Now(); list != nil || changed != nil {
		t.Error("a nil list holds something")
	}
	l := NewList(nil)
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			for range 100 {
				l.Set(New(NoAddress, i))
				l.Now()
				l.Clear(NoAddress, fmt.Sprint(i))
			}
		})
	}
	work.Wait()
	if got := names(l); got != "" {
		t.Errorf("left: %s", got)
	}
}
