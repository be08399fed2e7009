package drill

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// waking is how long a machine may take that just boots when a drill begins.
const waking = 5 * time.Minute

// begin looks at the machine before anything is done to it: a drill of a sick one proves nothing.
func (d *drill) begin(ctx context.Context) error {
	manifest, err := build.ReadManifest(d.machine.OS)
	if err != nil {
		return err
	}
	d.built, d.architecture = manifest.Built, manifest.Architecture
	return d.stepIn(ctx, min(d.Patience, waking), "look at the machine", "it is well before the drill", func(ctx context.Context) (string, string, error) {
		if d.luks, err = d.stateID(); err != nil {
			return "", "", err
		}
		d.counter = &counter{site: d.Site, now: time.Now}
		if err := until(ctx, d.counter.open); err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		return seen, "", err
	})
}

// well waits until the machine is whole: itself by its key, the same STATE,
// nothing lost that was acknowledged, the app and the hub's word.
func (d *drill) well(ctx context.Context) (string, error) {
	began := time.Now()
	var times []string
	lap := func(what string) {
		times = append(times, fmt.Sprintf("%s after %.0f s", what, time.Since(began).Seconds()))
	}
	for _, c := range []struct {
		what  string
		check func(context.Context) error
	}{
		{"itself", d.itself},
		{"app", d.answers},
		{"API", d.keeps},
		{"well", d.content},
	} {
		if err := until(ctx, c.check); err != nil {
			return strings.Join(times, ", "), fmt.Errorf("%s: %w", c.what, err)
		}
		lap(c.what)
	}
	id, err := d.stateID()
	if err == nil && id != d.luks {
		err = broken("STATE is another volume: %s, and it was %s", id, d.luks)
	}
	return strings.Join(times, ", "), err
}

// itself asks the machine; only its identity key can answer.
func (d *drill) itself(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	_, err := d.Site.Ask(ctx)
	return err
}

// answers asks the app on the machine's LAN.
func (d *drill) answers(ctx context.Context) error {
	_, err := d.answer(ctx)
	return err
}

func (d *drill) answer(ctx context.Context) (string, error) {
	if d.Port == 0 {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	body, err := d.Lab.Fetch(ctx, "http://"+net.JoinHostPort(d.machine.Address().String(), strconv.Itoa(int(d.Port)))+"/")
	return string(body), err
}

// keeps asks etcd for what it acknowledged.
func (d *drill) keeps(ctx context.Context) error { return d.counter.check(ctx) }

// content asks the hub.
func (d *drill) content(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	m, head, err := d.Site.Status(ctx)
	if err != nil {
		return err
	}
	if !m.Online || m.State != wire.OK || m.N != head {
		return fmt.Errorf("the hub says: online %t, %s %s, release %d of %d", m.Online, m.State, m.Detail, m.N, head)
	}
	for _, a := range m.Apps {
		if a.Phase != wire.OK {
			return fmt.Errorf("the hub says: app %s is %s: %s", a.Name, a.Phase, a.Detail)
		}
	}
	return nil
}

// part is a partition of the machine's first disk.
type part struct {
	*os.File // of the whole disk
	gpt.Partition
}

// ReadAt reads within the partition.
func (p part) ReadAt(b []byte, off int64) (int, error) { return p.File.ReadAt(b, p.Offset()+off) }

// WriteAt writes within the partition.
func (p part) WriteAt(b []byte, off int64) (int, error) { return p.File.WriteAt(b, p.Offset()+off) }

// open finds a partition. The caller closes it.
func (d *drill) open(name string) (part, error) {
	f, err := os.OpenFile(d.Lab.DiskFile(d.machine, 0), os.O_RDWR, 0)
	if err != nil {
		return part{}, err
	}
	p, err := partitionOf(f, name)
	if err != nil {
		f.Close()
		return part{}, err
	}
	return part{f, p}, nil
}

// stateID is the identity of the volume that STATE lies in; what is on the disk, not what is in a cache.
func (d *drill) stateID() (string, error) {
	p, err := d.open(osimage.PartState)
	if err != nil {
		return "", err
	}
	defer p.Close()
	v, err := luks.Open(p)
	if err != nil {
		return "", fmt.Errorf("STATE is no encrypted volume (drills need a machine with a TPM): %w", err)
	}
	return v.UUID(), nil
}

// replug is restart of a machine that does not run: nobody in it would hear the
// power button.
func (d *drill) replug(ctx context.Context, change func() error) error {
	if _, err := d.Lab.PowerCut(ctx, d.machine.Key(), 0, true); err != nil {
		return d.restart(ctx, change) // it was just being reset, or is off
	}
	return errors.Join(change(), d.on(ctx))
}

// restart takes the machine through off, change, on.
func (d *drill) restart(ctx context.Context, change func() error) error {
	if err := d.off(ctx); err != nil {
		return err
	}
	return errors.Join(change(), d.on(ctx))
}
