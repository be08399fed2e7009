package cli

import (
	"context"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
)

func (e *env) render() *cobra.Command {
	var rev string
	cmd := &cobra.Command{
		Use:     "render SITE",
		Short:   "print what a site would run",
		GroupID: "fleet",
		Long: `Render prints what the machines of a site make of the fleet repo: the settings, the
Kubernetes objects, the images and the effect. It is the same function on the same
bytes as on the machine. Without --rev it takes the work tree, committed or not.`,
		Example: `  holdfast render berlin-0417
  holdfast render berlin-0417 --rev release/12 | kubectl diff -f -`,
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: e.completeSites,
		RunE:              func(c *cobra.Command, a []string) error { return e.runRender(c.Context(), a[0], rev) },
	}
	cmd.Flags().StringVar(&rev, "rev", "", "a commit, tag or branch instead of the work tree")
	return cmd
}

func (e *env) runRender(ctx context.Context, name, rev string) error {
	tree, close, err := e.tree(ctx, rev)
	if err != nil {
		return err
	}
	defer close()
	f, err := load(tree)
	if err != nil {
		return err
	}
	s, err := site(f, name)
	if err != nil {
		return err
	}
	rendering, err := renderOne(render.New(tree), f, s)
	if err != nil {
		return coded(CodeFaults, err)
	}
	if e.output == "json" {
		return e.printJSON(rendering)
	}
	_, err = e.out.Write(rendering.YAML())
	return err
}

// tree is the work tree, or a revision of it.
func (e *env) tree(ctx context.Context, rev string) (fs.FS, func(), error) {
	if rev == "" {
		dir, err := e.fleetDir()
		return workTree(dir), func() {}, err
	}
	r, err := e.repo(ctx)
	if err != nil {
		return nil, nil, err
	}
	t, err := r.Tree(ctx, rev, r.root)
	if err != nil {
		return nil, nil, err
	}
	return t, func() { t.Close() }, t.Preload()
}

// completeSites offers the names of sites to the shell.
func (e *env) completeSites(_ *cobra.Command, before []string, _ string) ([]string, cobra.ShellCompDirective) {
	dir, err := e.fleetDir()
	if err != nil || len(before) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	f, _ := fleet.Load(workTree(dir))
	if f == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, s := range f.Sites() {
		names = append(names, s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
