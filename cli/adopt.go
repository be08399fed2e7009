package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// adoptOptions are the flags of adopt.
type adoptOptions struct {
	name, role string
	unverified string // a machine ID taken on the hub's word
	noCommit   bool
}

func (e *env) adopt() *cobra.Command {
	var o adoptOptions
	cmd := &cobra.Command{
		Use:     "adopt SITE CODE",
		Short:   "take a machine into a site",
		GroupID: "sites",
		Long: `Adopt writes a waiting machine into SITE's machines.yaml and commits that. The machine
joins with the next release.

CODE is what stands on the machine's console or label, at least 16 characters. It is what
makes sure that the key is that box's and not one that the hub made up, so it must not
come from the hub. --unverified ID takes the hub's word instead; that is written into
machines.yaml and warned of for ever.`,
		Example:           "  holdfast adopt berlin-0417 k3vq-7xqa-4m2p-dzkj",
		Args:              args(cobra.RangeArgs(1, 2)),
		ValidArgsFunction: e.completeSites,
		RunE: func(c *cobra.Command, a []string) error {
			if (len(a) == 2) == (o.unverified != "") {
				return &Error{Err: errors.New("give the machine's code, or --unverified ID"), Hint: c.UseLine(), Code: CodeUsage}
			}
			return e.runAdopt(c.Context(), a[0], strings.Join(a[1:], ""), o)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.name, "name", "", "the machine's name at the site; default: m1, m2, ...")
	flags.StringVar(&o.role, "role", "", "control-plane or worker; default: control-plane for the first machine, worker for others")
	flags.StringVar(&o.unverified, "unverified", "", "take the machine with this ID on the hub's word")
	flags.BoolVar(&o.noCommit, "no-commit", false, "write machines.yaml and leave the commit to you")
	flags.StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	flags.StringVar(&e.key, "key", "", "SSH key of an operator")
	return cmd
}

// adopted is adopt's answer for programs.
type adopted struct {
	Site    string          `json:"site"`
	Name    string          `json:"name"`
	Role    string          `json:"role"`
	Machine fleet.MachineID `json:"machine"`
	Address netip.Addr      `json:"siteAddress"`
	File    string          `json:"file"`
	Commit  string          `json:"commit,omitempty"`
	Already bool            `json:"already,omitempty"`
}

func (e *env) runAdopt(ctx context.Context, name, code string, o adoptOptions) error {
	r, f, c, err := e.console(ctx, operator.Read)
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := site(f, name)
	if err != nil {
		return err
	}
	guest, in, err := findGuest(ctx, c, code, o.unverified)
	if err != nil {
		if m, ok := memberBy(s, code); ok {
			return e.tellAdopted(&adopted{Site: s.Name, Name: m.Name, Role: m.Role, Machine: m.ID, Address: m.SiteAddress, Already: true})
		}
		return err
	}
	answer, err := e.takeIn(ctx, r, f, s, guest, in, o)
	if err != nil {
		return err
	}
	return e.tellAdopted(answer)
}

func (e *env) tellAdopted(a *adopted) error {
	if e.output == "json" {
		return e.printJSON(a)
	}
	if a.Already {
		e.printf("%s is machine %s of %s already\n", link.Code(a.Machine), a.Name, a.Site)
		return nil
	}
	e.printf("%s is now machine %s of %s (%s, %s), in %s\n", link.Code(a.Machine), a.Name, a.Site, a.Role, a.Address, a.File)
	e.printf("  next: holdfast release\n")
	return nil
}

// memberBy finds a machine of the site by its code.
func memberBy(s *fleet.Site, code string) (fleet.Machine, bool) {
	for _, m := range s.Machines {
		if link.MatchCode(m.ID, code) {
			return m, true
		}
	}
	return fleet.Machine{}, false
}

// findGuest asks the hub who waits. What the hub says of a guest counts only
// as far as the guest signed it and its ID matches the code.
func findGuest(ctx context.Context, c *operator.Client, code, unverified string) (wire.Guest, *wire.Introduction, error) {
	var q wire.Quarantine
	if err := c.Call(ctx, http.MethodGet, "/v1/quarantine", nil, &q); err != nil {
		return wire.Guest{}, nil, unreachable(err, "the hub")
	}
	for _, g := range q.Guests {
		if unverified != "" && string(g.ID) != unverified || unverified == "" && !link.MatchCode(g.ID, code) {
			continue
		}
		if len(g.Introduction) == 0 {
			return g, nil, hint(fmt.Errorf("%s has just come and not introduced itself yet", link.Code(g.ID)), "try again in a moment")
		}
		in, err := wire.ParseIntroduction(g.Introduction)
		if err != nil {
			return g, nil, coded(CodeRefused, fmt.Errorf("the hub's introduction of %s: %w", link.Code(g.ID), err))
		}
		if in.Machine != g.ID {
			return g, nil, coded(CodeRefused, fmt.Errorf("the hub shows the introduction of %s as that of %s", link.Code(in.Machine), link.Code(g.ID)))
		}
		return g, in, nil
	}
	var waiting []string
	for _, g := range q.Guests {
		waiting = append(waiting, link.Code(g.ID))
	}
	next := "no machine waits at the hub: see that it has power, a network and the fleet's seed"
	if len(waiting) > 0 {
		next = "these wait: " + strings.Join(waiting, ", ") + "; compare with the console of the box itself"
	}
	return wire.Guest{}, nil, hint(fmt.Errorf("no waiting machine has the code %q", code+unverified), "%s", next)
}

// takeIn writes the machine into the site's machines.yaml and commits it.
func (e *env) takeIn(ctx context.Context, r *repo, f *fleet.Fleet, s *fleet.Site, g wire.Guest, in *wire.Introduction, o adoptOptions) (*adopted, error) {
	if in.Fleet != f.ID {
		return nil, coded(CodeRefused, fmt.Errorf("the machine carries the seed of fleet %s, this is %s", in.Fleet, f.ID))
	}
	resolved, err := f.Resolve(s)
	if err != nil {
		return nil, coded(CodeFaults, err)
	}
	if err := fits(resolved.Class.Protection, in.Protection); err != nil {
		return nil, err
	}
	m := fleet.Machine{
		Name: o.name, ID: g.ID, Role: o.role, Recipient: in.Recipient, Protection: in.Protection,
		Unverified: o.unverified != "", Introduction: base64.StdEncoding.EncodeToString(g.Introduction),
	}
	if m.Name == "" {
		m.Name = freeName(s)
	}
	if m.Role == "" {
		m.Role = "control-plane"
		if len(s.Machines) > 0 {
			m.Role = "worker"
		}
	}
	file := filepath.Join(r.dir, filepath.FromSlash(s.Dir), "machines.yaml")
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	after, err := fleet.AddMemberIn(before, m, resolved.Network.SiteRange)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	if err := durable.WriteFile(file, after, 0o644); err != nil {
		return nil, err
	}
	list, err := fleet.ParseMachines("machines.yaml", after)
	if err != nil {
		return nil, err
	}
	answer := &adopted{Site: s.Name, Name: m.Name, Role: m.Role, Machine: g.ID, File: path.Join(s.Dir, "machines.yaml")}
	for _, member := range list.Members {
		if member.ID == g.ID {
			answer.Address = member.SiteAddress
		}
	}
	if o.noCommit {
		return answer, nil
	}
	answer.Commit, err = r.Commit(ctx, fmt.Sprintf("%s: adopt %s (%s)", s.Name, m.Name, link.Code(g.ID)), path.Join(r.root, answer.File))
	return answer, err
}

// fits refuses a machine without a TPM where the class wants one.
func fits(wanted, has string) error {
	if wanted != "none" && has == "none" {
		return hint(coded(CodeRefused, errors.New("the machine keeps its key in a file (protection: none), the site's class wants a TPM")),
			"if that is meant, say machine: {protection: none} in a class of the site")
	}
	return nil
}

func freeName(s *fleet.Site) string {
	for i := 1; ; i++ {
		name := fmt.Sprintf("m%d", i)
		taken := false
		for _, m := range s.Machines {
			taken = taken || m.Name == name
		}
		if !taken {
			return name
		}
	}
}
