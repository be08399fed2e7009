package release

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Payload is what the signers of a release sign: the tag object up to its signature. Its text is a Git tag object:
//
//	object <commit>
//	type commit
//	tag release/<N>
//	tagger <TaggerName> <<TaggerEmail>> <seconds> <zone>
//
//	<Message>
//
//	Fleet-ID: <32 hex digits>
//	Release: <N>
//	Time: <RFC 3339, UTC, seconds>
//	Previous: <digest> | none
//	Trust: <R> <digest>
//	Min-Machined: <version>
//	Edition: <number>
//	Urgency: normal | urgent
//	Destroys: none | <app>, <app>...
//	Root: . | <folder>
//	Tree-SHA256: <id>
//
// What machines believe stands in the last paragraph. The headers are for Git and for people; only N stands in both, and must agree.
type Payload struct {
	Object      string // the commit, 40 or 64 hex digits: a name for people, since a machine cannot judge SHA-1
	TaggerName  string
	TaggerEmail string
	TaggerTime  time.Time // to the second, with its zone to the minute
	Message     string    // what changed, for people; no trailing or leading line break

	FleetID      fleet.ID
	N            uint64    // from 1
	Time         time.Time // to the second; never falls from release to release
	Previous     Digest    // of the payload before; none for the first
	TrustVersion uint64    // R, from 1
	TrustDigest  Digest    // of the bytes of trust.yaml
	MinMachined  string    // the oldest machined that can read the content
	Edition      int
	Urgency      string   // Normal or Urgent
	Destroys     []string // apps whose data the release may delete, sorted
	Root         string   // folder of the fleet in its repository, "." for the top
	TreeSHA256   ObjectID // of that folder
}

// The urgencies of a release: windows, freezes and soak do not hold an urgent one.
const (
	Normal = "normal"
	Urgent = "urgent"
)

// keys are the lines of the last paragraph, in order.
var keys = []string{"Fleet-ID", "Release", "Time", "Previous", "Trust", "Min-Machined", "Edition", "Urgency", "Destroys", "Root", "Tree-SHA256"}

const none = "none"

// Encode writes the payload. What it writes is valid only if ParsePayload reads it; SignTag looks.
func (p Payload) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "object %s\ntype commit\ntag %s\ntagger %s <%s> %d %s\n", p.Object, TagName(p.N), p.TaggerName, p.TaggerEmail, p.TaggerTime.Unix(), p.TaggerTime.Format("-0700"))
	fmt.Fprintf(&b, "\n%s\n\n", p.Message)
	previous, destroys := none, none
	if !p.Previous.IsZero() {
		previous = p.Previous.String()
	}
	if len(p.Destroys) > 0 {
		destroys = strings.Join(p.Destroys, ", ")
	}
	values := []string{
		string(p.FleetID), strconv.FormatUint(p.N, 10), p.Time.UTC().Format(time.RFC3339), previous,
		fmt.Sprintf("%d %s", p.TrustVersion, p.TrustDigest), p.MinMachined, strconv.Itoa(p.Edition), p.Urgency, destroys, p.Root, p.TreeSHA256.String(),
	}
	for i, key := range keys {
		fmt.Fprintf(&b, "%s: %s\n", key, values[i])
	}
	return b.Bytes()
}

// equal tells whether both mean the same, to the last field; an app called "none" would not.
func (p Payload) equal(q Payload) bool {
	same := p.Time.Equal(q.Time) && p.TaggerTime.Equal(q.TaggerTime) && slices.Equal(p.Destroys, q.Destroys)
	q.Time, q.TaggerTime, q.Destroys = p.Time, p.TaggerTime, p.Destroys
	return same && reflect.DeepEqual(p, q)
}

// TagName is the name of release n, without "refs/tags/".
func TagName(n uint64) string { return "release/" + strconv.FormatUint(n, 10) }

// ParsePayload reads exactly what Encode writes; all else is ErrGrammar or ErrOversized.
func ParsePayload(b []byte) (*Payload, error) {
	if limit := DefaultLimits().Tag; len(b) > limit {
		return nil, fmt.Errorf("read release: %w: %d bytes, at most %d", ErrOversized, len(b), limit)
	}
	p, err := parsePayload(string(b))
	if err != nil {
		return nil, fmt.Errorf("read release: %w: %w", ErrGrammar, err)
	}
	if !bytes.Equal(p.Encode(), b) { // the last word: whatever the parts let through, there is one spelling
		return nil, fmt.Errorf("read release: %w: it is not spelled in the one way", ErrGrammar)
	}
	return p, nil
}

func parsePayload(s string) (*Payload, error) {
	head, body, ok := strings.Cut(s, "\n\n")
	if !ok || !strings.HasSuffix(body, "\n") {
		return nil, errors.New("no message after the headers, or no line break at its end")
	}
	body = strings.TrimSuffix(body, "\n")
	at := strings.LastIndex(body, "\n\n")
	if at < 0 {
		return nil, errors.New("no message before the last paragraph")
	}
	p := &Payload{Message: body[:at]}
	if err := checkMessage(p.Message); err != nil {
		return nil, err
	}
	tagged, err := p.parseHeaders(head)
	if err != nil {
		return nil, err
	}
	if err := p.parseTrailers(body[at+2:]); err != nil {
		return nil, err
	}
	if tagged != TagName(p.N) {
		return nil, fmt.Errorf("the tag is named %q but its Release is %d", tagged, p.N)
	}
	return p, nil
}

