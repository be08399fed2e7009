package slots

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Slot is a or b.
type Slot string

// The two slots.
const (
	A Slot = "a"
	B Slot = "b"
)

// Other is the slot that s is not.
func (s Slot) Other() Slot {
	if s == A {
		return B
	}
	return A
}

// Valid says whether s is one of the two: a machine that runs from a stick has none.
func (s Slot) Valid() bool { return s == A || s == B }

// Tries is what an armed slot gets.
const Tries = 3

// Count is a boot counter; the zero Count is none.
type Count struct {
	Counted    bool
	Left, Done int
}

// spent says that the loader puts the entry last.
func (c Count) spent() bool { return c.Counted && c.Left == 0 }

func (c Count) String() string {
	switch {
	case !c.Counted:
		return ""
	case c.Done == 0:
		return fmt.Sprintf("+%d", c.Left)
	}
	return fmt.Sprintf("+%d-%d", c.Left, c.Done)
}

// next is what the loader makes of the count when it boots the entry.
func (c Count) next() Count {
	if c.Counted {
		c.Left, c.Done = max(c.Left-1, 0), c.Done+1
	}
	return c
}

var fileRE = regexp.MustCompile(`(?i)^holdfast-([ab])(?:\+([0-9]{1,9})(?:-([0-9]{1,9}))?)?\.efi$`)

// parseName reads the name of a UKI; ok is false for a file that is none of ours.
func parseName(name string) (s Slot, c Count, ok bool) {
	m := fileRE.FindStringSubmatch(name)
	if m == nil {
		return "", Count{}, false
	}
	if m[2] != "" {
		c.Counted = true
		c.Left, _ = strconv.Atoi(m[2]) // at most nine digits
		c.Done, _ = strconv.Atoi("0" + m[3])
	}
	return Slot(strings.ToLower(m[1])), c, true
}

func fileName(s Slot, c Count) string { return "holdfast-" + string(s) + c.String() + ".efi" }

// hidden is the name under which a UKI is written; what is unfinished for any
// other reason has a name of its own, so that neither overwrites the other.
func hidden(s Slot) string  { return "holdfast-" + string(s) + ".new" }
func copying(s Slot) string { return "holdfast-" + string(s) + ".tmp" }
func untying(s Slot) string { return "holdfast-" + string(s) + ".fix" }

// less is the order in which the loader tries entries: what config_entry_compare
// of systemd-boot 257 says, for entries with the same sort key and machine.
func less(a, b Entry) bool { return compare(a, b) < 0 }

func compare(a, b Entry) int {
	if a.Count.spent() != b.Count.spent() {
		if b.Count.spent() {
			return -1
		}
		return 1
	}
	if n := strings.Compare(a.sortKey, b.sortKey); n != 0 {
		return n
	}
	if n := CompareVersions(b.Version, a.Version); n != 0 {
		return n
	}
	if n := CompareVersions(strings.ToLower(b.File), strings.ToLower(a.File)); n != 0 {
		return n
	}
	if !a.Count.Counted || !b.Count.Counted {
		return 0
	}
	return cmp.Or(cmp.Compare(b.Count.Left, a.Count.Left), cmp.Compare(a.Count.Done, b.Count.Done))
}

// sorted is entries as the loader tries them.
func sorted(entries []Entry) []Entry {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, compare)
	return entries
}

// CompareVersions orders versions as the boot loader does (the UAPI version
// format), so that machine and loader never disagree about which OS is newer: 1.9
// is older than 1.10, 1.10 older than 1.10.1, and 1.10~rc1 older than 1.10. Other
// signs only separate.
func CompareVersions(a, b string) int {
	for {
		a, b = a[separators(a):], b[separators(b):]
		if n := marked(&a, &b, '~', -1); n != 0 {
			return n
		}
		if a == "" || b == "" {
			return cmp.Compare(min(len(a), 1), min(len(b), 1)) // what goes on is newer
		}
		for _, mark := range []byte("-^.") {
			if n := marked(&a, &b, mark, -1); n != 0 {
				return n
			}
		}
		isNumber := isDigit(at(a)) || isDigit(at(b))
		kind := isLetter
		if isNumber {
			kind = isDigit
		}
		x, y := a[:span(a, kind)], b[:span(b, kind)]
		a, b = a[len(x):], b[len(y):]
		if n := compareSegments(x, y, isNumber); n != 0 {
			return n
		}
	}
}

// marked eats mark from the front of both; where only one has it, that one is
// sign (-1: older) than the other.
func marked(a, b *string, mark byte, sign int) int {
	x, y := at(*a) == mark, at(*b) == mark
	switch {
	case x && y:
		*a, *b = (*a)[1:], (*b)[1:]
	case x:
		return sign
	case y:
		return -sign
	}
	return 0
}

func compareSegments(x, y string, isNumber bool) int {
	if !isNumber {
		n := min(len(x), len(y))
		return cmp.Or(strings.Compare(x[:n], y[:n]), cmp.Compare(len(x), len(y)))
	}
	if (x == "") != (y == "") {
		return cmp.Compare(min(len(x), 1), min(len(y), 1)) // numbers are newer than letters
	}
	x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
	return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y))
}

func at(s string) byte {
	if s == "" {
		return 0
	}
	return s[0]
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func span(s string, kind func(byte) bool) int {
	for i := range len(s) {
		if !kind(s[i]) {
			return i
		}
	}
	return len(s)
}

func separators(s string) int {
	return span(s, func(c byte) bool { return !isDigit(c) && !isLetter(c) && strings.IndexByte("~-^.", c) < 0 })
}
