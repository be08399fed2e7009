package drill

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/holdfast-edge/holdfast/lab/vm/disk"
)

// Bounds of when the power goes, in writes and flushes of the disk: a boot makes
// some hundreds, a filling of a blank disk some thousands.
const (
	changesOfBoot    = 300
	changesOfWork    = 150
	changesOfRelease = 200
	changesOfInstall = 1500
)

// moments are what the machine is at when the power goes. Each comes in its turn.
var moments = []string{"boot", "work", "idle", "release"}

// power cuts the power, with what was not flushed.
func (d *drill) power(ctx context.Context) error {
	for i := range d.Cuts {
		moment := moments[i%len(moments)]
		if err := d.cutIn(ctx, i+1, moment); err != nil {
			return err
		}
	}
	if !d.Install {
		return nil
	}
	return d.cutInstall(ctx)
}

// lost says what a power cut took from the disk, which is no promise: nobody was told that it was safe.
func lost(c disk.Cut) string {
	return fmt.Sprintf("%d unflushed writes lost, %d torn, %d kept (%d bytes)", c.Lost, c.Torn, c.Kept, c.Bytes)
}

func (d *drill) cutIn(ctx context.Context, n int, moment string) error {
	did := fmt.Sprintf("power cut %d of %d, in %s", n, d.Cuts, moment)
	return d.step(ctx, did, "it comes back by itself: same identity, same STATE, every acknowledged write, the app answers", func(ctx context.Context) (string, string, error) {
		seed := d.dice.Uint64()
		cut, at, err := d.cut(ctx, moment, seed)
		if err != nil {
			return "", "", err
		}
		acked, _ := d.counter.state()
		seen, err := d.well(ctx)
		return fmt.Sprintf("%s; %d writes were acknowledged so far; %s", at, acked, seen), lost(cut), err
	})
}

// cut lets the machine be at the moment, and cuts the power there.
func (d *drill) cut(ctx context.Context, moment string, seed uint64) (disk.Cut, string, error) {
	key := d.machine.Key()
	after := func(most uint64) uint64 { return 1 + d.dice.Uint64N(most) }
	switch moment {
	case "boot":
		// One cut brings it there; the second is the one that is meant.
		if _, err := d.Lab.PowerCut(ctx, key, seed, false); err != nil {
			return disk.Cut{}, "", err
		}
		if err := d.awake(ctx); err != nil {
			return disk.Cut{}, "", err
		}
		changes := after(changesOfBoot)
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed+1, changes, d.Patience/3)
		return cut, instant(changes, met), err
	case "work":
		work, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan int)
		go func() { ended <- d.counter.count(work, 0) }()
		changes := after(changesOfWork)
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed, changes, d.Patience/3)
		stop()
		done := <-ended
		return cut, fmt.Sprintf("%s, %d counts in", instant(changes, met), done), err
	case "release":
		n, _, err := d.Site.Change(ctx, fmt.Sprintf("drill %d", seed%1e6))
		if err != nil {
			return disk.Cut{}, "", err
		}
		if n == 0 {
			break // there is nothing to release: it rests
		}
		changes := after(changesOfRelease)
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed, changes, d.Patience/3)
		return cut, fmt.Sprintf("%s, release %d", instant(changes, met), n), err
	}
	pause := time.Duration(d.dice.Int64N(int64(20 * time.Second)))
	select {
	case <-ctx.Done():
		return disk.Cut{}, "", ctx.Err()
	case <-time.After(pause):
	}
	cut, err := d.Lab.PowerCut(ctx, key, seed, false)
	return cut, fmt.Sprintf("after %.1f s of rest", pause.Seconds()), err
}

func instant(changes uint64, met bool) string {
	if met {
		return fmt.Sprintf("at change %d of its disk", changes)
	}
	return fmt.Sprintf("the disk did not see %d changes, cut in peace", changes)
}

// awake waits until the machine has power again.
func (d *drill) awake(ctx context.Context) error {
	return until(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if d.Lab.Powered(ctx, d.machine) {
			return nil
		}
		return errors.New("it is not switched on again")
	})
}

// cutInstall puts a fresh copy of the OS image in the place of the disk, and cuts
// the power while the machine makes its volumes and fills them.
func (d *drill) cutInstall(ctx context.Context) error {
	const expected = "it finishes what it began: same identity, current release, the app answers"
	for i := range max(1, d.Cuts/10) {
		err := d.step(ctx, fmt.Sprintf("power cut %d while a blank disk is filled", i+1), expected, func(ctx context.Context) (string, string, error) {
			if err := d.restart(ctx, func() error { return os.Remove(d.Lab.DiskFile(d.machine, 0)) }); err != nil {
				return "", "", err
			}
			if err := d.awake(ctx); err != nil {
				return "", "", err
			}
			changes := 1 + d.dice.Uint64N(changesOfInstall)
			cut, met, err := d.Lab.PowerCutAfter(ctx, d.machine.Key(), d.dice.Uint64(), changes, d.Patience/3)
			if err != nil {
				return "", "", err
			}
			seen, err := d.anew(ctx)
			return instant(changes, met) + "; " + seen, lost(cut) + "; what the site itself had written", err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// anew is well of a machine whose disk was blank: another STATE, an empty etcd.
func (d *drill) anew(ctx context.Context) (string, error) {
	if err := until(ctx, d.itself); err != nil {
		return "", err
	}
	err := until(ctx, func(context.Context) (err error) {
		id, err := d.stateID()
		if err == nil && id == d.luks {
			err = errors.New("STATE is still the volume of before")
		}
		if err == nil {
			d.luks = id
		}
		return err
	})
	if err != nil {
		return "", err
	}
	d.counter.again()
	if err := until(ctx, d.counter.open); err != nil {
		return "", err
	}
	return d.well(ctx)
}
