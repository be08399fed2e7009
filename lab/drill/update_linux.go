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

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
)

// patient is the time of an OS that is good, or shows at once that it is not: without
// KVM it takes minutes to be healthy, and the drill waits for how long it must stay so.
var patient = Timing{Deadline: 20 * time.Minute, Soak: 20 * time.Second}

// next is the version after now, and after those of its minor that are used.
func next(now string, used []string) string {
	major, minor, patch := 0, 0, 0
	fmt.Sscanf(now, "%d.%d.%d", &major, &minor, &patch)
	for _, u := range used {
		var a, b, c int
		if n, _ := fmt.Sscanf(u, "%d.%d.%d", &a, &b, &c); n == 3 && a == major && b == minor {
			patch = max(patch, c)
		}
	}
	return fmt.Sprintf("%d.%d.%d", major, minor, patch+1)
}

// fresh is a version after the one that runs that no drill of this lab has built:
// what a number means is never changed.
func (d *drill) fresh(now string) string {
	used, _ := filepath.Glob(filepath.Join(d.Lab.Dir, "os", "drill-*"))
	for i, folder := range used {
		used[i] = strings.TrimPrefix(filepath.Base(folder), "drill-")
	}
	return next(now, used)
}

// update brings the machine to a good next version, by a delta.
func (d *drill) update(ctx context.Context) error {
	before, err := d.Site.Ask(ctx)
	if err != nil {
		return err
	}
	made, err := d.build(ctx, before.OS)
	if err != nil {
		return err
	}
	version := made.Version
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
		if _, err := d.Site.ReleaseOS(ctx, made, patient); err != nil {
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
	timing     Timing
	apply      func(d *drill, o *build.Options, saboteur []byte) error
}

const (
	machinedPath   = "usr/lib/holdfast/machined"
	containerdPath = "usr/lib/holdfast/containerd"
	wordPath       = "usr/share/holdfast/sabotage"
)

// Timings of an OS that never is healthy, and of one that ceases to be: each is
// given up at the deadline.
var (
	hopeless = Timing{Deadline: 4 * time.Minute, Soak: patient.Soak}
	watched  = Timing{Deadline: 7 * time.Minute, Soak: time.Minute}
)

var sabotages = []sabotage{
	{"panic", "process 1 ends, and the kernel panics", patient, instead(machinedPath)},
	{"hang", "process 1 hangs", patient, instead(machinedPath)},
	{"kubelet", "the container runtime ends at once, so the kubelet is not ready", hopeless, instead(containerdPath)},
	{"network", "the network card has no driver", hopeless, withoutNetwork},
	{"cold", "the first boot is well, the second panics", patient, around(machinedPath, func(p build.Programs) string { return p.Machined })},
	{"late", "90 s after it is ready the container runtime ends", watched, around(containerdPath, func(p build.Programs) string { return filepath.Join(p.System, "containerd") })},
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

var sabotaged = regexp.MustCompile(`sabotage: [^\r\n]*`)

// badOS releases versions that are bad, each in its way.
func (d *drill) badOS(ctx context.Context) error {
	saboteur, err := os.ReadFile(d.Saboteur)
	if err != nil {
		return fmt.Errorf("the program that makes an OS version bad: %w", err)
	}
	for _, s := range sabotages {
		if d.Only != "" && d.Only != s.word {
			continue
		}
		if err := d.bad(ctx, s, saboteur); err != nil {
			return err
		}
	}
	return nil
}

func (d *drill) bad(ctx context.Context, s sabotage, saboteur []byte) error {
	before, err := d.Site.Ask(ctx)
	if err != nil {
		return err
	}
	version := d.fresh(before.OS)
	var after int64
	const expected = "it goes back by itself: the OS and the configuration of before, the trust of the new release, not tried again, the app answers"
	err = d.longStep(ctx, fmt.Sprintf("release OS %s, in which %s", version, s.what), expected, func(ctx context.Context) (string, string, error) {
		made, err := d.Site.BuildOS(ctx, version, d.parts(before.OS), func(o *build.Options) error {
			o.Replace = map[string][]byte{wordPath: []byte(s.word + "\n")}
			return s.apply(d, o, saboteur)
		})
		if err != nil {
			return "", "", err
		}
		mark := d.mark()
		n, err := d.Site.ReleaseOS(ctx, made, s.timing)
		if err != nil {
			return "", "", err
		}
		_, line, err := d.first(ctx, mark, undoneOf(version))
		if err != nil {
			return "", "", err
		}
		tried := len(sabotaged.FindAllString(d.console(mark), -1))
		mark = d.mark()
		if err := d.runsAgain(ctx, before, n); err != nil {
			return line, "", err
		}
		after = mark
		return fmt.Sprintf("%d signs of sabotage; then: %s", tried, line), "", nil
	})
	if err != nil {
		return err
	}
	return d.takeBack(ctx, before, after)
}
