package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

func (e *env) status() *cobra.Command {
	var watch, direct bool
	var lan string
	cmd := &cobra.Command{
		Use:     "status [SITE...]",
		Short:   "show what the sites run, as the hub last heard of them",
		GroupID: "sites",
		Long: `Status asks the hub what it heard of the sites. The hub is a courier: what it says is
telemetry, not proof. Offline, waiting, staging and refused are four states, none of
them failed or done. With --direct a machine of the site is asked itself, end to end,
and tells how long each phase of its start took.`,
		Example:           "  holdfast status\n  holdfast status berlin-0417 --watch\n  holdfast status --output json | jq .sites[].state",
		Args:              args(cobra.ArbitraryArgs),
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			if direct || lan != "" {
				return e.runDirect(c.Context(), a, lan)
			}
			return e.runStatus(c.Context(), a, watch)
		},
	}
	cmd.Flags().BoolVar(&direct, "direct", false, "ask a machine of the site itself, through the hub's relay")
	cmd.Flags().StringVar(&lan, "lan", "", "ask the machine at this address of its LAN itself (host or host:port)")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on, and show each change")
	cmd.Flags().StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	cmd.Flags().StringVar(&e.key, "key", "", "SSH key of an operator")
	return cmd
}

// console opens a session with the hub, as an operator who may read.
func (e *env) console(ctx context.Context, roles ...string) (*repo, *fleet.Fleet, *operator.Client, error) {
	r, err := e.repo(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	f, err := load(workTree(r.dir))
	if err != nil {
		return nil, nil, nil, err
	}
	signer, err := e.operator(ctx, r, f.Trust)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := e.anyHub(ctx, r, f, signer, roles...)
	return r, f, c, err
}

func (e *env) runStatus(ctx context.Context, sites []string, watch bool) error {
	_, f, c, err := e.console(ctx, operator.Read)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, name := range sites {
		if _, err := site(f, name); err != nil {
			return err
		}
	}
	cursor := ""
	for {
		s, err := fetchStatus(ctx, c, cursor)
		if err != nil {
			return unreachable(err, "the hub")
		}
		if err := e.showStatus(s, sites, watch); err != nil || !watch {
			return err
		}
		cursor = s.Cursor
	}
}

// fetchStatus asks once; with a cursor it waits for a change.
func fetchStatus(ctx context.Context, c *operator.Client, cursor string) (*wire.Status, error) {
	path := "/v1/status"
	if cursor != "" {
		path += "?watch=" + url.QueryEscape(cursor)
	}
	var s wire.Status
	return &s, c.Call(ctx, http.MethodGet, path, nil, &s)
}

func (e *env) showStatus(s *wire.Status, only []string, watch bool) error {
	s.Sites = selected(s.Sites, only)
	if e.output == "json" {
		return e.printJSON(s)
	}
	if watch && interactive(e.out) {
		fmt.Fprint(e.out, "\x1b[H\x1b[2J")
	}
	return writeStatus(e.out, s)
}

func selected(sites []wire.SiteStatus, only []string) []wire.SiteStatus {
	if len(only) == 0 {
		return sites
	}
	var kept []wire.SiteStatus
	for _, s := range sites {
		for _, name := range only {
			if s.Name == name || s.Dir == strings.TrimSuffix(name, "/") {
				kept = append(kept, s)
			}
		}
	}
	return kept
}

func writeStatus(w io.Writer, s *wire.Status) error {
	fmt.Fprintf(w, "release %d, by the hub's word of %s\n", s.Head.N, s.Time.Local().Format(time.TimeOnly))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "SITE\tSTATE\tRELEASE\tMACHINE\tLINK\tSINCE\tAPPS\tDETAIL"
	owned := slices.ContainsFunc(s.Sites, func(s wire.SiteStatus) bool {
		return slices.ContainsFunc(s.Machines, func(m wire.MachineStatus) bool { return m.OS != "" })
	})
	if owned {
		head = strings.Replace(head, "LINK", "OS\tLINK", 1)
	}
	fmt.Fprintln(t, head)
	empty, faulty := 0, false
	for _, site := range s.Sites {
		if len(site.Machines) == 0 {
			empty++
			continue
		}
		for _, m := range site.Machines {
			link := "down"
			if m.Online {
				link = "up"
			}
			if owned {
				link = osText(m.OS, m.Slot, m.Trial) + "\t" + link
			}
			text := detail(m)
			_, known := faults.Parse(text[:min(3, len(text))])
			faulty = faulty || known
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", site.Name, site.State, m.N, m.Name, link, since(m.Since), apps(m.Apps), text)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if faulty {
		fmt.Fprintln(w, "  holdfast explain CODE says what a code such as E17 means and what to do")
	}
	if empty > 0 {
		fmt.Fprintf(w, "%d sites have no machine yet\n", empty)
	}
	if s.Quarantine > 0 {
		fmt.Fprintf(w, "%d machines in quarantine: holdfast adopt SITE CODE takes one in\n", s.Quarantine)
	}
	return nil
}

func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

func apps(list []wire.AppStatus) string {
	var parts []string
	for _, a := range list {
		text := a.Name
		if a.Version != "" {
			text += " " + a.Version
		}
		if a.Phase != wire.OK {
			text += " (" + string(a.Phase) + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// detail is the one thing that a person should know of a machine.
func detail(m wire.MachineStatus) string {
	for _, c := range m.Conditions {
		if !c.OK {
			return conditionText(c)
		}
	}
	if m.Detail != "" {
		return m.Detail
	}
	for _, a := range m.Apps {
		if a.Phase != wire.OK && a.Detail != "" {
			return a.Name + ": " + a.Detail
		}
	}
	if m.Unverified {
		return "adopted without its code"
	}
	return ""
}

// conditionText is a condition in words: a fault by its code and sentence.
func conditionText(c wire.Condition) string {
	code, _, _ := strings.Cut(c.Name, " ")
	if _, ok := faults.Parse(code); ok {
		return code + " " + c.Detail
	}
	return c.Name + ": " + c.Detail
}

// osText is what runs a machine; "" when hosted.
func osText(version, slot, trial string) string {
	if version == "" {
		return ""
	}
	text := version
	if slot != "" {
		text += " in slot " + slot
	}
	if trial != "" {
		text += ", on trial: " + trial
	}
	return text
}

// machineStatus is what a machine says of itself (GET /v1/status).
type machineStatus struct {
	Report  wire.Report `json:"report"`
	Timings []timing    `json:"timings"`
	Up      string      `json:"up"`

	Memory  *wire.Memory    `json:"memory,omitempty"`
	Listens []wire.Listener `json:"listens,omitempty"`
}

type timing struct {
	Name  string        `json:"name"`
	Began time.Time     `json:"began"`
	Took  time.Duration `json:"took"`
}

// runDirect asks the machines themselves.
func (e *env) runDirect(ctx context.Context, sites []string, lan string) error {
	if len(sites) == 0 {
		return &Error{Err: errors.New("name the sites whose machines are to be asked"), Hint: "holdfast status SITE --direct", Code: CodeUsage}
	}
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	f, err := load(workTree(r.dir))
	if err != nil {
		return err
	}
	for _, name := range sites {
		s, err := site(f, name)
		if err != nil {
			return err
		}
		m, err := e.askMachine(ctx, r, f, s, lan)
		if err != nil {
			return err
		}
		if e.output == "json" {
			err = e.printJSON(m)
		} else {
			e.printf("%s, by its own word: %s, release %d, up %s\n", s.Name, m.Report.Phase, m.Report.N, m.Up)
			writeTimings(e.out, m.Timings)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *env) askMachine(ctx context.Context, r *repo, f *fleet.Fleet, s *fleet.Site, lan string) (m machineStatus, err error) {
	err = e.eachMachine(ctx, f, s, lan, r, func(ctx context.Context, c *operator.Client, _ string) error {
		return c.Call(ctx, http.MethodGet, "/v1/status", nil, &m)
	})
	return m, err
}

// writeTimings prints phases with when they began, counted from the first.
func writeTimings(w io.Writer, list []timing) {
	for _, t := range list {
		fmt.Fprintf(w, "    +%6.2f s  %6.2f s  %s\n", t.Began.Sub(list[0].Began).Seconds(), t.Took.Seconds(), t.Name)
	}
}
