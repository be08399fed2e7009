package kube

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
)

var update = flag.Bool("update", false, "rewrite the golden files (the run then fails, so that nobody records by accident)")

const (
	keyAnna  = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl anna"
	keyBjorn = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJD5tS7+G4/vFLKXF7mOvQ2VvS0M/2vRNlqzIkXzBVfZ bjorn"
)

func address(s string) netip.Addr { return netip.MustParseAddr(s) }

// shop is a site of one control plane, which a test changes.
func shop() *fleet.Resolved {
	return &fleet.Resolved{
		Fleet: "coffee", FleetID: "00112233445566778899aabbccddeeff", Site: "berlin", UID: "7d1c", Dir: "sites/de/berlin",
		Labels: map[string]string{"country": "de"},
		Network: fleet.Network{
			SiteRange: netip.MustParsePrefix("10.213.0.0/24"), PodRange: netip.MustParsePrefix("10.214.0.0/16"),
			ServiceRange: netip.MustParsePrefix("10.215.0.0/16"), APIAddress: address("10.213.0.1"),
			DNS: []netip.Addr{address("192.0.2.53"), address("192.0.2.54")}, Domain: "cluster.local",
		},
		Kubernetes: fleet.Kubernetes{Version: "1.36", MaxPods: 110},
		Machines:   []fleet.Machine{machine("till", RoleControlPlane, "10.213.0.11")},
	}
}

func machine(name, role, site string) fleet.Machine {
	return fleet.Machine{Name: name, ID: fleet.MachineIDOf([]byte(name)), Role: role, SiteAddress: address(site)}
}

func options() Options {
	day := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	return Options{
		Trust: &fleet.Trust{Operators: []fleet.Operator{
			{Name: "anna", Key: keyAnna, Roles: []string{"admin"}},
			{Name: "bjorn", Key: keyBjorn, Roles: []string{"operate", "read"}, Sites: []string{"country=de"}, Until: &day},
		}},
		Registry: netip.MustParseAddrPort("127.0.0.1:5000"),
	}
}

// cases are few and telling: one machine as most sites have it, and one that
// differs in everything that can.
var cases = map[string]func() (*fleet.Resolved, fleet.Machine, Options){
	"single": func() (*fleet.Resolved, fleet.Machine, Options) {
		r := shop()
		return r, r.Machines[0], options()
	},
	"three-small-hosted": func() (*fleet.Resolved, fleet.Machine, Options) {
		r := shop()
		r.Network.LANTrusted, r.Network.MTU, r.Network.DNS = true, 1420, nil
		r.Kubernetes.DiskSlow = true
		r.Machines = append(r.Machines, machine("oven", RoleControlPlane, "10.213.0.12"), machine("grinder", RoleControlPlane, "10.213.0.13"))
		o := options()
		o.Hosted, o.Memory, o.Time = true, 512<<20, time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
		o.PeerInterfaces, o.Hold = []string{"wg0"}, "1.36"
		o.Cluster = Cluster{Token: "c1", Join: true, Members: map[string]netip.Addr{"till": address("10.213.0.11"), "oven": address("10.213.0.12")}}
		return r, r.Machines[1], o
	},
	"worker": func() (*fleet.Resolved, fleet.Machine, Options) {
		r := shop()
		r.Machines = append(r.Machines, machine("shelf", "worker", "10.213.0.21"))
		return r, r.Machines[1], options()
	},
}

func TestGolden(t *testing.T) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r, self, o := c()
			p, err := New(r, self, DefaultPaths(), o)
			if err != nil {
				t.Fatal(err)
			}
			got := text(t, p)
			file := filepath.Join("testdata", name+".txtar")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				t.Error("golden file rewritten")
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("the plan of %s changed (-want +got):\n%s", name, diff)
			}
			again, err := New(r, self, DefaultPaths(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, text(t, again)) {
				t.Error("the same input gives another plan")
			}
		})
	}
}

