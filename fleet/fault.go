package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity tells whether a Fault stops a release.
type Severity int

const (
	Error   Severity = iota // the fleet repo cannot be released like this
	Warning                 // it can, but somebody should look
)

func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// Fault is one thing wrong in one place of a fleet repo.
type Fault struct {
	Severity     Severity
	File         string
	Line, Column int    // from 1; 0 when the fault is the file itself
	Field        string // dotted path inside the document, "" for the whole
	Problem      string // what is wrong
	Fix          string // what would be right
}

// String is file:line:column: field: what is wrong: what would be right.
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
	}
	b.WriteString(": ")
	if f.Severity == Warning {
		b.WriteString("warning: ")
	}
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	b.WriteString(f.Problem)
	if f.Fix != "" {
		b.WriteString(": " + f.Fix)
	}
	return b.String()
}

// Faults is every fault found, sorted by file, line and column, each once.
// As an error it prints one line each.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, x := range f {
		lines[i] = x.String()
	}
	return strings.Join(lines, "\n")
}

// split parts errors from warnings, each sorted and without repetitions.
func (f Faults) split() (faults, warnings Faults) {
	for _, x := range f {
		if x.Severity == Warning {
			warnings = append(warnings, x)
		} else {
			faults = append(faults, x)
		}
	}
	return faults.sorted(), warnings.sorted()
}

func (f Faults) sorted() Faults {
	slices.SortFunc(f, func(a, b Fault) int {
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column,
			strings.Compare(a.Field, b.Field), strings.Compare(a.Problem, b.Problem), strings.Compare(a.Fix, b.Fix))
	})
	return slices.Compact(f)
}

// err is f as an error, nil when it is empty (a nil Faults in an error would not be nil).
func (f Faults) err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// file adds a fault about a whole file or folder.
func (f *Faults) file(path, problem, fix string) {
	*f = append(*f, Fault{File: path, Problem: problem, Fix: fix})
}

// at adds a fault at a node.
func (f *Faults) at(n *node, field, problem, fix string) {
	*f = append(*f, Fault{File: n.src.file, Line: int(n.line), Column: int(n.col), Field: field, Problem: problem, Fix: fix})
}

// warn adds a warning at a node.
func (f *Faults) warn(n *node, field, problem, fix string) {
	f.at(n, field, problem, fix)
	(*f)[len(*f)-1].Severity = Warning
}

// oneOf says what would have been right where known are the right words:
// the nearest one when there is a near one, otherwise all of them (or the first few).
func oneOf(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	known = slices.Clone(known)
	slices.Sort(known)
	switch {
	case len(known) == 0:
		return "there is none"
	case len(known) == 1:
		return fmt.Sprintf("the only one is %q", known[0])
	case len(known) > 12:
		return "known are " + strings.Join(known[:12], ", ") + ", …"
	}
	return "known are " + strings.Join(known, ", ")
}

// nearest is the known word at the smallest edit distance from word, or "" when
// all are further away than a slip of the finger.
func nearest(word string, known []string) string {
	best, at := "", 1+max(1, len(word)/3)
	for _, k := range slices.Sorted(slices.Values(known)) {
		if strings.Count(word, "/") == strings.Count(k, "/") && strings.Contains(word, "/") && !nearPath(word, k) {
			continue
		}
		d := distance(strings.ToLower(word), strings.ToLower(k), at)
		if d < at && d < len(k) {
			best, at = k, d
		}
	}
	return best
}

// nearPath holds when each element is near its counterpart: country/fr is not a
// slip for country/de.
func nearPath(a, b string) bool {
	x, y := strings.Split(a, "/"), strings.Split(b, "/")
	for i := range x {
		if limit := 1 + max(1, len(x[i])/3); distance(x[i], y[i], limit) >= limit {
			return false
		}
	}
	return true
}

// distance is the Damerau-Levenshtein distance (adjacent swaps count one), at most limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return min(row[len(b)], limit)
}
