//go:build site

package site

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/lab/labtest"
	"github.com/holdfast-edge/holdfast/machine/hosted"
)

// TestSite is one site's life. The chapters stand on each other, so the first
// that fails ends the story.
func TestSite(t *testing.T) {
	s := newShop(t)
	var before host
	var marks []string
	for _, chapter := range []struct {
		name string
		tell func(*testing.T)
	}{
		{"ErrTakenPort", s.testTakenPort},
		{"ErrNoRoot", s.testNoRoot},
		{"Up", func(t *testing.T) {
			before = look(t, []string{s.Lab.Dir})
			s.testUp(t)
			marks = s.marks(t)
		}},
		{"DNS", s.testDNS},
		{"Strangers", s.testStrangers},
		{"Kubernetes", s.testKubernetes},
		{"OneLine", s.testOneLine},
		{"SameEffect", s.testSameEffect},
		{"ErrForged", s.testForged},
		{"ReleaseAfterForged", func(t *testing.T) { s.testRelease(t, "Still the right signer") }},
		{"FullDisk", s.testFullDisk},
		{"Kills", s.testKills},
		{"KeeperAndMachine", func(t *testing.T) {
			kill(t, s.one(t, "keeper"), s.one(t, "outer"))
			s.falls(t)
			s.recovers(t)
		}},
		{"HubLost", s.testHubLost},
		{"BlankDisk", s.testBlankDisk},
		{"EverythingAtOnce", func(t *testing.T) {
			s.killEverything(t)
			s.Up(t)
			s.recovers(t)
		}},
		{"Down", func(t *testing.T) {
			s.Run(t, "lab", "down")
			leavesNothing(t, before, marks)
		}},
		{"UpAgain", func(t *testing.T) {
			s.Up(t)
			s.recovers(t)
		}},
		{"DownAfterKills", func(t *testing.T) {
			s.killEverything(t)
			s.Run(t, "lab", "down")
			leavesNothing(t, before, marks)
		}},
	} {
		if !t.Run(chapter.name, func(t *testing.T) {
			began := time.Now()
			chapter.tell(t)
			t.Logf("%s took %.1f s", chapter.name, time.Since(began).Seconds())
		}) {
			return
		}
	}
}

// killEverything ends all processes of the lab before any can start another.
func (s *shop) killEverything(t *testing.T) {
	t.Helper()
	for range 20 { // one that was just being started is found the next time
		all, err := s.processes()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			return
		}
		for _, p := range all {
			syscall.Kill(p.pid, syscall.SIGSTOP)
		}
		kill(t, all...)
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the lab's processes do not stay dead")
}

// falls waits until a killed machine does not answer any more: its inside dies a moment later.
func (s *shop) falls(t *testing.T) {
	t.Helper()
	labtest.Within(t, comeBack, func() error {
		if _, err := s.answer(); err == nil {
			return errors.New("the killed machine still answers")
		}
		return nil
	})
}

func (s *shop) testTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", s.Hub)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := s.Try("lab", "up", siteName, "--listen", s.Hub)
	if err == nil || !strings.Contains(err.Error(), s.Hub) || !strings.Contains(err.Error(), "next:") {
		t.Errorf("lab up on a taken port: %v, want an error that names %s and the next step\n%s", err, s.Hub, out)
	}
	if _, err := os.Stat(s.Lab.Dir); err == nil {
		t.Errorf("lab up that could not begin left %s", s.Lab.Dir)
	}
}

