package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/preflight"
	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// labMemory is what a machine of a lab believes it has.
const labMemory = 2 << 30

func (e *env) lab() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "lab",
		Short:   "virtual sites on this computer, with a hub (root)",
		GroupID: "run",
		Long: `A lab runs sites of your fleet on this computer: a hub and machines, on a network that
exists nowhere else. The machines are real: real Kubernetes, real releases, no pull from
anywhere. Hosted ones run in namespaces of their own; with --runtime vm they are virtual
machines with the OS image, UEFI, Secure Boot, a TPM and disks, whose power can be cut.
Nothing of the host is changed, and lab down leaves nothing behind.

A MACHINE is named by its site, or as SITE.NAME: lab status lists them.`,
		Example: `  holdfast lab up berlin-mitte london-bankside
  holdfast lab up berlin-mitte --runtime vm --memory 1Gi
  holdfast lab status
  holdfast lab fetch berlin-mitte 30080
  holdfast lab down`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "folder of the lab; default: one below /var/lib/holdfast/labs for each fleet")
	cmd.AddCommand(e.labUp(&dir), e.labDown(&dir), e.labStatus(&dir), e.labFetch(&dir), e.labExec(&dir), e.labCheck(),
		e.labSwitch(&dir, "stop", "end the hub or a machine, and leave it ended", false),
		e.labSwitch(&dir, "start", "start the hub or a machine again", true),
		e.labKill(&dir), e.labKeeper(&dir))
	cmd.AddCommand(e.labVirtual(&dir)...)
	return cmd
}

// labOf finds the lab of this clone: --dir, or what lab up noted, or the default place.
func (e *env) labOf(ctx context.Context, dir string) (lab.Lab, error) {
	if dir != "" {
		abs, err := filepath.Abs(dir)
		return lab.Lab{Dir: abs}, err
	}
	r, err := e.repo(ctx)
	if err != nil {
		return lab.Lab{}, err
	}
	if n, ok := readLabNote(r.GitDir()); ok {
		return lab.Lab{Dir: n.Dir}, nil
	}
	f, _ := fleet.Load(workTree(r.dir))
	if f == nil || f.ID == "" {
		return lab.Lab{}, errors.New("fleet.yaml has no id")
	}
	return lab.Lab{Dir: filepath.Join("/var/lib/holdfast/labs", string(f.ID))}, nil
}

// inLab is a verb on the lab of this clone.
func (e *env) inLab(dir *string, do func(ctx context.Context, l lab.Lab, a []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, a []string) error {
		l, err := e.labOf(c.Context(), *dir)
		if err != nil {
			return err
		}
		return labError(do(c.Context(), l, a))
	}
}

// labError gives the next step to who asks for a lab that is not there, or a
// hosted machine for what it has not.
func labError(err error) error {
	if errors.Is(err, lab.ErrNone) {
		return hint(err, "holdfast lab up SITE; with --runtime vm in a virtual machine")
	}
	if _, ok := errors.AsType[*lab.NotVirtual](err); ok {
		return &Error{Err: err, Code: CodeUsage, Hint: "run the site in a virtual machine: holdfast lab up SITE --runtime vm"}
	}
	return err
}

// tell prints a line for people, or v.
func (e *env) tell(v any, format string, a ...any) error {
	if e.output == "json" {
		return e.printJSON(v)
	}
	e.printf(format, a...)
	return nil
}

// upOptions are the flags of lab up.
type upOptions struct {
	memory   memory
	resize   bool // memory was named: machines that are there get it at their next start
	listen   string
	recovery string
	keep     bool
	runtime  string
	os       string
}

