//go:build site

package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/link/wire"
)

var (
	binFlag  = flag.String("bin", "../../bin", "folder with holdfast, machined, system and images")
	seedFlag = flag.Uint64("seed", 0, "seed of the random kills; 0: by the clock")
	kills    = flag.Int("kills", 6, "rounds of random kills")
)

const (
	siteName = "bristol-harbour" // of the example fleet: one app, which answers on nodePort
	siteFile = "sites/gb/bristol-harbour/site.yaml"
	nodePort = "30080"

	// comeBack is how long a machine may take to be whole again, on a slow and busy computer.
	comeBack = 120 * time.Second
)

// shop is a fleet of its own with a lab of one site.
type shop struct {
	holdfast string // program
	work     string // temporary; everything is below it
	fleet    string
	hub      string // address
	lab      lab.Lab
	random   *rand.Rand
	whole    map[string]int // processes of a site that is well, by what they are
	head     uint64         // newest release
	greeting string         // what the app says when that release runs
}

// newShop makes the fleet. Nothing runs yet.
func newShop(t *testing.T) *shop {
	t.Helper()
	bin, err := filepath.Abs(*binFlag)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holdfast", "machined", "system/kube", "system/containerd", "images/hello-1.0.0.tar"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("site tests need what they test: make build system images (%v)", err)
		}
	}
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("the random choices of this run come back with -seed %d", seed)
	work := t.TempDir()
	s := &shop{
		holdfast: filepath.Join(bin, "holdfast"), work: work, fleet: filepath.Join(work, "shops"), hub: freeAddress(t),
		lab: lab.Lab{Dir: filepath.Join(work, "lab")}, random: rand.New(rand.NewPCG(seed, 0)), head: 1, greeting: "Good morning",
	}
	s.command(t, "", s.holdfast, "init", s.fleet, "--keys", filepath.Join(work, "keys"))
	t.Cleanup(func() {
		if t.Failed() {
			s.logs(t)
		}
		if _, err := s.try("lab", "down"); err != nil {
			t.Errorf("lab down at the end: %v", err)
		}
	})
	return s
}

// freeAddress is an address that nobody listens on just now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// environment is this one's, without what belongs to the person who tests.
func (s *shop) environment() []string {
	list := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "HOME" || name == "SSH_AUTH_SOCK" || strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "HOLDFAST_")
	})
	return append(list, "HOME="+s.work, "HOLDFAST_CONFIG="+filepath.Join(s.work, "notes"))
}

func (s *shop) tryCommand(input, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = s.work, s.environment(), strings.NewReader(input)
	cmd.WaitDelay = 5 * time.Second
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(append(fault.Bytes(), out.Bytes()...)))
	}
	return out.String(), nil
}