// testNoRoot is lab up by somebody who is not root, in a fleet repo of his own.
func (s *shop) testNoRoot(t *testing.T) {
	dir, err := os.MkdirTemp("", "holdfast-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const nobody = 65534
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.MkdirAll(filepath.Join(dir, "bin", "system"), 0o755)); err != nil {
		t.Fatal(err)
	}
	s.Command(t, "", "cp", s.Holdfast, filepath.Join(dir, "bin", "holdfast")) // ours may lie where nobody may look
	for _, name := range []string{"machined", "system/kube"} {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) ([]byte, error) {
		cmd := exec.Command(filepath.Join(dir, "bin", "holdfast"), args...)
		cmd.Dir = dir
		cmd.Env = append(slices.DeleteFunc(s.Environment(), func(v string) bool {
			return strings.HasPrefix(v, "HOME=") || strings.HasPrefix(v, "HOLDFAST_") || strings.HasPrefix(v, "TMPDIR=")
		}), "HOME="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd.CombinedOutput()
	}
	if out, err := run("init", "shops"); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	out, err := run("--fleet", "shops", "lab", "up", "--dir", filepath.Join(dir, "lab"), "--listen", s.Hub)
	if err == nil || !strings.Contains(string(out), "root: found user 65534") || !strings.Contains(string(out), "next:") {
		t.Errorf("lab up without root: %v, want an error that says so and what to do\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "lab")); err == nil {
		t.Error("lab up without root left a folder")
	}
}

func (s *shop) testUp(t *testing.T) {
	s.Up(t)
	s.answers(t)
	labtest.Within(t, comeBack, s.well)
	labtest.Within(t, comeBack, func() error { // what lab up does not wait for
		var err error
		s.whole, err = s.counts()
		for _, kind := range []string{"keeper", "hub", "outer", "inner", "containerd", "control-plane", "node", "coredns", "applier", "shim", "pause", "app"} {
			if s.whole[kind] == 0 {
				err = errors.Join(err, fmt.Errorf("no process is %s", kind))
			}
		}
		return err
	})
	t.Logf("processes: %v", s.whole)
	said := s.Run(t, "kubectl", siteName, "get", "--raw", "/api/v1/namespaces/hello/services/hello:80/proxy/")
	if !strings.Contains(said, s.greeting) {
		t.Errorf("through the hub the app says %s, want %q", said, s.greeting)
	}
}

// testOneLine is the budget of the main job: a change of one line costs less than 2 kB.
func (s *shop) testOneLine(t *testing.T) {
	before := s.quiet(t)
	s.testRelease(t, "Moin from release 2")
	after := s.quiet(t)
	down, up := after.sent-before.sent, after.received-before.received
	t.Logf("a change of one line: %d bytes down, %d up, below TLS", down, up)
	if down+up >= 2000 || down+up == 0 {
		t.Errorf("a change of one line took %d bytes, want less than 2000", down+up)
	}
}

func (s *shop) testRelease(t *testing.T, greeting string) {
	s.greet(t, greeting)
	s.release(t)
	took := s.answers(t)
	t.Logf("the app said so %.1f s after the release", took.Seconds())
	labtest.Within(t, comeBack, s.well)
}

type traffic struct{ sent, received uint64 }

// quiet reads the link's counters once they stand still.
func (s *shop) quiet(t *testing.T) traffic {
	t.Helper()
	var last traffic
	labtest.Within(t, time.Minute, func() error {
		m, err := s.Status()
		if err != nil {
			return err
		}
		now := traffic{m.BytesSent, m.BytesReceived}
		if now != last {
			last = now
			time.Sleep(time.Second)
			return errors.New("the link does not fall silent")
		}
		return nil
	})
	return last
}

// testSameEffect releases what changes nothing at the site: no write, no restart.
func (s *shop) testSameEffect(t *testing.T) {
	state := func() string {
		pids := fmt.Sprint(s.victims(t))
		return pids + s.Kubectl(t, "", "get", "deployments,replicasets,pods,services,configmaps,namespaces", "-A", "-o",
			`jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name} {.metadata.uid} {.metadata.resourceVersion} {.status.containerStatuses[*].containerID}{"\n"}{end}`)
	}
	before := state()
	s.git(t, "commit", "-q", "--allow-empty", "-m", "nothing")
	s.release(t)
	labtest.Within(t, comeBack, s.well)
	if after := state(); after != before {
		t.Errorf("a release without effect changed the site\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// testFullDisk fills DATA. The API goes on, the hub hears of it, and nothing
// but room is needed to heal.
func (s *shop) testFullDisk(t *testing.T) {
	data := fmt.Sprintf("/proc/%d/root/data", s.one(t, "inner").pid)
	filler := filepath.Join(data, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer os.Remove(filler)
	size := int64(0)
	for step := int64(1 << 30); step >= 1<<20; { // allocated, not written: the computer's own disk does not fill
		if err := unix.Fallocate(int(f.Fd()), 0, size, step); err == nil {
			size += step
		} else if errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else {
			t.Fatal(err)
		}
	}
	t.Logf("DATA holds %d MB of nothing", size>>20)
	labtest.Within(t, time.Minute, func() error {
		m, err := s.Status()
		if err != nil {
			return err
		}
		for _, c := range m.Conditions {
			if strings.Contains(c.Name, "DATA") {
				t.Logf("status says: %s: %s", c.Name, c.Detail)
				return nil
			}
		}
		return fmt.Errorf("status says nothing of the full disk: %v", m.Conditions)
	})
	labtest.Within(t, comeBack, func() error { // it has turned pods away
		pressure, err := s.TryKubectl("", "get", "nodes", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="DiskPressure")].status}`)
		if err == nil && pressure != "True" {
			err = fmt.Errorf("the node says of pressure on its disk: %q", pressure)
		}
		return err
	})
	s.Kubectl(t, "", "create", "configmap", "written-on-a-full-disk", "--from-literal=a=b")
	s.Kubectl(t, "", "delete", "configmap", "written-on-a-full-disk")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.recovers(t)
}

// testHubLost takes the hub away with all that it knows: the site lives on,
// also through a restart, and an empty hub is filled by releasing again.
func (s *shop) testHubLost(t *testing.T) {
	s.Run(t, "lab", "stop", "hub")
	if err := os.RemoveAll(s.Lab.HubDir()); err != nil {
		t.Fatal(err)
	}
	kill(t, s.one(t, "outer"))
	s.falls(t)
	t.Logf("with no hub at all the killed machine's app answered after %.1f s", s.answers(t).Seconds())
	s.Run(t, "lab", "start", "hub")
	s.handOver(t) // the newest release once more
	s.Run(t, "images", "push", filepath.Join(filepath.Dir(s.Holdfast), "images"))
	s.recovers(t)
	s.testRelease(t, "Moin from a new hub")
}

// testBlankDisk changes the machine's disks: it is the same machine, and
// fills them again from the current release.
func (s *shop) testBlankDisk(t *testing.T) {
	m := s.Machine(t)
	code := s.Lab.Code(m)
	s.Run(t, "lab", "stop", siteName)
	for _, name := range []string{"state.img", "data.img"} {
		if err := os.Remove(filepath.Join(s.Lab.MachineDir(m), name)); err != nil {
			t.Fatal(err)
		}
	}
	s.Run(t, "lab", "start", siteName)
	s.recovers(t)
	if got := s.Lab.Code(m); got != code || got == "" {
		t.Errorf("with blank disks the machine shows code %q, want %q as before", got, code)
	}
	// A machine that is kept running is not to be run by anybody else.
	err := hosted.Clean(hosted.Spec{Name: "other", Root: s.Lab.MachineDir(m)})
	if !errors.Is(err, hosted.ErrRunning) {
		t.Errorf("clean a running machine: %v, want %v", err, hosted.ErrRunning)
	}
}

// testKills kills something at random in calm, while a release goes on, and
// while the machine starts.
func (s *shop) testKills(t *testing.T) {
	for round := range *kills {
		moment := []string{"calm", "release", "start"}[round%3]
		if !t.Run(fmt.Sprintf("%02d-%s", round, moment), func(t *testing.T) {
			released := make(chan struct{})
			close(released)
			switch moment {
			case "release":
				s.greet(t, fmt.Sprintf("Hello from round %d", round))
				released = make(chan struct{})
				go func() {
					defer close(released)
					s.Try("release") // may be cut short; it is done again below
				}()
			case "start":
				p := s.one(t, []string{"inner", "outer"}[s.random.IntN(2)])
				t.Logf("kill %v", p)
				kill(t, p)
			}
			pause := time.Duration(s.random.IntN(4000)) * time.Millisecond
			time.Sleep(pause)
			p := s.victim(t)
			t.Logf("kill %v after %v", p, pause)
			kill(t, p)
			<-released
			if moment == "release" {
				s.release(t)
			}
			s.recovers(t)
		}) {
			t.Fatalf("round %d of seed shown above", round)
		}
	}
}