// text shows a whole plan.
func text(t *testing.T, p *Plan) []byte {
	t.Helper()
	a := &txtar.Archive{Comment: []byte("One machine's Kubernetes as kube.New plans it. Rewrite with: go test ./kube -update\n")}
	add := func(name, format string, args ...any) {
		a.Files = append(a.Files, txtar.File{Name: name, Data: fmt.Appendf(nil, format, args...)})
	}
	rest := *p
	rest.Files, rest.Objects, rest.PacketFilter, rest.Commands = nil, nil, "", nil
	summary, err := json.MarshalIndent(rest, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	add("plan", "%s\n", summary)
	for _, c := range p.Commands {
		add("command/"+c.Name, "%s %s\nenv %q after %q ready %+v grace %v oom %d\n", c.Path, strings.Join(c.Args, " "), c.Env, c.After, c.Ready, c.Grace, c.OOMScoreAdj)
	}
	add("packet filter", "%s", p.PacketFilter)
	for _, f := range p.Files {
		if !strings.HasSuffix(f.Path, "/bootstrap.json") { // the objects, once more
			add(f.Path, "%s", f.Content)
		}
	}
	for _, o := range p.Objects {
		add(fmt.Sprintf("object/%s/%s/%s", o.Kind, o.Namespace, o.Name), "%s\n", o.JSON)
	}
	return txtar.Format(a)
}

func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*fleet.Resolved, *fleet.Machine, *Options)
		want  string
	}{
		"not listed":       {func(_ *fleet.Resolved, m *fleet.Machine, _ *Options) { m.Name = "oven" }, "does not list it"},
		"another address":  {func(_ *fleet.Resolved, m *fleet.Machine, _ *Options) { m.SiteAddress = address("10.213.0.12") }, "does not list it"},
		"no control plane": {func(r *fleet.Resolved, m *fleet.Machine, _ *Options) { r.Machines[0].Role, m.Role = "worker", "worker" }, "no machine of the site is a control plane"},
		"outside the site range": {func(r *fleet.Resolved, _ *fleet.Machine, _ *Options) {
			r.Network.SiteRange = netip.MustParsePrefix("10.99.0.0/24")
		}, "not in the site range"},
		"address of the API":      {func(r *fleet.Resolved, _ *fleet.Machine, _ *Options) { r.Network.APIAddress = address("10.213.0.11") }, "is the API's"},
		"held at nonsense":        {func(_ *fleet.Resolved, _ *fleet.Machine, o *Options) { o.Hold = "latest" }, `held at "latest"`},
		"no registry":             {func(_ *fleet.Resolved, _ *fleet.Machine, o *Options) { o.Registry = netip.AddrPort{} }, "no registry"},
		"an operator without key": {func(_ *fleet.Resolved, _ *fleet.Machine, o *Options) { o.Trust.Operators[0].Key = "x" }, "operator anna"},
	} {
		t.Run(name, func(t *testing.T) {
			r, o := shop(), options()
			self := r.Machines[0]
			tt.spoil(r, &self, &o)
			_, err := New(r, self, DefaultPaths(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
		})
	}
}

// Who may do what, and when nobody may any more.
func TestOperators(t *testing.T) {
	users := func(o Options, r *fleet.Resolved, binding string) string {
		p, err := New(r, r.Machines[0], DefaultPaths(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range p.Objects {
			if x.Kind == "ClusterRoleBinding" && x.Name == "holdfast:operators:"+binding {
				var b struct{ Subjects []struct{ Name string } }
				if err := json.Unmarshal(x.JSON, &b); err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(b.Subjects)
			}
		}
		t.Fatalf("no binding %s", binding)
		return ""
	}
	anna, _ := fleet.Fingerprint(keyAnna)
	bjorn, _ := fleet.Fingerprint(keyBjorn)
	one := func(fingerprint string) string { return "[{op:" + fingerprint + "}]" }

	if got := users(options(), shop(), "admin:cluster-admin"); got != one(anna) {
		t.Errorf("admins = %s, want anna", got)
	}
	for _, binding := range []string{"operate:operate", "operate:view", "read:view", "read:read"} {
		if got := users(options(), shop(), binding); got != one(bjorn) {
			t.Errorf("%s = %s, want bjorn", binding, got)
		}
	}
	late := options()
	late.Time = time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	if got := users(late, shop(), "operate:operate"); got != "[]" {
		t.Errorf("after his last day: %s", got)
	}
	elsewhere := shop()
	elsewhere.Labels = map[string]string{"country": "fr"}
	if got := users(options(), elsewhere, "operate:operate"); got != "[]" {
		t.Errorf("at a site that is not his: %s", got)
	}
	nobody := options()
	nobody.Trust = nil
	if got := users(nobody, shop(), "admin:cluster-admin"); got != "[]" {
		t.Errorf("without trust: %s", got)
	}
}

// No rendered right leads to another: whoever may do one of these is an admin by
// another name.
func TestOperateDoesNotEscalate(t *testing.T) {
	l := new(list)
	s := &site{Resolved: shop()}
	if err := s.operatorRights(l); err != nil {
		t.Fatal(err)
	}
	for _, o := range l.objects {
		if o.Kind != "ClusterRole" {
			continue
		}
		var role struct {
			Rules []struct{ Resources, Verbs []string }
		}
		if err := json.Unmarshal(o.JSON, &role); err != nil {
			t.Fatal(err)
		}
		for _, r := range role.Rules {
			words := " " + strings.Join(append(r.Resources, r.Verbs...), " ") + " "
			for _, bad := range []string{" secrets ", " pods/exec ", " pods/attach ", " pods/ephemeralcontainers ", " serviceaccounts/token ", " impersonate ", " escalate ", " bind ", " roles "} {
				if strings.Contains(words, bad) {
					t.Errorf("%s gives%s", o.Name, bad)
				}
			}
		}
	}
}
