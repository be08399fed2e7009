package cli

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/release"
)

func (e *env) diff() *cobra.Command {
	var base, rev, format string
	var exitCode bool
	cmd := &cobra.Command{
		Use:     "diff [SITE...]",
		Short:   "show what a release would change, site by site",
		GroupID: "fleet",
		Long: `Diff renders every site before and after, and prints for each site that changes:
the class of the change (apply, restart, reboot, destroys), the objects and their
fields, the app images to fetch and the bytes that the change takes on the link.
Sites that are not printed do nothing: no apply, no restart.

Without --base it compares with the last release; without --rev it takes the work
tree, committed or not.`,
		Example:           "  holdfast diff\n  holdfast diff --base release/11 --rev release/12 --format markdown",
		Args:              args(cobra.ArbitraryArgs),
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			if e.output == "json" && !c.Flags().Changed("format") {
				format = "json"
			}
			changes, err := e.changes(c.Context(), base, rev, a)
			if err != nil {
				return err
			}
			if err := writeChanges(e.out, format, changes); err != nil {
				return err
			}
			if exitCode && len(changes.Sites) > 0 {
				return coded(CodeDiffers, fmt.Errorf("%w: %d sites differ", errTold, len(changes.Sites)))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&base, "base", "", "compare with this commit, tag or branch; default: the last release, or nothing")
	cmd.Flags().StringVar(&rev, "rev", "", "a commit, tag or branch instead of the work tree")
	cmd.Flags().StringVar(&format, "format", "text", "text, markdown or json")
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 6 when anything differs")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"text", "markdown", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// changes is diff's answer.
type changes struct {
	Base      string       `json:"base"`
	Rev       string       `json:"rev"`
	Sites     []siteChange `json:"sites"` // those that change
	Unchanged int          `json:"unchanged"`
	Trust     bool         `json:"trust"` // trust.yaml changes: at once, everywhere
}

type siteChange struct {
	render.Change
	Effect   string `json:"effect"`             // after; "" when the site goes
	Bytes    int    `json:"bytes"`              // of the slice on the link, packed against the one before
	Images   int64  `json:"imageBytes"`         // of app images that are new to the site
	Machines bool   `json:"machines,omitempty"` // its machine list changes: at once
}

// worst is the strongest class among the sites.
func (c *changes) worst() render.Class {
	worst := render.None
	for _, s := range c.Sites {
		worst = max(worst, s.Class)
	}
	return worst
}

// destroys lists the apps whose data goes somewhere.
func (c *changes) destroys() []string {
	var apps []string
	for _, s := range c.Sites {
		apps = append(apps, s.Destroys...)
	}
	slices.Sort(apps)
	return slices.Compact(apps)
}

// changes compares two states of the fleet repo, for the sites named or for all.
func (e *env) changes(ctx context.Context, base, rev string, only []string) (*changes, error) {
	answer := &changes{Base: base, Rev: rev, Sites: []siteChange{}}
	if rev == "" {
		answer.Rev = "work tree"
	}
	if base == "" {
		last, err := e.lastTagName(ctx)
		if err != nil {
			return nil, err
		}
		base, answer.Base = last, strings.TrimPrefix(last, "refs/tags/")
	}
	newTree, closeNew, err := e.tree(ctx, rev)
	if err != nil {
		return nil, err
	}
	defer closeNew()
	after, err := load(newTree)
	if err != nil {
		return nil, err
	}
	before, oldTree, closeOld, err := e.before(ctx, base)
	if err != nil {
		return nil, err
	}
	defer closeOld()
	if before == nil {
		answer.Base = "nothing"
	}
	return answer, answer.compare(ctx, side{before, oldTree}, side{after, newTree}, only)
}

// lastTagName is the full name of the last release's tag; "" when there is none.
func (e *env) lastTagName(ctx context.Context) (string, error) {
	r, err := e.repo(ctx)
	if err != nil {
		return "", err
	}
	names, err := r.Tags(ctx, "release/*")
	if err != nil || len(names) == 0 {
		return "", err
	}
	return "refs/tags/" + names[len(names)-1], nil
}

// before loads the base; a nil fleet when there is none.
func (e *env) before(ctx context.Context, base string) (*fleet.Fleet, fs.FS, func(), error) {
	if base == "" {
		return nil, nil, func() {}, nil
	}
	tree, close, err := e.tree(ctx, base)
	if err != nil {
		return nil, nil, nil, err
	}
	f, err := fleet.Load(tree)
	if err != nil {
		close()
		return nil, nil, nil, fmt.Errorf("the base %s: %w", base, err)
	}
	return f, tree, close, nil
}

// side is one of the two states that are compared.
type side struct {
	fleet *fleet.Fleet
	tree  fs.FS
}

func (s side) sites() map[string]*fleet.Site {
	all := map[string]*fleet.Site{}
	if s.fleet != nil {
		for _, site := range s.fleet.Sites() {
			all[site.Name] = site
		}
	}
	return all
}

func (c *changes) compare(ctx context.Context, old, new side, only []string) error {
	for _, name := range only {
		if _, err := site(new.fleet, name); err != nil {
			return err
		}
	}
	c.Trust = old.fleet != nil && !sameFile(old.tree, new.tree, "trust.yaml")
	store, err := newContents(old, new)
	if err != nil {
		return err
	}
	oldSites, newSites := old.sites(), new.sites()
	names := maps.Clone(oldSites)
	maps.Copy(names, newSites)
	var touched []string
	for name := range names {
		if len(only) > 0 && !slices.ContainsFunc(only, func(o string) bool { return strings.HasSuffix("/"+strings.TrimSuffix(o, "/"), "/"+name) }) {
			continue
		}
		if store.same(oldSites[name], newSites[name]) {
			c.Unchanged++
			continue
		}
		touched = append(touched, name)
	}
	slices.Sort(touched)
	return c.render(ctx, old, new, oldSites, newSites, touched, store)
}

// render renders only sites whose closure differs: the rest cannot change.
func (c *changes) render(ctx context.Context, old, new side, oldSites, newSites map[string]*fleet.Site, touched []string, store *contents) error {
	pick := func(all map[string]*fleet.Site) (list []*fleet.Site) {
		for _, name := range touched {
			if s := all[name]; s != nil {
				list = append(list, s)
			}
		}
		return list
	}
	before := map[string]*render.Rendering{}
	if old.fleet != nil {
		var faults fleet.Faults
		var err error
		if before, faults, err = renderAll(ctx, old.tree, old.fleet, pick(oldSites)); err != nil {
			return err
		}
		_ = faults // what was released and does not render any more counts as new
	}
	after, faults, err := renderAll(ctx, new.tree, new.fleet, pick(newSites))
	if err != nil {
		return err
	}
	if len(faults) > 0 {
		return coded(CodeFaults, faults)
	}
	for _, name := range touched {
		change := siteChange{Change: render.Diff(before[name], after[name])}
		change.Machines = machinesDiffer(oldSites[name], newSites[name])
		if change.Class == render.None && !change.Machines {
			c.Unchanged++
			continue
		}
		change.Site = name
		if r := after[name]; r != nil {
			change.Effect = r.Effect.Digest
		}
		for _, i := range change.Fetch {
			change.Images += i.Size
		}
		if change.Bytes, err = store.bytes(oldSites[name], newSites[name]); err != nil {
			return err
		}
		c.Sites = append(c.Sites, change)
	}
	return nil
}

func machinesDiffer(old, new *fleet.Site) bool {
	if old == nil || new == nil {
		return (old != nil && len(old.Machines) > 0) || (new != nil && len(new.Machines) > 0)
	}
	return !slices.Equal(old.Machines, new.Machines) || !slices.Equal(old.Tombstones, new.Tombstones)
}

func sameFile(a, b fs.FS, name string) bool {
	x, errX := fs.ReadFile(a, name)
	y, errY := fs.ReadFile(b, name)
	return errX == nil && errY == nil && string(x) == string(y)
}

// contents knows both states as SHA-256 Git objects, so that equal closures are
// seen without rendering and slices can be cut to count their bytes.
type contents struct {
	shared   bool // all but sites/ is the same in both
	objects  release.Objects
	old, new release.ObjectID
	oldFS    fs.FS
	newFS    fs.FS
	ids      map[string]release.ObjectID // "o/path", "n/path": known ids of folders and files
}

func newContents(old, new side) (*contents, error) {
	c := &contents{objects: release.Objects{}, ids: map[string]release.ObjectID{}, oldFS: old.tree, newFS: new.tree}
	var err error
	if old.tree != nil {
		if c.old, err = c.add("o/", old.tree); err != nil {
			return nil, err
		}
	}
	if c.new, err = c.add("n/", new.tree); err != nil {
		return nil, err
	}
	c.shared = c.sameButSites()
	return c, nil
}

// sameButSites compares all that sites may share.
func (c *contents) sameButSites() bool {
	top := func(mark string) map[string]release.ObjectID {
		found := map[string]release.ObjectID{}
		for path, id := range c.ids {
			if name, ok := strings.CutPrefix(path, mark); ok && name != "." && name != "sites" && !strings.Contains(name, "/") {
				found[name] = id
			}
		}
		return found
	}
	return maps.Equal(top("o/"), top("n/"))
}

// add imports a tree and notes the id of everything in it.
func (c *contents) add(mark string, tree fs.FS) (release.ObjectID, error) {
	root, err := release.Import(tree, c.objects.Add)
	if err != nil {
		return root, err
	}
	return root, release.Walk(c.objects, root, func(path string, entry release.Entry) error {
		c.ids[mark+path] = entry.ID
		return nil
	})
}

// same says whether everything that a site is made of is the same in both states.
func (c *contents) same(old, new *fleet.Site) bool {
	if old == nil || new == nil || old.Dir != new.Dir {
		return false
	}
	if c.shared { // what remains of its closure is its own folder
		return c.ids["o/"+old.Dir] == c.ids["n/"+new.Dir]
	}
	before, errOld := fleet.Closure(c.oldFS, old.Dir)
	after, errNew := fleet.Closure(c.newFS, new.Dir)
	if errOld != nil || errNew != nil || !slices.Equal(before, after) {
		return false
	}
	for _, path := range after {
		if c.ids["o/"+path] != c.ids["n/"+path] {
			return false
		}
	}
	return true
}

// bytes is what the site's slice takes on the link, packed against the one before.
func (c *contents) bytes(old, new *fleet.Site) (int, error) {
	if new == nil {
		return 0, nil
	}
	after, err := c.cut(c.new, new.Dir, "new")
	if err != nil {
		return 0, err
	}
	var before []byte
	if old != nil {
		if before, err = c.cut(c.old, old.Dir, "old"); err != nil {
			return 0, err
		}
	}
	return len(release.Compress(after, before)), nil
}

// cut is the encoded slice of a site, under a tag that does not exist yet:
// mark stands for what of a tag is new with each release.
func (c *contents) cut(root release.ObjectID, dir, mark string) ([]byte, error) {
	objects, err := release.Closure(c.objects, root, dir)
	if err != nil {
		return nil, fmt.Errorf("cut the slice of %s: %w", dir, err)
	}
	s := release.Slice{SiteDir: dir, Tag: placeholder(mark), Objects: objects}
	return s.Encode(), nil
}

// newInTag is about how many bytes of a tag no earlier tag has: digests, times, signature.
const newInTag = 420

// placeholder is as long and as incompressible as what is new in a tag.
func placeholder(mark string) []byte {
	var b []byte
	for sum := sha256.Sum256([]byte(mark)); len(b) < newInTag; sum = sha256.Sum256(sum[:]) {
		b = append(b, base64.StdEncoding.EncodeToString(sum[:])...)
	}
	return b[:newInTag]
}

func writeChanges(w io.Writer, format string, c *changes) error {
	switch format {
	case "json":
		return (&env{out: w}).printJSON(c)
	case "markdown":
		return writeMarkdown(w, c)
	case "text":
		return writeText(w, c)
	}
	return &Error{Err: fmt.Errorf("no format %q", format), Hint: "--format text, markdown or json", Code: CodeUsage}
}

func (c *changes) many() string {
	if len(c.Sites) == 1 {
		return "1 site changes"
	}
	return fmt.Sprintf("%d sites change", len(c.Sites))
}

func writeText(w io.Writer, c *changes) error {
	for _, s := range c.Sites {
		fmt.Fprintf(w, "%s: %s, %s on the link%s\n", s.Site, s.headline(), size(int64(s.Bytes)), s.fetches())
		s.lines(func(depth int, text string) { fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", depth), text) })
	}
	_, err := fmt.Fprintf(w, "%s, %d do nothing (compared with %s)\n", c.many(), c.Unchanged, c.Base)
	if c.Trust {
		fmt.Fprintln(w, "trust.yaml changes: who may sign and operate, at once and everywhere")
	}
	return err
}

func writeMarkdown(w io.Writer, c *changes) error {
	fmt.Fprintf(w, "**%s**, %d do nothing (compared with `%s`).\n\n", c.many(), c.Unchanged, c.Base)
	if c.Trust {
		fmt.Fprint(w, "**trust.yaml changes**: who may sign and operate, at once and everywhere.\n\n")
	}
	if len(c.Sites) == 0 {
		return nil
	}
	fmt.Fprint(w, "| site | class | on the link | to fetch |\n|---|---|---|---|\n")
	for _, s := range c.Sites {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", s.Site, s.headline(), size(int64(s.Bytes)), size(s.Images))
	}
	for _, s := range c.Sites {
		fmt.Fprintf(w, "\n<details><summary>%s</summary>\n\n```\n", s.Site)
		s.lines(func(depth int, text string) { fmt.Fprintf(w, "%s%s\n", strings.Repeat("  ", depth-1), text) })
		fmt.Fprint(w, "```\n</details>\n")
	}
	return nil
}

func (s siteChange) headline() string {
	text := s.Class.String()
	if len(s.Destroys) > 0 {
		text += " data of " + strings.Join(s.Destroys, ", ")
	}
	if s.Machines {
		text += ", machine list"
	}
	return text
}

func (s siteChange) fetches() string {
	if s.Images == 0 {
		return ""
	}
	return ", " + size(s.Images) + " of images"
}

// lines tells the change line by line, each with its depth from 1.
func (s siteChange) lines(line func(depth int, text string)) {
	for _, f := range s.Settings {
		switch {
		case f.Path == "" && f.Old == "":
			line(1, "settings: added")
		case f.Path == "" && f.New == "":
			line(1, "settings: gone")
		default:
			line(1, "setting "+field(f))
		}
	}
	for _, a := range s.Apps {
		version := a.NewVersion
		if a.OldVersion != "" && a.OldVersion != a.NewVersion {
			version = strings.TrimSpace(a.OldVersion + " -> " + a.NewVersion)
		}
		line(1, fmt.Sprintf("app %s %s: %s", a.Name, version, a.Action))
		for _, f := range a.Fields {
			line(2, field(f))
		}
		for _, o := range a.Objects {
			line(2, fmt.Sprintf("%s: %s", o.Object, o.Action))
			for _, f := range o.Fields {
				line(3, field(f))
			}
		}
	}
	for _, r := range s.Delete {
		line(1, fmt.Sprintf("%s: deleted", r))
	}
}

func field(f render.FieldChange) string {
	switch {
	case f.Old == "":
		return fmt.Sprintf("%s: %s", f.Path, f.New)
	case f.New == "":
		return fmt.Sprintf("%s: %s -> gone", f.Path, f.Old)
	}
	return fmt.Sprintf("%s: %s -> %s", f.Path, f.Old, f.New)
}

// size is a number of bytes for people, in powers of ten.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000_000:
		return fmt.Sprintf("%.1f kB", float64(n)/1000)
	case n < 1000_000_000:
		return fmt.Sprintf("%.1f MB", float64(n)/1000_000)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1000_000_000)
}
