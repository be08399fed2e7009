// Package drill does to a machine of a running lab what the world does to machines
// in shops, and says whether it keeps its promises: it cuts the power, lies about
// the time, steals the disk, flips bytes. Each step tells what was done, what was
// expected, what was seen, how long that took and what was lost. It promises that a
// broken promise is an error, that a seed brings the same choices back, and that
// the machine is left as it was found, also when a drill is interrupted, but for
// the OS, the slot and the Kubernetes that it was brought to. It leaves out starting the lab,
// and how the site is reached: who calls gives that.
package drill

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

// Site is what a drill needs to know of the site, besides its lab.
type Site interface {
	// Status is what the hub says of the machine, and the newest release's number.
	Status(ctx context.Context) (wire.MachineStatus, uint64, error)
	// Ask asks the machine itself, end to end: nobody answers without its identity key.
	Ask(ctx context.Context) (wire.Report, error)
	// Unlock opens the machine's disk with the fleet's recovery key, through the hub.
	Unlock(ctx context.Context) error
	// API is the way to the site's Kubernetes for a person, judged by the clock now.
	API(ctx context.Context, now func() time.Time) (*API, error)
	// Change changes what the fleet repo tells the site's app, commits, releases,
	// and returns the number of the release and a text that the app then says; 0 when
	// the fleet repo has nothing that is known to be free to change.
	Change(ctx context.Context, why string) (n uint64, says string, err error)
	// Free says whether the app has a text that is known to be free to change.
	Free(ctx context.Context) (bool, error)
	// BuildOS builds a version of the fleet's OS, with a delta from a folder of parts;
	// without one it makes no update, parts only. change, if not nil, makes it another one than the programs here make.
	BuildOS(ctx context.Context, version, from string, change func(*build.Options) error) (*OSBuild, error)
	// ReleaseOS brings the version to the hubs, makes it the one of the machine's
	// ring, and releases. One without a folder is known already.
	ReleaseOS(ctx context.Context, o *OSBuild, t Timing) (n uint64, err error)
}

// Timing is how long each boot of an OS on trial may take to become healthy, and
// how long it must then stay so.
type Timing struct{ Deadline, Soak time.Duration }

// OSBuild is a version of the OS.
type OSBuild struct {
	Version       string
	Parts, Folder string // of parts, and of the update
	Whole, Delta  int64  // bytes to fetch
	Says          string // what the app is to say with it, where that is free to change; "": what it says
}

// API is a way to a site's Kubernetes.
type API struct {
	URL  string
	HTTP *http.Client
}

// Step is one thing that was done, with what came of it.
type Step struct {
	Did      string  `json:"did"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	Lost     string  `json:"lost,omitempty"`
	Seconds  float64 `json:"seconds"`
	Kept     bool    `json:"kept"` // the promise
}

// Verdict is the outcome of a drill.
type Verdict struct {
	Drill   string  `json:"drill"`
	Machine string  `json:"machine"`
	Seed    uint64  `json:"seed"`
	Steps   []Step  `json:"steps"`
	Seconds float64 `json:"seconds"`
	Kept    bool    `json:"kept"` // every promise
}

// String is the verdict in one line.
func (v *Verdict) String() string {
	broken := 0
	for _, s := range v.Steps {
		if !s.Kept {
			broken++
		}
	}
	if v.Kept {
		return fmt.Sprintf("%s of %s: %d promises kept, in %.0f s (seed %d)", v.Drill, v.Machine, len(v.Steps), v.Seconds, v.Seed)
	}
	if broken == 0 {
		return fmt.Sprintf("%s of %s: not finished, %d promises kept (seed %d)", v.Drill, v.Machine, len(v.Steps), v.Seed)
	}
	return fmt.Sprintf("%s of %s: BROKEN: %d of %d promises (seed %d)", v.Drill, v.Machine, broken, len(v.Steps), v.Seed)
}

// ErrBroken is the error of a drill in which a promise broke.
var ErrBroken = errors.New("a promise broke")

// broken is what a machine did that it promised not to do.
func broken(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrBroken}, a...)...)
}

// Kind is a drill that there is.
type Kind struct {
	Name, Short string
	Ways        []string // what it can do alone
}

// Kinds lists the drills in the order in which all of them are best done: the last
// one is for good.
func Kinds() []Kind {
	return []Kind{
		{"power", "cut the power at random instants of boot, work, idle, a release, an update, and of the install",
			[]string{"boot", "work", "idle", "release", "update", "storm", "write", "trial", "bless", "install"}},
		{"tamper", "flip one byte of the boot image, of the boot loader and of the root", nil},
		{"theft", "start the disk in a box with another TPM, and look at what a thief reads", nil},
		{"unlock", "shut the disk to its TPM, and open it with the recovery key through the hub", nil},
		{"clock", "start the machine in 1970, and ten years from now", nil},
		{"rollback", "put an old OS version in, signed as it should be", nil},
		{"update", "release a good next OS, and watch it being fetched, tried and kept", nil},
		{"bad-os", "release OS versions that panic, hang, or break later, and watch the way back",
			[]string{"panic", "hang", "kubelet", "network", "cold", "late"}},
		{"disk", "put a blank disk in, and let the machine refill itself", nil},
		{"upgrade", "go to the next minor of Kubernetes, forced back at five instants before: for good",
			[]string{"panic", "etcd", "api", "soon", "blessing", "kept"}},
	}
}

// Ways are what a drill can do alone.
func Ways(name string) []string {
	for _, k := range Kinds() {
		if k.Name == name {
			return k.Ways
		}
	}
	return nil
}
