package drill

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/update"
)

// A line is found by its own pattern and by no other, of its own version alone.
func TestWhatTheConsoleSays(t *testing.T) {
	said := func(msg string, a ...any) string { // as process 1 writes it
		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		}})).Log(t.Context(), update.Notice, msg, a...)
		return "[  277.848074] holdfast: " + out.String()
	}
	const v = "0.1.3"
	lines := map[string]string{
		"etcd":    said("OS update", "version", v, "reached", "etcd serves", "kubernetes", "v1.37.2 as 1.36", "etcd", "3.7.3 as 3.6"),
		"api":     said("OS update", "version", v, "reached", "API ready", "kubernetes", "v1.37.2 as 1.36", "etcd", "3.7.3 as 3.6"),
		"soon":    said("OS update", "version", v, "phase", update.Second, "left", 1990*time.Millisecond),
		"first":   said("OS update", "version", v, "phase", update.First, "left", 1990*time.Millisecond),
		"second":  said("OS update", "version", v, "phase", update.Second, "why", ""),
		"lifting": said("OS update", "version", v, "phase", update.Lifting, "why", ""),
		"ended":   said("OS update ended", "version", v, "why", "OS "+v+" is blessed"),
		"undone":  "[    1.0] holdfast: fault     " + faults.New(faults.OSRolledBack, v, "it was booted 3 times and did not come up once").String(),
		"booted":  "[    1.0] holdfast: os        " + v + ", slot b, on trial: first",
		"to try":  "[    1.0] holdfast: down: reboot (to try OS " + v + ")",
		"kernel":  "[    4.1] holdfast: init: kernel 4201 ms",
	}
	word := func(w string) instant {
		return instants[slices.IndexFunc(instants, func(i instant) bool { return i.word == w })]
	}
	for want, pattern := range map[string]func(version string) *regexp.Regexp{
		"etcd":    func(v string) *regexp.Regexp { return of(word("etcd").at, v) },
		"api":     func(v string) *regexp.Regexp { return of(word("api").at, v) },
		"soon":    func(v string) *regexp.Regexp { return of(word("soon").at, v) },
		"booted":  func(v string) *regexp.Regexp { return of(word("soon").again, v) },
		"to try":  func(v string) *regexp.Regexp { return of(trials["trial"].at, v) },
		"kernel":  func(v string) *regexp.Regexp { return of(trials["trial"].again, "") },
		"lifting": liftingOf, "ended": endedOf, "undone": undoneOf,
	} {
		for name, line := range lines {
			if got := pattern(v).MatchString(line); got != (name == want) {
				t.Errorf("the pattern of %s matches %t: %s", want, got, line)
			}
			for _, other := range []string{"0.1.30", "0.1", "0.1.2", "0x1.3"} {
				if want != "kernel" && pattern(other).MatchString(line) {
					t.Errorf("the pattern of %s for OS %s matches that of %s: %s", want, other, v, line)
				}
			}
		}
	}
}

// consoled is a drill of a machine that has a console and nothing else.
func consoled(t *testing.T, text string) *drill {
	t.Helper()
	d := &drill{Options: Options{Lab: lab.Lab{Dir: t.TempDir()}}, machine: lab.Machine{Site: "berlin", Name: "m1", Runtime: "vm"}}
	file := d.Lab.SerialLog(d.machine)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestFirst(t *testing.T) {
	d := consoled(t, "one\r\n")
	mark := d.mark()
	a, b := regexp.MustCompile(`one[^\r\n]*`), regexp.MustCompile(`two[^\r\n]*`)
	f, err := os.OpenFile(d.Lab.SerialLog(d.machine), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("two words\r\nmore"); err != nil {
		t.Fatal(err)
	}
	if i, line, err := d.first(t.Context(), mark, a, b); i != 1 || line != "two words" || err != nil {
		t.Errorf("after the mark: pattern %d, %q, %v; what was said before does not count", i, line, err)
	}
	if i, _, err := d.first(t.Context(), 0, a, b); i != 0 || err != nil {
		t.Errorf("both were said: pattern %d, %v; want the first", i, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errPatience)
	if _, _, err := d.first(ctx, d.mark(), a); !errors.Is(err, errPatience) || !strings.Contains(err.Error(), "one") {
		t.Errorf("nothing was said: %v", err)
	}
}

func TestHeld(t *testing.T) {
	before := siteBefore{kubernetes: kubernetes{"v1.36.3", "1", "36"}}
	line := func(version, as string) string {
		return `holdfast: msg="OS update" version=` + version + ` reached="API ready" kubernetes="v1.37.2 as ` + as + "\" etcd=\"3.7.3 as 3.6\"\r\n"
	}
	for name, c := range map[string]struct {
		console string
		broken  bool
	}{
		"nothing said yet": {"", false},
		"held twice":       {line("0.1.3", "1.36") + line("0.1.3", "1.36"), false},
		"held once":        {line("0.1.3", "1.36") + line("0.1.3", "1.37"), true},
		"another OS":       {line("0.1.2", "1.37"), false},
	} {
		if err := consoled(t, c.console).held(0, "0.1.3", before); errors.Is(err, ErrBroken) != c.broken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFollows(t *testing.T) {
	for _, c := range []struct{ before, version, fault string }{
		{"v1.36.3", "v1.37.2", ""},
		{"v1.36.3", "v1.36.4", "want the minor after"},
		{"v1.36.3", "v1.38.0", "want the minor after"},
		{"v1.37.2", "v1.36.3", "want the minor after"},
		{"v1.36.3", "", "no version"},
		{"unknown", "v1.37.2", "no version"},
	} {
		err := follows(c.before, c.version)
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s after %s: %v, want %q", c.version, c.before, err, c.fault)
		}
	}
}

func TestSystemWith(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("system/kube", "old")
	write("system/runc", "runc")
	write("system/cni/ptp", "ptp")
	next := write("next/kube", "new")
	for range 2 { // a second time over what an interrupted drill left
		made, err := systemWith(filepath.Join(dir, "system"), filepath.Join(dir, "made"), next)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"kube": "new", "runc": "runc", "cni/ptp": "ptp"} {
			if got, err := os.ReadFile(filepath.Join(made, name)); string(got) != want {
				t.Errorf("%s is %q, %v; want %q", name, got, err, want)
			}
		}
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "system/kube")); string(got) != "old" {
		t.Errorf("the folder of before has %q", got)
	}
}

// TestWays: what can be done alone is what there is.
func TestWays(t *testing.T) {
	var bad, forced []string
	for _, s := range sabotages {
		bad = append(bad, s.word)
	}
	for _, i := range instants {
		forced = append(forced, i.word)
	}
	for name, want := range map[string][]string{"bad-os": bad, "upgrade": append(forced, kept), "power": append(slices.Concat(moments, stages), inInstall), "tamper": nil, "earthquake": nil} {
		if got := Ways(name); !slices.Equal(got, want) {
			t.Errorf("%s can do %q alone, want %q", name, got, want)
		}
	}
	for _, s := range stages[1:] {
		if trials[s].at == "" {
			t.Errorf("no instants of stage %s", s)
		}
	}
	if _, err := Run(t.Context(), "power", Options{Only: "earthquake"}); err == nil || !strings.Contains(err.Error(), "bless") {
		t.Errorf("a moment that there is not: %v", err)
	}
}
