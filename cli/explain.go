package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
)

func (e *env) explain() *cobra.Command {
	return &cobra.Command{
		Use:     "explain SITE [FIELD]",
		Short:   "tell where each value of a site comes from",
		GroupID: "fleet",
		Long: `Explain prints the values that a site ends up with, each with the file and line that
it came from and what it overrode on the way: fleet defaults, the site's layers in
order, its ring, the site, the machine; later wins.`,
		Example:           "  holdfast explain berlin-0417\n  holdfast explain berlin-0417 vars.greeting",
		Args:              args(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			return e.runExplain(c.Context(), a[0], strings.Join(a[1:], ""))
		},
	}
}

func (e *env) runExplain(_ context.Context, name, field string) error {
	dir, err := e.fleetDir()
	if err != nil {
		return err
	}
	f, err := load(workTree(dir))
	if err != nil {
		return err
	}
	s, err := site(f, name)
	if err != nil {
		return err
	}
	values, err := f.Explain(s, field)
	if err != nil {
		return hint(err, "holdfast explain %s lists every field", s.Name)
	}
	if e.output == "json" {
		return e.printJSON(values)
	}
	for _, v := range values {
		e.printf("%s = %v\n    %s\n", v.Field, v.Value, origin(v))
		for _, o := range v.Overrides {
			e.printf("    over %v, %s\n", o.Value, origin(o))
		}
	}
	return nil
}

func origin(p fleet.Provenance) string {
	if p.Line == 0 {
		return p.Layer
	}
	return fmt.Sprintf("%s:%d:%d (%s)", p.File, p.Line, p.Column, p.Layer)
}