func (e *env) labUp(dir *string) *cobra.Command {
	o := upOptions{memory: labMemory}
	cmd := &cobra.Command{
		Use:   "up [SITE...]",
		Short: "start sites, adopt their machines, release, and wait until they answer",
		Long: `Up looks whether this computer can do it, starts a hub and one machine for each SITE
(default: the first of the fleet), pushes the app images that lie beside this program,
adopts the machines by the codes on their consoles, releases, and waits until the sites
are well. Each phase is timed. It commits the machines to the fleet repo, so try it in a
clone of your real one. Running it again starts what is not running.`,
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			if r := lab.Runtime(o.runtime); r != lab.Hosted && r != lab.Virtual {
				return &Error{Err: fmt.Errorf("--runtime %s: want %s or %s", o.runtime, lab.Hosted, lab.Virtual), Code: CodeUsage}
			}
			o.resize = c.Flags().Changed("memory")
			return e.runLabUp(c.Context(), *dir, a, o)
		},
	}
	flags := cmd.Flags()
	flags.Var(&o.memory, "memory", "memory of each machine, from its next start on, such as 1Gi, 640Mi or plain bytes")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8443", "address of the hub on this computer")
	flags.StringVar(&o.recovery, "recovery", "", "file with the recovery key, to take the hub's key out of the fleet repo; default: where init put it")
	flags.StringVar(&e.key, "key", "", "SSH key of a signer and operator")
	flags.StringVar(&o.runtime, "runtime", string(lab.Hosted), "how new machines run: hosted, or vm")
	flags.StringVar(&o.os, "os", "", "folder that holdfast os build wrote, for --runtime vm; default: built here")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions([]string{string(lab.Hosted), string(lab.Virtual)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.MarkFlagDirname("os")
	return cmd
}

// stopwatch prints how long each phase took.
type stopwatch struct {
	e     *env
	start time.Time
	last  time.Time
	marks []mark
}

type mark struct {
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
}

func (e *env) stopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{e: e, start: now, last: now}
}

func (s *stopwatch) lap(format string, a ...any) {
	now := time.Now()
	took := now.Sub(s.last)
	s.last = now
	phase := fmt.Sprintf(format, a...)
	s.marks = append(s.marks, mark{phase, took.Seconds()})
	if s.e.output != "json" {
		s.e.printf("%6.2f s  %s\n", took.Seconds(), phase)
	}
}

func (e *env) runLabUp(ctx context.Context, dir string, names []string, o upOptions) (err error) {
	watch := e.stopwatch()
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	f, err := load(workTree(r.dir))
	if err != nil {
		return err
	}
	sites, err := chooseSites(f, names)
	if err != nil {
		return err
	}
	l, err := e.labOf(ctx, dir)
	if err != nil {
		return err
	}
	w, err := e.labWanted(l, r, f, sites, o)
	if err != nil {
		return err
	}
	if err := e.preflight(ctx, l, w); err != nil {
		return err
	}
	watch.lap("preflight: %d machines fit here", len(w.Machines))
	if err := e.labOS(ctx, l, w, o, watch); err != nil {
		return err
	}
	if err := e.labStart(ctx, l, w, r, o); err != nil {
		return err
	}
	ctx, stop := e.watchBoxes(ctx, l, w)
	defer func() { stop(); err = boxTrouble(ctx, err) }()
	signer, err := e.operator(ctx, r, f.Trust)
	if err != nil {
		return err
	}
	c, err := e.waitHub(ctx, l, r, f, signer)
	if err != nil {
		return err
	}
	defer c.Close()
	watch.lap("hub at %s", w.Hub.Address)
	if folder, ok := imagesBeside(); ok {
		n, err := e.pushImages(ctx, c, []string{folder})
		if err != nil {
			return err
		}
		watch.lap("%d app images at the hub", n)
	}
	if err := e.labAdopt(ctx, l, w, r, c, watch); err != nil {
		return err
	}
	if err := e.labRelease(ctx, r, watch); err != nil {
		return err
	}
	if err := e.labWait(ctx, l, w, c, watch); err != nil {
		return err
	}
	return e.labDone(ctx, w, r, watch, sites)
}

