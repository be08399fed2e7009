package cli

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/release"
)

// oldestMachined is the oldest machined that can read what this program writes.
const oldestMachined = "0.1.0"

// releaseOptions are the flags of release.
type releaseOptions struct {
	message  string
	urgent   bool
	destroys []string
	dryRun   bool
	local    bool
}

func (e *env) release() *cobra.Command {
	var o releaseOptions
	cmd := &cobra.Command{
		Use:     "release",
		Short:   "sign release N+1 of the committed fleet repo and hand it to the hub",
		GroupID: "release",
		Long: `Release checks the commit that is checked out, shows what changes, signs the tag
release/N+1 with your SSH key, pushes it to the remote "origin" if there is one, and
hands it to the hubs of fleet.yaml. What it cannot finish it says, and it can be run
again: a release that is signed already is only handed over.

The key is, in this order: --key, git's user.signingkey, the keys of your ssh-agent
and ~/.ssh that trust.yaml names. A release that deletes data says so with
--destroys, app by app.`,
		Example: "  holdfast release -m 'new greeting in Berlin'\n  holdfast release --dry-run",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return e.runRelease(c.Context(), o) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.message, "message", "m", "", "what changes, for people; default: the commit's first line")
	flags.BoolVar(&o.urgent, "urgent", false, "windows, freezes and soak do not hold it; waves and judging do")
	flags.StringSliceVar(&o.destroys, "destroys", nil, "apps whose data the release may delete")
	flags.BoolVar(&o.dryRun, "dry-run", false, "show what would be signed, and sign nothing")
	flags.BoolVar(&o.local, "local", false, "sign only: neither push nor hand over")
	flags.StringVar(&e.key, "key", "", "SSH key to sign with: a private key file, or a public one whose private half the agent holds")
	flags.StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	return cmd
}

// released is release's answer for programs.
type released struct {
	N        uint64   `json:"n"`
	Digest   string   `json:"digest"`
	Tree     string   `json:"tree"`
	Signer   string   `json:"signer"`
	Changes  *changes `json:"changes"`
	Pushed   string   `json:"pushed,omitempty"` // remote
	Hubs     []string `json:"hubs,omitempty"`
	Existing bool     `json:"existing,omitempty"` // it was signed already
}

func (e *env) runRelease(ctx context.Context, o releaseOptions) error {
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	answer, t, err := e.makeRelease(ctx, r, o)
	if err != nil {
		return err
	}
	if e.output != "json" {
		e.tellRelease(answer, o)
	}
	if t != nil && !o.local {
		if err := e.deliver(ctx, r, t, answer); err != nil {
			return err
		}
	}
	if t != nil && o.local {
		if err := raiseAnchor(t); err != nil {
			return err
		}
	}
	if e.output == "json" {
		return e.printJSON(answer)
	}
	return nil
}

func (e *env) tellRelease(a *released, o releaseOptions) {
	if !a.Existing {
		writeText(e.out, a.Changes)
	}
	switch {
	case o.dryRun:
		e.printf("would sign release/%d as %s; nothing was signed\n", a.N, a.Signer)
	case a.Existing:
		e.printf("release/%d is signed already\n", a.N)
	default:
		e.printf("signed release/%d as %s (%s)\n", a.N, a.Signer, a.Digest[:12])
	}
}

