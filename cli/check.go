package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/internal/git"
)

func (e *env) check() *cobra.Command {
	return &cobra.Command{
		Use:     "check",
		Short:   "find every fault of the fleet repo, at once",
		GroupID: "fleet",
		Long: `Check reads the work tree, committed or not, renders every site, and prints every
fault as file:line:column: field: what is wrong: what would be right.

It exits with 3 when there are faults. Warnings do not count.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return e.runCheck(c.Context()) },
	}
}

// checked is check's answer for programs.
type checked struct {
	Fleet    string   `json:"fleet,omitempty"`
	Sites    []string `json:"sites"`
	Faults   []fault  `json:"faults"`
	Warnings []fault  `json:"warnings"`
}

type fault struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Field   string `json:"field,omitempty"`
	Problem string `json:"problem"`
	Fix     string `json:"fix,omitempty"`
}

func faultsOf(list fleet.Faults) []fault {
	out := []fault{}
	for _, f := range list {
		out = append(out, fault{f.File, f.Line, f.Column, f.Field, f.Problem, f.Fix})
	}
	return out
}

func (e *env) runCheck(ctx context.Context) error {
	dir, err := e.fleetDir()
	if err != nil {
		return err
	}
	tree := workTree(dir)
	f, faults, err := e.everyFault(ctx, dir, tree)
	if err != nil {
		return err
	}
	answer := checked{Sites: []string{}, Faults: faultsOf(faults), Warnings: []fault{}}
	var warnings fleet.Faults
	if f != nil {
		answer.Fleet = f.Name
		for _, s := range f.Sites() {
			answer.Sites = append(answer.Sites, s.Name)
		}
		warnings = f.Warnings()
		answer.Warnings = faultsOf(warnings)
	}
	if e.output == "json" {
		if err := e.printJSON(answer); err != nil {
			return err
		}
	} else {
		for _, w := range slices.Concat(warnings, faults) {
			fmt.Fprintln(e.out, w)
		}
		if len(faults) == 0 {
			e.printf("%s: %d sites, no faults\n", f.Name, len(f.Sites()))
		}
	}
	if len(faults) > 0 {
		return coded(CodeFaults, fmt.Errorf("%w: %d faults", errTold, len(faults)))
	}
	return nil
}

// everyFault loads the fleet, compares it with the last release and renders
// every site. Faults are what is wrong with the files; err is anything else.
func (e *env) everyFault(ctx context.Context, dir string, tree fs.FS) (*fleet.Fleet, fleet.Faults, error) {
	f, err := fleet.Load(tree)
	var faults fleet.Faults
	if err != nil && !errors.As(err, &faults) {
		return f, nil, err
	}
	if len(faults) > 0 {
		return f, faults, nil
	}
	removed, err := removals(ctx, dir, f)
	if err != nil {
		return f, nil, err
	}
	_, faults, err = renderAll(ctx, tree, f, f.Sites())
	return f, append(removed, faults...), err
}

// removals holds the fleet against the last release: machines leave by
// tombstones only. Outside of Git, and before the first release, all is well.
func removals(ctx context.Context, dir string, now *fleet.Fleet) (fleet.Faults, error) {
	g, err := git.Open(ctx, dir)
	if errors.Is(err, git.ErrNotRepository) || errors.Is(err, git.ErrNoGit) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := g.Tags(ctx, "release/*")
	if err != nil || len(names) == 0 {
		return nil, err
	}
	tree, err := g.Tree(ctx, "refs/tags/"+names[len(names)-1], g.Prefix())
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		return nil, err
	}
	before, err := fleet.Load(tree)
	if err != nil {
		return nil, nil // what was released was checked then
	}
	return fleet.CheckRemovals(before, now), nil
}

// renderAll renders sites side by side. Faults of all sites are gathered.
func renderAll(ctx context.Context, tree fs.FS, f *fleet.Fleet, sites []*fleet.Site) (map[string]*render.Rendering, fleet.Faults, error) {
	renderer := render.New(tree)
	all := make(map[string]*render.Rendering, len(sites))
	var faults fleet.Faults
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, s := range sites {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			rendering, err := renderOne(renderer, f, s)
			mu.Lock()
			defer mu.Unlock()
			var found fleet.Faults
			switch {
			case errors.As(err, &found):
				faults = append(faults, found...)
			case err != nil:
				return fmt.Errorf("site %s: %w", s.Name, err)
			default:
				all[s.Name] = rendering
			}
			return nil
		})
	}
	err := group.Wait()
	slices.SortFunc(faults, func(a, b fleet.Fault) int { return compareFaults(a, b) })
	return all, slices.Compact(faults), err
}

func compareFaults(a, b fleet.Fault) int {
	switch {
	case a.File != b.File:
		if a.File < b.File {
			return -1
		}
		return 1
	case a.Line != b.Line:
		return a.Line - b.Line
	}
	return a.Column - b.Column
}

func renderOne(renderer *render.Renderer, f *fleet.Fleet, s *fleet.Site) (*render.Rendering, error) {
	resolved, err := f.Resolve(s)
	if err != nil {
		return nil, err
	}
	return renderer.Site(resolved)
}
