package drill

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/lab/vm/disk"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

// instant is one of a trial: the power is cut there as often as the slot has
// tries, so that the machine goes back. What the console says is gone by; VERSION
// stands for the OS on trial.
type instant struct {
	word, what string
	at         string // said at the instant; "": the OS ends its trial by itself
	again      string // said at the instant of a later try; "": the same
	// Where changes is not 0, the power is cut so many writes later at the most, to
	// a partition if one is named; the trial may be through by then.
	changes uint64
	part    string
}

// booted is said at the beginning of each boot of an OS, before its trial goes on.
const booted = `holdfast: os +VERSION, slot[^\r\n]*`

var instants = []instant{
	{word: "panic", what: "process 1 panics at its first boot"},
	{word: "etcd", what: "etcd is up", at: `msg="OS update" version=VERSION reached="etcd serves"[^\r\n]*`},
	{word: "api", what: "the API server is ready", at: `msg="OS update" version=VERSION reached="API ready"[^\r\n]*`},
	// One try that comes so far is enough: the others end where they begin.
	{word: "soon", what: "it is a second before it is blessed", at: `msg="OS update" version=VERSION phase=second left=[^\r\n]*`, again: booted},
	blessed,
}

// blessed is within the copy of a boot image to the name without a counter: the
// copy takes more writes than that.
var blessed = instant{
	word: "blessing", what: "it is being blessed", at: `msg="OS update" version=VERSION phase=second left=[^\r\n]*`, again: booted,
	changes: 12, part: osimage.PartESP,
}

// kept is the word for the upgrade that is not forced back.
const kept = "kept"

// of is the pattern of a text in which VERSION stands for an OS.
func of(text, version string) *regexp.Regexp {
	return regexp.MustCompile(strings.ReplaceAll(text, "VERSION", regexp.QuoteMeta(version)))
}

// What the console says of the ends of a trial.
func undoneOf(version string) *regexp.Regexp {
	return of(`holdfast: fault +E36 [^\r\n]* VERSION was [^\r\n]*`, version)
}
func liftingOf(version string) *regexp.Regexp {
	return of(`msg="OS update" version=VERSION phase=lifting[^\r\n]*`, version)
}
func endedOf(version string) *regexp.Regexp {
	return of(`msg="OS update ended" version=VERSION why=[^\r\n]*`, version)
}

// kubernetes is a version of it, as the API tells.
type kubernetes struct {
	GitVersion                     string
	EmulationMajor, EmulationMinor string
}

func (k kubernetes) speaks() string { return k.EmulationMajor + "." + k.EmulationMinor }

func (k kubernetes) String() string { return k.GitVersion + " as " + k.speaks() }

// minorOf v1.36.3 is 1 and 36.
func minorOf(version string) (major, minor int, err error) {
	if _, err := fmt.Sscanf(version, "v%d.%d.", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("Kubernetes %q is no version such as v1.36.3", version)
	}
	return major, minor, nil
}

// follows says whether the programs of version come right after those of before.
func follows(before, version string) error {
	major, minor, err := minorOf(before)
	if err != nil {
		return err
	}
	if a, b, err := minorOf(version); err != nil {
		return err
	} else if a != major || b != minor+1 {
		return fmt.Errorf("the machine runs Kubernetes %s, and the next one here is %s: want the minor after", before, version)
	}
	return nil
}

// site is what must be the same when an OS was undone.
type siteBefore struct {
	wire.Report
	kubernetes
	cluster string // which one: made anew it is another
}

func (d *drill) before(ctx context.Context) (b siteBefore, err error) {
	if b.Report, err = d.Site.Ask(ctx); err != nil {
		return b, err
	}
	err = until(ctx, func(ctx context.Context) (err error) {
		b.kubernetes, b.cluster, err = d.speaking(ctx)
		return err
	})
	return b, err
}

// speaking asks the API which Kubernetes it is, and which cluster.
func (d *drill) speaking(ctx context.Context) (k kubernetes, cluster string, err error) {
	if _, err := d.counter.call(ctx, http.MethodGet, "/version", nil, &k); err != nil {
		return k, "", err
	}
	var namespace struct{ Metadata struct{ UID string } }
	_, err = d.counter.call(ctx, http.MethodGet, "/api/v1/namespaces/kube-system", nil, &namespace)
	return k, namespace.Metadata.UID, err
}

