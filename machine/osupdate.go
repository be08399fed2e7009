package machine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/kube/etcdcopy"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/machine/supervise"
	"github.com/holdfast-edge/holdfast/machine/update"
	"github.com/holdfast-edge/holdfast/release"
)

// Platform is what an update of the OS needs of the box.
type Platform struct {
	Running update.System // what runs, and from which slot
	Slots   *slots.Slots
	// Seal makes the disks open for what boots from that UKI. Nil: nothing is sealed.
	Seal func(ctx context.Context, slot slots.Slot, uki string) error
	// Reboot begins an orderly reboot and returns: Run's context ends.
	Reboot func(reason string)

	// Settled is called when this boot has lasted.
	Settled func()
	// Damaged is the slot whose root was found to be damaged before this boot; "" is none.
	Damaged slots.Slot
	// Mended is called when that slot is whole again.
	Mended func()

	// Ways are what the firmware can start.
	Ways *slots.Ways
}

// A boot has lasted when the machine has run for settledAfter: whatever of its root
// is used at all was used by then. From then on it sees to its idle slot.
const (
	settledAfter = 5 * time.Minute
	mirrorEvery  = 10 * time.Minute
)

// observeEvery is how often the health of the machine is told to the update.
const observeEvery = 5 * time.Second

// osUpdate is the agent's side of package update: what healthy means here, what
// is tried with a new OS, and when.
type osUpdate struct {
	*Machine
	updater *update.Updater

	mu     sync.Mutex // guards what follows
	trial  *taken     // the configuration that is tried with the OS; nil: none
	health map[string]applier.Status
	judged *rendered // what health is of
	hold   string    // of the plan that runs
}

// bootUpdate opens the memory of updates and goes on with a trial. Whatever is
// wrong with it, the machine runs what is applied.
func (m *Machine) bootUpdate(ctx context.Context) error {
	p := m.config.Platform
	if p == nil {
		return nil
	}
	o := &osUpdate{Machine: m, health: map[string]applier.Status{}}
	installer := &update.Installer{Slots: p.Slots, Store: m.store, Fetcher: m.fetcher(), Architecture: runtime.GOARCH, Log: m.log,
		Progress: func(done, total int64) {
			m.reporter.state(wire.Staging, fmt.Sprintf("OS: %d of %d MB", done>>20, total>>20))
		}}
	var err error
	o.updater, err = update.Open(filepath.Join(m.config.StateDir, "update"), update.Platform{
		Running: p.Running, Slots: p.Slots, Notes: m.box, Install: installer.Install, Seal: p.Seal,
		Reboot: o.reboot, Adopt: o.adopt, Log: m.log,
	})
	if err != nil {
		return err
	}
	m.os = o
	switch err := o.updater.Start(ctx); {
	case errors.Is(err, update.ErrRebooting):
		<-ctx.Done()
		return ctx.Err()
	case err != nil:
		m.log.Error("go on with an update of the OS", "err", err)
	}
	if t, ok := o.updater.Trial(); ok {
		if o.trial, err = o.reopen(t); err != nil {
			m.log.Error("read the configuration that is on trial", "err", err) // what is applied runs in its place
		}
	}
	o.hold = o.updater.Hold()
	o.tell()
	m.group.Go(func() error { return o.observe(ctx) })
	m.group.Go(func() error { o.milestones(ctx); return nil })
	m.group.Go(func() error { o.mirror(ctx); return nil })
	return nil
}

// mirror keeps something in the idle slot that can be booted when what runs is
// damaged, and mends a slot that was found to be.
func (o *osUpdate) mirror(ctx context.Context) {
	p := o.config.Platform
	idle, damaged := p.Slots.Idle(), p.Damaged
	o.ways(ctx)
	for wait := settledAfter; pause(ctx, wait); wait = mirrorEvery {
		p.Settled()
		began := time.Now()
		made, err := o.updater.Mirror(ctx, damaged == idle)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, slots.ErrContent) {
			o.faults.Set(faults.New(faults.DamagedSlot, p.Running.Slot))
		} else {
			o.fault(err, faults.NoSlot, idle)
		}
		if made {
			o.reporter.timed("os/mirror", began)
			o.log.Log(ctx, update.Notice, "the idle slot is a copy of the one that runs", "slot", idle)
		}
		// One that was written since and lasts is as good as one that was mended.
		if damaged != "" && err == nil && (made || damaged == p.Running.Slot) {
			o.faults.Clear(faults.DamagedSlot, string(damaged))
			p.Mended()
			damaged = ""
		}
		o.ways(ctx)
		o.reporter.faults(o.faults)
	}
}

