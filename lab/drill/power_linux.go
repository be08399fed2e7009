package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/lab/vm/disk"
	"github.com/holdfast-edge/holdfast/osimage"
)

// Bounds of when the power goes, in writes and flushes of the disk: a boot makes
// some hundreds, a filling of a blank disk some thousands, a new release of an app a hundred.
const (
	changesOfBoot    = 300
	changesOfWork    = 150
	changesOfRelease = 80
	changesOfInstall = 1500
)

// cutWithin is when the power goes at the latest: what the machine is at is over then.
const cutWithin = 2 * time.Minute

// moments are what the machine is at when the power goes. Each comes in its turn,
// and in that of an update each stage of it.
var (
	moments = []string{"boot", "work", "idle", "release", inUpdate, inStorm}
	stages  = []string{inWriting, "trial", "bless"}
)

const (
	inUpdate  = "update"
	inWriting = "write"
	inStorm   = "storm"
	inInstall = "install" // only where it is asked for: what the site wrote goes
)

// gusts is how often the power goes in a storm: again and again before the machine
// is up, with nobody looking until it is over.
const gusts = 12

// power cuts the power, with what was not flushed.
func (d *drill) power(ctx context.Context) error {
	if d.Only == inInstall {
		return d.cutInstall(ctx, d.Cuts)
	}
	updates := 0
	for done, i := 0, 0; done < d.Cuts; i++ {
		moment := moments[i%len(moments)]
		if d.Only != "" {
			moment = d.Only
		}
		if moment == inUpdate {
			moment = stages[updates%len(stages)]
			updates++
		}
		cuts, err := 1, error(nil)
		switch {
		case slices.Contains(stages, moment):
			cuts, err = d.cutUpdate(ctx, done+1, moment)
		case moment == inStorm:
			cuts = min(gusts, d.Cuts-done)
			err = d.cutStorm(ctx, done+1, cuts)
		default:
			err = d.cutIn(ctx, done+1, moment)
		}
		if err != nil {
			return err
		}
		done += cuts
	}
	if !d.Install {
		return nil
	}
	return d.cutInstall(ctx, max(1, d.Cuts/10))
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

// cutStorm cuts the power so often, each time in the boot after the cut before.
func (d *drill) cutStorm(ctx context.Context, n, cuts int) error {
	did := fmt.Sprintf("power cuts %d to %d of %d, each before it is up", n, n+cuts-1, d.Cuts)
	return d.longStep(ctx, did, "it comes back by itself: same identity, same STATE, every acknowledged write, the app answers", func(ctx context.Context) (string, string, error) {
		var all disk.Cut
		var at []string
		for range cuts {
			if err := d.awake(ctx); err != nil {
				return "", "", err
			}
			changes := 1 + d.dice.Uint64N(changesOfBoot)
			cut, met, err := d.Lab.PowerCutAfter(ctx, d.machine.Key(), d.dice.Uint64(), changes, cutWithin)
			if err != nil {
				return strings.Join(at, ", "), "", err
			}
			at = append(at, strconv.FormatUint(changes, 10))
			if !met {
				at[len(at)-1] += " (did not come to it)"
			}
			all.Lost, all.Torn, all.Kept, all.Bytes = all.Lost+cut.Lost, all.Torn+cut.Torn, all.Kept+cut.Kept, all.Bytes+cut.Bytes
		}
		acked, _ := d.counter.state()
		seen, err := d.well(ctx)
		return fmt.Sprintf("at changes %s of its disk; %d writes were acknowledged so far; %s", strings.Join(at, ", "), acked, seen), lost(all), err
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
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed+1, changes, cutWithin)
		return cut, cutAt(changes, met), err
	case "work":
		work, stop := context.WithCancel(ctx)
		defer stop()
		ended := make(chan int)
		go func() { ended <- d.counter.count(work, 0) }()
		changes := after(changesOfWork)
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed, changes, cutWithin)
		stop()
		done := <-ended
		return cut, fmt.Sprintf("%s, %d counts in", cutAt(changes, met), done), err
	case "release":
		n, _, err := d.Site.Change(ctx, fmt.Sprintf("drill %d", seed%1e6))
		if err != nil {
			return disk.Cut{}, "", err
		}
		if n == 0 {
			break // there is nothing to release: it rests
		}
		changes := after(changesOfRelease)
		cut, met, err := d.Lab.PowerCutAfter(ctx, key, seed, changes, cutWithin)
		return cut, fmt.Sprintf("%s, release %d", cutAt(changes, met), n), err
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

func cutAt(changes uint64, met bool) string {
	if met {
		return fmt.Sprintf("at change %d of its disk", changes)
	}
	return fmt.Sprintf("the disk did not see %d changes, cut in peace", changes)
}

// trials are the stages of an update in which another OS is on trial: it gets as
// many tries as it has, and most go back.
var trials = map[string]instant{
	"trial": {what: "it boots for the first time", at: `holdfast: down: reboot \(to try OS VERSION\)[^\r\n]*`, again: `holdfast: init: kernel[^\r\n]*`, changes: changesOfBoot},
	"bless": blessed,
}

// cutUpdate cuts the power while an update of the OS is written, or while it is on
// trial, as often as it has tries.
func (d *drill) cutUpdate(ctx context.Context, n int, stage string) (cuts int, err error) {
	before, err := d.before(ctx)
	if err != nil {
		return 0, err
	}
	if stage == inWriting {
		return 1, d.cutWriting(ctx, n, before)
	}
	made, err := d.build(ctx, before.OS)
	if err != nil {
		return 0, err
	}
	_, cuts, err = d.try(ctx, before, made, before.GitVersion, trials[stage])
	return cuts, err
}

// build builds another version of the OS that runs.
func (d *drill) build(ctx context.Context, now string) (made *OSBuild, err error) {
	version := d.fresh(now)
	err = d.step(ctx, "build OS "+version, "an update with a delta from "+now, func(ctx context.Context) (string, string, error) {
		if made, err = d.Site.BuildOS(ctx, version, d.parts(now), nil); err != nil {
			return "", "", err
		}
		return fmt.Sprintf("%d kB whole, %d kB as a delta", made.Whole>>10, made.Delta>>10), "", nil
	})
	return made, err
}

// Bounds of the write at which the writing of an OS is cut: to a root partition
// that was blank; to one with another OS, of which only what differs is written; to
// the boot partition.
const (
	writesOfRoot   = 250
	writesOfChange = 5
	writesOfUKI    = 20
)

// cutWriting cuts the power while an OS is written to the idle slot, and takes that
// OS back before the machine begins once more: the same one serves again.
func (d *drill) cutWriting(ctx context.Context, n int, before siteBefore) (err error) {
	if d.spare == nil {
		if d.spare, err = d.build(ctx, before.OS); err != nil {
			return err
		}
	}
	did := fmt.Sprintf("power cut %d of %d, while OS %s is written to the idle slot", n, d.Cuts, d.spare.Version)
	return d.longStep(ctx, did, "what ran runs on: same slot, same identity, same STATE, every acknowledged write, the app answers", func(ctx context.Context) (string, string, error) {
		part, changes, err := d.inIdleSlot(before.Slot)
		if err != nil {
			return "", "", err
		}
		if _, err := d.Site.ReleaseOS(ctx, d.spare, patient); err != nil {
			return "", "", err
		}
		cut, met, err := d.cutInPart(ctx, part, changes, d.Patience)
		if err == nil && !met {
			err = fmt.Errorf("partition %s did not see %d writes", part, changes+1)
		}
		if _, fault := d.Site.ReleaseOS(ctx, &OSBuild{Version: before.OS}, patient); err != nil || fault != nil {
			return "", lost(cut), errors.Join(err, fault)
		}
		seen, err := d.well(ctx)
		if err != nil {
			return seen, lost(cut), err
		}
		now, err := d.Site.Ask(ctx)
		if err == nil && (now.OS != before.OS || now.Slot != before.Slot) {
			err = broken("it runs OS %s in slot %s, and ran %s in %s", now.OS, now.Slot, before.OS, before.Slot)
		}
		acked, _ := d.counter.state()
		return fmt.Sprintf("after %d writes to %s; %d writes were acknowledged so far; %s", changes, part, acked, seen), lost(cut), err
	})
}

// inIdleSlot chooses where the writing of an OS is cut: the partition, and after how many writes to it.
func (d *drill) inIdleSlot(running string) (part string, changes uint64, err error) {
	if d.dice.IntN(2) == 0 {
		return osimage.PartESP, d.dice.Uint64N(writesOfUKI), nil
	}
	part = osimage.PartRootB
	if running == "b" {
		part = osimage.PartRootA
	}
	p, err := d.open(part)
	if err != nil {
		return "", 0, err
	}
	defer p.Close()
	start := make([]byte, 1<<20)
	if _, err := p.ReadAt(start, 0); err != nil {
		return "", 0, err
	}
	if most := uint64(writesOfRoot); len(bytes.Trim(start, "\x00")) == 0 {
		return part, d.dice.Uint64N(most), nil
	}
	return part, d.dice.Uint64N(writesOfChange), nil
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
func (d *drill) cutInstall(ctx context.Context, cuts int) error {
	const expected = "it finishes what it began: same identity, current release, the app answers"
	for i := range cuts {
		err := d.step(ctx, fmt.Sprintf("power cut %d of %d while a blank disk is filled", i+1, cuts), expected, func(ctx context.Context) (string, string, error) {
			if err := d.restart(ctx, func() error { return os.Remove(d.Lab.DiskFile(d.machine, 0)) }); err != nil {
				return "", "", err
			}
			if err := d.awake(ctx); err != nil {
				return "", "", err
			}
			changes := 1 + d.dice.Uint64N(changesOfInstall)
			cut, met, err := d.Lab.PowerCutAfter(ctx, d.machine.Key(), d.dice.Uint64(), changes, cutWithin)
			if err != nil {
				return "", "", err
			}
			seen, err := d.anew(ctx)
			return cutAt(changes, met) + "; " + seen, lost(cut) + "; what the site itself had written", err
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
