//go:build site

package site

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab/labtest"
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
	*labtest.Shop
	random   *rand.Rand
	whole    map[string]int // processes of a site that is well, by what they are
	head     uint64         // newest release
	greeting string         // what the app says when that release runs
}

// newShop makes the fleet. Nothing runs yet.
func newShop(t *testing.T) *shop {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("the random choices of this run come back with -seed %d", seed)
	s := &shop{random: rand.New(rand.NewPCG(seed, 0)), head: 1, greeting: "Good morning", Shop: labtest.New(t, labtest.Options{
		Bin: *binFlag, Needs: []string{"machined", "system/kube", "system/containerd", "images/hello-1.0.0.tar"}, Make: "make build system images",
		Site: siteName, Most: 6 * time.Minute,
	})}
	t.Cleanup(func() {
		if all, err := s.processes(); t.Failed() && err == nil {
			t.Logf("--- processes\n%v", all)
		}
	})
	return s
}

func (s *shop) git(t *testing.T, args ...string) {
	t.Helper()
	s.Command(t, "", "git", append([]string{"-C", s.Fleet}, args...)...)
}

// answer is what the app says on the site's LAN.
func (s *shop) answer() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	w, err := s.Lab.Wanted()
	if err != nil {
		return "", err
	}
	m, err := w.Find(siteName)
	if err != nil {
		return "", err
	}
	body, err := s.Lab.Fetch(ctx, "http://"+net.JoinHostPort(m.Address().String(), nodePort)+"/")
	return string(body), err
}

// answers waits until the app says what the newest release says.
func (s *shop) answers(t *testing.T) time.Duration {
	t.Helper()
	return labtest.Within(t, comeBack, func() error {
		said, err := s.answer()
		if err == nil && !strings.Contains(said, s.greeting) {
			err = fmt.Errorf("the app says %s, want %q", said, s.greeting)
		}
		return err
	})
}

// well says why the machine is not yet well with the newest release, by the hub's word.
func (s *shop) well() error {
	m, err := s.Status()
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
	rest := labtest.Within(t, comeBack, func() error {
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
	file := filepath.Join(s.Fleet, siteFile)
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
	labtest.Within(t, comeBack, func() error {
		_, err := s.Try("release")
		return err
	})
}
