package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

func (e *env) machineVerb() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "machine",
		Short:   "speak with one machine: its state, its locked disk",
		GroupID: "sites",
		Long: `Machine speaks with one machine, end to end through the hub or on its LAN: the hub passes
bytes on and can neither read nor change them. MACHINE is SITE/NAME, the name of a site
with one machine, or the code on the machine's console.`,
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) == 0 {
				return c.Help()
			}
			return unknownVerb(c, a)
		},
	}
	cmd.AddCommand(e.machineList(), e.machineStatus(), e.machineUnlock())
	return cmd
}

// machineOptions are the flags of the verbs that speak with a machine.
type machineOptions struct {
	lan              string
	recovery, escrow string
}

func (e *env) machineFlags(cmd *cobra.Command, o *machineOptions) {
	flags := cmd.Flags()
	flags.StringVar(&o.lan, "lan", "", "reach the machine at this address of its LAN (host or host:port) instead of through the hub")
	flags.StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	flags.StringVar(&e.key, "key", "", "SSH key of an operator")
}

func (e *env) machineList() *cobra.Command {
	return &cobra.Command{
		Use:   "list [SITE...]",
		Short: "list the machines that the fleet repo names",
		Args:  args(cobra.ArbitraryArgs),
		RunE: func(c *cobra.Command, a []string) error {
			_, f, err := e.repoAndFleet(c.Context())
			if err != nil {
				return err
			}
			return e.listMachines(f, a)
		},
	}
}

// listed is a machine of machine list, for programs.
type listed struct {
	Site    string          `json:"site"`
	Name    string          `json:"name"`
	Code    string          `json:"code"`
	Machine fleet.MachineID `json:"machine"`
	Role    string          `json:"role"`
	Address string          `json:"siteAddress"`
}

func (e *env) listMachines(f *fleet.Fleet, only []string) error {
	sites := f.Sites()
	if len(only) > 0 {
		sites = nil
		for _, name := range only {
			s, err := site(f, name)
			if err != nil {
				return err
			}
			sites = append(sites, s)
		}
	}
	list := []listed{}
	for _, s := range sites {
		for _, m := range s.Machines {
			list = append(list, listed{s.Name, m.Name, link.Code(m.ID), m.ID, m.Role, m.SiteAddress.String()})
		}
	}
	if e.output == "json" {
		return e.printJSON(list)
	}
	t := tabwriter.NewWriter(e.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MACHINE\tCODE\tROLE\tADDRESS")
	for _, m := range list {
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\n", m.Site, m.Name, m.Code, m.Role, m.Address)
	}
	return t.Flush()
}

func (e *env) machineStatus() *cobra.Command {
	var o machineOptions
	cmd := &cobra.Command{
		Use:     "status MACHINE",
		Short:   "ask a machine how it is, by its own word",
		Example: "  holdfast machine status berlin-0417/m1",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runMachineStatus(c.Context(), a[0], o) },
	}
	e.machineFlags(cmd, &o)
	return cmd
}

func (e *env) runMachineStatus(ctx context.Context, name string, o machineOptions) error {
	t, err := e.target(ctx, name)
	if err != nil {
		return err
	}
	c, err := e.dialMachine(ctx, t, o.lan, operator.Read)
	if err != nil {
		return err
	}
	defer c.Close()
	var s machineStatus
	if err := c.Call(ctx, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return e.answered(t, err)
	}
	if e.output == "json" {
		return e.printJSON(s)
	}
	r := s.Report
	e.printf("%s, by its own word: %s, release %d, up %s\n", t, r.Phase, r.N, s.Up)
	for _, line := range [][2]string{{"detail", wire.Clean(r.Detail)}, {"os", osText(r.OS, r.Slot, r.Trial)}} {
		if line[1] != "" {
			e.printf("    %-7s %s\n", line[0], line[1])
		}
	}
	for _, c := range r.Conditions {
		e.printf("    %-7s %s\n", map[bool]string{true: "note", false: "fault"}[c.OK], conditionText(c))
	}
	writeTimings(e.out, s.Timings)
	writeMemory(e.out, s.Memory)
	writeListens(e.out, s.Listens)
	return nil
}

// writeListens is where a machine hears strangers.
func writeListens(w io.Writer, list []wire.Listener) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(w, "    listens, as far as its packet filter lets strangers come:")
	for _, l := range list {
		at := net.JoinHostPort(wire.Clean(l.Address), strconv.Itoa(int(l.Port)))
		fmt.Fprintf(w, "    %-3s %-22s %s\n", wire.Clean(l.Protocol), at, wire.Clean(cmp.Or(l.Program, "the kernel")))
	}
}

