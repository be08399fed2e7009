//go:build dialect && linux

package bringup_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/internal/spawn"
	"github.com/holdfast-edge/holdfast/kube"
	"github.com/holdfast-edge/holdfast/kube/etcdcopy"
)

// exitNewer is what the kube binary ends with on data that only a newer etcd reads.
const exitNewer = 76

// A slot is one OS version's Kubernetes.
type slot struct {
	name      string // for people
	binary    string
	hold      string
	namespace string // one of its own making
}

// minorOf asks a kube binary for its minor.
func minorOf(t *testing.T, binary string) (minor string, version string) {
	t.Helper()
	out, err := exec.Command(binary, "version").Output()
	must(t, err)
	version = strings.TrimSpace(string(out))
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	return parts[0] + "." + parts[1], version
}

// A site is a machine of two slots whose control plane is moved between them.
type site struct {
	*machine
	options      kube.Options
	old          slot
	held, lifted slot // the next slot, on trial and blessed
	oldMinor     string
	nextMinor    string
	client       *http.Client
	cmd          *exec.Cmd // the control plane that runs
	ended        chan error

	mu    sync.Mutex
	acked map[string]time.Time // names of the objects that the API took
	next  int
}

func newSite(t *testing.T) *site {
	t.Helper()
	nextBinary := system("../system-next/kube")
	if _, err := os.Stat(nextBinary); err != nil {
		t.Fatalf("needs the next minor: run make system-next first: %v", err)
	}
	s := &site{acked: map[string]time.Time{}}
	var oldVersion, nextVersion string
	s.oldMinor, oldVersion = minorOf(t, system("kube"))
	s.nextMinor, nextVersion = minorOf(t, nextBinary)
	s.old = slot{"old slot (" + oldVersion + ")", system("kube"), "", "old"}
	s.held = slot{"new slot (" + nextVersion + ") on trial", nextBinary, s.oldMinor, "held"}
	s.lifted = slot{"new slot (" + nextVersion + ") blessed", nextBinary, "", "lifted"}
	s.machine = newMachine(t, func(o *kube.Options) { s.options = *o })
	cert, err := tls.LoadX509KeyPair(s.paths.PKI+"/machined.crt", s.paths.PKI+"/machined.key")
	must(t, err)
	ca, err := os.ReadFile(s.paths.PKI + "/cluster-ca.crt")
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	s.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}}}
	must(t, os.MkdirAll(filepath.Join(s.dir, "log"), 0o755))
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			s.tail(t, "control-plane")
		}
	})
	return s
}

// plan lays the files of a slot out and returns its control plane.
func (s *site) planFor(t *testing.T, in slot) kube.Command {
	t.Helper()
	o := s.options
	o.Hold = in.hold
	plan, err := kube.New(s.site, s.site.Machines[0], s.paths, o)
	must(t, err)
	s.plan = plan
	s.lay(t)
	// Each slot is to read snapshots of the other's, and not its log alone.
	file := filepath.Join(s.paths.Config, "control-plane.json")
	text, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, bytes.Replace(text, []byte(`"quotaBytes"`), []byte(`"snapshotEntries": 100, "quotaBytes"`), 1), 0o644))
	for i := range plan.Commands {
		if plan.Commands[i].Path == system("kube") {
			plan.Commands[i].Path = in.binary
		}
	}
	return s.command("control-plane")
}

func (s *site) command(name string) kube.Command {
	i := slices.IndexFunc(s.plan.Commands, func(c kube.Command) bool { return c.Name == name })
	return s.plan.Commands[i]
}

// begin starts a program of the plan beside the control plane and waits for it.
func (s *site) begin(t *testing.T, name string) {
	t.Helper()
	c := s.command(name)
	if c.Ready.File != "" {
		os.Remove(c.Ready.File)
	}
	must(t, s.run(c))
	eventually(t, time.Minute, name+" ready", func() error {
		if !isReady(c.Ready) {
			return errors.New("not yet")
		}
		return nil
	})
}

// end kills a program of the plan.
func (s *site) end(name string) {
	s.children[name].Process.Signal(syscall.SIGKILL)
	spawn.Wait(s.children[name])
}

// boot starts a slot's control plane and waits for nothing.
func (s *site) boot(t *testing.T, in slot) kube.Command {
	t.Helper()
	s.kill()
	c := s.planFor(t, in)
	os.Remove(c.Ready.File)
	os.Remove(s.plan.DialectFile)
	must(t, s.run(c))
	s.cmd = s.children[c.Name]
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- spawn.Wait(cmd) }(s.cmd)
	s.ended = ended
	return c
}

