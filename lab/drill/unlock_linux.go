package drill

import (
	"context"
	"fmt"
	"slices"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/osimage"
)

// unlock shuts the machine's disk to its TPM, as other firmware settings would, and opens it with the recovery key.
func (d *drill) unlock(ctx context.Context) error {
	err := d.step(ctx, "take from STATE's header what the TPM opens it by", "it is locked, linked and reported, and nothing of it runs", func(ctx context.Context) (string, string, error) {
		if err := d.restart(ctx, d.dropTokens); err != nil {
			return "", "", err
		}
		var r wire.Report
		if err := until(ctx, func(ctx context.Context) (err error) {
			if r, err = d.Site.Ask(ctx); err == nil && r.Phase != wire.Locked {
				err = fmt.Errorf("it says that it is %s: %s", r.Phase, r.Detail)
			}
			return err
		}); err != nil {
			return "", "", err
		}
		if body, err := d.answer(ctx); err == nil && d.Port != 0 {
			return "", "", broken("the app answers on a locked machine: %.60s", body)
		}
		return fmt.Sprintf("%s: %s", r.Phase, r.Detail), "", nil
	})
	if err != nil {
		return err
	}
	err = d.step(ctx, "holdfast machine unlock, with the fleet's recovery key, through the hub", "it opens and boots on: the same STATE, every acknowledged write, the app answers", func(ctx context.Context) (string, string, error) {
		if err := d.Site.Unlock(ctx); err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		return seen, "", err
	})
	if err != nil {
		return err
	}
	return d.step(ctx, "cut the power", "its TPM opens it again by itself: STATE was sealed anew", func(ctx context.Context) (string, string, error) {
		cut, err := d.Lab.PowerCut(ctx, d.machine.Key(), d.dice.Uint64(), false)
		if err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		return seen, lost(cut), err
	})
}

// dropTokens leaves STATE's key slots and takes the TPM's tokens.
func (d *drill) dropTokens() error {
	p, err := d.open(osimage.PartState)
	if err != nil {
		return err
	}
	defer p.Close()
	v, err := luks.Open(p)
	if err != nil {
		return err
	}
	c := luks.Change{Tokens: map[int]*luks.Token{}}
	for n, t := range v.Tokens() {
		if slices.Contains(t.Slots, 0) { // the TPM's; 1 is the recovery key's
			c.Tokens[n] = nil
		}
	}
	if len(c.Tokens) == 0 {
		return fmt.Errorf("STATE has no token of a TPM")
	}
	return v.Apply(nil, c)
}