// writeMemory is a table of who uses a machine's memory, in MiB.
func writeMemory(w io.Writer, m *wire.Memory) {
	if m == nil {
		return
	}
	const mib = 1 << 20
	swap := ""
	if m.Swap > 0 {
		swap = fmt.Sprintf("; %d of %d MiB swapped out, into %d MiB", m.Swapped/mib, m.Swap/mib, m.Compressed/mib)
	}
	fmt.Fprintf(w, "    memory: %d MiB, %d available, the kernel's own %d%s\n", m.Total/mib, m.Available/mib, m.Kernel/mib, swap)
	fmt.Fprintf(w, "    %9s %9s %9s\n", "own data", "files", "swapped")
	for _, p := range m.Programs {
		times := ""
		if p.Processes > 1 {
			times = fmt.Sprintf(" (%d processes)", p.Processes)
		}
		fmt.Fprintf(w, "    %5.1f MiB %5.1f MiB %5.1f MiB  %s%s\n", float64(p.Anonymous)/mib, float64(p.Files)/mib, float64(p.Swapped)/mib, wire.Clean(p.Name), times)
	}
}

func (e *env) machineUnlock() *cobra.Command {
	var o machineOptions
	cmd := &cobra.Command{
		Use:   "unlock MACHINE",
		Short: "open the disk of a locked machine with the recovery key",
		Long: `Unlock fetches the machine's recovery key from the machine, encrypted as it lies there,
opens it here with the fleet's recovery key, and sends it to the machine inside a session
that only that machine can read. It wants role operate or admin for the whole fleet: a
locked machine cannot tell which site it is of.

A machine is locked when it boots otherwise than its disk was sealed for: other firmware
settings, another TPM, another boot image. Find out why before you open it.
Without --recovery it looks where holdfast init put the recovery key.`,
		Example: "  holdfast machine unlock berlin-0417/m1 --recovery /media/stick/recovery.age",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runUnlock(c.Context(), a[0], o) },
	}
	e.machineFlags(cmd, &o)
	cmd.Flags().StringVar(&o.recovery, "recovery", "", "file of the fleet's recovery key")
	cmd.Flags().StringVar(&o.escrow, "escrow", "", "file of the machine's escrow (holdfast/recovery.age of its boot partition), instead of asking the machine")
	return cmd
}

// unlocked is unlock's answer for programs.
type unlocked struct {
	Site     string          `json:"site"`
	Name     string          `json:"name"`
	Machine  fleet.MachineID `json:"machine"`
	Unlocked bool            `json:"unlocked"`
	Already  bool            `json:"already,omitempty"` // it was not locked
}

func (e *env) runUnlock(ctx context.Context, name string, o machineOptions) error {
	t, err := e.target(ctx, name)
	if err != nil {
		return err
	}
	identities, err := e.recoveryKey(ctx, o.recovery)
	if err != nil {
		return err
	}
	c, err := e.dialMachine(ctx, t, o.lan, operator.Operate)
	if err != nil {
		return err
	}
	defer c.Close()
	answer := unlocked{Site: t.site.Name, Name: t.machine.Name, Machine: t.machine.ID}
	var who struct {
		Locked bool `json:"locked"`
	}
	if err := c.Call(ctx, http.MethodGet, "/v1/identity", nil, &who); err != nil {
		return e.answered(t, err)
	}
	if !who.Locked {
		answer.Already = true
		return e.tellUnlocked(t, answer)
	}
	key, err := e.diskKey(ctx, c, t, identities, o.escrow)
	if err != nil {
		return err
	}
	defer clear(key)
	if err := c.Call(ctx, http.MethodPost, "/v1/unlock", &wire.Unlock{Key: key}, nil); err != nil {
		if refusal, wrong := wire.AsRefusal(err, http.StatusUnprocessableEntity); wrong {
			return hint(coded(CodeRefused, fmt.Errorf("%s: %s", t, refusal.Reason)),
				"the disk in it is not the one that the escrow is of; put its own disk back, or erase this one: the machine fills itself again")
		}
		return e.answered(t, err)
	}
	answer.Unlocked = true
	return e.tellUnlocked(t, answer)
}

func (e *env) tellUnlocked(t *target, u unlocked) error {
	switch {
	case e.output == "json":
		return e.printJSON(u)
	case u.Already:
		e.printf("%s is not locked\n", t)
	default:
		e.printf("%s is open and boots on\n  next: holdfast status %s --watch\n", t, t.site.Name)
	}
	return nil
}

// diskKey opens the machine's escrow, and sees that it is this machine's: the
// key in it is about to be sent there.
func (e *env) diskKey(ctx context.Context, c *operator.Client, t *target, identities []age.Identity, file string) ([]byte, error) {
	var sealed []byte
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		sealed = data
	} else {
		var reply wire.Escrowed
		if err := c.Call(ctx, http.MethodGet, "/v1/escrow", nil, &reply); err != nil {
			if refusal, none := wire.AsRefusal(err, http.StatusNotFound); none {
				return nil, hint(fmt.Errorf("%s: %s", t, refusal.Reason), "holdfast machine status %s says why it is limited; a copy of the escrow can be given by --escrow FILE", t)
			}
			return nil, e.answered(t, err)
		}
		sealed = reply.Age
	}
	text, err := openAge(sealed, identities)
	if err != nil {
		return nil, hint(coded(CodeRefused, fmt.Errorf("open the escrow of %s: %w", t, err)), "its recovery key was encrypted to the recipients below spec.recovery of the trust.yaml that it had then; name the file of one of those with --recovery")
	}
	defer clear(text)
	escrow, err := wire.ParseEscrow(text)
	if err != nil {
		return nil, coded(CodeRefused, fmt.Errorf("the escrow of %s: %w", t, err))
	}
	if escrow.Machine != t.machine.ID || escrow.Fleet != t.fleet.ID {
		return nil, hint(coded(CodeRefused, fmt.Errorf("%s shows the escrow of another machine, %s of fleet %s", t, link.Code(escrow.Machine), escrow.Fleet)),
			"nothing was sent; somebody put another machine's boot partition there, or wants that machine's key")
	}
	return escrow.Key, nil
}