// makeRelease signs the next release; t is nil for a dry run. When the last
// release is of the very commit that is checked out, that one is returned.
func (e *env) makeRelease(ctx context.Context, r *repo, o releaseOptions) (*released, *release.Tag, error) {
	head, err := e.clean(ctx, r)
	if err != nil {
		return nil, nil, err
	}
	last, err := r.lastRelease(ctx)
	if err != nil {
		return nil, nil, err
	}
	if last != nil && last.Payload.Object == head {
		return &released{N: last.Payload.N, Digest: last.Digest().String(), Tree: last.Payload.TreeSHA256.String(), Existing: true}, last, nil
	}
	p, f, objects, err := e.payload(ctx, r, head, last, o)
	if err != nil {
		return nil, nil, err
	}
	diff, err := e.changes(ctx, "", head, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := allowDestroys(diff, o.destroys); err != nil {
		return nil, nil, err
	}
	p.Destroys = diff.destroys()
	answer := &released{N: p.N, Tree: p.TreeSHA256.String(), Changes: diff}
	signer, name, err := e.signer(ctx, r, f.Trust)
	if err != nil {
		return nil, nil, err
	}
	answer.Signer = name
	if o.dryRun {
		return answer, nil, nil
	}
	raw, err := release.SignTag(*p, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign %s: %w", release.TagName(p.N), err)
	}
	trust, err := r.trustBefore(ctx, last, f)
	if err != nil {
		return nil, nil, err
	}
	t, err := release.VerifyRelease(objects, raw, trust, last)
	if err != nil {
		return nil, nil, coded(CodeRefused, fmt.Errorf("machines would refuse %s: %w", release.TagName(p.N), err))
	}
	if err := r.WriteTag(ctx, release.TagName(p.N), raw); err != nil {
		if errors.Is(err, git.ErrExists) {
			return nil, nil, hint(err, "somebody signed release %d at the same moment: run holdfast release again", p.N)
		}
		return nil, nil, err
	}
	answer.Digest = t.Digest().String()
	return answer, t, nil
}

// clean returns the commit that is checked out, if nothing in the fleet repo differs from it.
func (e *env) clean(ctx context.Context, r *repo) (string, error) {
	head, err := r.Head(ctx)
	if err != nil {
		return "", err
	}
	dirty, err := r.Dirty(ctx, r.root)
	if err != nil {
		return "", err
	}
	if len(dirty) > 0 {
		shown := dirty[:min(5, len(dirty))]
		return "", hint(fmt.Errorf("the work tree differs from the commit in %d files: %s", len(dirty), strings.Join(shown, ", ")),
			"a release is of a commit: git add and git commit what belongs to it, and run again")
	}
	return head, nil
}

// payload describes the release of commit head, and checks what it is made of.
func (e *env) payload(ctx context.Context, r *repo, head string, last *release.Tag, o releaseOptions) (*release.Payload, *fleet.Fleet, release.Objects, error) {
	tree, err := r.Tree(ctx, head, r.root)
	if err != nil {
		return nil, nil, nil, err
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		return nil, nil, nil, err
	}
	f, faults, err := e.everyFault(ctx, r.dir, tree)
	if err != nil {
		return nil, nil, nil, err
	}
	if len(faults) > 0 {
		return nil, nil, nil, coded(CodeFaults, faults)
	}
	objects := release.Objects{}
	root, err := release.Import(tree, objects.Add)
	if err != nil {
		return nil, nil, nil, err
	}
	trust, err := tree.ReadFile("trust.yaml")
	if err != nil {
		return nil, nil, nil, err
	}
	name, email, err := r.Ident(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	now := time.Now().Truncate(time.Second)
	p := &release.Payload{
		Object: head, TaggerName: name, TaggerEmail: email, TaggerTime: now, Message: o.message,
		FleetID: f.ID, N: 1, Time: now.UTC(), TrustVersion: f.Trust.Version, TrustDigest: sha256.Sum256(trust),
		MinMachined: oldestMachined, Edition: f.Edition, Urgency: release.Normal, Root: r.root, TreeSHA256: root,
	}
	if o.urgent {
		p.Urgency = release.Urgent
	}
	if last != nil {
		p.N, p.Previous = last.Payload.N+1, last.Digest()
		if p.Time.Before(last.Payload.Time) {
			return nil, nil, nil, hint(fmt.Errorf("the clock says %s, and release %d was made at %s", p.Time, last.Payload.N, last.Payload.Time),
				"set this computer's clock: Time never falls from release to release")
		}
	}
	if p.Message == "" {
		if p.Message, err = r.Subject(ctx, head); err != nil {
			return nil, nil, nil, err
		}
	}
	if p.Message == "" {
		p.Message = "release " + fmt.Sprint(p.N)
	}
	anchor, err := readAnchor(f.ID)
	if err != nil {
		return nil, nil, nil, err
	}
	if p.N <= anchor.N {
		return nil, nil, nil, hint(coded(CodeRefused, fmt.Errorf("this clone would sign release %d, and you have seen release %d", p.N, anchor.N)),
			"git fetch --tags, and run again")
	}
	return p, f, objects, nil
}

// trustBefore is the trust that judges the next release: that of the last one,
// or its own when it is the first.
func (r *repo) trustBefore(ctx context.Context, last *release.Tag, f *fleet.Fleet) (*fleet.Trust, error) {
	if last == nil {
		return f.Trust, nil
	}
	tree, err := r.Tree(ctx, "refs/tags/"+release.TagName(last.Payload.N), r.root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	data, err := tree.ReadFile("trust.yaml")
	if err != nil {
		return nil, fmt.Errorf("read the trust of %s: %w", release.TagName(last.Payload.N), err)
	}
	return fleet.ParseTrust("trust.yaml", data)
}

// allowDestroys refuses a release that deletes data which no flag names.
func allowDestroys(c *changes, allowed []string) error {
	if c.worst() < render.Destroys {
		return nil
	}
	var missing []string
	for _, app := range c.destroys() {
		if !slices.Contains(allowed, app) {
			missing = append(missing, app)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return hint(coded(CodeRefused, fmt.Errorf("the release deletes data of %s", strings.Join(missing, ", "))),
		"look at holdfast diff; if that is meant: --destroys %s", strings.Join(missing, ","))
}