// upgrade takes the site to the next minor of Kubernetes, after it was forced back
// at each instant. The last step is for good: no OS of before runs here afterwards.
func (d *drill) upgrade(ctx context.Context) error {
	if _, err := os.Stat(d.Next); err != nil {
		return fmt.Errorf("the next minor of Kubernetes: %w", err)
	}
	saboteur, err := os.ReadFile(d.Saboteur)
	if err != nil {
		return fmt.Errorf("the program that makes an OS version bad: %w", err)
	}
	for _, p := range instants {
		if d.Only != "" && d.Only != p.word {
			continue
		}
		gone, err := d.forceBack(ctx, p, saboteur)
		if err != nil || gone {
			return err
		}
	}
	if d.Only != "" && d.Only != kept {
		return nil
	}
	return d.forward(ctx)
}

// buildNext builds an OS with the next minor of Kubernetes.
func (d *drill) buildNext(ctx context.Context, before siteBefore, change func(*build.Options) error) (made *OSBuild, version string, err error) {
	number := d.fresh(before.OS)
	err = d.longStep(ctx, fmt.Sprintf("build OS %s with the next minor of Kubernetes", number), "an update with a delta from "+before.OS, func(ctx context.Context) (string, string, error) {
		var system string
		defer func() { os.RemoveAll(system) }()
		made, err = d.Site.BuildOS(ctx, number, d.parts(before.OS), func(o *build.Options) (err error) {
			system = o.Output + "-system"
			if o.Programs.System, err = systemWith(o.Programs.System, system, d.Next); err == nil && change != nil {
				err = change(o)
			}
			return err
		})
		if err != nil {
			return "", "", err
		}
		m, err := build.ReadManifest(made.Parts)
		if err != nil {
			return "", "", err
		}
		version = m.Versions["kube"]
		return fmt.Sprintf("Kubernetes %s after %s; %d kB whole, %d kB as a delta", version, before.GitVersion, made.Whole>>10, made.Delta>>10), "", follows(before.GitVersion, version)
	})
	return made, version, err
}