func checkMessage(m string) error {
	if limit := DefaultLimits().Message; len(m) > limit {
		return fmt.Errorf("the message has %d bytes, at most %d", len(m), limit)
	}
	if strings.TrimSpace(m) == "" || strings.Trim(m, "\n") != m {
		return errors.New("the message is empty, or begins or ends with an empty line")
	}
	if err := checkText(strings.NewReplacer("\n", "", "\t", "").Replace(m)); err != nil {
		return fmt.Errorf("the message has %w", err)
	}
	for line := range strings.SplitSeq(m, "\n") {
		if strings.HasPrefix(line, "-----BEGIN ") {
			return fmt.Errorf("the message has the line %q, which looks like a signature", line)
		}
		word, _, colon := strings.Cut(line, ":")
		if word = strings.TrimSpace(word); colon && slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, word) }) {
			return fmt.Errorf("the message has the line %q, but %s stands in the last paragraph only", line, word)
		}
	}
	return nil
}

// checkText refuses what a terminal would not show as it is: control characters, and marks that turn the direction of writing.
func checkText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("bytes that are not UTF-8")
	}
	for _, r := range s {
		if unicode.IsControl(r) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) || r == 0x2028 || r == 0x2029 {
			return fmt.Errorf("the character %U, which does not show", r)
		}
	}
	return nil
}

var (
	headerLines = regexp.MustCompile(`^object ([0-9a-f]{40}|[0-9a-f]{64})\ntype commit\ntag ([^\n]+)\ntagger ([^<>\n]*[^<>\n ]|) <([^<>\n ]*)> (0|[1-9][0-9]{0,11}) ([+-])([01][0-9]|2[0-3])([0-5][0-9])$`)
	version     = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~-]{0,63}$`)
	appName     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func (p *Payload) parseHeaders(head string) (tagged string, err error) {
	m := headerLines.FindStringSubmatch(head)
	if m == nil {
		return "", errors.New("the headers are not object, type commit, tag, tagger")
	}
	p.Object, p.TaggerName, p.TaggerEmail = m[1], m[3], m[4]
	if err := checkText(p.TaggerName + p.TaggerEmail); err != nil {
		return "", fmt.Errorf("the tagger has %w", err)
	}
	seconds, _ := strconv.ParseInt(m[5], 10, 64)
	hours, _ := strconv.Atoi(m[7])
	minutes, _ := strconv.Atoi(m[8])
	offset := hours*3600 + minutes*60
	if m[6] == "-" {
		offset = -offset
	}
	zone := time.UTC
	if offset != 0 {
		zone = time.FixedZone("", offset)
	}
	p.TaggerTime = time.Unix(seconds, 0).In(zone)
	return m[2], nil
}

func (p *Payload) parseTrailers(last string) error {
	lines := strings.Split(last, "\n")
	if len(lines) != len(keys) {
		return fmt.Errorf("the last paragraph has %d lines, want the %d from %s to %s", len(lines), len(keys), keys[0], keys[len(keys)-1])
	}
	for i, parse := range p.parsers() {
		value, ok := strings.CutPrefix(lines[i], keys[i]+": ")
		if !ok {
			return fmt.Errorf("line %d of the last paragraph is %q, want %s", i+1, lines[i], keys[i])
		}
		if err := parse(value); err != nil {
			return fmt.Errorf("%s: %w", keys[i], err)
		}
	}
	return nil
}

// parsers are in step with keys.
func (p *Payload) parsers() []func(string) error {
	return []func(string) error{
		func(s string) (err error) { p.FleetID, err = fleet.ParseID(s); return err },
		func(s string) (err error) { p.N, err = parseNumber(s); return err },
		func(s string) (err error) { p.Time, err = parseTime(s); return err },
		func(s string) (err error) {
			if s != none {
				p.Previous, err = ParseDigest(s)
			}
			return err
		},
		func(s string) (err error) {
			r, digest, _ := strings.Cut(s, " ")
			if p.TrustVersion, err = parseNumber(r); err == nil {
				p.TrustDigest, err = ParseDigest(digest)
			}
			return err
		},
		func(s string) error {
			if p.MinMachined = s; !version.MatchString(s) {
				return fmt.Errorf("%q is no version", s)
			}
			return nil
		},
		func(s string) error {
			n, err := strconv.Atoi(s)
			if p.Edition = n; err != nil || n < 0 || n > 1<<16 {
				return fmt.Errorf("%q is no edition", s)
			}
			return nil
		},
		func(s string) error {
			if p.Urgency = s; s != Normal && s != Urgent {
				return fmt.Errorf("%q is neither %s nor %s", s, Normal, Urgent)
			}
			return nil
		},
		func(s string) error { return p.parseDestroys(s) },
		func(s string) error { p.Root = s; return checkRoot(s) },
		func(s string) (err error) { p.TreeSHA256, err = ParseDigest(s); return err },
	}
}

func (p *Payload) parseDestroys(s string) error {
	if s == none {
		return nil
	}
	p.Destroys = strings.Split(s, ", ")
	for i, app := range p.Destroys {
		if !appName.MatchString(app) || app == none || (i > 0 && app <= p.Destroys[i-1]) {
			return fmt.Errorf("%q: want %s, or names of apps, sorted, each once, as `a, b`", s, none)
		}
	}
	return nil
}

func checkRoot(s string) error {
	if s == "." {
		return nil
	}
	if !fs.ValidPath(s) || len(s) > 1024 {
		return fmt.Errorf("%q is no folder below the top", s)
	}
	for part := range strings.SplitSeq(s, "/") {
		if err := checkName(part); err != nil {
			return err
		}
	}
	return nil
}

// parseNumber reads a number from 1 in its one spelling.
func parseNumber(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is no number from 1 without leading zeros", s)
	}
	return n, nil
}

func parseTime(s string) (time.Time, error) {
	t, err := time.Parse("2006-01-02T15:04:05Z", s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time as 2006-01-02T15:04:05Z", s)
	}
	return t, nil
}
