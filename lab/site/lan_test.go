//go:build site

package site

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab/labtest"
	"github.com/holdfast-edge/holdfast/lab/world"
)

// resolve asks the cluster's DNS, by its service address, from the machine.
func (s *shop) resolve(name string) ([]string, error) {
	ns, err := s.inMachine()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return world.DialIn(ctx, ns, network, "10.215.0.10:53")
	}}
	return r.LookupHost(ctx, name)
}

func (s *shop) testDNS(t *testing.T) {
	got, err := s.resolve("kubernetes.default.svc.cluster.local.")
	if err != nil || !slices.Equal(got, []string{"10.215.0.1"}) {
		t.Errorf("kubernetes.default.svc.cluster.local is %v, %v; want 10.215.0.1", got, err)
	}
	if got, err = s.resolve("hello.hello.svc.cluster.local."); err != nil || len(got) != 1 {
		t.Errorf("hello.hello.svc.cluster.local is %v, %v; want one address", got, err)
	}
	began := time.Now()
	got, err = s.resolve("www.example.com.")
	if took := time.Since(began); err == nil || took > 2*time.Second {
		t.Errorf("an outside name, with no DNS server known, gives %v, %v after %v; want an error at once", got, err, took)
	}
}

// testStrangers is what somebody on the shop's network can reach: the machine's
// own door and the app's port, and nothing else that listens in the machine.
func (s *shop) testStrangers(t *testing.T) {
	inner := s.one(t, "inner")
	var there []string
	for _, file := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", inner.pid, file))
		if err != nil {
			t.Fatal(err)
		}
		there = append(there, listening(string(text))...)
	}
	for _, p := range []string{"5000", "6443", "7443", "10250"} {
		if !slices.Contains(there, p) {
			t.Errorf("nothing listens on %s: this test looks in the wrong place", p)
		}
	}
	ports := slices.Concat(there, labtest.Ports, []string{nodePort})
	slices.Sort(ports)
	ports = slices.Compact(ports)
	lan := s.LAN(t)
	machine := s.Machine(t).Address().String()
	open := labtest.Reachable(lan, machine, ports, time.Second)
	if want := []string{nodePort, "7443"}; !slices.Equal(open, want) {
		t.Errorf("from the LAN the machine's ports %v are open, want %v; tried %d ports", open, want, len(ports))
	}
	// Somebody who routes the site's own addresses to the machine gets no further.
	targets := []string{"10.213.0.1", "10.213.0.11", "10.215.0.1", "10.215.0.10", "10.214.0.2"}
	var wg sync.WaitGroup
	for _, target := range targets {
		s.Run(t, "lab", "exec", "--", "ip", "route", "replace", target+"/32", "via", machine)
		wg.Go(func() {
			if open := labtest.Reachable(lan, target, inside, time.Second); len(open) > 0 {
				t.Errorf("from the LAN, by a route of its own, %s is open on %v", target, open)
			}
		})
	}
	wg.Wait()
	for _, target := range targets {
		s.Run(t, "lab", "exec", "--", "ip", "route", "del", target+"/32")
	}
}

// inside are ports that are open at one of the site's inner addresses.
var inside = []string{"53", "80", "443", "6443", "8080", "10250"}

// listening reads the ports of listening sockets from /proc/net/tcp.
func listening(text string) []string {
	var ports []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "0A" {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if p, err := strconv.ParseUint(hex, 16, 16); err == nil {
			ports = append(ports, strconv.FormatUint(p, 10))
		}
	}
	return ports
}