func chooseSites(f *fleet.Fleet, names []string) ([]*fleet.Site, error) {
	if len(names) == 0 {
		if len(f.Sites()) == 0 {
			return nil, hint(fmt.Errorf("fleet %s has no site yet", f.Name), "make one: a folder below sites/ with a site.yaml")
		}
		return f.Sites()[:1], nil
	}
	var list []*fleet.Site
	for _, name := range names {
		s, err := site(f, name)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// labWanted adds the sites to what the lab runs already.
func (e *env) labWanted(l lab.Lab, r *repo, f *fleet.Fleet, sites []*fleet.Site, o upOptions) (*lab.Wanted, error) {
	w, err := l.Wanted()
	if errors.Is(err, fs.ErrNotExist) {
		w, err = &lab.Wanted{}, nil
	}
	if err != nil {
		return nil, err
	}
	machined, err := beside("machined")
	if err != nil {
		return nil, err
	}
	self, err := program()
	if err != nil {
		return nil, err
	}
	w.Fleet, w.FleetID, w.Holdfast, w.Machined, w.Stop = r.dir, string(f.ID), self, machined, false
	w.System = filepath.Join(filepath.Dir(self), "system")
	if _, err := os.Stat(filepath.Join(w.System, "kube")); err != nil {
		return nil, hint(fmt.Errorf("no Kubernetes beside this program: %w", err), "make system")
	}
	w.Hub.Run = true
	if w.Hub.Address == "" {
		w.Hub.Address = o.listen
	}
	for _, s := range sites {
		name := "m1"
		if len(s.Machines) > 0 {
			name = s.Machines[0].Name
		}
		resolved, err := f.Resolve(s)
		if err != nil {
			return nil, coded(CodeFaults, err)
		}
		known := len(w.Machines)
		m := w.Add(s.Name, name, int64(o.memory), filepath.Join(filepath.Dir(labPointer(r.GitDir())), "machines"))
		if len(w.Machines) > known && lab.Runtime(o.runtime) == lab.Virtual {
			m.Runtime, m.Disks = lab.Virtual, virtualDisks
		}
		if o.resize {
			m.Memory = int64(o.memory)
		}
		m.Run, m.State, m.Data = true, int64(resolved.Class.StateSize), int64(resolved.Class.DataSize)
	}
	return w, nil
}

// preflight looks whether this computer can run what is wanted.
func (e *env) preflight(ctx context.Context, l lab.Lab, w *lab.Wanted) error {
	want := preflight.Want{Machines: len(w.Machines), Dir: existing(l.Dir), Memory: 640 << 20}
	units, err := l.Units()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	alive := 0
	for _, u := range units {
		if u.Alive {
			alive++
		}
	}
	if alive == 0 {
		want.Ports = []string{w.Hub.Address}
	} else {
		want.Machines = max(1, len(w.Machines)-max(0, alive-2))
	}
	var failed []preflight.Item
	virtual, hosted := anyVirtual(w)
	if hosted {
		failed = preflight.Check(ctx, want).Failed()
	}
	if virtual {
		want.Virtual, want.Memory = true, w.Machines[0].Memory+virtualOverhead
		failed = append(failed, preflight.Check(ctx, want).Failed()...)
	}
	if len(failed) == 0 {
		return nil
	}
	var b strings.Builder
	for _, i := range failed {
		fmt.Fprintf(&b, "\n  %s: found %s, need %s\n    next: %s", i.Name, i.Found, i.Need, i.Fix)
	}
	return fmt.Errorf("this computer cannot run the lab:%s", b.String())
}

// existing is the nearest folder above dir that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// labStart writes what machines and hub need and sets the keeper to work.
func (e *env) labStart(ctx context.Context, l lab.Lab, w *lab.Wanted, r *repo, o upOptions) error {
	var key []byte
	if _, err := os.Stat(filepath.Join(l.Dir, "hub.key")); err != nil {
		var err error
		if key, err = e.openHubKey(ctx, o.recovery, "active"); err != nil {
			return err
		}
	}
	seed, err := e.makeSeed()
	if err != nil {
		return err
	}
	if err := l.Prepare(w, seed, key); err != nil {
		return err
	}
	if err := l.Want(w); err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(labPointer(r.GitDir())), 0o755); err != nil {
		return err
	}
	if err := durable.WriteJSON(labPointer(r.GitDir()), labNote{Dir: l.Dir, Hub: w.Hub.Address}, 0o644); err != nil {
		return err
	}
	return l.Start(w)
}

// waitHub opens a session with the lab's hub as soon as it answers.
func (e *env) waitHub(ctx context.Context, l lab.Lab, r *repo, f *fleet.Fleet, signer ssh.Signer) (*operator.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := e.anyHub(ctx, r, f, signer, operator.Read, operator.Operate)
		if err == nil {
			return c, nil
		}
		if Code(err) == CodeRefused {
			return nil, err
		}
		if !wait(ctx, 30*time.Millisecond) {
			return nil, hint(err, "look at %s and %s", filepath.Join(l.Dir, "hub.log"), filepath.Join(l.Dir, "keeper.log"))
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// labAdopt takes machines in that their sites do not list yet, by the codes on
// their consoles.
func (e *env) labAdopt(ctx context.Context, l lab.Lab, w *lab.Wanted, r *repo, c *operator.Client, watch *stopwatch) error {
	deadline, cancel := context.WithTimeout(ctx, patience(w, 60*time.Second))
	defer cancel()
	for _, m := range w.Machines {
		if !m.Run {
			continue
		}
		f, err := load(workTree(r.dir)) // anew: an adoption before this one changed it
		if err != nil {
			return err
		}
		s, err := site(f, m.Site)
		if err != nil {
			return err
		}
		code := ""
		for code = l.Code(m); code == ""; code = l.Code(m) {
			if !wait(deadline, 30*time.Millisecond) {
				return hint(fmt.Errorf("machine %s shows no code on its console", m.Key()), "look at %s", filepath.Join(l.Dir, "machines", m.Key()+".log"))
			}
		}
		if _, listed := memberBy(s, code); listed {
			continue
		}
		if len(s.Machines) > 0 {
			return hint(fmt.Errorf("site %s lists a machine that is not of this lab", s.Name),
				"a lab commits its own machines: work in a clone of the fleet repo, remove the site's machines.yaml there, and run this again; or take another site")
		}
		answer, err := e.adoptFromLab(deadline, r, f, s, c, code, m.Name)
		if err != nil {
			return err
		}
		watch.lap("adopted %s by its code %s", m.Key(), link.Code(answer.Machine))
	}
	return nil
}

func (e *env) adoptFromLab(ctx context.Context, r *repo, f *fleet.Fleet, s *fleet.Site, c *operator.Client, code, name string) (*adopted, error) {
	for {
		guest, in, err := findGuest(ctx, c, code, "")
		if err == nil {
			return e.takeIn(ctx, r, f, s, guest, in, adoptOptions{name: name})
		}
		if Code(err) == CodeRefused {
			return nil, err
		}
		if !wait(ctx, 50*time.Millisecond) {
			return nil, err
		}
	}
}

// labRelease releases what is committed and not released, and hands it over.
func (e *env) labRelease(ctx context.Context, r *repo, watch *stopwatch) error {
	quiet := *e
	quiet.output = "json" // the lab prints laps instead
	answer, t, err := quiet.makeRelease(ctx, r, releaseOptions{})
	if err != nil {
		return err
	}
	if err := quiet.handOver(ctx, r, t, answer); err != nil {
		return err
	}
	watch.lap("release %d signed and at the hub", t.Payload.N)
	return nil
}

// labWait waits until every running site is well with the newest release.
func (e *env) labWait(ctx context.Context, l lab.Lab, w *lab.Wanted, c *operator.Client, watch *stopwatch) error {
	most, parent := patience(w, 5*time.Minute), ctx
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	pending := map[string]bool{}
	for _, m := range w.Machines {
		if m.Run {
			pending[m.Site] = true
		}
	}
	var last *wire.Status
	cursor, said := "", map[string]string{}
	for len(pending) > 0 {
		s, err := fetchStatus(ctx, c, cursor)
		if err != nil {
			if ctx.Err() == nil && wait(ctx, 300*time.Millisecond) {
				continue
			}
			if parent.Err() != nil { // somebody does not want to wait any longer
				return parent.Err()
			}
			return e.notWell(l, pending, last, most)
		}
		last, cursor = s, s.Cursor
		for _, site := range s.Sites {
			if !pending[site.Name] || len(site.Machines) == 0 {
				continue
			}
			text := siteLine(site)
			if site.State == wire.OK && site.N == s.Head.N && wellApps(site) {
				delete(pending, site.Name)
				watch.lap("%s runs release %d: %s", site.Name, site.N, text)
			} else if interactive(e.err) && said[site.Name] != text {
				fmt.Fprintf(e.err, "          %s: %s\n", site.Name, text)
			}
			said[site.Name] = text
		}
	}
	return nil
}

func wellApps(s wire.SiteStatus) bool {
	for _, m := range s.Machines {
		for _, a := range m.Apps {
			if a.Phase != wire.OK {
				return false
			}
		}
	}
	return true
}

func siteLine(s wire.SiteStatus) string {
	var list []wire.AppStatus
	text := string(s.State)
	for _, m := range s.Machines {
		list = append(list, m.Apps...)
		if d := detail(m); d != "" {
			text += " (" + d + ")"
		}
	}
	if a := apps(list); a != "" {
		text += ", " + a
	}
	return text
}

func (e *env) notWell(l lab.Lab, pending map[string]bool, last *wire.Status, most time.Duration) error {
	var names []string
	for name := range pending {
		names = append(names, name)
	}
	if last != nil {
		writeStatus(e.err, &wire.Status{Head: last.Head, Time: last.Time, Sites: selected(last.Sites, names), Quarantine: last.Quarantine})
	}
	return hint(fmt.Errorf("not well within %s: %s", most, strings.Join(names, ", ")), "the machines' logs are in %s", filepath.Join(l.Dir, "machines"))
}

// labDone tells how long it took, on the machines too, and what can be done next.
func (e *env) labDone(ctx context.Context, w *lab.Wanted, r *repo, watch *stopwatch, sites []*fleet.Site) error {
	total := time.Since(watch.start).Seconds()
	f, err := load(workTree(r.dir))
	if err != nil {
		return err
	}
	inside := map[string][]timing{}
	for _, s := range sites {
		now, err := site(f, s.Name) // with the machine that was adopted
		if err != nil {
			return err
		}
		m, err := e.askMachine(ctx, r, f, now, "")
		if err != nil {
			return err
		}
		inside[s.Name] = m.Timings
	}
	if e.output == "json" {
		return e.printJSON(map[string]any{"sites": w.Sites(), "hub": w.Hub.Address, "phases": watch.marks, "seconds": total, "machines": inside})
	}
	e.printf("%6.2f s  in all\n", total)
	for _, s := range sites {
		e.printf("  on the machine of %s (began, took):\n", s.Name)
		writeTimings(e.out, inside[s.Name])
	}
	name := w.Sites()[0]
	e.printf("  next: holdfast status; holdfast kubectl %s get pods -A; holdfast lab down\n", name)
	return nil
}

func (e *env) labDown(dir *string) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use: "down", Short: "end the lab and leave nothing on this computer", Args: args(cobra.NoArgs),
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, _ []string) error {
			if err := l.Down(ctx, keep); err != nil {
				return err
			}
			if r, err := e.repo(ctx); err == nil {
				os.Remove(labPointer(r.GitDir()))
			}
			return e.tell(map[string]any{"dir": l.Dir, "kept": keep}, "the lab is down\n")
		}),
	}
	cmd.Flags().BoolVar(&keep, "keep-disks", false, "keep the folder of the lab, so that lab up goes on where it was")
	return cmd
}

