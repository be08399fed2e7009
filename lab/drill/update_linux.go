package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
)

// soak is how long an OS must be healthy, here: short, since the drill waits for it.
const soak = 20 * time.Second

// next is a version after every one that the machine ran.
func next(now string, step int) string {
	var major, minor, patch int
	fmt.Sscanf(now, "%d.%d.%d", &major, &minor, &patch)
	return fmt.Sprintf("%d.%d.%d", major, minor, patch+step)
}

// update brings the machine to a good next version, by a delta.
func (d *drill) update(ctx context.Context) error {
	before, err := d.Site.Ask(ctx)
	if err != nil {
		return err
	}
	version := next(before.OS, 1)
	var made *OSBuild
	err = d.step(ctx, "build OS "+version, "an update with a delta from "+before.OS, func(ctx context.Context) (string, string, error) {
		made, err = d.Site.BuildOS(ctx, version, d.parts(before.OS), nil)
		if err != nil {
			return "", "", err
		}
		return fmt.Sprintf("%d kB whole, %d kB as a delta", made.Whole>>10, made.Delta>>10), "", nil
	})
	if err != nil {
		return err
	}
	return d.step(ctx, "release it to the machine's ring", "fetched as a delta, booted twice, kept; the app answers", func(ctx context.Context) (string, string, error) {
		status, _, err := d.Site.Status(ctx)
		if err != nil {
			return "", "", err
		}
		mark := d.mark()
		watch, stop := context.WithCancel(ctx)
		defer stop()
		gap := make(chan time.Duration, 1)
		go func() { gap <- d.silence(watch) }()
		if _, err := d.Site.ReleaseOS(ctx, made, soak); err != nil {
			return "", "", err
		}
		if err := until(ctx, func(ctx context.Context) error {
			r, head, err := d.Site.Status(ctx) // of the hub: to ask the machine would be bytes on its link
			if err == nil && (r.OS != version || r.Trial != "" || r.N != head) {
				err = fmt.Errorf("it runs OS %s, trial %q, release %d, %s %s", r.OS, r.Trial, r.N, r.State, r.Detail)
			}
			return err
		}); err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		stop()
		after, _, fault := d.Site.Status(context.WithoutCancel(ctx))
		boots := len(machined.FindAllString(d.console(mark), -1))
		if err == nil && fault == nil && boots < 2 {
			err = broken("it was kept after %d boots", boots)
		}
		return fmt.Sprintf("%d kB came over the link; %d boots; the app was silent for %.0f s at the longest; %s",
			(after.BytesSent-status.BytesSent)>>10, boots, (<-gap).Seconds(), seen), "", errors.Join(err, fault)
	})
}