// kill is the power cut, as far as the control plane sees it.
func (s *site) kill() {
	if s.cmd != nil {
		s.cmd.Process.Signal(syscall.SIGKILL)
		<-s.ended
		s.cmd = nil
	}
}

// halt is the ordered stop before a planned reboot.
func (s *site) halt(t *testing.T) {
	t.Helper()
	must(t, s.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("control plane ended by SIGTERM with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("control plane did not stop within a minute")
	}
	s.cmd = nil
}

// until waits for a condition of the control plane that runs.
func (s *site) until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for !f() {
		select {
		case err := <-s.ended:
			s.cmd = nil
			s.tail(t, "control-plane")
			t.Fatalf("waiting for %s: the control plane ended: %v", what, err)
		case <-deadline:
			s.tail(t, "control-plane")
			t.Fatalf("%s: not within 90 s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// serve boots a slot to a ready API, which speaks as it should, has all that was
// acknowledged, and takes more.
func (s *site) serve(t *testing.T, in slot, since ...time.Time) time.Duration {
	t.Helper()
	began := time.Now()
	c := s.boot(t, in)
	s.until(t, in.name+": API ready", func() bool { return isReady(c.Ready) })
	took := time.Since(began)
	s.speaks(t, in)
	s.complete(t, in, since...)
	s.write(t, 5)
	return took
}

// speaks asks the API which minor it is, and what it emulates.
func (s *site) speaks(t *testing.T, in slot) {
	t.Helper()
	var v struct{ GitVersion, EmulationMajor, EmulationMinor string }
	must(t, json.Unmarshal(s.ask(t, http.MethodGet, "/version", nil), &v))
	minor, version := minorOf(t, in.binary)
	if in.hold != "" {
		minor = in.hold
	}
	if got := v.EmulationMajor + "." + v.EmulationMinor; v.GitVersion != version || got != minor {
		t.Errorf("%s: the API is %s and speaks %s, want %s speaking %s", in.name, v.GitVersion, got, version, minor)
	}
}

func (s *site) dialect() (kube.Dialect, error) {
	data, err := os.ReadFile(s.plan.DialectFile)
	if err != nil {
		return kube.Dialect{}, err
	}
	return kube.ParseDialect(data)
}

func (s *site) ask(t *testing.T, method, path string, body []byte) []byte {
	t.Helper()
	data, err := s.try(method, path, body)
	must(t, err)
	return data
}

func (s *site) try(method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequest(method, "https://10.213.0.11:6443"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	return data, err
}

const configMaps = "/api/v1/namespaces/default/configmaps"

// put writes one object and remembers it if the API took it.
func (s *site) put() error {
	s.mu.Lock()
	name := "w-" + strconv.Itoa(s.next)
	s.next++
	s.mu.Unlock()
	_, err := s.try(http.MethodPost, configMaps, fmt.Appendf(nil, `{"metadata":{"name":%q},"data":{"a":"b"}}`, name))
	if err == nil {
		s.mu.Lock()
		s.acked[name] = time.Now()
		s.mu.Unlock()
	}
	return err
}

func (s *site) write(t *testing.T, n int) {
	t.Helper()
	for range n {
		eventually(t, 10*time.Second, "write an object", s.put)
	}
}

// till writes without pause until the returned function is called.
func (s *site) till() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if s.put() != nil {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// complete wants every acknowledged object, but for those of the time that a copy
// put back is said to have cost.
func (s *site) complete(t *testing.T, in slot, lostFrom ...time.Time) {
	t.Helper()
	var list struct {
		Items []struct{ Metadata struct{ Name string } }
	}
	must(t, json.Unmarshal(s.ask(t, http.MethodGet, configMaps, nil), &list))
	has := map[string]bool{}
	for _, i := range list.Items {
		has[i.Metadata.Name] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, at := range s.acked {
		named := len(lostFrom) > 0 && at.After(lostFrom[0])
		if !has[name] && !named {
			t.Errorf("%s: %s was acknowledged at %s and is not there", in.name, name, at.Format("15:04:05.000"))
		}
		if named {
			delete(s.acked, name)
		}
	}
	t.Logf("%s has all of %d acknowledged writes", in.name, len(s.acked))
}

// opened says whether the control plane has etcd's database open: it has begun,
// and serves nothing yet.
func (s *site) opened() bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(fds, func(fd string) bool {
		to, err := os.Readlink(fd)
		return err == nil && strings.HasSuffix(to, "/member/snap/db")
	})
}

// snapshotSince says whether etcd has written a snapshot after that moment.
func (s *site) snapshotSince(at time.Time) bool {
	files, err := filepath.Glob(filepath.Join(s.paths.Etcd, "member/snap/*.snap"))
	return err == nil && slices.ContainsFunc(files, func(f string) bool {
		info, err := os.Stat(f)
		return err == nil && info.ModTime().After(at)
	})
}

func (s *site) etcdServes() bool {
	d, err := s.dialect()
	return err == nil && d.ClusterVersion != ""
}

// A new minor is on trial and is forced back at each stage: the old slot goes on
// with all that was acknowledged, in either slot, and no copy is needed.
func TestDialect(t *testing.T) {
	s := newSite(t)
	t.Logf("%s: ready in %.1f s", s.old.name, s.serve(t, s.old).Seconds())
	s.write(t, 50)

	t.Run("an app", func(t *testing.T) { anApp(t, s) })
	for _, point := range []struct {
		name string
		at   func(t *testing.T, ready kube.Ready)
	}{
		{"before etcd serves", func(t *testing.T, _ kube.Ready) { s.until(t, "etcd's database is open", s.opened) }},
		{"etcd up", func(t *testing.T, _ kube.Ready) { s.until(t, "etcd serves", s.etcdServes) }},
		{"API ready", func(t *testing.T, r kube.Ready) { s.until(t, "API ready", func() bool { return isReady(r) }) }},
		{"a second before it is blessed", func(t *testing.T, r kube.Ready) {
			s.until(t, "API ready", func() bool { return isReady(r) })
			s.speaks(t, s.held)
			began := time.Now()
			s.write(t, 120)
			if !s.snapshotSince(began) {
				t.Error("120 writes and no snapshot of the new slot's: the old one has nothing of the kind to read")
			}
			// etcd looks at its versions every four seconds.
			time.Sleep(5 * time.Second)
			d, err := s.dialect()
			must(t, err)
			must(t, d.Held(s.oldMinor))
			if d.Lifted() == nil {
				t.Errorf("held, yet called lifted: %+v", d)
			}
		}},
	} {
		t.Run(point.name, func(t *testing.T) {
			s.halt(t)
			c := s.boot(t, s.held)
			stop := s.till()
			point.at(t, c.Ready)
			s.kill()
			stop()
			t.Logf("killed; the old slot is ready in %.1f s", s.serve(t, s.old).Seconds())
			d, err := s.dialect()
			must(t, err)
			if d.Hold || d.Speaks != s.oldMinor {
				t.Errorf("the old slot speaks %+v", d)
			}
		})
	}
	t.Run("at random", func(t *testing.T) {
		rounds, _ := strconv.Atoi(os.Getenv("HOLDFAST_ROUNDS"))
		for range max(rounds, 2) {
			wait := time.Duration(rand.IntN(8000)) * time.Millisecond
			s.boot(t, s.held) // after a kill and not a stop: the power fails at both ends
			stop := s.till()
			time.Sleep(wait)
			s.kill()
			stop()
			t.Logf("killed after %v; the old slot is ready in %.1f s", wait, s.serve(t, s.old).Seconds())
		}
	})
	t.Run("controllers apart", func(t *testing.T) {
		// After a crash loop they are a process of their own, which is held too.
		s.options.Split = true
		defer func() { s.options.Split = false }()
		for _, in := range []slot{s.held, s.old} {
			s.serve(t, in)
			s.begin(t, "controllers")
			eventually(t, 30*time.Second, in.name+": controllers act", func() error {
				_, err := s.try(http.MethodGet, "/api/v1/namespaces/"+in.namespace+"/serviceaccounts/default", nil)
				if err != nil {
					_, _ = s.try(http.MethodPost, "/api/v1/namespaces", fmt.Appendf(nil, `{"metadata":{"name":%q}}`, in.namespace))
				}
				return err
			})
			s.end("controllers")
		}
	})
	t.Run("forward", func(t *testing.T) { forward(t, s) })
	t.Run("without a hold", func(t *testing.T) { withoutHold(t, s) })
}

// anApp runs on a node that goes to the new slot and back with its control plane.
func anApp(t *testing.T, s *site) {
	s.begin(t, "containerd")
	s.begin(t, "node")
	defer func() {
		s.end("node")
		s.end("containerd")
	}()
	eventually(t, time.Minute, "app is applied", func() error {
		out, err := s.kubectl(app, "apply", "-f", "-", "--server-side")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	answers := func(in slot) {
		t.Helper()
		_, version := minorOf(t, in.binary)
		eventually(t, time.Minute, in.name+": node and app", func() error {
			out, err := s.kubectl("", "get", "node,pods", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{.status.nodeInfo.kubeletVersion} {end}`)
			switch {
			case err != nil:
				return fmt.Errorf("%w: %s", err, out)
			case !strings.Contains(out, "till=True"+version) || !strings.Contains(out, "=True "):
				return errors.New(out)
			}
			_, err = get("http://10.215.0.83/")
			return err
		})
	}
	pod := func() string {
		return s.mustKubectl(t, "", "get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.uid} restarted {.items[*].status.containerStatuses[*].restartCount}")
	}
	answers(s.old)
	before := pod()
	for _, in := range []slot{s.held, s.old} {
		s.end("node")
		if in == s.held {
			s.halt(t)
		} else {
			s.kill()
		}
		began := time.Now()
		s.serve(t, in)
		s.begin(t, "node")
		answers(in)
		t.Logf("%s: node and app answer after %.1f s", in.name, time.Since(began).Seconds())
	}
	if after := pod(); after != before {
		t.Errorf("the app's pod was %s and is %s", before, after)
	}
}

// forward is the blessing, cut at two instants, and what the old slot makes of the
// data after it: nothing, until the copy is put back.
func forward(t *testing.T, s *site) {
	s.halt(t)
	before := s.paths.Etcd + "-before"
	began := time.Now()
	must(t, etcdcopy.Take(s.paths.Etcd, before, etcdcopy.Note{Taken: began, Minor: s.oldMinor, Version: "test"}))
	t.Logf("copy taken in %v", time.Since(began).Round(time.Millisecond))

	t.Logf("on trial: ready in %.1f s", s.serve(t, s.held).Seconds())
	d, err := s.dialect()
	must(t, err)
	must(t, d.Held(s.oldMinor))
	s.halt(t)

	// The record says "blessing": whatever happens from here on, the way is forward.
	s.boot(t, s.lifted)
	s.until(t, "etcd's database is open", s.opened)
	s.kill()
	s.boot(t, s.lifted)
	s.until(t, "etcd's cluster version has risen", func() bool {
		d, err := s.dialect()
		return err == nil && d.ClusterVersion == d.EtcdSpeaks
	})
	s.kill()
	t.Logf("blessed: ready in %.1f s", s.serve(t, s.lifted).Seconds())
	s.until(t, "the hold is lifted", func() bool { d, err := s.dialect(); return err == nil && d.Lifted() == nil })
	d, err = s.dialect()
	must(t, err)
	if d.Held(s.oldMinor) == nil {
		t.Errorf("lifted, yet called held: %+v", d)
	}
	t.Logf("lifted: %+v", d)
	s.halt(t)

	// Held again, the new program refuses as the old one does, and spoils nothing.
	for _, in := range []slot{s.held, s.old} {
		if code := s.fails(t, in); code != exitNewer {
			t.Errorf("%s on data of %s ended with %d, want %d", in.name, s.nextMinor, code, exitNewer)
		}
	}
	loss, err := etcdcopy.Restore(s.paths.Etcd, before)
	must(t, err)
	t.Log(loss)
	if loss.To.Sub(loss.From) < time.Second {
		t.Errorf("the copy cost %v by its own account", loss.To.Sub(loss.From))
	}
	t.Logf("from the copy: ready in %.1f s", s.serve(t, s.old, loss.From).Seconds())
	must(t, etcdcopy.Discard(s.paths.Etcd, before))
}

// fails boots a slot that must not come up.
func (s *site) fails(t *testing.T, in slot) int {
	t.Helper()
	s.boot(t, in)
	select {
	case err := <-s.ended:
		s.cmd = nil
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		t.Fatalf("%s ended with %v", in.name, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s did not end", in.name)
	}
	return 0
}

// withoutHold is why there is a hold: a second on trial locks the old slot out.
func withoutHold(t *testing.T, s *site) {
	s.halt(t)
	s.boot(t, s.lifted)
	began := time.Now()
	s.until(t, "etcd serves", s.etcdServes)
	served := time.Since(began)
	s.until(t, "etcd's storage version has risen", func() bool {
		d, err := s.dialect()
		return err == nil && d.StorageVersion == d.EtcdSpeaks
	})
	t.Logf("etcd served after %.2f s, and was out of the old slot's reach %.2f s later", served.Seconds(), (time.Since(began) - served).Seconds())
	s.kill()
	if code := s.fails(t, s.old); code != exitNewer {
		t.Errorf("the old slot ended with %d, want %d: is the hold needed no longer?", code, exitNewer)
	}
}