func (e *env) labStatus(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "show the lab's processes and consoles", Args: args(cobra.NoArgs),
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, _ []string) error {
			w, err := l.Wanted()
			if err != nil {
				return err
			}
			units, err := l.Units()
			if err != nil {
				return err
			}
			if e.output == "json" {
				return e.printJSON(map[string]any{"dir": l.Dir, "wanted": w, "processes": units})
			}
			t := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "PROCESS\tALIVE\tPID\tLAN ADDRESS\tLOG")
			for _, u := range units {
				address := ""
				if m, err := w.Find(u.Name); err == nil {
					address = m.Address().String()
				} else if u.Name == "hub" {
					address = w.Hub.Address
				}
				fmt.Fprintf(t, "%s\t%t\t%d\t%s\t%s\n", u.Name, u.Alive, u.PID, address, u.Log)
			}
			t.Flush()
			for _, m := range w.Machines {
				e.printf("\n%s\n%s", m.Key(), l.Console(m))
			}
			return nil
		}),
	}
}

func (e *env) labFetch(dir *string) *cobra.Command {
	var within time.Duration
	cmd := &cobra.Command{
		Use: "fetch SITE PORT [PATH]", Short: "get a page from a site on its LAN, as a screen in the shop would",
		Args: args(cobra.RangeArgs(2, 3)),
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			w, err := l.Wanted()
			if err != nil {
				return err
			}
			m, err := w.Find(a[0])
			if err != nil {
				return err
			}
			if _, err := strconv.ParseUint(a[1], 10, 16); err != nil {
				return &Error{Err: fmt.Errorf("port %q: not a port", a[1]), Code: CodeUsage}
			}
			url := fmt.Sprintf("http://%s:%s/%s", m.Address(), a[1], strings.TrimPrefix(strings.Join(a[2:], ""), "/"))
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			for {
				body, err := l.Fetch(ctx, url)
				if err == nil {
					e.printf("%s\n", strings.TrimRight(string(body), "\n"))
					return nil
				}
				if !wait(ctx, 100*time.Millisecond) {
					return coded(CodeUnreachable, err)
				}
			}
		}),
	}
	cmd.Flags().DurationVar(&within, "within", 5*time.Second, "try again for so long")
	return cmd
}

