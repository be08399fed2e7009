package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/lab/drill"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

// drillOptions are the flags of drill.
type drillOptions struct {
	dir string
	drill.Options
}

func (e *env) drill() *cobra.Command {
	var o drillOptions
	var names []string
	long := `Drill does to a virtual machine of the lab what the world does to machines in shops, and
says whether it keeps its promises. Each step tells what was done, what was expected, what
was seen, how long it took and what was lost. A broken promise is exit code 1.

The drills:
`
	for _, k := range drill.Kinds() {
		names = append(names, k.Name)
		long += fmt.Sprintf("  %-8s %s\n", k.Name, k.Short)
		if len(k.Ways) > 0 {
			long += fmt.Sprintf("           --only %s\n", strings.Join(k.Ways, "|"))
		}
	}
	long += `
They write a ConfigMap holdfast-drill to the site. The drill power commits and releases
changes of the site's greeting, and those that bring another OS commit and release that:
work in a clone of your real fleet repo, as with lab up.`
	cmd := &cobra.Command{
		Use: "drill NAME [MACHINE]", Short: "prove on a machine of the lab that it survives (power, theft, ...)", GroupID: "run", Long: long,
		Example: "  holdfast lab up bristol-harbour --runtime vm\n  holdfast drill power bristol-harbour --cuts 20",
		Args:    args(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: func(c *cobra.Command, a []string, to string) ([]string, cobra.ShellCompDirective) {
			if len(a) == 0 {
				var list []string
				for _, k := range drill.Kinds() {
					list = append(list, k.Name+"\t"+k.Short)
				}
				return list, cobra.ShellCompDirectiveNoFileComp
			}
			return e.completeSites(c, a[1:], to)
		},
		RunE: func(c *cobra.Command, a []string) error {
			known := false
			for _, name := range names {
				known = known || name == a[0]
			}
			if !known {
				return &Error{Err: fmt.Errorf("no drill %q", a[0]), Hint: "there are " + strings.Join(names, ", "), Code: CodeUsage}
			}
			if ways := drill.Ways(a[0]); o.Only != "" && !slices.Contains(ways, o.Only) {
				return &Error{Err: fmt.Errorf("drill %s has no part %q", a[0], o.Only), Hint: "holdfast help drill lists the parts of each", Code: CodeUsage}
			}
			return e.runDrill(c.Context(), a, o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "", "folder of the lab; default: the one that lab up noted")
	flags.Uint64Var(&o.Seed, "seed", 0, "brings the random choices of a drill back; 0: by the clock")
	flags.IntVar(&o.Cuts, "cuts", 4, "power: how often the power is cut")
	flags.BoolVar(&o.Install, "install", false, "power: also cut while a blank disk is filled, for what the site has written is lost")
	flags.StringVar(&o.Only, "only", "", "power, bad-os, upgrade: one part of it, of those listed above; default: all")
	flags.Uint16Var(&o.Port, "port", 30080, "where an app answers on the machine's LAN; 0: ask none")
	flags.DurationVar(&o.Patience, "patience", 15*time.Minute, "how long the machine may take for anything")
	flags.StringVar(&e.key, "key", "", "SSH key of a signer and operator")
	cmd.MarkFlagDirname("dir")
	return cmd
}

func (e *env) runDrill(ctx context.Context, a []string, o drillOptions) error {
	l, err := e.labOf(ctx, o.dir)
	if err != nil {
		return err
	}
	w, err := l.Wanted()
	if err != nil {
		return labError(err)
	}
	key := ""
	if len(a) > 1 {
		key = a[1]
	} else if len(w.Machines) == 1 {
		key = w.Machines[0].Key()
	} else {
		return &Error{Err: fmt.Errorf("the lab has %d machines: name one", len(w.Machines)), Hint: "holdfast lab status", Code: CodeUsage}
	}
	m, err := w.Find(key)
	if err != nil {
		return err
	}
	o.Lab, o.Machine, o.Site = l, m.Key(), &drillSite{e: e, lab: l, machine: *m}
	if o.Saboteur, err = beside("saboteur"); err != nil && (a[0] == "bad-os" || a[0] == "upgrade") {
		return hint(err, "make saboteur")
	}
	if o.Next, err = beside(filepath.Join("system-next", "kube")); err != nil && a[0] == "upgrade" {
		return hint(err, "make system-next")
	}
	if e.output != "json" {
		o.Began = func(did string) { e.printf("%s ...\n", did) }
		o.Done = e.tellStep
	}
	v, err := drill.Run(ctx, a[0], o.Options)
	if v == nil {
		return labError(err)
	}
	if e.output == "json" {
		if err := e.printJSON(v); err != nil {
			return err
		}
	} else {
		e.printf("%s\n", v)
	}
	if err != nil && !errors.Is(err, drill.ErrBroken) {
		return err
	}
	if err != nil {
		return coded(CodeFailed, fmt.Errorf("%w: %w", errTold, err))
	}
	return nil
}

func (e *env) tellStep(s drill.Step) {
	e.printf("  expected  %s\n  seen      %s\n", s.Expected, s.Seen)
	if s.Lost != "" {
		e.printf("  lost      %s\n", s.Lost)
	}
	e.printf("  verdict   %s, %.0f s\n", map[bool]string{true: "kept", false: "BROKEN"}[s.Kept], s.Seconds)
}

// drillSite is a site as drills ask it.
type drillSite struct {
	e       *env
	lab     lab.Lab
	machine lab.Machine
}

// member finds the machine in the fleet repo as it is now.
func (s *drillSite) member(ctx context.Context) (*target, error) {
	return s.e.target(ctx, s.machine.Site+"/"+s.machine.Name)
}

func (s *drillSite) Status(ctx context.Context) (wire.MachineStatus, uint64, error) {
	_, _, c, err := s.e.console(ctx, operator.Read)
	if err != nil {
		return wire.MachineStatus{}, 0, err
	}
	defer c.Close()
	status, err := fetchStatus(ctx, c, "")
	if err != nil {
		return wire.MachineStatus{}, 0, err
	}
	for _, at := range status.Sites {
		for _, m := range at.Machines {
			if at.Name == s.machine.Site && m.Name == s.machine.Name {
				return m, status.Head.N, nil
			}
		}
	}
	return wire.MachineStatus{}, 0, fmt.Errorf("the hub knows no machine %s", s.machine.Key())
}

func (s *drillSite) Ask(ctx context.Context) (wire.Report, error) {
	var answer machineStatus
	t, err := s.member(ctx)
	if err != nil {
		return answer.Report, err
	}
	c, err := s.e.dialMachine(ctx, t, "", operator.Read)
	if err != nil {
		return answer.Report, err
	}
	defer c.Close()
	return answer.Report, c.Call(ctx, http.MethodGet, "/v1/status", nil, &answer)
}

func (s *drillSite) Unlock(ctx context.Context) error {
	return s.e.runUnlock(ctx, s.machine.Site+"/"+s.machine.Name, machineOptions{})
}

// API gets a credential as holdfast kubeconfig does.
func (s *drillSite) API(ctx context.Context, now func() time.Time) (*drill.API, error) {
	t, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	c, err := s.e.dialMachine(ctx, t, "", operator.Read)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	addresses, err := s.e.hubAddresses(t.repo.GitDir(), t.fleet)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	var reply credentialReply
	request := map[string]any{"key": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), "seconds": int64((23 * time.Hour).Seconds())}
	if err := c.Call(ctx, http.MethodPost, "/v1/credential", request, &reply); err != nil {
		return nil, err
	}
	config := &tls.Config{ServerName: reply.ServerName, RootCAs: x509.NewCertPool(), Time: now}
	block, _ := pem.Decode([]byte(reply.Certificate))
	if block == nil || !config.RootCAs.AppendCertsFromPEM([]byte(reply.CA)) {
		return nil, errors.New("the machine's credential is no certificate")
	}
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}
	return &drill.API{URL: "https://" + addresses[0], HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: config}}}, nil
}

