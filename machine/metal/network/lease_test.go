package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// server grants as it is told, and keeps what it was asked, with the minute.
type server struct {
	began  time.Time
	length time.Duration
	refuse atomic.Bool
	silent atomic.Bool
	log    []string
}

func (s *server) note(what string) {
	s.log = append(s.log, fmt.Sprintf("%s@%v", what, time.Since(s.began).Round(time.Second)))
}

func (s *server) answer(ctx context.Context) (*lease, error) {
	if s.silent.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &lease{Address: netip.MustParsePrefix("192.0.2.50/24"), From: time.Now(), Length: s.length}, nil
}

func (s *server) request(ctx context.Context) (*lease, error) {
	s.note("request")
	return s.answer(ctx)
}

func (s *server) extend(ctx context.Context, _ *lease, all bool) (*lease, error) {
	s.note(map[bool]string{false: "renew", true: "rebind"}[all])
	if s.refuse.Load() {
		return nil, errRefused
	}
	return s.answer(ctx)
}

// live runs a client in a bubble; told is what it said, with the time.
func live(t *testing.T, length time.Duration, story func(s *server, kick chan<- struct{})) (asked, told []string) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{began: time.Now(), length: length}
		ctx, cancel := context.WithCancel(t.Context())
		kick, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			keepLease(ctx, s, kick, func(l *lease, err error) {
				what := "none"
				if l != nil {
					what = "lease"
				}
				told = append(told, fmt.Sprintf("%s@%v", what, time.Since(s.began).Round(time.Second)))
			})
		}()
		synctest.Wait()
		story(s, kick)
		cancel()
		<-done
		asked = s.log
	})
	return asked, told
}

func TestLeaseIsRenewedAtHalfItsTime(t *testing.T) {
	asked, _ := live(t, time.Hour, func(*server, chan<- struct{}) { time.Sleep(80 * time.Minute) })
	if got := strings.Join(asked, " "); got != "request@0s renew@30m0s renew@1h0m0s" {
		t.Errorf("asked %s", got)
	}
}

func TestLeaseIsReboundAndEnds(t *testing.T) {
	asked, told := live(t, time.Hour, func(s *server, _ chan<- struct{}) { s.silent.Store(true); time.Sleep(61 * time.Minute) })
	if got := strings.Join(told, " "); !strings.HasPrefix(got, "lease@0s none@1h0m") {
		t.Errorf("told %s", got)
	}
	first := slices.IndexFunc(asked, func(s string) bool { return strings.HasPrefix(s, "rebind") })
	if first < 2 || asked[1] != "renew@30m0s" || asked[first] < "rebind@52m" || asked[first] > "rebind@53m1s" || len(asked) > 40 {
		t.Errorf("asked %v", asked)
	}
}

func TestLeaseThatIsRefusedIsGoneAtOnce(t *testing.T) {
	_, told := live(t, time.Hour, func(s *server, _ chan<- struct{}) { s.refuse.Store(true); time.Sleep(31 * time.Minute) })
	if got := strings.Join(told, " "); got != "lease@0s none@30m0s lease@30m0s" {
		t.Errorf("told %s", got)
	}
}

func TestLeaseForEver(t *testing.T) {
	asked, _ := live(t, 0, func(*server, chan<- struct{}) { time.Sleep(10000 * time.Hour) })
	if len(asked) != 1 {
		t.Errorf("asked %v", asked)
	}
}

func TestCableAsksEverybody(t *testing.T) {
	asked, _ := live(t, time.Hour, func(_ *server, kick chan<- struct{}) { time.Sleep(time.Minute); kick <- struct{}{}; synctest.Wait() })
	if got := strings.Join(asked, " "); got != "request@0s rebind@1m0s" {
		t.Errorf("asked %s", got)
	}
}

func TestNobodyAnswers(t *testing.T) {
	asked, told := live(t, time.Hour, func(s *server, _ chan<- struct{}) {
		s.silent.Store(true)
		s.refuse.Store(true)
		time.Sleep(2 * time.Hour)
	})
	if len(asked) < 60 || len(asked) > 400 || told[len(told)-1][:4] != "none" {
		t.Errorf("asked %d times, told %v", len(asked), told[:2])
	}
}

func TestTimesOfAServerThatSaysNonsense(t *testing.T) {
	for _, l := range []lease{{Length: time.Second}, {Length: time.Hour, Renew: 2 * time.Hour, Bind: 3 * time.Hour}, {Length: time.Hour, Renew: 50 * time.Minute, Bind: 10 * time.Minute}} {
		l.times()
		if !(0 < l.Renew && l.Renew < l.Bind && l.Bind < l.Length) {
			t.Errorf("%+v", l)
		}
	}
}

func TestLeaseOf(t *testing.T) {
	now := time.Unix(1e9, 0)
	ack := func(mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
		m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 50))}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	bare, err := leaseOf(ack(), now)
	if err != nil || bare.Router.IsValid() || bare.Address.String() != "192.0.2.50/24" || bare.Length != 0 {
		t.Errorf("nothing but an address: %+v, %v", bare, err)
	}
	full, err := leaseOf(ack(dhcpv4.WithNetmask(net.CIDRMask(26, 32)), dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1)), dhcpv4.WithDNS(net.IPv4(192, 0, 2, 53)),
		dhcpv4.WithLeaseTime(60), dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 120})),
		dhcpv4.WithOption(dhcpv4.OptNTPServers(net.IPv4(192, 0, 2, 123)))), now)
	if err != nil || full.Address.Bits() != 26 || full.Router.String() != "192.0.2.1" || len(full.DNS) != 1 || full.MTU != 1400 || full.NTP[0] != "192.0.2.123" || full.Length != time.Minute {
		t.Errorf("all of it: %+v, %v", full, err)
	}
	for name, bad := range map[string]*dhcpv4.DHCPv4{
		"no address": ack(dhcpv4.WithYourIP(net.IPv4zero)), "loopback": ack(dhcpv4.WithYourIP(net.IPv4(127, 0, 0, 1))),
		"odd mask": ack(dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionSubnetMask, []byte{255, 0, 255, 0}))),
	} {
		if _, err := leaseOf(bad, now); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if !errors.Is(fmt.Errorf("x: %w", errRefused), errRefused) {
		t.Error("errRefused")
	}
}

func FuzzLeaseOf(f *testing.F) {
	m, err := dhcpv4.New(dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 50)), dhcpv4.WithNetmask(net.CIDRMask(26, 32)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m.ToBytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := dhcpv4.FromBytes(b)
		if err != nil {
			return
		}
		if l, err := leaseOf(m, time.Now()); err == nil && !l.Address.IsValid() {
			t.Errorf("%+v", l)
		}
	})
}
