package machine

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/machine/pki"
	"github.com/holdfast-edge/holdfast/machine/supervise"
)

// cluster makes a kube.Plan true on this machine: addresses, files, keys,
// packet filter, processes. Making the same plan true again changes nothing.
type cluster struct {
	paths      kube.Paths
	supervisor *supervise.Supervisor
	keys       *pki.Store
	name       string            // of the cluster, into its authorities
	helpers    []supervise.Child // of machined's own, beside a control plane
	log        *slog.Logger

	once sync.Once // what is thrown away at each boot

	running sync.Mutex // held while the set of processes changes; guards ends
	ends    bool       // the machine stops: nothing is started any more

	mu    sync.Mutex // guards what follows
	plan  *kube.Plan
	renew time.Time // when the first certificate falls due
	split bool      // controllers run apart, after a crash loop
}

// ensure makes plan true and returns when the supervisor has taken note.
func (c *cluster) ensure(ctx context.Context, plan *kube.Plan) error {
	var first error
	c.once.Do(func() { first = c.discard(plan.Fresh) })
	if first != nil {
		return first
	}
	steps := []struct {
		what string
		do   func() error
	}{
		// The filter comes before what it guards: addresses, and forwarding.
		{"packet filter", func() error { return loadPacketFilter(ctx, plan.PacketFilter) }},
		{"kernel settings", func() error { return writeSysctls(plan.Sysctls) }},
		{"addresses", func() error { return addLoopback(plan.Addresses) }},
		{"folders", func() error { return makeFolders(plan.Folders) }},
		{"files", func() error { return writeFiles(plan.Files) }},
		{"certificates", func() error { return c.certify(ctx, plan.Certificates) }},
		{"processes", func() error { return c.run(ctx, c.children(plan)) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("make the plan's %s true: %w", s.what, err)
		}
	}
	c.mu.Lock()
	c.plan = plan
	c.mu.Unlock()
	return nil
}

// certify makes or renews the plan's certificates, and the site's authorities
// where this machine starts the cluster.
func (c *cluster) certify(ctx context.Context, wanted []kube.Certificate) error {
	if !c.keys.HasAuthorities() {
		if err := c.keys.MakeAuthorities(c.name); err != nil {
			return err
		}
	}
	result, err := c.keys.Ensure(ctx, wanted, c.keys)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.renew = result.Next
	c.mu.Unlock()
	return nil
}

// renewals renews certificates when the first falls due. Nothing restarts:
// every reader looks at its files again.
func (c *cluster) renewals(ctx context.Context) {
	for pause(ctx, time.Minute) {
		c.mu.Lock()
		plan, due := c.plan, !c.renew.IsZero() && time.Now().After(c.renew)
		c.mu.Unlock()
		if plan == nil || !due {
			continue
		}
		if err := c.certify(ctx, plan.Certificates); err != nil {
			c.log.Error("renew certificates", "err", err)
		}
	}
}

func (c *cluster) discard(paths []string) error {
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("discard what is worthless after a boot: %w", err)
		}
	}
	return nil
}

// controlPlane is the process that has the API server.
const controlPlane = "control-plane"

// children are what the supervisor runs: the plan's commands, and beside an API
// server what works with it.
func (c *cluster) children(plan *kube.Plan) []supervise.Child {
	list := make([]supervise.Child, 0, len(plan.Commands)+len(c.helpers))
	for _, command := range plan.Commands {
		list = append(list, supervise.Child{
			Name: command.Name, Path: command.Path, Args: command.Args, Env: environment(command.Env),
			After: command.After, Ready: ready(command.Ready), Grace: command.Grace,
			OOMScoreAdj: command.OOMScoreAdj, Revision: command.Revision, Cgroup: command.Name,
		})
		if command.Name == controlPlane {
			list = append(list, c.helpers...)
		}
	}
	return list
}

// environment is that of every child, with what it has besides.
func environment(more []string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}, more...)
}