// ways mends what the firmware did not start, and tells it all ways into the machine.
func (o *osUpdate) ways(ctx context.Context) {
	ways := o.config.Platform.Ways
	err := o.updater.Aside(func(trial bool) error {
		said, err := ways.See(ctx, trial)
		for _, s := range said {
			o.log.Log(ctx, update.Notice, "ways into the machine", "did", s, "started", ways.Started)
		}
		if err == nil && !trial && slots.Another(ways.Started) {
			o.faults.Clear(faults.AnotherWay, ways.Started)
		}
		return err
	})
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, slots.ErrLoader):
		o.faults.Set(faults.New(faults.LoaderKept))
	case err != nil:
		o.log.Warn("ways into the machine", "err", err) // it has the one that it came by
	default:
		o.faults.Clear(faults.LoaderKept)
	}
	o.reporter.faults(o.faults)
}

func (o *osUpdate) reopen(t update.Trial) (*taken, error) {
	digest, err := release.ParseDigest(t.Slice)
	if err != nil {
		return nil, err
	}
	return o.memory.reopenApplied(t.Encoded, appliedNote{Digest: digest})
}

// onTrial is the configuration to run while an OS is on trial; nil when none is.
func (o *osUpdate) onTrial() *taken {
	if o == nil || !o.updater.OnTrial() {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.trial
}

// held is the minor that Kubernetes has to speak; "" is its own.
func (o *osUpdate) held() string {
	if o == nil {
		return ""
	}
	return o.updater.Hold()
}

// adopt makes the configuration of the trial what is applied: the OS is blessed.
func (o *osUpdate) adopt(slice string) error {
	o.mu.Lock()
	t := o.trial
	o.mu.Unlock()
	if t == nil || t.Digest.String() != slice {
		if _, applied := o.memory.now(); applied != nil && applied.Digest.String() == slice {
			return nil
		}
		return fmt.Errorf("the configuration of the trial, %s, is not here", short(slice))
	}
	return o.memory.setApplied(t)
}

// due says whether next needs another OS than the one that runs, and which. An
// error is a refusal of the release's content.
func (o *osUpdate) due(next *rendered) (t update.Target, ok bool, err error) {
	if o == nil || next.resolved.OS == "" || next.resolved.OS == o.config.Platform.Running.Version {
		return update.Target{}, false, nil
	}
	documents := map[string]fleet.OSSpec{}
	for _, d := range next.Fleet.OSVersions() {
		documents[d.Version] = d.OSSpec
	}
	t, ok, err = o.updater.Wanted(next.resolved.OS, next.rendering.Effect, runtime.GOARCH, documents)
	code := faults.OSRefused
	if errors.Is(err, update.ErrRefused) {
		code = faults.OSRolledBack
	}
	o.fault(err, code, next.resolved.OS)
	if err != nil {
		return t, false, fmt.Errorf("%w: %w", errRefused, err)
	}
	return t, ok, nil
}

// begin writes the OS t into the idle slot and reboots into it, to be tried with
// the configuration of next, or, where t is a step on the way, with what runs.
func (o *osUpdate) begin(ctx context.Context, t update.Target, next, running *rendered) error {
	with := next
	if t.Version != next.resolved.OS && running != nil {
		with = running
	}
	timing := next.resolved.ClassOf(next.Member.Name).Update
	o.reporter.state(wire.Staging, "OS "+t.Version)
	if err := o.remember(with); err != nil {
		return err
	}
	began := time.Now()
	o.log.Info("update the OS", "from", o.config.Platform.Running.Version, "to", t.Version, "with", with.Tag.Payload.N)
	err := o.updater.Begin(ctx, update.Plan{
		Target: t, Slice: with.Digest.String(), Encoded: with.Encoded, Effect: next.rendering.Effect,
		Deadline: timing.Deadline, Soak: timing.Soak,
	})
	o.reporter.timed("os/begin", began)
	return err
}

// sickFile names the critical apps that were not well before the update: they are
// still sick, and condemn nothing.
func (o *osUpdate) sickFile() string { return filepath.Join(o.config.StateDir, "update", "sick.json") }

func (o *osUpdate) remember(with *rendered) error {
	sick := []string{}
	o.mu.Lock()
	for _, a := range with.rendering.Apps {
		if s, known := o.health[a.Name]; known && s.Health != applier.Ready {
			sick = append(sick, a.Name)
		}
	}
	o.mu.Unlock()
	return durable.WriteJSON(o.sickFile(), sick, 0o600)
}

// wasSick says which apps were not well before the trial.
func (o *osUpdate) wasSick() (list []string) {
	if durable.ReadJSON(o.sickFile(), &list) != nil {
		return nil
	}
	return list
}

// saw notes how an app of what runs is.
func (o *osUpdate) saw(r *rendered, s applier.Status) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.judged != r {
		o.judged, o.health = r, map[string]applier.Status{}
	}
	o.health[s.App] = s
}