// greetingLine is the site's own greeting, a variable of the example fleet.
var greetingLine = regexp.MustCompile(`(?m)^(\s+greeting:).*$`)

// greet puts a greeting into the text of a site.yaml.
func greet(text []byte, greeting string) []byte {
	const vars = "\n  vars:\n"
	line := "    greeting: " + greeting + "\n"
	switch {
	case greetingLine.Match(text):
		return greetingLine.ReplaceAll(text, []byte("${1} "+greeting))
	case bytes.Contains(text, []byte(vars)):
		return bytes.Replace(text, []byte(vars), []byte(vars+line), 1)
	}
	return append(bytes.TrimRight(text, "\n"), []byte(vars+line)...)
}

// greets says whether the site declares a greeting; nothing else is known to be free to change.
func greets(m *target) (bool, error) {
	resolved, err := m.fleet.Resolve(m.site)
	if err != nil {
		return false, err
	}
	_, declared := resolved.Vars["greeting"]
	return declared, nil
}

func (s *drillSite) Free(ctx context.Context) (bool, error) {
	m, err := s.member(ctx)
	if err != nil {
		return false, err
	}
	return greets(m)
}

// Change gives the site another greeting, where the fleet has that variable.
func (s *drillSite) Change(ctx context.Context, why string) (uint64, string, error) {
	m, err := s.member(ctx)
	if err != nil {
		return 0, "", err
	}
	r, at := m.repo, m.site
	if free, err := greets(m); err != nil || !free {
		return 0, "", err
	}
	file := filepath.Join(r.dir, filepath.FromSlash(at.Dir), "site.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, "", err
	}
	if err := os.WriteFile(file, greet(text, why), 0o644); err != nil {
		return 0, "", err
	}
	if _, err := r.Commit(ctx, why, path.Join(r.root, at.Dir, "site.yaml")); err != nil {
		return 0, "", err
	}
	n, err := s.release(ctx, r)
	return n, why, err
}

