package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	hub "github.com/holdfast-edge/holdfast/link" // a link is a port here
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// ports is a kernel with two ports, eth0 with a cable and eth1 without.
type ports struct {
	mu      sync.Mutex
	carrier map[string]bool
	silent  bool // no DHCP server answers
	set     []want
}

func (p *ports) links() ([]link, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []link{
		{Index: 2, Name: "eth0", MAC: "52:54:00:00:00:01", Driver: "virtio_net", Physical: true, Up: true, Carrier: p.carrier["eth0"]},
		{Index: 3, Name: "eth1", MAC: "52:54:00:00:00:02", Driver: "e1000e", Physical: true, Up: true, Carrier: p.carrier["eth1"]},
		{Index: 9, Name: "cni0", MAC: "52:54:00:00:00:09", Up: true, Carrier: true},
	}, nil
}
func (p *ports) changes(context.Context) (<-chan struct{}, error) { return nil, errors.New("none") }
func (p *ports) exchange(string) exchange                         { return p }
func (p *ports) configure(wants []want) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set = wants
	return nil
}

func (p *ports) request(ctx context.Context) (*lease, error) {
	p.mu.Lock()
	silent := p.silent
	p.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &lease{Address: netip.MustParsePrefix("192.0.2.50/24"), From: time.Now(), Length: time.Hour,
		NTP: []string{"192.0.2.123"}, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}, nil
}
func (p *ports) extend(ctx context.Context, l *lease, _ bool) (*lease, error) { return p.request(ctx) }

func (p *ports) change(f func(*ports)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// box is a machine of which only the network is there.
type box struct {
	*Manager
	t      *testing.T
	ports  *ports
	faults *faults.List
	dials  int
	stop   func()
}

func start(t *testing.T, dir string, change ...func(*ports)) *box {
	b := &box{t: t, ports: &ports{carrier: map[string]bool{"eth0": true}}, faults: faults.NewList(nil)}
	for _, c := range change {
		c(b.ports)
	}
	b.Manager = newManager(Options{Public: dir, Faults: b.faults, Switched: func() { b.dials++ }, Log: slog.New(slog.DiscardHandler)}, b.ports)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	b.stop = func() { cancel(); <-done }
	synctest.Wait()
	return b
}

func (b *box) contact(yes bool) { b.Contact(yes); synctest.Wait() }
func (b *box) apply(c Config)   { b.Apply(c); synctest.Wait() }
func (b *box) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *box) want(what, source, address string) {
	b.t.Helper()
	s := b.Status()
	if len(s) == 0 || s[0].Source != source || address == "" && len(s[0].Addresses) != 0 || address != "" && (len(s[0].Addresses) == 0 || s[0].Addresses[0].String() != address) {
		b.t.Errorf("%s: %+v: want %s from %s", what, s, address, source)
	}
}

func (b *box) fault(what string, code faults.Code, want bool) {
	b.t.Helper()
	all, _ := b.faults.Now()
	got := false
	for _, f := range all {
		got = got || f.Code == code
	}
	if got != want {
		b.t.Errorf("%s: fault %s is %v, want %v: %v", what, code, got, want, all)
	}
}

func fixed(address string) Config {
	return Config{Interfaces: []fleet.Interface{{Name: "lan", Match: "eth0", Addresses: []string{address}}}}
}

const leased = "192.0.2.50/24"

func hints(t *testing.T, dir, address string) {
	t.Helper()
	text := "apiVersion: holdfast.dev/v1alpha1\nkind: Network\nspec:\n  interfaces: [{name: lan, match: eth0, addresses: [" + address + "]}]\n  hubs: [hub.example.com:443]\n"
	if err := os.WriteFile(filepath.Join(dir, HintsFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFirstContactByDHCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := start(t, dir)
		defer b.stop()
		b.want("at start", fromDHCP, leased)
		if got, err := readLast(dir); got != nil || err != nil {
			t.Errorf("written down before contact: %v, %v", got, err)
		}
		b.contact(true)
		if got, err := readLast(dir); err != nil || got.Source != fromDHCP || digest(got.Good) != digest(anyPort()) {
			t.Errorf("after contact: %+v, %v", got, err)
		}
		if n := b.NTP(); len(n) != 1 || n[0] != "192.0.2.123" {
			t.Errorf("time servers %v", n)
		}
	})
}

