// Package cli is the command line of Holdfast: one file per verb, each a thin
// layer between a person and the packages that do the work. It promises that
// any test can run it in process (streams and arguments in, error out), that
// errors carry a next step, and that exit codes are those of Code. It leaves
// out everything that decides: that is in fleet, release, link, hub and lab.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/internal/version"
)

// Exit codes, also told by `holdfast help exit-codes`.
const (
	CodeOK          = 0
	CodeFailed      = 1   // it was tried and did not work
	CodeUsage       = 2   // the command line is wrong
	CodeFaults      = 3   // the fleet repo has faults; each is printed
	CodeRefused     = 4   // a signature, number or digest is not what it must be
	CodeUnreachable = 5   // no hub, machine or remote answered
	CodeDiffers     = 6   // diff --exit-code: there are differences
	CodeInterrupted = 130 // Ctrl-C
)

const exitCodes = `0    done
1    it was tried and did not work; the error says what and what to do next
2    the command line is wrong
3    the fleet repo has faults; each is printed as file:line:column: field: what is wrong: what would be right
4    refused: a signature, number or digest is not what it must be
5    no hub, machine or remote answered
6    diff --exit-code: there are differences
130  interrupted by Ctrl-C`

// Error is an error for people: what failed, how to go on, and the exit code.
type Error struct {
	Err  error
	Hint string // the next step, a sentence or a command; may be empty
	Code int    // 0 means CodeFailed
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// hint wraps err with the next step; nil stays nil.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	code := 0
	if e, ok := errors.AsType[*Error](err); ok {
		code = e.Code
	}
	return &Error{Err: err, Hint: fmt.Sprintf(format, args...), Code: code}
}

// wrap says what was tried; code and next step stay.
func wrap(err error, what string) error {
	wrapped := fmt.Errorf("%s: %w", what, err)
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Err: wrapped, Hint: e.Hint, Code: e.Code}
	}
	return wrapped
}

// coded wraps err with an exit code; nil stays nil.
func coded(code int, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Code == 0 {
		return &Error{Err: e.Err, Hint: e.Hint, Code: code}
	}
	return &Error{Err: err, Code: code}
}

// Code is the exit code that err stands for.
func Code(err error) int {
	if err == nil {
		return CodeOK
	}
	if errors.Is(err, context.Canceled) {
		return CodeInterrupted
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Code != 0 {
		return e.Code
	}
	return CodeFailed
}

// Print writes err for a person, with its hint; nothing when err is nil or already told.
func Print(w io.Writer, err error) {
	if err == nil || errors.Is(err, errTold) {
		return
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(w, "holdfast: interrupted")
		return
	}
	fmt.Fprintf(w, "holdfast: %v\n", err)
	if e, ok := errors.AsType[*Error](err); ok && e.Hint != "" {
		fmt.Fprintf(w, "  next: %s\n", e.Hint)
	}
}

// errTold marks an error whose text the verb has printed itself.
var errTold = errors.New("told")

// env is what every verb works with.
type env struct {
	in       io.Reader
	out, err io.Writer
	dir      string // --fleet: the folder of the fleet repo, or below it
	output   string // --output: text | json
	hub      string // --hub: overrides the hub's address
	key      string // --key: signing key
}

// Run runs one command line. It never calls os.Exit and never panics on input.
func Run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args []string) error {
	e := &env{in: stdin, out: stdout, err: stderr}
	root := e.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return root.ExecuteContext(ctx)
}

func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "run Kubernetes where nobody can go and fix it",
		Long: `Holdfast runs Kubernetes where nobody can go and fix it.

One signed Git history, the fleet repo, describes every site. You edit it,
check it, look at the difference and release it; machines verify the release,
take it, and report.

  holdfast init shops            a fleet to begin with
  holdfast check                 every fault of the fleet repo, at once
  holdfast diff                  what a release would change, site by site
  holdfast release               sign release N+1 and hand it to the hub
  holdfast status --watch        what the sites run

  holdfast lab up SITE           try it all on this computer`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Version,
		Args:          cobra.ArbitraryArgs, // RunE says better what is wrong
		RunE:          func(c *cobra.Command, a []string) error { return unknownVerb(c, a) },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if e.output != "text" && e.output != "json" {
				return &Error{Err: fmt.Errorf("no output %q", e.output), Hint: "--output text or json", Code: CodeUsage}
			}
			return nil
		},
	}
	root.SetVersionTemplate("holdfast {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVarP(&e.dir, "fleet", "C", ".", "folder of the fleet repo")
	flags.StringVarP(&e.output, "output", "o", "text", "text or json")
	root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &Error{Err: err, Hint: c.CommandPath() + " --help shows the flags", Code: CodeUsage}
	})
	root.AddGroup(
		&cobra.Group{ID: "fleet", Title: "The fleet repo:"},
		&cobra.Group{ID: "release", Title: "Releases:"},
		&cobra.Group{ID: "sites", Title: "Sites and machines:"},
		&cobra.Group{ID: "run", Title: "Hub and lab:"},
	)
	root.SetCompletionCommandGroupID("run")
	root.SetHelpCommandGroupID("run")
	for _, verb := range e.verbs() {
		root.AddCommand(verb)
	}
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "what each exit code means", Long: exitCodes})
	return root
}

// unknownVerb helps when there is no verb, or one that is none.
func unknownVerb(c *cobra.Command, a []string) error {
	if len(a) == 0 {
		return c.Help()
	}
	next := c.CommandPath() + " --help lists the verbs"
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(a[0]); len(near) > 0 {
		next = "did you mean: " + c.CommandPath() + " " + strings.Join(near, ", "+c.CommandPath()+" ")
	}
	return &Error{Err: fmt.Errorf("no verb %q", a[0]), Hint: next, Code: CodeUsage}
}

// args turns cobra's complaint about arguments into a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return &Error{Err: err, Hint: c.UseLine(), Code: CodeUsage}
		}
		return nil
	}
}

// interactive says whether w is a terminal, where progress may be redrawn.
func interactive(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
