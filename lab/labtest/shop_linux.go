package labtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/lab"
	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// Options are what a test says of its shop.
type Options struct {
	Bin   string        // folder of the programs
	Needs []string      // of them, besides holdfast; Make tells how to make them
	Make  string        // such as "make build system"
	Site  string        // its name in the example fleet
	Most  time.Duration // that one command may take
	// Keep is a folder to work in, and to leave with its lab; default: one that goes with the test.
	Keep string
}

// Shop is a fleet with a lab of one site.
type Shop struct {
	Options
	Holdfast string // program
	Work     string // folder; everything is below it
	Fleet    string // fleet repo
	Hub      string // address
	Lab      lab.Lab
}

// New makes the fleet. Nothing runs yet.
func New(t *testing.T, o Options) *Shop {
	t.Helper()
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append([]string{"holdfast"}, o.Needs...) {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Fatalf("this needs what it tests: %s (%v)", o.Make, err)
		}
	}
	work := o.Keep
	if work == "" {
		work = t.TempDir()
	}
	s := &Shop{Options: o, Holdfast: filepath.Join(bin, "holdfast"), Work: work, Fleet: filepath.Join(work, "shops"), Hub: freeAddress(t), Lab: lab.Lab{Dir: filepath.Join(work, "lab")}}
	if _, err := os.Stat(s.Fleet); errors.Is(err, fs.ErrNotExist) {
		s.Command(t, "", s.Holdfast, "init", s.Fleet, "--keys", s.Keys())
	}
	if o.Keep == "" {
		t.Cleanup(func() {
			if t.Failed() {
				s.logs(t)
			}
			if _, err := s.Try("lab", "down"); err != nil {
				t.Errorf("lab down at the end: %v", err)
			}
		})
	}
	return s
}

// Keys is the folder of the fleet's keys.
func (s *Shop) Keys() string { return filepath.Join(s.Work, "keys") }

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

// Environment is this one's, without what belongs to the person who tests. Debian's
// packages alone are fetched once for all.
func (s *Shop) Environment() []string {
	list := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "HOME" || name == "SSH_AUTH_SOCK" || strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "XDG_") || strings.HasPrefix(name, "HOLDFAST_")
	})
	list = append(list, "HOME="+s.Work, "HOLDFAST_CONFIG="+filepath.Join(s.Work, "notes"))
	if cache, err := os.UserCacheDir(); err == nil {
		list = append(list, "XDG_CACHE_HOME="+cache)
	}
	return list
}

// TryCommand runs a program. What it printed is there also with an error.
func (s *Shop) TryCommand(input, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.Most)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = s.Work, s.Environment(), strings.NewReader(input)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Minute // a drill puts back what it changed
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(fault.Bytes()))
	}
	return out.String(), nil
}

// Command is TryCommand that must go well.
func (s *Shop) Command(t *testing.T, input, program string, args ...string) string {
	t.Helper()
	out, err := s.TryCommand(input, program, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// Try runs holdfast in the fleet repo, and lab and drill on the lab.
func (s *Shop) Try(args ...string) (string, error) {
	args = append([]string{"--fleet", s.Fleet}, args...)
	if verb := args[2]; verb == "lab" || verb == "drill" {
		args = slices.Insert(args, 3, "--dir", s.Lab.Dir)
	}
	return s.TryCommand("", s.Holdfast, args...)
}

// Run is Try that must go well.
func (s *Shop) Run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.Try(args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// Up is lab up.
func (s *Shop) Up(t *testing.T, flags ...string) {
	t.Helper()
	t.Log("\n" + s.Run(t, append([]string{"lab", "up", s.Site, "--listen", s.Hub}, flags...)...))
}

// Kubectl runs kubectl at the site, through the hub.
func (s *Shop) Kubectl(t *testing.T, input string, args ...string) string {
	t.Helper()
	out, err := s.TryKubectl(input, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryKubectl is Kubectl that may fail.
func (s *Shop) TryKubectl(input string, args ...string) (string, error) {
	return s.TryCommand(input, s.Holdfast, append([]string{"--fleet", s.Fleet, "kubectl", s.Site, "--request-timeout=20s"}, args...)...)
}

// Machine is the one machine of the lab.
func (s *Shop) Machine(t *testing.T) lab.Machine {
	t.Helper()
	w, err := s.Lab.Wanted()
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.Find(s.Site)
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

// Status is what the hub says of the machine.
func (s *Shop) Status() (wire.MachineStatus, error) {
	out, err := s.Try("status", s.Site, "--output", "json")
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

// LAN is the lab's network, in which the site's strangers are.
func (s *Shop) LAN(t *testing.T) *os.File {
	t.Helper()
	units, err := s.Lab.Units()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		if u.Name != s.Machine(t).Key() {
			continue
		}
		lan, err := os.Open(fmt.Sprintf("/proc/%d/fd/3", u.PID))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lan.Close() })
		return lan
	}
	t.Fatal("the machine is not there")
	return nil
}

// Reachable tells to which of the ports of a host somebody in ns gets a connection
// within patience, sorted.
func Reachable(ns *os.File, host string, ports []string, patience time.Duration) []string {
	var mu sync.Mutex
	var open []string
	var wg sync.WaitGroup
	for _, port := range ports {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			conn, err := world.DialIn(ctx, ns, "tcp", net.JoinHostPort(host, port))
			if err != nil {
				return
			}
			conn.Close()
			mu.Lock()
			defer mu.Unlock()
			open = append(open, port)
		})
	}
	wg.Wait()
	slices.Sort(open)
	return open
}

// LinkLocal is the address that IPv6 gives a host by itself (RFC 4291, appendix A),
// as somebody in ns dials it, who spoke with the host by its IPv4 address before.
func LinkLocal(ns *os.File, host netip.Addr) (string, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer h.Close()
	neighbours, err := h.NeighList(0, unix.AF_INET)
	if err != nil {
		return "", err
	}
	for _, n := range neighbours {
		if a, ok := netip.AddrFromSlice(n.IP.To4()); !ok || a != host || len(n.HardwareAddr) != 6 {
			continue
		}
		mac := n.HardwareAddr
		a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
		// The zone is a number, since names are this program's namespace's.
		return netip.AddrFrom16(a).WithZone(strconv.Itoa(n.LinkIndex)).String(), nil
	}
	return "", fmt.Errorf("nobody in the lab's network knows %s", host)
}

// Ports are those on which parts of Kubernetes, of the machine or of a Linux that
// was not emptied like to listen.
var Ports = strings.Fields("22 23 53 67 68 80 111 123 443 546 2379 2380 2381 4194 5000 5355 6443 7443 8080 8443 9090 9153 10248 10249 10250 10255 10256 10257 10259")

// Within polls f until it returns nil, for so long at most.
func Within(t *testing.T, limit time.Duration, f func() error) time.Duration {
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

// logs shows what a person would look at.
func (s *Shop) logs(t *testing.T) {
	for _, pattern := range []string{"*.log", "machines/*.log", "machines/*/serial.log"} {
		files, _ := filepath.Glob(filepath.Join(s.Lab.Dir, pattern))
		for _, file := range files {
			text, _ := os.ReadFile(file)
			t.Logf("--- the end of %s\n%s", file, text[max(0, len(text)-6000):])
		}
	}
	out, err := s.Try("status", s.Site)
	t.Logf("--- status\n%s%v", out, err)
	out, err = s.TryKubectl("", "get", "pods,nodes,events", "-A", "-o", "wide")
	t.Logf("--- kubectl\n%s%v", out, err)
}