// etcdCopy is what etcd wrote before an OS with another minor was tried.
func (m *Machine) etcdCopy() string { return filepath.Join(m.config.StateDir, "etcd-before") }

// reboot is asked for by the update. Before the first boot of another minor of
// Kubernetes a copy of etcd's data is taken at a clean stop.
func (o *osUpdate) reboot(ctx context.Context, reason string) error {
	r := o.updater.Status().Record
	copied := r != nil && r.Phase == update.Armed && r.From.Kubernetes != r.To.Kubernetes
	o.group.Go(func() error {
		ctx := context.WithoutCancel(ctx)
		if copied {
			if err := o.Shutdown(ctx); err != nil {
				o.log.Warn("stop before an update", "err", err)
			}
			err := etcdcopy.Take(o.cluster.paths.Etcd, o.etcdCopy(), etcdcopy.Note{Taken: time.Now(), Minor: r.From.Kubernetes, Version: r.From.Version})
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				// The hold alone already keeps the old OS able to read the data.
				o.log.Error("copy etcd's data before an update", "err", err)
			}
		}
		o.ways(ctx)
		o.config.Platform.Reboot(reason)
		return nil
	})
	return nil
}

// observe tells the update how the machine is, for as long as it runs.
func (o *osUpdate) observe(ctx context.Context) error {
	for wait := observeEvery; pause(ctx, wait); {
		was, began := o.updater.OnTrial(), time.Now()
		wrong := o.wrong(ctx)
		took := time.Since(began)
		err := o.updater.Observe(ctx, wrong)
		o.tell()
		wait = o.next(ctx, took)
		if len(wrong) == 0 && o.updater.Status().Record == nil {
			o.discardEtcdCopy()
		}
		switch {
		case errors.Is(err, update.ErrRebooting):
			return nil
		case err != nil && ctx.Err() == nil:
			o.log.Error("watch an update of the OS", "err", err)
		}
		if hold := o.updater.Hold(); hold != o.hold {
			o.hold = hold
			o.content.again()
		}
		if was && !o.updater.OnTrial() {
			o.content.wake()
		}
	}
	return nil
}

// nearly is how long before a boot on trial is judged good that is said.
const nearly = 2 * time.Second

// next is how long to wait before the machine is looked at again, which takes so
// long: a boot on trial is judged when it is due, and that is said just before.
func (o *osUpdate) next(ctx context.Context, took time.Duration) time.Duration {
	left, ok := o.updater.Left()
	r := o.updater.Status().Record
	switch {
	case !ok || r == nil:
		return observeEvery
	case left > nearly:
		return min(observeEvery, max(0, left-nearly-took))
	}
	o.log.Log(ctx, update.Notice, "OS update", "version", r.To.Version, "phase", r.Phase, "left", left.Round(time.Millisecond))
	return left
}

// milestones says how far Kubernetes is in a boot on trial, each once: where such
// a boot ended can be read from the console.
func (o *osUpdate) milestones(ctx context.Context) {
	said := func(reached string, d kube.Dialect) {
		o.log.Log(ctx, update.Notice, "OS update", "version", o.config.Platform.Running.Version, "reached", reached,
			"kubernetes", d.Program+" as "+d.Speaks, "etcd", d.Etcd+" as "+d.EtcdSpeaks)
	}
	for serves := false; o.updater.OnTrial() && pause(ctx, 100*time.Millisecond); {
		o.cluster.mu.Lock()
		plan := o.cluster.plan
		o.cluster.mu.Unlock()
		if plan == nil || plan.DialectFile == "" {
			continue
		}
		d, err := readDialect(plan.DialectFile)
		if err != nil {
			continue // etcd does not serve yet
		}
		if !serves {
			serves = true
			said("etcd serves", d)
		}
		if d.Ready {
			said("API ready", d)
			return
		}
	}
}

// tell shows and reports how far an update is.
func (o *osUpdate) tell() {
	s := o.updater.Status()
	phase := ""
	if s.Record != nil && o.updater.OnTrial() {
		phase = string(s.Record.Phase)
		o.faults.Set(faults.New(faults.Trial, s.Record.To.Version))
	} else {
		o.faults.Clear(faults.Trial)
	}
	if s.Refused != nil && slots.CompareVersions(s.Refused.Version, o.config.Platform.Running.Version) > 0 { // else it is past
		o.faults.Set(faults.New(faults.OSRolledBack, s.Refused.Version, s.Refused.Reason))
	}
	if hold := o.updater.Hold(); hold != "" {
		o.faults.Set(faults.New(faults.EtcdHeld, hold))
	} else {
		o.faults.Clear(faults.EtcdHeld)
	}
	o.reporter.update(func(r *wire.Report) { r.Trial = phase })
}

