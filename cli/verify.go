package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/release"
)

func (e *env) verify() *cobra.Command {
	return &cobra.Command{
		Use:     "verify [N]",
		Short:   "judge a release as a machine does",
		GroupID: "release",
		Long: `Verify judges the release N (default: the newest tag of this clone) by the trust of the
release before it: grammar, fleet, number, signature, every object. What it accepts is
remembered for you, and an older release or another one with the same number is refused
from then on, as on a machine.`,
		Example: "  holdfast verify\n  holdfast verify 12",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runVerify(c.Context(), strings.Join(a, "")) },
	}
}

// verified is verify's answer for programs.
type verified struct {
	N      uint64 `json:"n"`
	Digest string `json:"digest"`
	Signer string `json:"signer"`
	Fleet  string `json:"fleet"`
	Time   string `json:"time"`
	Tree   string `json:"tree"`
	Trust  uint64 `json:"trust"`
}

func (e *env) runVerify(ctx context.Context, n string) error {
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	name := "release/" + n
	if n == "" {
		names, err := r.Tags(ctx, "release/*")
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return hint(fmt.Errorf("this clone has no release"), "git fetch --tags, or make the first: holdfast release")
		}
		name = names[len(names)-1]
	}
	t, trust, err := r.judge(ctx, name)
	if err != nil {
		return coded(CodeRefused, err)
	}
	signers, err := t.Verify(trust, t.Payload.Time)
	if err != nil {
		return coded(CodeRefused, err)
	}
	if err := raiseAnchor(t); err != nil {
		return err
	}
	p := t.Payload
	v := verified{p.N, t.Digest().String(), signers[0].Name, string(p.FleetID), p.Time.Format("2006-01-02T15:04:05Z"), p.TreeSHA256.String(), p.TrustVersion}
	if e.output == "json" {
		return e.printJSON(v)
	}
	e.printf("release/%d is good: signed by %s at %s, digest %s\n", v.N, v.Signer, v.Time, v.Digest[:12])
	return nil
}

// judge verifies a release tag against the release before it and what this person has seen.
func (r *repo) judge(ctx context.Context, name string) (*release.Tag, *fleet.Trust, error) {
	raw, err := r.ReadTag(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	t, err := release.ParseTag(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	if release.TagName(t.Payload.N) != name {
		return nil, nil, fmt.Errorf("%w: the tag that is called %s is %s", release.ErrGrammar, name, release.TagName(t.Payload.N))
	}
	anchor, err := readAnchor(t.Payload.FleetID)
	if err != nil {
		return nil, nil, err
	}
	if t.Payload.N < anchor.N {
		return nil, nil, hint(fmt.Errorf("%w: this is release %d, and you have seen release %d", release.ErrOld, t.Payload.N, anchor.N), "git fetch --tags; a repository that forgot a release is no place to take one from")
	}
	if anchor.N == t.Payload.N && anchor.Payload != t.Digest() {
		return nil, nil, fmt.Errorf("%w: you have seen release %d with digest %s", release.ErrFork, anchor.N, anchor.Payload)
	}
	objects, f, err := r.objects(ctx, t)
	if err != nil {
		return nil, nil, err
	}
	var prev *release.Tag
	trust := f.Trust
	if t.Payload.N > 1 {
		if before, err := r.ReadTag(ctx, release.TagName(t.Payload.N-1)); err == nil {
			if prev, err = release.ParseTag(before); err != nil {
				return nil, nil, fmt.Errorf("%s: %w", release.TagName(t.Payload.N-1), err)
			}
		}
	}
	if trust, err = r.trustBefore(ctx, prev, f); err != nil {
		return nil, nil, err
	}
	_, err = release.VerifyRelease(objects, raw, trust, prev)
	return t, trust, err
}

// objects reads the whole tree of a release.
func (r *repo) objects(ctx context.Context, t *release.Tag) (release.Objects, *fleet.Fleet, error) {
	tree, err := r.Tree(ctx, t.Payload.Object, t.Payload.Root)
	if err != nil {
		return nil, nil, err
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		return nil, nil, err
	}
	objects := release.Objects{}
	if _, err := release.Import(tree, objects.Add); err != nil {
		return nil, nil, err
	}
	f, err := fleet.Load(tree)
	if f == nil || f.Trust == nil {
		return nil, nil, fmt.Errorf("read the fleet of %s: %w", release.TagName(t.Payload.N), err)
	}
	return objects, f, nil
}