func (e *env) labExec(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "exec -- COMMAND...", Short: "run a command inside the lab's network, as a computer in the shop would",
		Example: "  holdfast lab exec -- holdfast kubectl --lan 10.90.0.11 berlin-mitte get pods -A",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			err := l.Exec(ctx, e.in, e.out, e.err, a)
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				return coded(exit.ExitCode(), fmt.Errorf("%w: it ended with %d", errTold, exit.ExitCode()))
			}
			return err
		}),
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// labSwitch is lab stop and lab start.
func (e *env) labSwitch(dir *string, verb, short string, run bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " hub|SITE", Short: short, Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			if err := l.Switch(ctx, a[0], run); err != nil {
				return err
			}
			return e.tell(map[string]any{"name": a[0], "run": run}, "%s: %s\n", a[0], map[bool]string{true: "started", false: "stopped"}[run])
		}),
	}
}

func (e *env) labKill(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "kill hub|keeper|SITE", Short: "kill -9 a process of the lab, which comes back by itself", Args: args(cobra.ExactArgs(1)), ValidArgsFunction: e.completeSites,
		RunE: e.inLab(dir, func(ctx context.Context, l lab.Lab, a []string) error {
			return l.Kill(a[0])
		}),
	}
}

func (e *env) labCheck() *cobra.Command {
	var machines int
	var virtual bool
	cmd := &cobra.Command{
		Use: "check", Short: "tell what this computer lacks for a lab, and how many machines fit", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			report := preflight.Check(c.Context(), preflight.Want{Machines: machines, Virtual: virtual, Dir: "/", Ports: []string{"127.0.0.1:8443"}})
			if e.output == "json" {
				if err := e.printJSON(report); err != nil {
					return err
				}
			} else {
				e.printf("%s", report)
			}
			if !report.OK() {
				return fmt.Errorf("%w: something is lacking", errTold)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&machines, "machines", 1, "how many machines are wanted")
	cmd.Flags().BoolVar(&virtual, "vm", false, "look at what virtual machines need")
	return cmd
}

func (e *env) labKeeper(dir *string) *cobra.Command {
	network := -1
	cmd := &cobra.Command{
		Use: "keeper", Short: "the lab's own process (started by lab up)", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return lab.Lab{Dir: *dir}.Keep(c.Context(), network, slog.New(slog.NewTextHandler(e.err, nil)))
		},
	}
	cmd.Flags().IntVar(&network, "network-fd", -1, "inherited descriptor of the lab's network")
	return cmd
}
