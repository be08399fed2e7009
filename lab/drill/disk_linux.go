package drill

import (
	"context"
	"errors"
	"os"
)

// disk puts another disk into the machine.
func (d *drill) disk(ctx context.Context) error {
	return d.step(ctx, "pull the disk, put a blank one in, with the OS image on a stick", "the machine fills it again: same identity, current release, the app answers", func(ctx context.Context) (seen, _ string, err error) {
		code := d.Lab.Code(d.machine)
		pulled, err := d.Lab.PullDisk(ctx, d.machine.Key(), 0, true)
		if err != nil {
			return "", "", err
		}
		defer afterwards(ctx, func(ctx context.Context) error {
			return errors.Join(d.Lab.SetStick(ctx, d.machine.Key(), false), os.Remove(pulled))
		}, &err)
		if seen, err = d.anew(ctx); err != nil {
			return seen, "", err
		}
		if now := d.Lab.Code(d.machine); now != code {
			return seen, "", broken("it calls itself %s, and it was %s", now, code)
		}
		return seen, "what the site itself had written", nil
	})
}
