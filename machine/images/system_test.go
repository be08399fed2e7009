//go:build system

package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/kube"
)

// These tests run against the real containerd and runc of bin/system, with the configuration that package kube plans, in namespaces of
// their own: TestMain runs the test binary again as process 1 of a network, mount and process namespace.

const inside = "HOLDFAST_TEST_INSIDE" // the folder of this run

func TestMain(m *testing.M) {
	if os.Getenv("IMAGES_TEST_WRITE") != "" {
		os.Exit(m.Run())
	}
	if os.Getenv(inside) != "" {
		// Every test of the package runs in here, and most serve on loopback.
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bring loopback up: %v: %s\n", err, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "images-system-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	_ = os.RemoveAll(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "namespaced test run:", err)
		os.Exit(1)
	}
}

// machine is a machine's containerd with our registry and stager.
type machine struct {
	*testing.T
	paths    kube.Paths
	plan     *kube.Plan
	command  *exec.Cmd
	ended    chan struct{}
	client   *Containerd
	store    *Store
	registry *Registry
	stager   *Stager
	asked    atomic.Int64                // requests at the registry
	onAsk    atomic.Pointer[func(int64)] // called with the number of each request, before its answer
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	bin, err := filepath.Abs("../../bin/system")
	must(t, err)
	if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil {
		build := exec.Command("make", "-C", "../..", "system")
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		must(t, build.Run())
	}
	must(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	must(t, syscall.Mount("proc", "/proc", "proc", 0, ""))
	dir, err := os.MkdirTemp(os.Getenv(inside), "m")
	must(t, err)

	m := &machine{T: t, paths: kube.Paths{Bin: bin, Config: dir + "/config", Run: dir + "/run", PKI: dir + "/pki", Etcd: dir + "/etcd", Data: dir + "/data"}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	self := fleet.Machine{Name: "till", ID: fleet.MachineIDOf([]byte("till")), Role: kube.RoleControlPlane, SiteAddress: netip.MustParseAddr("10.213.0.11")}
	m.plan, err = kube.New(&fleet.Resolved{Fleet: "coffee", FleetID: "00112233445566778899aabbccddeeff", Site: "berlin", UID: "7d1c", Machines: []fleet.Machine{self},
		Network: fleet.Network{SiteRange: netip.MustParsePrefix("10.213.0.0/24"), PodRange: netip.MustParsePrefix("10.214.0.0/16"),
			ServiceRange: netip.MustParsePrefix("10.215.0.0/16"), APIAddress: netip.MustParseAddr("10.213.0.1"), Domain: "cluster.local"}},
		self, m.paths, kube.Options{Hosted: true, Registry: netip.MustParseAddrPort(listener.Addr().String())})
	must(t, err)
	for _, f := range m.plan.Folders {
		must(t, os.MkdirAll(f.Path, os.FileMode(f.Mode)))
	}
	for _, f := range m.plan.Files {
		must(t, os.MkdirAll(filepath.Dir(f.Path), 0o755))
		must(t, os.WriteFile(f.Path, f.Content, os.FileMode(f.Mode)))
	}

	m.store, err = OpenStore(filepath.Join(m.paths.Data, "images"), 0)
	must(t, err)
	m.registry = &Registry{Store: m.store}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := m.asked.Add(1)
		if f := m.onAsk.Load(); f != nil {
			(*f)(n)
		}
		m.registry.ServeHTTP(w, r)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	m.client, err = DialContainerd(m.socket())
	must(t, err)
	t.Cleanup(func() { m.client.Close() })
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	m.stager = &Stager{Store: m.store, Runtime: m.client, Marker: filepath.Join(m.paths.Data, "staged.json"), Root: m.paths.Data, Log: log,
		Fetcher: &Fetcher{Store: m.store, Backoff: time.Millisecond, Attempts: 2, Log: log}}
	m.start()
	t.Cleanup(m.kill)
	return m
}

func (m *machine) socket() string { return filepath.Join(m.paths.Run, "containerd/containerd.sock") }

func (m *machine) start() {
	for _, c := range m.plan.Commands {
		if c.Name != "containerd" {
			continue
		}
		log, err := os.OpenFile(filepath.Join(m.paths.Data, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		must(m.T, err)
		defer log.Close()
		m.command = exec.Command(c.Path, c.Args...)
		m.command.Env = append(os.Environ(), c.Env...)
		m.command.Stdout, m.command.Stderr = log, log
		m.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		must(m.T, m.command.Start())
		cmd, ended := m.command, make(chan struct{})
		m.ended = ended
		go func() { _ = cmd.Wait(); close(ended) }()
	}
}

// kill ends containerd as a crash does.
func (m *machine) kill() {
	_ = m.command.Process.Kill()
	<-m.ended
}

// showLog prints the end of containerd's log when the test failed.
func (m *machine) showLog() {
	if m.Failed() {
		text, _ := os.ReadFile(filepath.Join(m.paths.Data, "containerd.log"))
		m.Logf("containerd: %s", text[max(0, len(text)-4000):])
	}
}

// addTo puts an image into a remote place and returns what images.lock would say.
func addTo(t *testing.T, r *remote, ref string, img v1.Image) Image {
	t.Helper()
	layers, err := img.Layers()
	must(t, err)
	for _, l := range layers {
		rc, err := l.Compressed()
		must(t, err)
		var b bytes.Buffer
		_, err = b.ReadFrom(rc)
		must(t, err)
		r.add(b.Bytes())
	}
	config, err := img.RawConfigFile()
	must(t, err)
	manifest, err := img.RawManifest()
	must(t, err)
	r.add(config)
	_, err = name.NewTag(ref)
	must(t, err)
	return Image{Ref: ref, Digest: r.add(manifest).Digest}
}

// container is a program that says that it runs: the test binary's own pause would need a network, so it is built from the pause of bin/system.
func container(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("../../bin/system/pause")
	must(t, err)
	return data
}

func TestSystemStaging(t *testing.T) {
	m := newMachine(t)
	r := newRemote(t)
	m.stager.Fetcher.Base, m.stager.Fetcher.Client = r.URL+"/v2/any", r.Client()
	defer m.showLog()
	ctx := t.Context()

	pause, err := Import(ctx, m.store, "../../bin/system/pause.tar")
	must(t, err)
	app := addTo(t, r, "registry.example.com:5000/shop/pos:latest", program(t, container(t)))
	hub := addTo(t, r, "nginx:1.27", program(t, append(container(t), content(3, 3<<20)...)))
	all := append(pause, app, hub)
	must(t, m.registry.SetTable(all))

	start := time.Now()
	must(t, m.stager.Stage(ctx, all, nil))
	t.Logf("staged %d images in %s", len(all), time.Since(start).Round(time.Millisecond))
	if !m.stager.Staged(all) {
		t.Error("no marker")
	}
	start = time.Now()
	asked := m.asked.Load()
	must(t, m.stager.Stage(ctx, all, nil))
	t.Logf("staged again in %s", time.Since(start).Round(time.Millisecond))
	if m.asked.Load() != asked {
		t.Errorf("staging again made containerd ask %d times", m.asked.Load()-asked)
	}

	t.Run("EveryNameIsPinnedAndThere", func(t *testing.T) {
		for _, img := range all {
			ref, err := ParseReference(img.Ref)
			must(t, err)
			for _, n := range []string{img.Ref, ref.Tagged(), ref.At(img.Digest), ref.Tagged() + "@" + string(img.Digest)} {
				present, pinned, err := m.client.Present(ctx, n)
				if err != nil || !present || !pinned {
					t.Errorf("%s: present %v, pinned %v, %v", n, present, pinned, err)
				}
			}
		}
	})

	r.Close() // from here on there is no network
	t.Run("PullPolicyAlwaysOffline", func(t *testing.T) {
		for _, img := range all {
			ref, _ := ParseReference(img.Ref)
			for _, n := range []string{ref.Tagged(), ref.At(img.Digest), ref.Tagged() + "@" + string(img.Digest)} {
				ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
				if _, err := m.client.Pull(ctx, n); err != nil {
					t.Errorf("pull %s: %v", n, err)
				}
				cancel()
			}
			if _, pinned, err := m.client.Present(ctx, ref.Tagged()); !pinned || err != nil {
				t.Errorf("%s: the pull took the pin away (%v)", ref.Tagged(), err)
			}
		}
		if _, err := m.client.Pull(ctx, "registry.example.com:5000/shop/pos:unknown"); err == nil {
			t.Error("a tag that no release knows was pulled")
		}
	})

	t.Run("ContainerStarts", func(t *testing.T) { startContainer(t, m, app) })

	t.Run("AfterCrashOfContainerd", func(t *testing.T) {
		m.kill()
		m.start()
		must(t, m.stager.Stage(ctx, all, nil)) // waits for it
		for _, img := range all {
			if present, pinned, err := m.client.Present(ctx, img.Ref); err != nil || !present || !pinned {
				t.Errorf("%s: present %v, pinned %v, %v", img.Ref, present, pinned, err)
			}
		}
	})

	t.Run("AfterLossOfContainerdsRoot", func(t *testing.T) {
		m.kill()
		must(t, os.RemoveAll(filepath.Join(m.paths.Data, "containerd")))
		must(t, os.RemoveAll(filepath.Join(m.paths.Run, "containerd")))
		m.start()
		must(t, m.stager.Stage(ctx, all, nil)) // from the store alone: there is no network
		if present, pinned, err := m.client.Present(ctx, app.Ref); err != nil || !present || !pinned {
			t.Errorf("present %v, pinned %v, %v", present, pinned, err)
		}
	})

	t.Run("Release", func(t *testing.T) {
		out, err := m.stager.Release(ctx, append(pause, app))
		must(t, err)
		if out.Names < 2 || out.Bytes < 3<<20 {
			t.Errorf("let go of %+v", out)
		}
		must(t, poll(ctx, 5*time.Second, func() (bool, error) {
			_, pinned, err := m.client.Present(ctx, hub.Ref)
			return !pinned, err
		}))
		if _, pinned, err := m.client.Present(ctx, app.Ref); !pinned || err != nil {
			t.Errorf("a kept image lost its pin (%v)", err)
		}
		if m.stager.Staged([]Image{hub}) || !m.stager.Staged(append(pause, app)) {
			t.Error("marker is wrong")
		}
	})
}

// TestSystemContainerdDiesWhileStaging kills containerd six times, each time while it waits for an answer of the registry: the staging ends well nevertheless.
func TestSystemContainerdDiesWhileStaging(t *testing.T) {
	m := newMachine(t)
	defer m.showLog()
	r := newRemote(t)
	m.stager.Fetcher.Base, m.stager.Fetcher.Client = r.URL+"/v2/any", r.Client()
	var all []Image
	for i := range 12 {
		all = append(all, addTo(t, r, fmt.Sprintf("r.example/app%d:1", i), program(t, content(uint64(100+i), 1<<20))))
	}
	must(t, m.registry.SetTable(all))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	asks, answer := make(chan struct{}), make(chan struct{})
	onAsk := func(n int64) {
		if n%7 != 3 || n > 7*6 {
			return
		}
		select {
		case asks <- struct{}{}:
			<-answer
		case <-ctx.Done():
		}
	}
	m.onAsk.Store(&onAsk)
	staged := make(chan error, 1)
	go func() { staged <- m.stager.Stage(ctx, all, nil) }()
	kills := 0
	for done := false; !done; {
		select {
		case err := <-staged:
			must(t, err)
			done = true
		case <-asks:
			kills++
			m.kill()
			m.start()
			answer <- struct{}{}
		}
	}
	if kills != 6 {
		t.Errorf("containerd was killed %d times, want 6", kills)
	}
	for _, img := range all {
		if present, pinned, err := m.client.Present(ctx, img.Ref); err != nil || !present || !pinned {
			t.Errorf("%s: present %v, pinned %v, %v", img.Ref, present, pinned, err)
		}
	}
}

// startContainer runs a pod on the machine's network, as the kubelet would.
func startContainer(t *testing.T, m *machine, img Image) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+m.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	runtime := cri.NewRuntimeServiceClient(conn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	host := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}
	// Above a pod's cgroup is the kubelet's, who removes it; here that is the test, and what stays on the host fails it.
	parent := fmt.Sprintf("/holdfast-test-%d", rand.Uint32())
	defer removeCgroup(t, parent)
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, LogDirectory: m.paths.Data,
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: parent, SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: host}},
	}
	sandbox, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	must(t, err)
	defer func() {
		_, err := runtime.RemovePodSandbox(context.Background(), &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		must(t, err)
	}()
	ref, _ := ParseReference(img.Ref)
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "c"}, Image: &cri.ImageSpec{Image: ref.Tagged() + "@" + string(img.Digest)}, LogPath: "c.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: host}},
	}})
	must(t, err)
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	must(t, err)
	state, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: made.ContainerId})
	must(t, err)
	if s := state.Status.State; s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %s (exit code %d, %s)", s, state.Status.ExitCode, state.Status.Message)
	}
}

// removeCgroup removes a cgroup of this test in whatever hierarchies the host has.
func removeCgroup(t *testing.T, name string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup" + name, "/sys/fs/cgroup/*" + name} {
		dirs, err := filepath.Glob(pattern)
		must(t, err)
		for _, dir := range dirs {
			err := poll(context.Background(), 10*time.Second, func() (bool, error) { return syscall.Rmdir(dir) == nil, nil })
			if err != nil {
				t.Errorf("cgroup %s stays on the host: %v", dir, syscall.Rmdir(dir))
			}
		}
	}
}

// program makes an image of one file, as the build makes the pause image.
func program(t testing.TB, file []byte) v1.Image {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: int64(len(file)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(file)
	_ = w.Close()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: ThisPlatform().Architecture, OS: "linux", Config: v1.Config{Entrypoint: []string{"/app"}},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{mustHash(t, layer)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func mustHash(t testing.TB, l v1.Layer) v1.Hash {
	h, err := l.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return h
}