func TestHintsTakeTurnsWithDHCPUntilContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		hints(t, dir, "192.0.2.7/24")
		b := start(t, dir)
		b.want("at start", fromHints, "192.0.2.7/24")
		b.pass(defaultDeadline)
		b.want("no contact", fromDHCP, leased)
		if c := b.Config(); len(c.Hubs) != 0 {
			t.Errorf("DHCP with hubs %v", c.Hubs)
		}
		b.pass(defaultDeadline)
		b.want("no contact either", fromHints, "192.0.2.7/24")
		b.contact(true)
		b.pass(time.Hour)
		b.want("contact", fromHints, "192.0.2.7/24")
		b.stop()
		b = start(t, dir)
		b.want("the same hints after a restart", fromLast, "192.0.2.7/24")
		b.stop()
		hints(t, dir, "192.0.2.8/24")
		b = start(t, dir)
		b.want("new hints after a restart", fromHints, "192.0.2.8/24")
		b.pass(defaultDeadline)
		b.want("new hints that lead nowhere", fromLast, "192.0.2.7/24")
		b.stop()
	})
}

// Pods ask whom the lease names, also while it is away; a release's word is above it.
func TestNameServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, t.TempDir(), func(p *ports) { p.silent = true })
		defer b.stop()
		want := func(when string, servers ...string) {
			t.Helper()
			var got []string
			for _, a := range b.DNS() {
				got = append(got, a.String())
			}
			if !slices.Equal(got, servers) {
				t.Errorf("%s: %q, want %q", when, got, servers)
			}
		}
		want("no lease")
		b.stop()
		b = start(t, t.TempDir())
		want("a lease", "192.0.2.53")
		b.ports.change(func(p *ports) { p.silent = true })
		b.pass(3 * time.Hour)
		if s := b.Status(); len(s) == 0 || len(s[0].Addresses) != 0 {
			t.Errorf("the lease is not away: %+v", s)
		}
		want("the lease is away", "192.0.2.53")
		b.apply(Config{DNS: []netip.Addr{netip.MustParseAddr("198.51.100.53")}})
		want("a release names one", "198.51.100.53")
	})
}

func TestFaultyHintsAreNamedAndLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		hints(t, dir, "nonsense")
		b := start(t, dir)
		defer b.stop()
		b.want("at start", fromDHCP, leased)
		b.fault("at start", faults.BadHints, true)
	})
}

func TestDamagedMemoryIsNamedAndLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, lastFile), []byte(`{"version":1,"good":{}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		b := start(t, dir)
		defer b.stop()
		b.want("at start", fromDHCP, leased)
		b.fault("at start", faults.BadHints, true)
		b.contact(true)
		b.fault("what works is written down", faults.BadHints, false)
	})
}

// A keeper that has waited for an hour dials as soon as there is another way: by
// a release's addresses, by a lease, by a cable that is plugged in again.
func TestRedialsOnceTheWayIsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b *box
		dials := make(chan string, 100)
		keeper := hub.NewKeeper(hub.KeeperConfig{
			// Drawn from none to 200 years: of an hour of it, as good as never.
			LeastWait: 200 * 365 * 24 * time.Hour, MostWait: 200 * 365 * 24 * time.Hour, Log: slog.New(slog.DiscardHandler),
			Hubs: func() []hub.Hub { return []hub.Hub{{Address: "hub:443"}} },
			Dial: func(context.Context, hub.DialConfig) (hub.Session, error) {
				way := "none"
				if s := b.Status(); len(s) > 0 && s[0].Carrier && len(s[0].Addresses) > 0 {
					way = s[0].Addresses[0].String()
				}
				dials <- way
				return nil, errors.New("no route to the hub")
			},
		})
		b = start(t, t.TempDir())
		b.options.Switched = keeper.Redial
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- keeper.Run(ctx) }()
		dialed := func(what string, want ...string) {
			t.Helper()
			b.pass(time.Second)
			var got []string
			for len(dials) > 0 {
				got = append(got, <-dials)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: dialed by %q, want %q", what, got, want)
			}
		}
		dialed("at start", leased)
		b.contact(true) // by another keeper: the DHCP configuration is proven
		b.contact(false)
		b.pass(time.Hour)
		dialed("an hour of waiting")
		b.contact(true)
		b.apply(fixed("198.51.100.7/24"))
		dialed("a release's address", "198.51.100.7/24")
		b.apply(fixed("198.51.100.7/24"))
		dialed("the same again")
		b.contact(false)
		b.contact(true)
		b.ports.change(func(p *ports) { p.carrier["eth0"] = false })
		b.pass(2 * round)
		dialed("the cable is out")
		b.ports.change(func(p *ports) { p.carrier["eth0"] = true })
		b.pass(2 * round)
		dialed("the cable is in", "198.51.100.7/24")
		cancel()
		<-done
		b.stop()
	})
}

// proven is a machine that has reached the hub by DHCP.
func proven(t *testing.T, dir string) *box {
	b := start(t, dir)
	b.contact(true)
	return b
}

func TestProvenStaysWhileTheHubIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		hints(t, dir, "192.0.2.7/24")
		b := start(t, dir)
		defer func() { b.stop() }()
		b.contact(true)
		b.contact(false)
		b.pass(24 * time.Hour)
		b.want("hub away", fromHints, "192.0.2.7/24")
		dials := b.dials
		b.ports.change(func(p *ports) { p.carrier["eth0"] = false })
		b.pass(patience + 2*round)
		b.want("no cable", fromDHCP, "")
		if b.dials == dials {
			t.Error("not told to dial")
		}
	})
}

func TestReleaseIsGoodAfterContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := proven(t, dir)
		dials := b.dials
		b.apply(fixed("198.51.100.7/24"))
		b.want("trial", fromRelease, "198.51.100.7/24")
		if !b.Status()[0].Trial || b.dials != dials+1 {
			t.Errorf("trial %+v, %d dials", b.Status(), b.dials-dials)
		}
		if got, _ := readLast(dir); got.Source != fromDHCP {
			t.Errorf("written down before contact: %+v", got)
		}
		b.contact(false)
		b.contact(true)
		if got, _ := readLast(dir); got.Source != fromRelease {
			t.Errorf("not written down after contact: %+v", got)
		}
		b.contact(false)
		b.pass(10 * defaultDeadline)
		b.want("good", fromRelease, "198.51.100.7/24")
		dials = b.dials
		b.apply(fixed("198.51.100.7/24"))
		if b.dials != dials {
			t.Error("the same again was a change")
		}
		b.stop()
		b = start(t, dir)
		b.want("after a restart", fromLast, "198.51.100.7/24")
		b.stop()
	})
}

func TestReleaseThatLosesTheHubIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := proven(t, dir)
		b.apply(fixed("198.51.100.7/24"))
		b.contact(false)
		b.pass(defaultDeadline - time.Second)
		b.want("within the deadline", fromRelease, "198.51.100.7/24")
		b.pass(time.Second)
		b.want("after it", fromDHCP, leased)
		b.fault("after it", faults.NetworkUndone, true)
		b.contact(true)
		b.apply(fixed("198.51.100.7/24"))
		b.want("the same again", fromDHCP, leased)
		b.stop()
		b = proven(t, dir)
		b.apply(fixed("198.51.100.7/24"))
		b.want("the same after a restart", fromLast, leased)
		b.apply(fixed("198.51.100.8/24"))
		b.want("another", fromRelease, "198.51.100.8/24")
		b.fault("another", faults.NetworkUndone, false)
		b.stop()
	})
}

func TestSessionThatLivesOnProvesTheReleaseOnlyAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := proven(t, dir)
		defer b.stop()
		b.apply(fixed("198.51.100.7/24"))
		b.contact(true) // said twice is no new session
		if got, _ := readLast(dir); got.Source != fromDHCP {
			t.Errorf("proven by a session of before: %+v", got)
		}
		b.pass(settle)
		if got, _ := readLast(dir); got.Source != fromRelease {
			t.Errorf("not proven by a session that lives: %+v", got)
		}
	})
}

func TestPowerCutInATrialComesBackToTheGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := proven(t, dir)
		b.apply(fixed("198.51.100.7/24"))
		b.stop()
		b = start(t, dir)
		defer b.stop()
		b.want("after the cut", fromLast, leased)
		b.apply(fixed("198.51.100.7/24")) // the machine's release, at each boot
		b.want("no contact yet", fromLast, leased)
		b.contact(true)
		b.want("contact", fromRelease, "198.51.100.7/24")
		b.contact(false)
		b.pass(defaultDeadline)
		b.want("undone", fromLast, leased)
	})
}

func TestReleaseWhileTheHubIsAwayIsTriedOnceAndNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := proven(t, dir)
		defer b.stop()
		b.contact(false)
		b.apply(fixed("198.51.100.7/24"))
		b.want("waits", fromDHCP, leased)
		b.pass(defaultDeadline)
		b.want("tried", fromRelease, "198.51.100.7/24")
		b.pass(defaultDeadline)
		b.want("back", fromDHCP, leased)
		b.fault("back", faults.NetworkUndone, false)
		b.pass(24 * time.Hour)
		b.want("stays", fromDHCP, leased)
		b.contact(true)
		b.want("the hub is back", fromRelease, "198.51.100.7/24")
		b.contact(false)
		b.contact(true)
		if got, _ := readLast(dir); got.Source != fromRelease {
			t.Errorf("not good: %+v", got)
		}
	})
}

func TestNewerReleaseInATrialGoesBackToTheGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := proven(t, t.TempDir())
		defer b.stop()
		b.apply(fixed("198.51.100.7/24"))
		b.apply(fixed("198.51.100.8/24"))
		b.want("newer", fromRelease, "198.51.100.8/24")
		b.contact(false)
		b.pass(defaultDeadline)
		b.want("undone", fromDHCP, leased)
	})
}

func TestReleaseKeepsWhatItDoesNotSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		hints(t, dir, "192.0.2.7/24")
		b := start(t, dir)
		defer b.stop()
		b.contact(true)
		b.apply(Config{DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}})
		b.want("only name servers", fromRelease, "192.0.2.7/24")
		if c := b.Config(); len(c.DNS) != 1 || len(c.Hubs) != 1 {
			t.Errorf("got %+v", c)
		}
	})
}

func TestReleaseThatDropsItsInterfacesGoesBackToTheHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for _, hinted := range []string{"", "192.0.2.7/24"} {
			if hinted != "" {
				hints(t, dir, hinted)
			}
			b := proven(t, dir)
			b.apply(fixed("198.51.100.7/24"))
			b.contact(false)
			b.contact(true)
			b.stop()
			if err := os.RemoveAll(filepath.Join(dir, HintsFile)); err != nil { // a stick that was pulled out
				t.Fatal(err)
			}
			b = proven(t, dir)
			b.want("after a restart", fromLast, "198.51.100.7/24")
			b.apply(Config{})
			want := hinted
			if want == "" {
				want = leased
			}
			b.want("nothing said any more", fromRelease, want)
			b.contact(false)
			b.contact(true)
			b.stop()
		}
	})
}

func TestFaultsOfPorts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := start(t, "", func(p *ports) { p.silent = true })
		defer b.stop()
		b.fault("a second port without a cable", faults.NoCarrier, false)
		b.pass(addressPatience + round)
		b.fault("no server", faults.NoAddress, true)
		b.ports.change(func(p *ports) { p.silent = false })
		b.pass(longPause + tryFor)
		b.fault("a server", faults.NoAddress, false)
		b.ports.change(func(p *ports) { p.carrier["eth0"] = false })
		b.pass(round)
		b.fault("no cable", faults.NoCarrier, true)
	})
}

func TestPlan(t *testing.T) {
	links, _ := (&ports{carrier: map[string]bool{}}).links()
	c := Config{Interfaces: []fleet.Interface{
		{Name: "rest", Match: "*", DHCP: true},
		{Name: "office", VLAN: fleet.VLAN{ID: 12, Of: "wan"}, Addresses: []string{"192.0.2.10/24"}},
		{Name: "wan", Match: "52:54:00:00:00:02"},
		{Name: "absent", Match: "eth7", DHCP: true},
		{Name: "lost", VLAN: fleet.VLAN{ID: 12, Of: "absent"}, DHCP: true},
	}}
	var got []string
	for _, w := range plan(c, links) {
		got = append(got, w.Interface+"="+w.Link)
	}
	if s := strings.Join(got, " "); s != "wan=eth1 office=eth1.12 rest=eth0" {
		t.Errorf("got %s", s)
	}
	if name := vlanName("enp0s31f6u1u2c2", 4094); len(name) > 15 {
		t.Errorf("%s is too long", name)
	}
}
