//go:build vm

package vmsite

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/lab/drill"
	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

var (
	binFlag    = flag.String("bin", "../../bin", "folder with holdfast, machined, init, system and images")
	seedFlag   = flag.Uint64("seed", 1, "of the random instants of the drills")
	cutsFlag   = flag.Int("cuts", 2, "power cuts")
	drillsFlag = flag.String("drills", "power,theft,clock,update", "drills to run, in this order")
	keepFlag   = flag.String("keep", "", "folder to work in, and to leave with its lab: for looking at what went wrong")
)

const (
	siteName = "bristol-harbour"
	nodePort = "30080"
	most     = 40 * time.Minute // for anything, on a slow and busy computer
)

// shop is a fleet with a lab of one virtual machine.
type shop struct {
	holdfast, work, fleet string
	lab                   lab.Lab
}

// TestVirtualMachine tells a machine's story. The chapters stand on each other.
func TestVirtualMachine(t *testing.T) {
	s := newShop(t)
	chapters := []struct {
		name string
		tell func(*testing.T)
	}{{"Root", s.testRoot}, {"Protected", s.testProtected}, {"Strangers", s.testStrangers}}
	for name := range strings.SplitSeq(*drillsFlag, ",") {
		chapters = append(chapters, struct {
			name string
			tell func(*testing.T)
		}{"Drill-" + name, func(t *testing.T) { s.drill(t, name) }})
	}
	for _, c := range chapters {
		began := time.Now()
		if !t.Run(c.name, c.tell) {
			return
		}
		t.Logf("%s took %.0f s", c.name, time.Since(began).Seconds())
	}
}

func newShop(t *testing.T) *shop {
	t.Helper()
	bin, err := filepath.Abs(*binFlag)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"holdfast", "machined", "init", "system/kube", "images/hello-1.0.0.tar"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("this needs what it tests: make build system images os (%v)", err)
		}
	}
	work := *keepFlag
	if work == "" {
		work = t.TempDir()
	}
	s := &shop{holdfast: filepath.Join(bin, "holdfast"), work: work, fleet: filepath.Join(work, "shops"), lab: lab.Lab{Dir: filepath.Join(work, "lab")}}
	if _, err := os.Stat(s.fleet); err != nil {
		s.command(t, s.holdfast, "init", s.fleet, "--keys", filepath.Join(work, "keys"))
	}
	if *keepFlag == "" {
		t.Cleanup(func() {
			if t.Failed() {
				s.logs(t)
			}
			if _, err := s.try("lab", "down", "--dir", s.lab.Dir); err != nil {
				t.Errorf("lab down at the end: %v", err)
			}
		})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hub := l.Addr().String()
	l.Close()
	began := time.Now()
	t.Log("\n" + s.run(t, "lab", "up", siteName, "--dir", s.lab.Dir, "--listen", hub, "--runtime", string(lab.Virtual)))
	t.Logf("up after %.0f s", time.Since(began).Seconds())
	return s
}

func (s *shop) tryCommand(program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = s.work
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "HOME" || name == "SSH_AUTH_SOCK" || strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "HOLDFAST_")
	})
	cmd.Env = append(cmd.Env, "HOME="+s.work, "HOLDFAST_CONFIG="+filepath.Join(s.work, "notes"))
	if cache, err := os.UserCacheDir(); err == nil { // Debian's packages are fetched once for all
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+cache)
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Minute // a drill puts back what it changed
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(fault.Bytes()))
	}
	return out.String(), nil
}