// openAge decrypts a small file, armored or not.
func openAge(sealed []byte, identities []age.Identity) ([]byte, error) {
	in := bufio.NewReader(bytes.NewReader(sealed))
	var source io.Reader = in
	if begin, _ := in.Peek(len(armor.Header)); string(begin) == armor.Header {
		source = armor.NewReader(in)
	}
	plain, err := age.Decrypt(source, identities...)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(plain, wire.MaxEscrow))
}

// target is a machine that the fleet repo names.
type target struct {
	repo    *repo
	fleet   *fleet.Fleet
	site    *fleet.Site
	machine fleet.Machine
}

func (t *target) String() string { return t.site.Name + "/" + t.machine.Name }

// target finds the machine that a person means.
func (e *env) target(ctx context.Context, name string) (*target, error) {
	r, f, err := e.repoAndFleet(ctx)
	if err != nil {
		return nil, err
	}
	var found []*target
	for _, s := range f.Sites() {
		for _, m := range s.Machines {
			if name == s.Name+"/"+m.Name || name == s.Name || strings.TrimSuffix(name, "/") == s.Dir || link.MatchCode(m.ID, name) {
				found = append(found, &target{r, f, s, m})
			}
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, hint(fmt.Errorf("fleet %s has no machine %q", f.Name, name), "holdfast machine list; a machine is SITE/NAME, or the code on its console")
	}
	var names []string
	for _, t := range found {
		names = append(names, t.String())
	}
	return nil, &Error{Err: fmt.Errorf("%q has %d machines", name, len(found)), Hint: "name one: " + strings.Join(names, ", "), Code: CodeUsage}
}

func (e *env) repoAndFleet(ctx context.Context) (*repo, *fleet.Fleet, error) {
	r, err := e.repo(ctx)
	if err != nil {
		return nil, nil, err
	}
	f, err := load(workTree(r.dir))
	return r, f, err
}

// dialMachine opens a session with one machine, through the first hub that
// reaches it or at an address of its LAN. Whatever is in between, only the
// machine itself passes for it.
func (e *env) dialMachine(ctx context.Context, t *target, lan string, role string) (*operator.Client, error) {
	signer, err := e.operator(ctx, t.repo, t.fleet.Trust)
	if err != nil {
		return nil, err
	}
	addresses := []string{withPort(lan, machinePort)}
	if lan == "" {
		if addresses, err = e.hubAddresses(t.repo.GitDir(), t.fleet); err != nil {
			return nil, err
		}
	}
	identity, err := clientIdentity(t.fleet.ID)
	if err != nil {
		return nil, err
	}
	pin, err := link.MachinePin(t.machine.ID)
	if err != nil {
		return nil, err
	}
	var faults []error
	for _, address := range addresses {
		c, err := operator.Open(ctx, operator.ClientConfig{
			Fleet: t.fleet.ID, Signer: signer, Roles: []string{role},
			Dial: link.DialConfig{Address: address, ServerName: link.MachineName(t.machine.ID, t.fleet.ID).String(), Identity: identity, Pins: []link.Pin{pin}},
		})
		if err == nil {
			return c, nil
		}
		faults = append(faults, notReached(t, address, err))
	}
	if len(faults) == 1 {
		return nil, faults[0]
	}
	return nil, errors.Join(faults...)
}

func notReached(t *target, address string, err error) error {
	switch {
	case errors.Is(err, link.ErrPin):
		return hint(coded(CodeRefused, fmt.Errorf("who answers at %s is not %s: %w", address, t, err)),
			"nothing was sent; see that the address is that machine's, or that nobody stands between you and the hub")
	case errors.Is(err, context.Canceled):
		return err
	}
	if refusal, ok := errors.AsType[*wire.Refusal](err); ok {
		return hint(coded(CodeRefused, fmt.Errorf("%s: %s", t, refusal.Reason)), "trust.yaml says who may what; the machine judges by the newest release that it took")
	}
	return hint(coded(CodeUnreachable, fmt.Errorf("%s is not reached by way of %s: %w", t, address, err)),
		"holdfast status %s tells whether it is linked; on its LAN: --lan ADDRESS", t.site.Name)
}

// answered is an error of a call to a machine that was reached.
func (e *env) answered(t *target, err error) error {
	if refusal, ok := errors.AsType[*wire.Refusal](err); ok {
		return coded(CodeRefused, fmt.Errorf("%s: %s", t, refusal.Reason))
	}
	return coded(CodeUnreachable, fmt.Errorf("%s: %w", t, err))
}