// systemWith is a folder of programs like one that is there, with another kube.
func systemWith(system, dir, kube string) (string, error) {
	entries, err := os.ReadDir(system)
	if err != nil {
		return "", err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", err
	}
	for _, e := range entries {
		from := filepath.Join(system, e.Name())
		if e.Name() == "kube" {
			from = kube
		}
		if from, err = filepath.Abs(from); err != nil {
			return "", err
		}
		if err := os.Symlink(from, filepath.Join(dir, e.Name())); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// forceBack releases an OS with the next minor and ends its trial at an instant.
// gone says that it was kept all the same, as a blessing that had come too far is.
func (d *drill) forceBack(ctx context.Context, p instant, saboteur []byte) (gone bool, err error) {
	before, err := d.before(ctx)
	if err != nil {
		return false, err
	}
	if p.at != "" {
		made, program, err := d.goodNext(ctx, before, p.word)
		if err != nil {
			return false, err
		}
		gone, _, err = d.try(ctx, before, made, program, p)
		return gone, err
	}
	change := func(o *build.Options) error {
		o.Replace = map[string][]byte{wordPath: []byte(p.word + "\n"), machinedPath: saboteur}
		return nil
	}
	made, program, err := d.buildNext(ctx, before, change)
	if err != nil {
		return false, err
	}
	_, _, err = d.try(ctx, before, made, program, p)
	return false, err
}

// goodNext is an OS with the next minor that is well, with a text of the app that
// comes and goes with it. The same OS with another text is not what was refused: it
// is built once, unless there is no text to change.
func (d *drill) goodNext(ctx context.Context, before siteBefore, word string) (made *OSBuild, program string, err error) {
	free, err := d.Site.Free(ctx)
	if err != nil {
		return nil, "", err
	}
	if d.good == nil || !free {
		if d.good, d.program, err = d.buildNext(ctx, before, nil); err != nil {
			return nil, "", err
		}
	}
	again := *d.good
	if free {
		again.Says = fmt.Sprintf("upgrade %s %06d", word, d.dice.Uint64N(1e6))
	}
	return &again, d.program, nil
}

// comesWith tells whether the app says what comes with an OS.
func (d *drill) comesWith(ctx context.Context, made *OSBuild) (bool, error) {
	text, err := d.answer(ctx)
	return strings.Contains(text, made.Says), err
}

// try releases an OS, cuts its trial off at an instant, and looks at what is left.
func (d *drill) try(ctx context.Context, before siteBefore, made *OSBuild, program string, p instant) (gone bool, cuts int, err error) {
	mark := d.mark()
	stop := d.writing(ctx)
	defer stop()
	var n uint64
	if p.at == "" {
		if n, err = d.Site.ReleaseOS(ctx, made, patient); err != nil {
			return false, 0, err
		}
	}
	for i := 0; p.at != "" && i < slots.Tries; i++ {
		did := fmt.Sprintf("release it, and cut the power when %s", p.what)
		if i > 0 {
			did = fmt.Sprintf("cut the power in try %d of it", i+1)
		}
		back := false
		err := d.longStep(ctx, did, "the machine comes to that instant", func(ctx context.Context) (string, string, error) {
			if i == 0 {
				if n, err = d.Site.ReleaseOS(ctx, made, patient); err != nil {
					return "", "", err
				}
			}
			line, cut, ended, err := d.cutTrial(ctx, p, made.Version, mark, i)
			if ended != "" {
				back, gone = ended == wentBack, ended == wasKept
				return line, "", err
			}
			mark = d.mark()
			cuts++
			acked, _ := d.counter.state()
			return fmt.Sprintf("%s; %d writes were acknowledged so far", line, acked), lost(cut), err
		})
		if err != nil {
			return false, cuts, err
		}
		if back || gone {
			break
		}
	}
	if p.changes > 0 && !gone {
		err = d.longStep(ctx, "let it boot", "one of the two slots runs, whole", func(ctx context.Context) (string, string, error) {
			i, line, err := d.first(ctx, mark, undoneOf(made.Version), liftingOf(made.Version), endedOf(made.Version))
			gone = err == nil && i > 0
			return line, "", err
		})
		if err != nil {
			return false, cuts, err
		}
	}
	if gone {
		return true, cuts, d.arrived(ctx, before, made, program, stop)
	}
	if mark, err = d.wentBack(ctx, before, made, n, mark, stop); err != nil {
		return false, cuts, err
	}
	return false, cuts, d.takeBack(ctx, before.Report, mark)
}

// How a trial ended before its next cut.
const (
	wentBack = "back"
	wasKept  = "kept"
)

// cutTrial waits for an instant of the trial of an OS and cuts the power there;
// ended says that the trial was over before.
func (d *drill) cutTrial(ctx context.Context, p instant, version string, mark int64, try int) (line string, c disk.Cut, ended string, err error) {
	at := p.at
	if try > 0 && p.again != "" {
		at = p.again
	}
	i, line, err := d.first(ctx, mark, of(at, version), undoneOf(version), liftingOf(version), endedOf(version))
	switch {
	case err != nil:
		return line, c, "", err
	case i == 1:
		return line, c, wentBack, nil
	case i > 1 && p.changes > 0:
		return line, c, wasKept, nil
	case i > 1:
		return line, c, "", broken("it was kept: %s", line)
	case p.changes == 0:
		c, err = d.Lab.PowerCut(ctx, d.machine.Key(), d.dice.Uint64(), false)
		return line, c, "", err
	}
	changes := d.dice.Uint64N(p.changes)
	c, met, err := d.cutInPart(ctx, p.part, changes, cutWithin)
	if err == nil && !met {
		return fmt.Sprintf("%s; there were no %d writes after it, cut in peace", line, changes+1), c, "", nil
	}
	return fmt.Sprintf("%s; cut %d writes later", line, changes), c, "", err
}

// cutInPart cuts the power after so many writes to a partition, or to the disk.
func (d *drill) cutInPart(ctx context.Context, part string, changes uint64, within time.Duration) (disk.Cut, bool, error) {
	if part == "" {
		return d.Lab.PowerCutAfter(ctx, d.machine.Key(), d.dice.Uint64(), changes, within)
	}
	p, err := d.open(part)
	if err != nil {
		return disk.Cut{}, false, err
	}
	off, size := p.Offset(), p.Size()
	if err := p.Close(); err != nil {
		return disk.Cut{}, false, err
	}
	return d.Lab.PowerCutIn(ctx, d.machine.Key(), d.dice.Uint64(), off, size, changes, within)
}

// wentBack waits until the old OS runs again with what belongs to it. The mark is
// of the console after that.
func (d *drill) wentBack(ctx context.Context, before siteBefore, made *OSBuild, n uint64, mark int64, stop func() uint64) (after int64, err error) {
	const expected = "the OS and the configuration of before, the same Kubernetes with the same data, every acknowledged write, the trust of the new release; the app answers"
	err = d.step(ctx, "let it go back", expected, func(ctx context.Context) (string, string, error) {
		_, line, err := d.first(ctx, mark, undoneOf(made.Version))
		if err != nil {
			return "", "", err
		}
		after = d.mark()
		began := time.Now()
		written := stop()
		if err := d.runsAgain(ctx, before.Report, n); err != nil {
			return line, "", err
		}
		took := time.Since(began)
		var k kubernetes
		var cluster string
		err = until(ctx, func(ctx context.Context) (err error) {
			k, cluster, err = d.speaking(ctx)
			return err
		})
		switch {
		case err != nil:
		case k != before.kubernetes:
			err = broken("Kubernetes is %s, and was %s", k, before.kubernetes)
		case cluster != before.cluster:
			err = broken("the cluster is another one: %s, and was %s", cluster, before.cluster)
		}
		if err == nil && made.Says != "" && d.Port != 0 { // a pod of the trial may still be replaced
			err = until(ctx, func(ctx context.Context) error {
				also, err := d.comesWith(ctx, made)
				if err == nil && also {
					err = fmt.Errorf("the app says %q, which came with OS %s", made.Says, made.Version)
				}
				return err
			})
		}
		acked, _ := d.counter.state()
		return fmt.Sprintf("%s; all of it after %.0f s; Kubernetes %s; %d of %d writes were acknowledged since the release, and all are there", line, took.Seconds(), k, written, acked), "", err
	})
	return after, err
}

// runsAgain waits until the machine runs what it ran before release n, which it
// refuses, with all that was acknowledged.
func (d *drill) runsAgain(ctx context.Context, before wire.Report, n uint64) error {
	if err := errors.Join(until(ctx, d.itself), until(ctx, d.answers), until(ctx, d.keeps)); err != nil {
		return err
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
		return err
	}
	switch {
	case now.OS != before.OS || now.Slot != before.Slot:
		return broken("it runs OS %s in slot %s, and ran %s in %s", now.OS, now.Slot, before.OS, before.Slot)
	case now.N != n:
		return broken("it accepted release %d, and not %d: the trust of the new one is lost", now.N, n)
	case now.Effect != before.Effect:
		return broken("it runs another configuration than before, of effect %s", now.Effect)
	}
	return nil
}

// takeBack releases the OS that runs, in the place of one that was refused; until
// then, from mark on, that one was not tried again.
func (d *drill) takeBack(ctx context.Context, before wire.Report, mark int64) error {
	return d.step(ctx, "take the version back", "it was not tried again, and the machine is well", func(ctx context.Context) (string, string, error) {
		if _, err := d.Site.ReleaseOS(ctx, &OSBuild{Version: before.OS}, patient); err != nil {
			return "", "", err
		}
		seen, err := d.well(ctx)
		if again := machined.FindString(d.console(mark)); err == nil && again != "" {
			err = broken("it booted once more: %s", again)
		}
		return seen, "", err
	})
}

// forward lets an OS with the next minor be kept.
func (d *drill) forward(ctx context.Context) error {
	before, err := d.before(ctx)
	if err != nil {
		return err
	}
	made, program, err := d.goodNext(ctx, before, kept)
	if err != nil {
		return err
	}
	mark := d.mark()
	watch, end := context.WithCancel(ctx)
	defer end()
	gap := make(chan time.Duration, 1)
	go func() { gap <- d.silence(watch) }()
	stop := d.writing(ctx)
	defer stop()
	for _, s := range []struct{ did, expected, says string }{
		{"release it", "its first boot speaks as the minor before", `msg="OS update" version=VERSION reached="API ready"[^\r\n]*`},
		{"let it be judged", "its first boot is good", `msg="OS update" version=VERSION phase=second[^\r\n]*`},
		{"let it be judged once more", "its second boot is good", `msg="OS update" version=VERSION phase=blessing[^\r\n]*`},
	} {
		err := d.step(ctx, s.did, s.expected, func(ctx context.Context) (string, string, error) {
			if s.did == "release it" {
				if _, err := d.Site.ReleaseOS(ctx, made, patient); err != nil {
					return "", "", err
				}
			}
			i, line, err := d.first(ctx, mark, of(s.says, made.Version), undoneOf(made.Version))
			if err == nil && i > 0 {
				err = broken("it was undone")
			}
			return line, "", errors.Join(err, d.held(mark, made.Version, before))
		})
		if err != nil {
			return err
		}
	}
	if err := d.arrived(ctx, before, made, program, stop); err != nil {
		return err
	}
	end()
	return d.step(ctx, "look back at the app", "it was silent as long as two boots take", func(context.Context) (string, string, error) {
		return fmt.Sprintf("silent for %.0f s at the longest", (<-gap).Seconds()), "", nil
	})
}

// apiReady is what a boot on trial says of its Kubernetes.
const apiReady = `msg="OS update" version=VERSION reached="API ready" kubernetes="(v[^ "]+) as ([0-9.]+)"`

// held says whether each boot on trial spoke as the minor before.
func (d *drill) held(mark int64, version string, before siteBefore) error {
	for _, m := range of(apiReady, version).FindAllStringSubmatch(d.console(mark), -1) {
		if m[2] != before.speaks() {
			return broken("on trial Kubernetes %s spoke as %s, and not as %s", m[1], m[2], before.speaks())
		}
	}
	return nil
}

// arrived waits until the site runs the new OS for good, with its own Kubernetes
// and nothing held back.
func (d *drill) arrived(ctx context.Context, before siteBefore, made *OSBuild, program string, stop func() uint64) error {
	const expected = "Kubernetes speaks its own minor, with the same data; every acknowledged write; the app answers"
	return d.step(ctx, "let the hold be lifted", expected, func(ctx context.Context) (string, string, error) {
		if err := until(ctx, func(ctx context.Context) error {
			r, head, err := d.Site.Status(ctx)
			if err == nil && (r.OS != made.Version || r.Trial != "" || r.N != head) {
				err = fmt.Errorf("it runs OS %s, trial %q, release %d, %s %s", r.OS, r.Trial, r.N, r.State, r.Detail)
			}
			return err
		}); err != nil {
			return "", "", err
		}
		written := stop()
		seen, err := d.well(ctx)
		if err != nil {
			return seen, "", err
		}
		if made.Says != "" && d.Port != 0 {
			if err := until(ctx, func(ctx context.Context) error {
				also, err := d.comesWith(ctx, made)
				if err == nil && !also {
					err = fmt.Errorf("the app does not say %q yet", made.Says)
				}
				return err
			}); err != nil {
				return seen, "", err
			}
		}
		k, cluster, err := d.speaking(ctx)
		major, minor, fault := minorOf(program)
		switch {
		case err != nil || fault != nil:
			err = errors.Join(err, fault)
		case k.GitVersion != program || k.speaks() != strconv.Itoa(major)+"."+strconv.Itoa(minor):
			err = broken("Kubernetes is %s, want %s, speaking its own minor", k, program)
		case cluster != before.cluster:
			err = broken("the cluster is another one: %s, and was %s", cluster, before.cluster)
		}
		acked, _ := d.counter.state()
		return fmt.Sprintf("Kubernetes %s after %s; %d of %d writes were acknowledged since the release, and all are there; %s", k, before.kubernetes, written, acked, seen), "", err
	})
}

// writingEvery is between two writes of writing: the machine has enough to do.
const writingEvery = 2 * time.Second

// writing counts up until stop, which tells how often that was acknowledged.
func (d *drill) writing(ctx context.Context) (stop func() uint64) {
	ctx, cancel := context.WithCancel(ctx)
	before, _ := d.counter.state()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			d.counter.up(ctx) // whoever is off acknowledges nothing
			select {
			case <-ctx.Done():
			case <-time.After(writingEvery):
			}
		}
	}()
	return func() uint64 {
		cancel()
		<-done
		now, _ := d.counter.state()
		return now - before
	}
}