func (s *shop) command(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := s.tryCommand(program, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (s *shop) try(args ...string) (string, error) {
	return s.tryCommand(s.holdfast, append([]string{"--fleet", s.fleet}, args...)...)
}

func (s *shop) run(t *testing.T, args ...string) string {
	t.Helper()
	return s.command(t, s.holdfast, append([]string{"--fleet", s.fleet}, args...)...)
}

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

// drill runs one, as people do, and shows its verdict.
func (s *shop) drill(t *testing.T, name string) {
	out, err := s.try("drill", name, siteName, "--dir", s.lab.Dir, "--seed", strconv.FormatUint(*seedFlag, 10), "--cuts", strconv.Itoa(*cutsFlag),
		"--patience", "20m", "--output", "json")
	var v drill.Verdict
	if fault := json.Unmarshal([]byte(out), &v); fault != nil {
		t.Fatalf("%v: %v\n%s", err, fault, out)
	}
	for _, step := range v.Steps {
		t.Logf("%s\n  expected %s\n  seen     %s\n  lost     %s\n  %.0f s, kept %t", step.Did, step.Expected, step.Seen, step.Lost, step.Seconds, step.Kept)
	}
	if err != nil || !v.Kept {
		t.Errorf("%s: %v", &v, err)
	}
}

// programs are all that the root may execute besides our own in /usr/lib/holdfast: each is asked for by name.
var programs = []string{"mke2fs", "e2fsck", "nft", "mount", "umount", "fsck.ext4", "mkfs.ext4", "resize2fs"}

// testRoot walks the root as it is on the disk: nothing is there that a stranger
// could run commands with, and nothing that gives anybody more rights.
func (s *shop) testRoot(t *testing.T) {
	f, err := os.Open(filepath.Join(s.machine(t).OS, build.PartRoot))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	files, executable := 0, []string{}
	err = fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		if m := info.Mode(); m&(fs.ModeSetuid|fs.ModeSetgid) != 0 || m.IsRegular() && m.Perm()&0o022 != 0 {
			t.Errorf("%s has mode %v", path, m)
		}
		name := filepath.Base(path)
		for _, shell := range []string{"sh", "bash", "dash", "ash", "zsh", "busybox", "toybox", "perl", "python", "python3", "lua", "awk", "mawk", "gawk", "sudo", "su", "login", "agetty", "sshd", "ssh"} {
			if name == shell {
				t.Errorf("%s is in the root", path)
			}
		}
		if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
			return nil
		}
		executable = append(executable, path)
		file, err := root.Open(path)
		if err != nil {
			return err
		}
		defer file.Close()
		head := make([]byte, 4)
		if _, err := io.ReadFull(file, head); err == nil && string(head[:2]) == "#!" {
			t.Errorf("%s is a script", path)
		}
		if !strings.HasPrefix(path, "usr/lib/holdfast/") && !strings.Contains(name, ".so") && !slices.Contains(programs, name) {
			t.Errorf("%s is executable, and nobody said what for", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 || len(executable) < 8 {
		t.Fatalf("found %d files and %d programs: the walk is broken", files, len(executable))
	}
	t.Logf("%d files; executable: %s", files, strings.Join(executable, " "))
}

// testProtected is what the machine says of its box.
func (s *shop) testProtected(t *testing.T) {
	var status wire.Status
	if err := json.Unmarshal([]byte(s.run(t, "status", siteName, "--output", "json")), &status); err != nil {
		t.Fatal(err)
	}
	m := status.Sites[0].Machines[0]
	if m.Protection != "tpm" || m.Slot != "a" || m.OS == "" {
		t.Errorf("protection %q, OS %q in slot %q; want tpm, and an OS in slot a", m.Protection, m.OS, m.Slot)
	}
	for _, c := range m.Conditions {
		t.Logf("it says of itself: %s: %s", c.Name, c.Detail)
	}
	if console := s.run(t, "lab", "console", siteName, "--dir", s.lab.Dir); strings.Contains(console, "the boot is not protected") {
		t.Error("Secure Boot is not on")
	}
}

// testStrangers tries the ports of all that runs in the machine, from its LAN.
func (s *shop) testStrangers(t *testing.T) {
	units, err := s.lab.Units()
	if err != nil {
		t.Fatal(err)
	}
	var lan *os.File
	for _, u := range units {
		if u.Name == s.machine(t).Key() {
			if lan, err = os.Open(fmt.Sprintf("/proc/%d/fd/3", u.PID)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lan == nil {
		t.Fatal("the machine is not there")
	}
	defer lan.Close()
	ports := []string{nodePort, "7443"}
	for _, p := range []int{22, 23, 53, 67, 68, 80, 111, 123, 443, 546, 2379, 2380, 2381, 4194, 5000, 5355, 6443, 8080, 8443, 9090, 9153, 10248, 10249, 10250, 10255, 10256, 10257, 10259} {
		ports = append(ports, strconv.Itoa(p))
	}
	var mu sync.Mutex
	var open []string
	var wg sync.WaitGroup
	for _, port := range ports {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			c, err := world.DialIn(ctx, lan, "tcp", net.JoinHostPort(s.machine(t).Address().String(), port))
			if err != nil {
				return
			}
			c.Close()
			mu.Lock()
			defer mu.Unlock()
			open = append(open, port)
		})
	}
	wg.Wait()
	slices.Sort(open)
	if want := []string{nodePort, "7443"}; !slices.Equal(open, want) {
		t.Errorf("of %d ports strangers may enter %v, want %v", len(ports), open, want)
	}
}

// logs shows what a person would look at.
func (s *shop) logs(t *testing.T) {
	for _, pattern := range []string{"*.log", "machines/*.log", "machines/*/serial.log"} {
		files, _ := filepath.Glob(filepath.Join(s.lab.Dir, pattern))
		for _, file := range files {
			text, _ := os.ReadFile(file)
			t.Logf("--- the end of %s\n%s", filepath.Base(file), text[max(0, len(text)-6000):])
		}
	}
	out, _ := s.try("status", siteName)
	t.Logf("--- status\n%s", out)
}