func (s *shop) command(t *testing.T, input, program string, args ...string) string {
	t.Helper()
	out, err := s.tryCommand(input, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs holdfast in the fleet repo.
func (s *shop) try(args ...string) (string, error) {
	switch args[0] {
	case "lab":
		args = append([]string{"lab", "--dir", s.lab.Dir}, args[1:]...)
	}
	return s.tryCommand("", s.holdfast, append([]string{"--fleet", s.fleet}, args...)...)
}

func (s *shop) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.try(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *shop) git(t *testing.T, args ...string) {
	t.Helper()
	s.command(t, "", "git", append([]string{"-C", s.fleet}, args...)...)
}

// kubectl runs kubectl at the site, through the hub.
func (s *shop) kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := s.tryKubectl(input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *shop) tryKubectl(input string, args ...string) (string, error) {
	return s.tryCommand(input, s.holdfast, append([]string{"--fleet", s.fleet, "kubectl", siteName, "--request-timeout=20s"}, args...)...)
}

// up is lab up.
func (s *shop) up(t *testing.T) {
	t.Helper()
	t.Log("\n" + s.run(t, "lab", "up", siteName, "--listen", s.hub))
}

// machine is the one machine of the lab.
func (s *shop) machine(t *testing.T) lab.Machine {
	t.Helper()
	w, err := s.lab.Wanted()
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Find(siteName)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

// answer is what the app says on the site's LAN.
func (s *shop) answer() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	w, err := s.lab.Wanted()
	if err != nil {
		return "", err
	}
	m, err := w.Find(siteName)
	if err != nil {
		return "", err
	}
	body, err := s.lab.Fetch(ctx, "http://"+net.JoinHostPort(m.Address().String(), nodePort)+"/")
	return string(body), err
}

// answers waits until the app says what the newest release says.
func (s *shop) answers(t *testing.T) time.Duration {
	t.Helper()
	return within(t, comeBack, func() error {
		said, err := s.answer()
		if err == nil && !strings.Contains(said, s.greeting) {
			err = fmt.Errorf("the app says %s, want %q", said, s.greeting)
		}
		return err
	})
}

// within polls f until it returns nil, for so long at most.
func within(t *testing.T, limit time.Duration, f func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %v", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// status is what the hub says of the machine.
func (s *shop) status() (wire.MachineStatus, error) {
	out, err := s.try("status", siteName, "--output", "json")
	if err != nil {
		return wire.MachineStatus{}, err
	}
	var status wire.Status
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return wire.MachineStatus{}, err
	}
	if len(status.Sites) != 1 || len(status.Sites[0].Machines) != 1 {
		return wire.MachineStatus{}, fmt.Errorf("status tells of %s", out)
	}
	return status.Sites[0].Machines[0], nil
}

// well says why the machine is not yet well with the newest release, by the hub's word.
func (s *shop) well() error {
	m, err := s.status()
	if err != nil {
		return err
	}
	if !m.Online || m.State != wire.OK || m.N != s.head || len(m.Conditions) > 0 {
		return fmt.Errorf("status: online %t, %s %s, release %d (want %d), conditions %v", m.Online, m.State, m.Detail, m.N, s.head, m.Conditions)
	}
	for _, a := range m.Apps {
		if a.Phase != wire.OK {
			return fmt.Errorf("status: app %s is %s: %s", a.Name, a.Phase, a.Detail)
		}
	}
	return nil
}

// complete says which process of a site that is well is missing.
func (s *shop) complete() error {
	counts, err := s.counts()
	if err != nil {
		return err
	}
	for kind, n := range s.whole {
		if counts[kind] < n {
			return fmt.Errorf("%d of %d processes %s run", counts[kind], n, kind)
		}
	}
	return nil
}

// recovers waits until the app answers, and all else is as on the first day too.
func (s *shop) recovers(t *testing.T) {
	t.Helper()
	answered := s.answers(t)
	rest := within(t, comeBack, func() error {
		if err := errors.Join(s.complete(), s.well()); err != nil {
			return err
		}
		_, err := s.resolve("kubernetes.default.svc.cluster.local.")
		return err
	})
	s.answers(t)
	t.Logf("the app answered after %.1f s, all was well after %.1f s", answered.Seconds(), (answered + rest).Seconds())
}

// greet changes the site's one line and commits it.
func (s *shop) greet(t *testing.T, greeting string) {
	t.Helper()
	file := filepath.Join(s.fleet, siteFile)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	base, _, _ := strings.Cut(string(text), "  vars:")
	if err := os.WriteFile(file, []byte(base+"  vars:\n    greeting: "+greeting+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.git(t, "commit", "-q", "-a", "-m", greeting)
	s.greeting = greeting
}

// release makes the next release.
func (s *shop) release(t *testing.T) {
	t.Helper()
	s.head++
	s.handOver(t)
}

// handOver signs what is not signed and hands it to the hub, again and again where a kill cuts it short.
func (s *shop) handOver(t *testing.T) {
	t.Helper()
	within(t, comeBack, func() error {
		_, err := s.try("release")
		return err
	})
}

// logs shows what a person would look at.
func (s *shop) logs(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join(s.lab.Dir, "*.log"))
	more, _ := filepath.Glob(filepath.Join(s.lab.Dir, "machines", "*.log"))
	for _, file := range append(files, more...) {
		text, _ := os.ReadFile(file)
		t.Logf("--- the end of %s\n%s", filepath.Base(file), text[max(0, len(text)-6000):])
	}
	if all, err := s.processes(); err == nil {
		t.Logf("--- processes\n%v", all)
	}
	out, _ := s.try("status", siteName)
	t.Logf("--- status\n%s", out)
	out, err := s.tryKubectl("", "get", "pods,nodes,events", "-A", "-o", "wide")
	t.Logf("--- kubectl\n%s %v", out, err)
}