// wrong lists what is not as it should be: machine, kubelet, etcd and API,
// network, and apps marked critical. The hub's absence is no fault.
func (o *osUpdate) wrong(ctx context.Context) (list []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if len(lanAddresses()) == 0 {
		list = append(list, "network: no address")
	}
	for _, s := range o.cluster.supervisor.Status() {
		if s.State != supervise.Running {
			list = append(list, fmt.Sprintf("%s: %s", s.Name, s.State))
		}
	}
	o.mu.Lock()
	running, health := o.judged, o.health
	var sick []string
	if running != nil {
		for _, a := range running.rendering.Apps {
			if s := health[a.Name]; a.Critical && s.Health != applier.Ready {
				sick = append(sick, a.Name)
			}
		}
	}
	o.mu.Unlock()
	if running == nil {
		return append(list, "content: nothing runs yet")
	}
	before := o.wasSick()
	for _, name := range sick {
		if !slices.Contains(before, name) {
			list = append(list, "app "+name+": not ready")
		}
	}
	if running.Member.Role != kube.RoleControlPlane {
		return list
	}
	if err := o.node(ctx, running); err != nil {
		list = append(list, "kubelet: "+err.Error())
	}
	if err := o.dialect(running); err != nil {
		list = append(list, "etcd: "+err.Error())
	}
	return list
}

// dialect checks what Kubernetes speaks and writes, where a minor is on trial.
func (o *osUpdate) dialect(running *rendered) error {
	hold, lifting := o.updater.Hold(), o.updater.Lifting()
	if (hold == "" && !lifting) || running.plan.DialectFile == "" {
		return nil
	}
	d, err := readDialect(running.plan.DialectFile)
	if err != nil {
		return err
	}
	if lifting {
		return d.Lifted()
	}
	return d.Held(hold)
}

func readDialect(file string) (kube.Dialect, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return kube.Dialect{}, err
	}
	return kube.ParseDialect(data)
}

// node asks the API server whether this machine's node is ready.
func (o *osUpdate) node(ctx context.Context, running *rendered) error {
	client, err := apiClient(o.content.api(running))
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, o.content.api(running).URL+"/api/v1/nodes/"+url.PathEscape(running.Member.Name), nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the API server says %s", response.Status)
	}
	return nodeReady(http.MaxBytesReader(nil, response.Body, 4<<20))
}

// nodeReady reads a Node and finds its condition.
func nodeReady(body io.Reader) error {
	var n struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := json.NewDecoder(body).Decode(&n); err != nil {
		return fmt.Errorf("read the node: %w", err)
	}
	for _, c := range n.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return nil
		}
	}
	return errors.New("the node is not ready")
}

// apiClient speaks to the site's API server as machined, with the files as they
// are now.
func apiClient(api applier.API) (*http.Client, error) {
	ca, err := os.ReadFile(api.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", api.CA)
	}
	own, err := tls.LoadX509KeyPair(api.Cert, api.Key)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: api.Name, Certificates: []tls.Certificate{own}},
	}}, nil
}

// newerData is the exit code of a control plane that finds data of a newer minor.
const newerData = 76

// discardEtcdCopy removes what was for the way back, once there is none or it was
// gone: a stale copy would be put back by a mistake of months later.
func (o *osUpdate) discardEtcdCopy() {
	if _, err := etcdcopy.Find(o.etcdCopy()); errors.Is(err, etcdcopy.ErrNone) {
		return
	}
	if err := etcdcopy.Discard(o.cluster.paths.Etcd, o.etcdCopy()); err != nil {
		o.log.Error("discard the copy of etcd's data", "err", err)
	}
}

// aloneWithEtcd says whether this machine is the only control plane of its site.
func (m *Machine) aloneWithEtcd() bool {
	accepted, _ := m.memory.now()
	if accepted == nil || accepted.Fleet == nil {
		return false
	}
	site, ok := accepted.Fleet.Site(accepted.site())
	if !ok {
		return false
	}
	n := 0
	for _, machine := range site.Machines {
		if machine.Role == kube.RoleControlPlane {
			n++
		}
	}
	return n == 1
}

// restoreEtcd puts the copy of etcd's data back when the OS of before finds that
// it cannot read what the refused one wrote. One of several control planes must
// not go back alone.
func (m *Machine) restoreEtcd() {
	if !m.aloneWithEtcd() {
		m.fault(errors.New("it is of a newer minor, and the site has other control planes"), faults.EtcdDamaged)
		return
	}
	loss, err := etcdcopy.Restore(m.cluster.paths.Etcd, m.etcdCopy())
	m.fault(err, faults.EtcdDamaged)
	if err != nil {
		m.log.Error("put etcd's data of before back", "err", err)
		return
	}
	m.log.Warn("put etcd's data of before back", "loss", loss.String())
	m.reporter.condition("etcd restored", errors.New(loss.String()))
}