// silence is the longest time that the app did not answer, until ctx ends.
func (d *drill) silence(ctx context.Context) (longest time.Duration) {
	last := time.Now()
	for ctx.Err() == nil {
		if d.answers(ctx) == nil {
			longest = max(longest, time.Since(last))
			last = time.Now()
		}
		select {
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
	return longest
}

// parts is the folder of parts of a version that this lab made; of its first one if none is found.
func (d *drill) parts(version string) string {
	found, _ := filepath.Glob(filepath.Join(d.Lab.Dir, "os", "*", build.Name(version, d.architecture), build.PartManifest))
	if len(found) == 0 {
		return d.machine.OS
	}
	return filepath.Dir(found[0])
}

// sabotage is a way in which an OS version is bad.
type sabotage struct {
	word, what string
	apply      func(d *drill, o *build.Options, saboteur []byte) error
}

const (
	machinedPath   = "usr/lib/holdfast/machined"
	containerdPath = "usr/lib/holdfast/containerd"
	wordPath       = "usr/share/holdfast/sabotage"
)

var sabotages = []sabotage{
	{"panic", "process 1 ends, and the kernel panics", instead(machinedPath)},
	{"hang", "process 1 hangs", instead(machinedPath)},
	{"kubelet", "the container runtime ends at once, so the kubelet is not ready", instead(containerdPath)},
	{"network", "the network card has no driver", withoutNetwork},
	{"cold", "the first boot is well, the second panics", around(machinedPath, func(p build.Programs) string { return p.Machined })},
	{"late", "90 s after it is ready the container runtime ends", around(containerdPath, func(p build.Programs) string { return filepath.Join(p.System, "containerd") })},
}

// instead puts the saboteur in the place of a program.
func instead(path string) func(*drill, *build.Options, []byte) error {
	return func(_ *drill, o *build.Options, saboteur []byte) error {
		o.Replace[path] = saboteur
		return nil
	}
}

// around puts the saboteur in the place of a program, and the program beside it.
func around(path string, original func(build.Programs) string) func(*drill, *build.Options, []byte) error {
	return func(_ *drill, o *build.Options, saboteur []byte) error {
		data, err := os.ReadFile(original(o.Programs))
		o.Replace[path], o.Replace[path+".real"] = saboteur, data
		return err
	}
}

// withoutNetwork leaves out the driver of the card that the lab's machines have.
func withoutNetwork(d *drill, o *build.Options, _ []byte) error {
	f, err := os.Open(filepath.Join(d.machine.OS, build.PartRoot))
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := build.ReadManifest(d.machine.OS)
	if err != nil {
		return err
	}
	files, err := erofs.Files(io.NewSectionReader(f, 0, m.RootData/osimage.VerityBlock*osimage.VerityBlock))
	if err != nil {
		return err
	}
	for _, e := range files {
		if strings.HasPrefix(filepath.Base(e.Path), "virtio_net.ko") {
			o.Remove = append(o.Remove, strings.TrimPrefix(e.Path, "/"))
			return nil
		}
	}
	return errors.New("the root has no driver virtio_net")
}

var (
	sabotaged = regexp.MustCompile(`sabotage: [^\r\n]*`)
	undone    = regexp.MustCompile(`holdfast: fault +E36[^\r\n]*`)
)

// badOS releases versions that are bad, each in its way.
func (d *drill) badOS(ctx context.Context) error {
	saboteur, err := os.ReadFile(d.Saboteur)
	if err != nil {
		return fmt.Errorf("the program that makes an OS version bad: %w", err)
	}
	for i, s := range sabotages {
		if d.Only != "" && d.Only != s.word {
			continue
		}
		if err := d.bad(ctx, s, i, saboteur); err != nil {
			return err
		}
	}
	return nil
}

func (d *drill) bad(ctx context.Context, s sabotage, i int, saboteur []byte) error {
	before, err := d.Site.Ask(ctx)
	if err != nil {
		return err
	}
	version := next(before.OS, 10+i)
	const expected = "it goes back by itself: the OS and the configuration of before, the trust of the new release, not tried again, the app answers"
	err = d.step(ctx, fmt.Sprintf("release OS %s, in which %s", version, s.what), expected, func(ctx context.Context) (string, string, error) {
		made, err := d.Site.BuildOS(ctx, version, d.parts(before.OS), func(o *build.Options) error {
			o.Replace = map[string][]byte{wordPath: []byte(s.word + "\n")}
			return s.apply(d, o, saboteur)
		})
		if err != nil {
			return "", "", err
		}
		mark := d.mark()
		n, err := d.Site.ReleaseOS(ctx, made, soak)
		if err != nil {
			return "", "", err
		}
		line, err := d.says(ctx, mark, 1, undone)
		if err != nil {
			return "", "", err
		}
		tried := len(sabotaged.FindAllString(d.console(mark), -1))
		mark = d.mark()
		if err := until(ctx, d.itself); err != nil {
			return line, "", err
		}
		if err := errors.Join(until(ctx, d.answers), until(ctx, d.keeps)); err != nil {
			return line, "", err
		}
		// Its report names the release that it accepted, whose content it refuses, and the effect of the one that runs.
		var now wire.Report
		if err := until(ctx, func(ctx context.Context) (err error) {
			now, err = d.Site.Ask(ctx)
			if err == nil && (now.Phase != wire.Refused || !strings.Contains(now.Detail, fmt.Sprintf("release %d:", n))) {
				err = fmt.Errorf("it says %s, %s: want release %d refused", now.Phase, now.Detail, n)
			}
			return err
		}); err != nil {
			return line, "", err
		}
		switch {
		case now.OS != before.OS || now.Slot != before.Slot:
			return line, "", broken("it runs OS %s in slot %s, and ran %s in %s", now.OS, now.Slot, before.OS, before.Slot)
		case now.N != n:
			return line, "", broken("it accepted release %d, and not %d: the trust of the new one is lost", now.N, n)
		case now.Effect != before.Effect:
			return line, "", broken("it runs another configuration than before, of effect %s", now.Effect)
		}
		select { // it looks at its release again within this time, and must not try once more
		case <-ctx.Done():
			return line, "", ctx.Err()
		case <-time.After(time.Minute):
		}
		if again := machined.FindString(d.console(mark)); again != "" {
			return line, "", broken("it booted once more: %s", again)
		}
		return fmt.Sprintf("%d signs of sabotage; then: %s", tried, line), "", nil
	})
	if err != nil {
		return err
	}
	return d.step(ctx, "take the bad version back", "the machine is well", func(ctx context.Context) (string, string, error) {
		if _, err := d.Site.ReleaseOS(ctx, &OSBuild{Version: before.OS}, soak); err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		return seen, "", err
	})
}
