package holdfast

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/cli"
)

// pages are what newcomers read. What they name must exist.
var pages = []string{"README.md", "ARCHITECTURE.md", "HACKING.md", "SECURITY.md"}

var (
	fence     = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```")
	span      = regexp.MustCompile("`([^`\n]+)`")
	reference = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	target    = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
	word      = regexp.MustCompile(`^[a-z][a-z-]*$`)
)

// page is one of them, with the commands that it prints, in blocks and in the text.
type page struct {
	name, text string
	commands   [][]string
}

func readPages(t *testing.T) []page {
	t.Helper()
	var all []page
	for _, name := range pages {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		p := page{name: name, text: string(text)}
		for _, m := range fence.FindAllStringSubmatch(p.text, -1) {
			for line := range strings.Lines(strings.ReplaceAll(m[1], "\\\n", " ")) {
				p.add(line)
			}
		}
		for _, m := range span.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			p.add(m[1])
		}
		all = append(all, p)
	}
	return all
}

// add notes the commands of a line: what follows a comment sign is none, and && begins another.
func (p *page) add(line string) {
	line, _, _ = strings.Cut(strings.TrimPrefix(line, "$ "), " #")
	for _, command := range strings.Split(line, "&&") {
		fields := strings.Fields(command)
		for len(fields) > 0 && strings.Contains(fields[0], "=") {
			fields = fields[1:] // REST=10m make bench
		}
		if len(fields) > 1 {
			p.commands = append(p.commands, fields)
		}
	}
}

// called lists the commands of all pages that begin with program.
func called(t *testing.T, program string) (all []struct {
	page string
	args []string
}) {
	t.Helper()
	for _, p := range readPages(t) {
		for _, c := range p.commands {
			if c[0] == program {
				all = append(all, struct {
					page string
					args []string
				}{p.name, c[1:]})
			}
		}
	}
	if len(all) < 3 {
		t.Fatalf("only %d commands of %s were found in the pages: the search is broken", len(all), program)
	}
	return all
}

func TestTargetsExist(t *testing.T) {
	var targets []string
	for _, file := range []string{"Makefile", "build/system.mk", "build/os.mk"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range target.FindAllSubmatch(text, -1) {
			targets = append(targets, string(m[1]))
		}
	}
	for _, c := range called(t, "make") {
		for _, name := range c.args {
			if strings.Contains(name, "=") {
				continue // a variable, which targets read
			}
			if !slices.Contains(targets, name) {
				t.Errorf("%s names make %s, which is not a target", c.page, name)
			}
		}
	}
}

func TestVerbsAndFlagsExist(t *testing.T) {
	for _, c := range called(t, "holdfast") {
		verbs, flags := parts(c.args)
		if len(verbs) == 0 {
			continue
		}
		help, ok := helpOf(t, verbs[:1])
		if ok && len(verbs) > 1 && strings.Contains(help, "Available Commands:") {
			verbs = verbs[:2]
			help, ok = helpOf(t, verbs)
		} else {
			verbs = verbs[:1]
		}
		if !ok {
			t.Errorf("%s names holdfast %s, which is not a verb", c.page, strings.Join(verbs, " "))
			continue
		}
		for _, f := range flags {
			if !regexp.MustCompile(regexp.QuoteMeta(f) + `\b`).MatchString(help) {
				t.Errorf("%s names holdfast %s %s, which is not a flag of it", c.page, strings.Join(verbs, " "), f)
			}
		}
	}
}

// parts splits a command line of holdfast: the words at its start, and our flags.
func parts(args []string) (verbs, flags []string) {
	start := true
	for _, a := range args {
		if a == "--" {
			break
		}
		start = start && word.MatchString(a)
		if start {
			verbs = append(verbs, a)
		}
		if name, _, _ := strings.Cut(a, "="); strings.HasPrefix(name, "--") {
			flags = append(flags, name)
		}
	}
	return verbs, flags
}

// helpOf is the help of a verb; false when there is no such verb.
func helpOf(t *testing.T, verbs []string) (string, bool) {
	t.Helper()
	var out, stderr bytes.Buffer
	if err := cli.Run(t.Context(), strings.NewReader(""), &out, &stderr, append(slices.Clone(verbs), "--help")); err != nil {
		return "", false
	}
	path := regexp.MustCompile(`(?m)^\s+holdfast ` + strings.Join(verbs, " ") + `\b`)
	return out.String(), path.Match(out.Bytes())
}

func TestFoldersOfGoCommandsExist(t *testing.T) {
	for _, c := range called(t, "go") {
		for _, a := range c.args {
			if dir := strings.TrimSuffix(a, "/..."); strings.HasPrefix(a, "./") && a != "./..." {
				if info, err := os.Stat(filepath.FromSlash(dir)); err != nil || !info.IsDir() {
					t.Errorf("%s names %s, which is not a folder", c.page, a)
				}
			}
		}
	}
}

func TestLinksResolve(t *testing.T) {
	for _, p := range readPages(t) {
		for _, m := range reference.FindAllStringSubmatch(fence.ReplaceAllString(p.text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, section, _ := strings.Cut(m[1], "#")
			text := p.text
			if file != "" {
				b, err := os.ReadFile(filepath.FromSlash(file))
				if err != nil {
					t.Errorf("%s links to %s: %v", p.name, m[1], err)
					continue
				}
				text = string(b)
			}
			if section != "" && !slices.Contains(anchors(text), section) {
				t.Errorf("%s links to %s, and there is no such heading", p.name, m[1])
			}
		}
	}
}

// anchors are the headings of a page, as forges name them in links.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(name, " ", "-"))
	}
	return all
}

func TestSearchFindsWhatIsWrong(t *testing.T) {
	if _, ok := helpOf(t, []string{"frobnicate"}); ok {
		t.Error("frobnicate was taken for a verb")
	}
	if _, ok := helpOf(t, []string{"lab", "frobnicate"}); ok {
		t.Error("lab frobnicate was taken for a verb")
	}
	if verbs, flags := parts([]string{"lab", "up", "berlin-mitte", "--dir", "x", "--", "--y"}); !slices.Equal(verbs, []string{"lab", "up", "berlin-mitte"}) || !slices.Equal(flags, []string{"--dir"}) {
		t.Errorf("got %q and %q", verbs, flags)
	}
	var p page
	p.add("REST=10m make bench && holdfast release # x")
	if len(p.commands) != 2 || p.commands[0][1] != "bench" || len(p.commands[1]) != 2 {
		t.Errorf("got %q", p.commands)
	}
}
