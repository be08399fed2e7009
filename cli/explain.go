package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

func (e *env) explain() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "explain SITE [FIELD] | explain CODE",
		Short:   "tell where each value of a site comes from, or what a machine's fault means",
		GroupID: "fleet",
		Long: `Explain prints the values that a site ends up with, each with the file and line that
it came from and what it overrode on the way: fleet defaults, the site's layers in
order, its ring, the site, the machine; later wins.

With a code from a machine's console or from holdfast status, such as E17, it prints
what that means and what to do; --codes lists them all.`,
		Example:           "  holdfast explain berlin-0417\n  holdfast explain berlin-0417 vars.greeting\n  holdfast explain E17",
		Args:              args(cobra.MaximumNArgs(2)),
		ValidArgsFunction: e.completeExplain,
		RunE: func(c *cobra.Command, a []string) error {
			switch {
			case all:
				return e.listCodes()
			case len(a) == 0:
				return &Error{Err: errors.New("name a site, or the code of a fault"), Hint: c.UseLine(), Code: CodeUsage}
			}
			if code, ok := faults.Parse(a[0]); ok && len(a) == 1 && !e.isSite(a[0]) {
				return e.explainCode(code)
			}
			return e.runExplain(c.Context(), a[0], strings.Join(a[1:], ""))
		},
	}
	cmd.Flags().BoolVar(&all, "codes", false, "list the codes of what can be wrong with a machine")
	return cmd
}

// completeExplain offers sites, and the codes of faults with their titles.
func (e *env) completeExplain(c *cobra.Command, before []string, to string) ([]string, cobra.ShellCompDirective) {
	names, directive := e.completeSites(c, before, to)
	if len(before) > 0 {
		return names, directive
	}
	for _, f := range faults.Table() {
		names = append(names, string(f.Code)+"\t"+f.Title)
	}
	return names, directive
}

// isSite says whether the fleet here, if there is one, has a site of that name.
func (e *env) isSite(name string) bool {
	dir, err := e.fleetDir()
	if err != nil {
		return false
	}
	f, _ := load(workTree(dir))
	if f == nil {
		return false
	}
	_, ok := f.Site(name)
	return ok
}

// explained is a code for programs.
type explained struct {
	Code    faults.Code `json:"code"`
	Title   string      `json:"title"`
	Explain string      `json:"explain"`
	Next    string      `json:"next"`
}

func (e *env) explainCode(code faults.Code) error {
	f, ok := faults.Lookup(code)
	if !ok {
		return &Error{Err: fmt.Errorf("no fault has the code %s", code), Hint: "holdfast explain --codes lists them; a newer machine may know more than this program", Code: CodeUsage}
	}
	if e.output == "json" {
		return e.printJSON(explained{f.Code, f.Title, f.Explain, f.Next})
	}
	e.printf("%s %s\n\n%s\n\n  next: %s\n", f.Code, f.Title, f.Explain, f.Next)
	return nil
}

func (e *env) listCodes() error {
	if e.output == "json" {
		list := []explained{}
		for _, f := range faults.Table() {
			list = append(list, explained{f.Code, f.Title, f.Explain, f.Next})
		}
		return e.printJSON(list)
	}
	for _, f := range faults.Table() {
		e.printf("%s  %s\n", f.Code, f.Title)
	}
	return nil
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