// ready is the check that r describes.
func ready(r kube.Ready) func(context.Context) error {
	switch {
	case r.File != "":
		return func(context.Context) error {
			_, err := os.Stat(r.File)
			return err
		}
	case r.Socket != "":
		return func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", r.Socket)
			if err != nil {
				return err
			}
			return conn.Close()
		}
	case r.URL != "":
		return func(ctx context.Context) error { return get(ctx, r.URL) }
	}
	return nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// addLoopback puts addresses on the loopback device, which is brought up.
func addLoopback(addresses []netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the loopback device up: %w", err)
	}
	for _, a := range addresses {
		ipnet := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
		if err := netlink.AddrReplace(lo, &netlink.Addr{IPNet: ipnet}); err != nil {
			return fmt.Errorf("add %s to the loopback device: %w", a, err)
		}
	}
	return nil
}

func writeSysctls(settings map[string]string) error {
	for name, value := range settings {
		path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set %s=%s: %w", name, value, err)
		}
	}
	return nil
}

func makeFolders(folders []kube.Folder) error {
	for _, f := range folders {
		if err := os.MkdirAll(f.Path, fs.FileMode(f.Mode)); err != nil {
			return err
		}
		if err := os.Chmod(f.Path, fs.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles writes only what differs, so that nobody who watches is stirred.
func writeFiles(files []kube.File) error {
	for _, f := range files {
		old, err := os.ReadFile(f.Path)
		if err == nil && string(old) == string(f.Content) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			return err
		}
		if err := durable.WriteFile(f.Path, f.Content, fs.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	return nil
}

// loadPacketFilter replaces our table in one transaction.
func loadPacketFilter(ctx context.Context, script string) error {
	if _, err := spawn.Run(ctx, []byte(script), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("load the packet filter: %w", err)
	}
	return nil
}

// watch tells of processes that crash again and again, and parts a merged
// control plane that does: what may exit on a poisonous object must not take
// etcd and the API with it.
func (c *cluster) watch(ctx context.Context, tell func(name string, err error), replan func()) {
	for {
		changed := c.supervisor.Changed()
		for _, s := range c.supervisor.Status() {
			var fault error
			if s.CrashLoop {
				fault = fmt.Errorf("%d times in ten minutes, last: %s", s.Crashes, lastWords(s))
			}
			tell(s.Name, fault)
			if s.CrashLoop && s.Name == controlPlane && c.part() {
				c.log.Warn("controllers run apart from now on", "err", fault)
				replan()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func lastWords(s supervise.Status) string {
	if s.LastExit == nil {
		return "unknown"
	}
	return s.LastExit.String()
}

// part says from now on that controllers run apart; false if they did already.
func (c *cluster) part() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.split
	c.split = true
	return !was
}

// isSplit says whether controllers must run apart.
func (c *cluster) isSplit() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.split
}

// waitFor waits until the named process is ready.
func (c *cluster) waitFor(ctx context.Context, name string) error {
	for {
		changed := c.supervisor.Changed()
		for _, s := range c.supervisor.Status() {
			if s.Name == name && s.State == supervise.Running {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", name, ctx.Err())
		case <-changed:
		}
	}
}

// forget stops every process and throws away the keys and data of the cluster.
// The machine's own identity and memory stay.
func (c *cluster) forget(ctx context.Context) error {
	if err := c.supervisor.Apply(ctx, nil); err != nil {
		return err
	}
	if err := c.stopped(ctx); err != nil {
		return err
	}
	for _, p := range []string{c.paths.PKI, c.paths.Etcd, filepath.Join(c.paths.Data, "kubelet"), c.paths.Config} {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("forget the cluster: %w", err)
		}
	}
	return nil
}

// stopped waits until no process runs.
func (c *cluster) stopped(ctx context.Context) error {
	for {
		changed := c.supervisor.Changed()
		if !slices.ContainsFunc(c.supervisor.Status(), func(s supervise.Status) bool { return s.PID != 0 }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
