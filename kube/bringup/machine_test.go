//go:build (system || dialect) && linux

// Package bringup_test starts a machine's Kubernetes for real, from a plan of
// package kube and the keys of machine/pki, in namespaces of its own. It needs
// root and what `make system` builds. It is the judge of the plan: golden files
// show that a plan did not change, this shows that it works.
//
// With HOLDFAST_MEASURE=10m it waits that long after ready and prints memory and
// processor time at rest.
package bringup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/vishvananda/netlink"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/cgroups"
	"github.com/holdfast-edge/holdfast/internal/netns"
	"github.com/holdfast-edge/holdfast/internal/ociimage"
	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/machine/pki"
)

const (
	innerEnv = "HOLDFAST_BRINGUP_DIR"
	webImage = "holdfast.dev/web:1"
	lanOwn   = "172.30.0.2/24"
	lanOther = "172.30.0.1/24"
)

const app = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: holdfast.dev/web:1
        imagePullPolicy: Always
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        resources: {limits: {memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.215.0.83
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Namespace
metadata: {name: door, labels: {pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: v1
kind: Pod
metadata: {name: door, namespace: door}
spec:
  containers:
  - name: web
    image: holdfast.dev/web:1
    ports: [{containerPort: 8080, hostPort: 8088}]
`

// TestMain runs the tests inside namespaces: this program starts itself again
// there, as process 1, so that killing it leaves nothing.
func TestMain(m *testing.M) {
	if os.Getenv(innerEnv) != "" {
		os.Exit(inner(m))
	}
	code, err := outer()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bring-up:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

func outer() (int, error) {
	if os.Getuid() != 0 {
		return 0, errors.New("needs root: run make test as root")
	}
	if _, err := os.Stat(system("kube")); err != nil {
		return 0, fmt.Errorf("needs bin/system: run make system first: %w", err)
	}
	dir, err := os.MkdirTemp("", "bringup")
	if err != nil {
		return 0, err
	}
	defer func() {
		if os.Getenv("KEEP") == "" {
			os.RemoveAll(dir)
		}
	}()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "web"), "./testdata/web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build the pod's program: %w\n%s", err, out)
	}
	host, err := cgroups.Detect()
	if err != nil {
		return 0, err
	}
	group := host.Group(fmt.Sprintf("holdfast-bringup-%d", os.Getpid()))
	if err := group.Create(cgroups.Limits{}); err != nil {
		return 0, err
	}
	defer group.Remove(context.Background())
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), innerEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | 0x02000000, // CLONE_NEWCGROUP
	}
	if err := spawn.Start(cmd, group); err != nil {
		return 0, err
	}
	err = spawn.Wait(cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

func inner(m *testing.M) int {
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, "bring-up: furnish the machine:", err)
		return 1
	}
	go spawn.Reap(context.Background())
	return m.Run()
}

// furnish gives the machine file systems, kernel settings and a LAN of its own.
func furnish() error {
	host, err := cgroups.Detect()
	if err != nil {
		return err
	}
	mount := func(source, target, kind string, flags uintptr, data string) {
		if err == nil {
			if e := syscall.Mount(source, target, kind, flags, data); e != nil {
				err = fmt.Errorf("mount %s on %s: %w", kind, target, e)
			}
		}
	}
	dir := os.Getenv(innerEnv)
	mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, "")
	mount("proc", "/proc", "proc", 0, "")
	syscall.Unmount("/sys", syscall.MNT_DETACH)
	mount("sysfs", "/sys", "sysfs", 0, "")
	if host.Unified() {
		mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "")
	} else {
		mount("cgroup_root", "/sys/fs/cgroup", "tmpfs", 0, "mode=755")
		for _, h := range host.Hierarchies {
			if h.Version == 2 {
				continue
			}
			at := "/sys/fs/cgroup/" + strings.TrimPrefix(h.Name, "name=")
			os.Mkdir(at, 0o755)
			data := h.Name
			if strings.HasPrefix(data, "name=") {
				data = "none," + data
			}
			mount("cgroup", at, "cgroup", 0, data)
		}
	}
	// The kubelet writes the whole host's settings: it gets files instead.
	for setting, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(dir, "sysctl-"+strings.ReplaceAll(setting, "/", "-"))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		mount(file, "/proc/sys/"+setting, "", syscall.MS_BIND, "")
	}
	for _, at := range []string{"/run", "/var/lib", "/var/log", "/opt"} {
		mount("tmpfs", at, "tmpfs", 0, "mode=755")
	}
	mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
	if err != nil {
		return err
	}
	return syscall.Sethostname([]byte("till"))
}

func system(name string) string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../../bin/system", name)
}

// A machine is one that runs.
type machine struct {
	plan     *kube.Plan
	paths    kube.Paths
	site     *fleet.Resolved
	dir      string
	children map[string]*exec.Cmd
	stranger *os.File // network namespace of a box on the LAN
	began    time.Time
}

func resolved() *fleet.Resolved {
	id := fleet.MachineIDOf([]byte("till"))
	return &fleet.Resolved{
		Fleet: "shops", FleetID: "00112233445566778899aabbccddeeff", Site: "berlin", UID: "berlin-uid", Dir: "sites/berlin",
		Network: fleet.Network{
			SiteRange: netip.MustParsePrefix("10.213.0.0/24"), PodRange: netip.MustParsePrefix("10.214.0.0/16"),
			ServiceRange: netip.MustParsePrefix("10.215.0.0/16"), APIAddress: netip.MustParseAddr("10.213.0.1"), Domain: "cluster.local",
		},
		Kubernetes: fleet.Kubernetes{Version: "1.36", MaxPods: 110},
		Machines:   []fleet.Machine{{Name: "till", ID: id, Role: kube.RoleControlPlane, SiteAddress: netip.MustParseAddr("10.213.0.11")}},
	}
}

// newMachine plans, makes keys, and lays out what the plan wants. It starts
// nothing that the plan names.
func newMachine(t *testing.T, options func(*kube.Options)) *machine {
	t.Helper()
	dir := os.Getenv(innerEnv)
	m := &machine{dir: dir, site: resolved(), children: map[string]*exec.Cmd{}}
	m.paths = kube.Paths{
		Bin: filepath.Dir(system("kube")), Config: "/run/holdfast/kube", Run: "/run/holdfast",
		PKI: filepath.Join(dir, "pki"), Etcd: filepath.Join(dir, "etcd"), Data: filepath.Join(dir, "data"),
	}
	must(t, m.lan())
	must(t, m.link("lo", nil))
	o := kube.Options{Hosted: true, Registry: m.registry(t), Upstreams: []netip.Addr{netip.MustParseAddr("172.30.0.1")}}
	if options != nil {
		options(&o)
	}
	m.began = time.Now()
	plan, err := kube.New(m.site, m.site.Machines[0], m.paths, o)
	must(t, err)
	m.plan = plan
	store, err := pki.Open(m.paths.PKI, pki.Options{})
	must(t, err)
	must(t, store.MakeAuthorities("berlin"))
	_, err = store.Ensure(t.Context(), plan.Certificates, store)
	must(t, err)
	m.lay(t)
	go m.balance()
	return m
}

func (m *machine) lay(t *testing.T) {
	t.Helper()
	must(t, m.link("lo", m.plan.Addresses))
	for key, value := range m.plan.Sysctls {
		must(t, os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0o644))
	}
	for _, f := range m.plan.Fresh {
		must(t, os.RemoveAll(f))
	}
	for _, f := range m.plan.Folders {
		must(t, os.MkdirAll(f.Path, os.FileMode(f.Mode)))
	}
	for _, f := range m.plan.Files {
		if os.Getenv("HOLDFAST_MEASURE") == "" { // the test has no minute to wait
			f.Content = bytes.Replace(f.Content, []byte(`"settleSeconds": 60`), []byte(`"settleSeconds": 15`), 1)
		}
		must(t, os.MkdirAll(filepath.Dir(f.Path), 0o755))
		must(t, os.WriteFile(f.Path, f.Content, os.FileMode(f.Mode)))
	}
	nft := exec.Command("nft", "-f", "-")
	nft.Stdin = strings.NewReader(m.plan.PacketFilter)
	if out, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("load the packet filter: %v\n%s\n%s", err, out, m.plan.PacketFilter)
	}
}

func (m *machine) link(device string, addresses []netip.Prefix) error {
	l, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	for _, p := range addresses {
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if err := netlink.AddrReplace(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// lan joins the machine to a box that is no part of the site.
func (m *machine) lan() error {
	if m.stranger != nil {
		return nil
	}
	var err error
	if m.stranger, err = netns.New(); err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan0"}, PeerName: "box0", PeerNamespace: netlink.NsFd(m.stranger.Fd())}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	if err := m.link("lan0", []netip.Prefix{netip.MustParsePrefix(lanOwn)}); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP("172.30.0.1")}); err != nil {
		return err
	}
	return netns.Do(m.stranger, func() error {
		if err := m.link("lo", nil); err != nil {
			return err
		}
		if err := m.link("box0", []netip.Prefix{netip.MustParsePrefix(lanOther)}); err != nil {
			return err
		}
		// The box is nosy: it routes the site's ranges to the machine.
		for _, r := range []string{"10.213.0.0/24", "10.214.0.0/16", "10.215.0.0/16"} {
			_, dst, _ := net.ParseCIDR(r)
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP("172.30.0.2")}); err != nil {
				return err
			}
		}
		return nil
	})
}

// registry stands for machined's: it has the pause image and the pod's.
func (m *machine) registry(t *testing.T) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	address := netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://"))
	for ref, file := range map[string]string{kube.PauseImage: system("pause"), webImage: filepath.Join(m.dir, "web")} {
		program, err := os.ReadFile(file)
		must(t, err)
		img, err := ociimage.Build(program, ociimage.Config{Name: filepath.Base(file), Architecture: runtime.GOARCH})
		must(t, err)
		tag, err := name.NewTag(ref)
		must(t, err)
		to, err := name.NewTag(address.String() + "/" + tag.RepositoryStr() + ":" + tag.TagStr())
		must(t, err)
		must(t, remote.Write(to, img))
	}
	return address
}

// balance stands for machined's balancer.
func (m *machine) balance() {
	l, err := net.Listen("tcp", netip.AddrPortFrom(m.site.Network.APIAddress, kube.APIPort).String())
	if err != nil {
		log.Println("balancer:", err)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s, err := net.Dial("tcp", netip.AddrPortFrom(m.site.Machines[0].SiteAddress, kube.APIPort).String())
			if err != nil {
				return
			}
			defer s.Close()
			go func() { io.Copy(s, c); s.Close() }()
			io.Copy(c, s)
		}()
	}
}

// start runs the plan's commands, each once those before it are ready.
func (m *machine) start(t *testing.T) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Join(m.dir, "log"), 0o755))
	ready := map[string]chan struct{}{}
	for _, c := range m.plan.Commands {
		ready[c.Name] = make(chan struct{})
	}
	for _, c := range m.plan.Commands {
		go func() {
			for _, after := range c.After {
				<-ready[after]
			}
			if err := m.run(c); err != nil {
				t.Errorf("start %s: %v", c.Name, err)
				return
			}
			for !isReady(c.Ready) {
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("%6.2f s  %s ready", time.Since(m.began).Seconds(), c.Name)
			close(ready[c.Name])
		}()
	}
	for name, r := range ready {
		select {
		case <-r:
		case <-time.After(2 * time.Minute):
			m.tail(t, name)
			t.Fatalf("%s is not ready after two minutes", name)
		}
	}
}

func (m *machine) run(c kube.Command) error {
	out, err := os.OpenFile(filepath.Join(m.dir, "log", c.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, c.Env...)
	cmd.Dir = "/"
	if err := spawn.Start(cmd, nil); err != nil {
		return err
	}
	m.children[c.Name] = cmd
	return nil
}

func isReady(r kube.Ready) bool {
	switch {
	case r.File != "":
		_, err := os.Stat(r.File)
		return err == nil
	case r.Socket != "":
		c, err := net.Dial("unix", r.Socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	case r.URL != "":
		c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get(r.URL)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	return true
}

// stop ends one command in the way machined does.
func (m *machine) stop(t *testing.T, name string) {
	t.Helper()
	cmd := m.children[name]
	began := time.Now()
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	done := make(chan error, 1)
	go func() { done <- spawn.Wait(cmd) }()
	select {
	case err := <-done:
		if err != nil {
			m.tail(t, name)
			t.Errorf("%s ended by SIGTERM with %v, want 0", name, err)
		}
		t.Logf("%s stopped in %.2f s", name, time.Since(began).Seconds())
	case <-time.After(time.Minute):
		t.Errorf("%s did not stop within a minute", name)
		cmd.Process.Kill()
	}
}

func (m *machine) tail(t *testing.T, name string) {
	data, _ := os.ReadFile(filepath.Join(m.dir, "log", name+".log"))
	lines := strings.Split(string(data), "\n")
	t.Logf("end of %s's log:\n%s", name, strings.Join(lines[max(0, len(lines)-25):], "\n"))
}

// kubectl runs the kubectl in kube as a user of the machine.
func (m *machine) kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command(system("kube"), append([]string{"kubectl", "--kubeconfig=" + m.paths.Config + "/machined.kubeconfig"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "HOME="+m.dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := spawn.Start(cmd, nil); err != nil {
		return "", err
	}
	err := spawn.Wait(cmd)
	return out.String(), err
}

func (m *machine) mustKubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := m.kubectl(stdin, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// eventually tries f until it returns nil.
func eventually(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