// release signs what is committed and hands it over, without a word.
func (s *drillSite) release(ctx context.Context, r *repo) (uint64, error) {
	quiet := *s.e
	quiet.output, quiet.out, quiet.err = "json", io.Discard, io.Discard
	answer, t, err := quiet.makeRelease(ctx, r, releaseOptions{})
	if err != nil {
		return 0, err
	}
	if err := quiet.handOver(ctx, r, t, answer); err != nil {
		return 0, err
	}
	return t.Payload.N, nil
}

// BuildOS builds as lab up does, with the same keys.
func (s *drillSite) BuildOS(ctx context.Context, version, from string, change func(*build.Options) error) (*drill.OSBuild, error) {
	options, err := s.e.labOSOptions(ctx, s.lab)
	if err != nil {
		return nil, err
	}
	options.Version = version
	options.Output = filepath.Join(s.lab.Dir, "os", "drill-"+version)
	if change != nil {
		if err := change(&options); err != nil {
			return nil, err
		}
	}
	r, err := build.Build(ctx, options)
	if err != nil {
		return nil, osBuildHint(err, options.Programs)
	}
	if err := errors.Join(os.Remove(r.Disk), os.Remove(r.Stick)); err != nil {
		return nil, err
	}
	if from == "" {
		return &drill.OSBuild{Version: version, Parts: r.Parts}, nil
	}
	a, err := writeArtefact(ctx, r, []string{from}, nil, func(string) {})
	if err != nil {
		return nil, err
	}
	made := &drill.OSBuild{Version: version, Parts: r.Parts, Folder: a.Folder, Whole: a.Whole}
	for _, d := range a.Deltas {
		made.Delta = d.Size
	}
	return made, nil
}

// timingLine is how long a trial takes, as a drill writes it.
var timingLine = regexp.MustCompile(`(?m)^    update: \{deadline: .*\}$`)

// timed puts that into the text of a site.yaml, unless it says something of its machines itself.
func timed(text string, t drill.Timing) string {
	line := fmt.Sprintf("    update: {deadline: %s, soak: %s}", t.Deadline, t.Soak)
	switch {
	case timingLine.MatchString(text):
		return timingLine.ReplaceAllString(text, line)
	case strings.Contains(text, "\n  machine:"):
		return text
	}
	return strings.TrimRight(text, "\n") + "\n  machine:\n" + line + "\n"
}

// osLine is the OS version of a ring, or the comment in its place.
var osLine = regexp.MustCompile(`(?m)^  (# )?os:.*$`)

func (s *drillSite) ReleaseOS(ctx context.Context, o *drill.OSBuild, t drill.Timing) (uint64, error) {
	m, err := s.member(ctx)
	if err != nil {
		return 0, err
	}
	r := m.repo
	quiet := *s.e
	quiet.output, quiet.out, quiet.err = "json", io.Discard, io.Discard
	files := []string{}
	if o.Folder != "" {
		if err := quiet.runOSPush(ctx, []string{o.Folder}); err != nil {
			return 0, err
		}
		files = append(files, path.Join(r.root, "os", o.Version+".yaml"))
	} else if _, known := m.fleet.OSVersion(o.Version); !known {
		o = &drill.OSBuild{} // what the machine had from its first disk: the ring names none
	}
	edit := func(name string, change func(string) string) error {
		text, err := os.ReadFile(filepath.Join(r.dir, filepath.FromSlash(name)))
		if err != nil {
			return err
		}
		files = append(files, path.Join(r.root, name))
		return os.WriteFile(filepath.Join(r.dir, filepath.FromSlash(name)), []byte(change(string(text))), 0o644)
	}
	err = edit(path.Join("rings", m.site.Ring+".yaml"), func(text string) string {
		line := "  os: " + o.Version
		if o.Version == "" {
			line = "  # os:"
		}
		if osLine.MatchString(text) {
			return osLine.ReplaceAllString(text, line)
		}
		return strings.Replace(text, "\nspec:\n", "\nspec:\n"+line+"\n", 1)
	})
	if err != nil {
		return 0, err
	}
	err = edit(path.Join(m.site.Dir, "site.yaml"), func(text string) string {
		if o.Says != "" {
			text = string(greet([]byte(text), o.Says))
		}
		return timed(text, t)
	})
	if err != nil {
		return 0, err
	}
	if _, err := r.Commit(ctx, "drill: OS "+o.Version, files...); err != nil && !errors.Is(err, git.ErrNothing) {
		return 0, err
	}
	return s.release(ctx, r)
}
