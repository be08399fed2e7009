package machine

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/kube"
)

// The lease comes when the plan stands already, and another one later: CoreDNS,
// and nothing else, starts anew with the servers that it names.
func TestUpstreamsFollowTheLAN(t *testing.T) {
	w := newWorld(t, 2)
	for name, text := range w.files { // no site names servers of its own
		w.files[name] = bytes.ReplaceAll(text, []byte("\n  network:\n    dns: [192.0.2.53]"), nil)
	}
	w.release()
	b := newKit(t, w)
	memory := b.open()
	accepted := b.take(memory)
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards what follows
		var lan []netip.Addr
		var fault error
		var plans []*kube.Plan
		m := newMachine(Config{Log: quiet(), Upstreams: func() []netip.Addr {
			mu.Lock()
			defer mu.Unlock()
			return lan
		}})
		m.memory, m.cluster = memory, &cluster{paths: kube.DefaultPaths()}
		c := newContent(m)
		c.standing.ensure = func(_ context.Context, p *kube.Plan) error {
			mu.Lock()
			defer mu.Unlock()
			if fault == nil {
				plans = append(plans, p)
			}
			return fault
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { c.followUpstreams(ctx); close(ended) }()
		// names changes the LAN; the plans that come of it ask those servers.
		names := func(what string, wantPlans int, asked string, servers ...string) {
			t.Helper()
			mu.Lock()
			lan, plans = nil, nil
			for _, s := range servers {
				lan = append(lan, netip.MustParseAddr(s))
			}
			mu.Unlock()
			time.Sleep(3 * upstreamsEvery)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(plans) != wantPlans {
				t.Fatalf("%s: %d plans, want %d", what, len(plans), wantPlans)
			}
			for _, p := range plans {
				if got := forwards(p); got != asked {
					t.Errorf("%s: CoreDNS asks %q, want %q", what, got, asked)
				}
			}
		}
		names("nothing stands", 0, "", "192.0.2.1")
		names("no lease", 0, "")
		first, err := c.plan(accepted)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.stand(ctx, first); err != nil {
			t.Fatal(err)
		}
		names("still no lease", 0, "")
		names("a lease", 1, "192.0.2.1", "192.0.2.1")
		if got := restarted(first.plan, plans[0]); got != "coredns" {
			t.Errorf("starts anew: %q, want coredns alone", got)
		}
		names("the same lease", 0, "", "192.0.2.1")
		mu.Lock()
		fault = errors.New("disk full")
		mu.Unlock()
		names("the plan cannot be made true", 0, "", "192.0.2.2", "192.0.2.3")
		mu.Lock()
		fault = nil
		mu.Unlock()
		names("it can again", 1, "192.0.2.2 192.0.2.3", "192.0.2.2", "192.0.2.3")
		if err := c.stand(ctx, first); err != nil { // made before the lease
			t.Fatal(err)
		}
		names("an older plan was made true", 1, "192.0.2.2", "192.0.2.2")
		c.fall()
		names("evicted", 0, "", "192.0.2.9")
		cancel()
		<-ended
	})
}

// forwards are the servers that CoreDNS asks.
func forwards(p *kube.Plan) string {
	for _, f := range p.Files {
		if strings.HasSuffix(f.Path, "/Corefile") {
			_, rest, _ := strings.Cut(string(f.Content), "forward . ")
			servers, _, _ := strings.Cut(rest, " {")
			return servers
		}
	}
	return ""
}

// restarted are the processes of b that start anew after a.
func restarted(a, b *kube.Plan) string {
	var names []string
	for _, c := range b.Commands {
		if !slices.ContainsFunc(a.Commands, func(o kube.Command) bool { return o.Name == c.Name && o.Revision == c.Revision }) {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, " ")
}
