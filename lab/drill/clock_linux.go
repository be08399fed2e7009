package drill

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
)

// lies are what the box's clock shows.
var lies = []struct {
	text string
	time func() time.Time
}{
	{"1970", func() time.Time { return time.Unix(0, 0).UTC() }},
	{"ten years from now", func() time.Time { return time.Now().UTC().AddDate(10, 0, 0) }},
}

// clock starts the machine at wrong times.
func (d *drill) clock(ctx context.Context) (err error) {
	defer afterwards(ctx, func(ctx context.Context) error { return d.want(func(m *lab.Machine) { m.Clock = "" }) }, &err)
	for _, lie := range lies {
		err := d.step(ctx, "start the machine in "+lie.text, "it boots and is well; its clock is never before its OS was built", func(ctx context.Context) (string, string, error) {
			return d.at(ctx, lie.time().Format("2006-01-02T15:04:05"))
		})
		if err != nil {
			return err
		}
	}
	return d.step(ctx, "set its clock right again", "it boots, is well, and its clock is right", func(ctx context.Context) (string, string, error) {
		seen, _, err := d.at(ctx, "")
		_, date := d.counter.state()
		if off := time.Since(date); err == nil && off.Abs() > time.Hour {
			err = broken("its clock is off by %v", off.Round(time.Second))
		}
		return seen, "", err
	})
}

// at starts the machine with a clock that shows so.
func (d *drill) at(ctx context.Context, shows string) (string, string, error) {
	if err := d.restart(ctx, func() error { return d.want(func(m *lab.Machine) { m.Clock = shows }) }); err != nil {
		return "", "", err
	}
	// Its certificates are judged by its own clock: what it issues today is of that day.
	d.counter.again()
	began := time.Now()
	d.counter.now = func() time.Time {
		if start, err := time.Parse("2006-01-02T15:04:05", shows); err == nil && start.After(d.built) {
			return start.Add(time.Since(began)).Add(time.Minute)
		}
		return time.Now()
	}
	defer func() { d.counter.now = time.Now; d.counter.again() }()
	seen, err := d.well(ctx)
	_, date := d.counter.state()
	if err == nil && date.Before(d.built) {
		err = broken("its clock says %v, and its OS was built %v", date, d.built)
	}
	return fmt.Sprintf("its clock says %s; %s", date.Format(time.RFC3339), seen), "", err
}
