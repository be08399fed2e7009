package hosted

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// ErrRunning is returned by Run and Clean when another process runs the machine.
var ErrRunning = errors.New("the machine is already running")

// innerEnv marks the inner process.
const innerEnv = "HOLDFAST_HOSTED_INNER"

// Descriptors that the inner process inherits.
const (
	ordersFD  = 3 // reads: one line of JSON, then a line when the network is there; its end means that the outer died
	answersFD = 4 // writes: "ready" or why not
	stateFD   = 5
	dataFD    = 6
)

// orders are what the inner process must know.
type orders struct {
	Name     string
	Hostname string
	Mount    string // folder of the host where the new root is put together; it stays empty for everybody else
	Bin      string
	Binds    []Bind
	Address  string
	DNS      []string
	Memory   int64
	CPUs     int
	Unified  bool // cgroups of version 2 alone
}

const (
	firstPause   = 100 * time.Millisecond // before the inner is started again
	longestPause = 15 * time.Second
	calm         = time.Minute      // a run this long makes the next pause short again
	tidyTime     = 30 * time.Second // for the kernel to take everything down
	setUpTime    = time.Minute      // an inner that has not answered by then hangs and is killed; replaying a journal is the slowest part
)

// outer is one Run.
type outer struct {
	spec  Spec
	argv  []string
	group *cgroups.Group
	host  *cgroups.Host
}

