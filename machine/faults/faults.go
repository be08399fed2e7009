// Package faults is what can be wrong with a machine, as codes that a person can
// read over the telephone: E17, a sentence for the console, and a page for
// `holdfast explain E17` that says what it means and what to do. It promises that
// a code never changes its meaning and that its sentence fits on one line. It
// leaves out finding the faults, and the state of apps, which is the report's.
package faults

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
)

// Code names a kind of fault: E and two digits.
type Code string

// Fault is one thing that is wrong now.
type Fault struct {
	Code    Code
	Subject string // which port, file, slot; "" where there is only one
	text    string
}

// New makes a fault. The arguments fill the sentence of the code's entry; the
// first one is the subject where the entry has one. What comes from outside is
// cut to one line.
func New(code Code, args ...any) Fault {
	e, ok := Lookup(code)
	if !ok {
		panic("faults: no entry for " + string(code)) // a bug of the caller
	}
	words := make([]any, len(args))
	for i, a := range args {
		words[i] = oneLine(fmt.Sprint(a))
	}
	f := Fault{Code: code, text: fmt.Sprintf(e.Sentence, words...)}
	if e.Subject && len(words) > 0 {
		f.Subject = words[0].(string)
	}
	return f
}

// longest that an argument may be, in characters: a console has 80 columns, and
// a sentence of two lines is still read.
const longest = 160

func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }), " ")
	if r := []rune(s); len(r) > longest {
		s = string(r[:longest-1]) + "…"
	}
	return s
}

// Sentence is the fault in words, without its code.
func (f Fault) Sentence() string { return f.text }

// Name is short and unique among the faults of a machine: the code, and the
// subject where several may have it.
func (f Fault) Name() string { return strings.TrimSuffix(string(f.Code)+" "+f.Subject, " ") }

// String is what stands on the console: "E17 no address on port eth1".
func (f Fault) String() string { return string(f.Code) + " " + f.text }

// List is what is wrong with this machine. What comes and what goes is logged, since
// a screen and the hub may see neither where both happen within a second. Its
// methods are safe for concurrent use; on a nil List they do nothing.
type List struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	faults  []Fault    // by code and subject
	changed chan struct{}
}

// NewList makes an empty list. A nil logger logs nothing.
func NewList(log *slog.Logger) *List {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &List{log: log, changed: make(chan struct{})}
}

// Set says that something is wrong; a fault of the same code and subject is replaced.
func (l *List) Set(f Fault) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i, there := slices.BinarySearchFunc(l.faults, f, order)
	switch {
	case there && l.faults[i] == f:
		return
	case there: // the same in other words, which may be many
		l.faults[i] = f
	default:
		l.faults = slices.Insert(l.faults, i, f)
		l.log.Info("fault", "code", f.Code, "says", f.text)
	}
	l.tell()
}

// Clear says that it is well again: the fault with this subject, or all of the
// code where none is named.
func (l *List) Clear(code Code, subject ...string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.faults)
	l.faults = slices.DeleteFunc(l.faults, func(f Fault) bool {
		gone := f.Code == code && (len(subject) == 0 || slices.Contains(subject, f.Subject))
		if gone {
			l.log.Info("fault is gone", "code", f.Code, "said", f.text)
		}
		return gone
	})
	if len(l.faults) != before {
		l.tell()
	}
}

// Turn sets the fault where err is not nil, with err as its last argument, and
// clears it where it is.
func (l *List) Turn(err error, code Code, args ...any) {
	if err != nil {
		l.Set(New(code, append(slices.Clone(args), err)...))
		return
	}
	if e, _ := Lookup(code); e.Subject && len(args) > 0 {
		l.Clear(code, oneLine(fmt.Sprint(args[0])))
		return
	}
	l.Clear(code)
}

// tell is called with mu held.
func (l *List) tell() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// Now returns the faults, by code, and a channel that is closed at the next change.
func (l *List) Now() ([]Fault, <-chan struct{}) {
	if l == nil {
		return nil, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.faults), l.changed
}

func order(a, b Fault) int {
	return cmp.Or(strings.Compare(string(a.Code), string(b.Code)), strings.Compare(a.Subject, b.Subject))
}