// Run runs the machine until ctx ends: this program again, with the arguments, as process 1 of its own namespaces. When that dies it is started again, after a
// pause that grows. Run returns nil once the machine has stopped and nothing of it is left on the host.
func Run(ctx context.Context, spec Spec, argv []string) error {
	o, lock, err := take(spec)
	if err != nil {
		return err
	}
	defer lock.Close()
	o.argv = argv
	pause := firstPause
	for {
		began := time.Now()
		err := o.life(ctx)
		if ctx.Err() != nil {
			return o.tidy()
		}
		if time.Since(began) > calm {
			pause = firstPause
		}
		o.spec.Log.Warn("machine died and is started again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return o.tidy()
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// Clean removes what a killed Run left on the host, the machine's disks excepted.
func Clean(spec Spec) error {
	o, lock, err := take(spec)
	if err != nil {
		return err
	}
	defer lock.Close()
	return o.tidy()
}

// take validates the machine and locks it.
func take(spec Spec) (*outer, *flock.Lock, error) {
	spec = spec.withDefaults()
	if err := spec.validate(); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Join(spec.Root, "mnt"), 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the machine's folder: %w", err)
	}
	host, err := cgroups.Detect()
	if err != nil {
		return nil, nil, fmt.Errorf("hosted machine %s: %w", spec.Name, err)
	}
	if spec.unified {
		host.Hierarchies = slices.DeleteFunc(host.Hierarchies, func(x cgroups.Hierarchy) bool { return x.Version == 1 })
	}
	lock, err := flock.TryLock(filepath.Join(spec.Root, "lock"))
	if errors.Is(err, flock.ErrHeld) {
		return nil, nil, fmt.Errorf("%w in %s", ErrRunning, spec.Root)
	}
	if err != nil {
		return nil, nil, err
	}
	return &outer{spec: spec, host: host, group: host.Group(spec.CgroupParent + "/" + spec.Name)}, lock, nil
}

// tidy takes down whatever is left of any life of the machine. Safe to be cut short anywhere: the next tidy finds the rest.
func (o *outer) tidy() error {
	ctx, cancel := context.WithTimeout(context.Background(), tidyTime)
	defer cancel()
	err := errors.Join(o.group.Remove(ctx), o.spec.Network.detach(o.spec.Name), waitReleased(ctx, o.spec.Root))
	o.host.Group(o.spec.CgroupParent).RemoveIfEmpty()
	for _, name := range []string{"state.img.tmp", "data.img.tmp"} {
		os.Remove(filepath.Join(o.spec.Root, name))
	}
	return err
}

// life is one inner process from start to end.
func (o *outer) life(ctx context.Context) error {
	if err := o.group.Remove(ctx); err != nil { // of an earlier outer that was killed
		return err
	}
	im, err := openImages(ctx, &o.spec)
	if err != nil {
		return err
	}
	defer im.close()
	if err := o.group.Create(cgroups.Limits{Memory: o.spec.Memory, CPUs: float64(o.spec.CPUs)}); err != nil {
		return err
	}
	in, err := o.start(im)
	if err != nil {
		return err
	}
	im.close() // from here on only the inner's loop devices hold them
	defer in.orders.Close()
	began := time.Now()
	o.spec.Notify(Event{Stage: Started, PID: in.pid})
	ended := make(chan error, 1)
	go func() { ended <- spawn.Wait(in.cmd) }()
	unfit := o.introduce(in)
	if unfit != nil {
		in.cmd.Process.Kill()
	}
	answer := make(chan error, 1)
	go func() { answer <- o.listen(in, began) }()
	in.answers.SetReadDeadline(began.Add(setUpTime))
	err = o.watch(ctx, in, ended)
	said := <-answer
	err = cmp.Or(said, unfit, err) // a network that does not find an inner which has ended is no cause
	if ctx.Err() != nil {
		err = nil
	}
	o.spec.Notify(Event{Stage: Ended, PID: in.pid, Took: time.Since(began), Err: err})
	return err
}

// inner is the other process as the outer sees it.
type inner struct {
	cmd     *exec.Cmd
	pid     int
	orders  *os.File
	answers *os.File
}

func (o *outer) start(im *images) (*inner, error) {
	ordersIn, ordersOut, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ordersIn.Close()
	answersIn, answersOut, err := os.Pipe()
	if err != nil {
		ordersOut.Close()
		return nil, err
	}
	defer answersOut.Close()
	cmd := exec.Command("/proc/self/exe", o.argv...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Env = append([]string{innerEnv + "=1", "PATH=/opt/holdfast:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, o.spec.Env...)
	cmd.Stdout, cmd.Stderr = o.spec.Output, o.spec.Output
	cmd.ExtraFiles = []*os.File{ordersIn, answersOut, im.state, im.data}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		// Not by clone: a cgroup namespace takes as its root the group of whoever makes it, and with clone that is the parent.
		Unshareflags: unix.CLONE_NEWCGROUP,
		Setsid:       true,
	}
	if err := spawn.Start(cmd, o.group); err != nil {
		ordersOut.Close()
		answersIn.Close()
		return nil, fmt.Errorf("start the inner process: %w", err)
	}
	return &inner{cmd, cmd.Process.Pid, ordersOut, answersIn}, nil
}

// introduce gives the inner its orders and its network.
func (o *outer) introduce(in *inner) error {
	s := &o.spec
	ord := orders{Name: s.Name, Hostname: s.Hostname, Mount: filepath.Join(s.Root, "mnt"), Bin: s.Bin, Binds: s.Binds, Memory: s.Memory, CPUs: s.CPUs, Unified: o.host.Unified()}
	if s.Network.Address.IsValid() {
		ord.Address = s.Network.Address.Addr().String()
	}
	for _, a := range s.Network.DNS {
		ord.DNS = append(ord.DNS, a.String())
	}
	if err := json.NewEncoder(in.orders).Encode(ord); err != nil { // the inner mounts while we see to the network
		return fmt.Errorf("give orders: %w", err)
	}
	if err := s.Network.attach(s.Name, in.pid); err != nil {
		return err
	}
	// An inner that has died already told why, or its end says so: listen hears it.
	if _, err := io.WriteString(in.orders, "network\n"); err != nil && !errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("tell of the network: %w", err)
	}
	return nil
}

// listen waits for the one answer; a process that dies without one has said what it had to say on its output.
func (o *outer) listen(in *inner, began time.Time) error {
	defer in.answers.Close()
	line, err := bufio.NewReader(io.LimitReader(in.answers, 64<<10)).ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		in.cmd.Process.Kill()
		return fmt.Errorf("not set up within %v", setUpTime)
	}
	if err != nil {
		return nil
	}
	if line = strings.TrimSpace(line); line != "ready" {
		return errors.New(line)
	}
	o.spec.Notify(Event{Stage: Ready, PID: in.pid, Took: time.Since(began)})
	return nil
}

// watch returns when the inner has ended, which it is asked to when ctx ends.
func (o *outer) watch(ctx context.Context, in *inner, ended <-chan error) error {
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("exit code 0")
		}
		return fmt.Errorf("the inner process ended: %w", err)
	case <-ctx.Done():
	}
	in.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(o.spec.Grace):
		o.spec.Log.Warn("machine did not stop in time and is killed", "grace", o.spec.Grace)
		in.cmd.Process.Kill()
		<-ended
	}
	return nil
}
