package kube

import (
	"net/netip"
	"strings"
	"testing"
)

// Name servers that the LAN names reach CoreDNS and pods' resolv.conf; where they
// change nothing but CoreDNS starts anew.
func TestUpstreams(t *testing.T) {
	with := func(list ...string) *Plan {
		t.Helper()
		r, o := shop(), options()
		r.Network.DNS = nil
		for _, a := range list {
			o.Upstreams = append(o.Upstreams, address(a))
		}
		p, err := New(r, r.Machines[0], DefaultPaths(), o)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	none := with()
	for _, c := range []struct {
		name string
		list []string
		want string
	}{
		{"none", nil, ""},
		{"one", []string{"192.0.2.53"}, "192.0.2.53"},
		{"both families", []string{"192.0.2.53", "2001:db8::53"}, "192.0.2.53 2001:db8::53"},
		{"the same twice, once mapped", []string{"192.0.2.53", "::ffff:192.0.2.53"}, "192.0.2.53"},
		{"more than pods take", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, "192.0.2.1 192.0.2.2 192.0.2.3"},
		{"the machine itself", []string{"10.213.0.11", "10.215.0.10", "10.214.3.4", "127.0.0.1", "::1", "192.0.2.53"}, "192.0.2.53"},
		{"no hosts", []string{"0.0.0.0", "255.255.255.255", "224.0.0.251", "fe80::1", "169.254.1.1"}, ""},
	} {
		p := with(c.list...)
		forward, _, _ := strings.Cut(after(file(t, p, "Corefile"), "forward . "), " {")
		if forward != c.want {
			t.Errorf("%s: CoreDNS asks %q, want %q", c.name, forward, c.want)
		}
		var servers []string
		for line := range strings.Lines(file(t, p, "resolv.conf")) {
			if a, ok := strings.CutPrefix(strings.TrimSpace(line), "nameserver "); ok {
				servers = append(servers, a)
			}
		}
		if got := strings.Join(servers, " "); got != c.want {
			t.Errorf("%s: resolv.conf names %q, want %q", c.name, got, c.want)
		}
		for i, command := range p.Commands {
			changed := command.Revision != none.Commands[i].Revision
			if want := command.Name == "coredns" && c.want != ""; changed != want {
				t.Errorf("%s: %s starts anew: %v, want %v", c.name, command.Name, changed, want)
			}
		}
	}
	r, o := shop(), options()
	o.Upstreams = []netip.Addr{address("198.51.100.1")}
	p, err := New(r, r.Machines[0], DefaultPaths(), o)
	if err != nil {
		t.Fatal(err)
	}
	if text := file(t, p, "Corefile"); strings.Contains(text, "198.51.100.1") || !strings.Contains(text, "forward . 192.0.2.53 192.0.2.54 {") {
		t.Errorf("the LAN's word is above the site's:\n%s", text)
	}
}

func after(s, mark string) string {
	_, rest, _ := strings.Cut(s, mark)
	return rest
}

func file(t *testing.T, p *Plan, name string) string {
	t.Helper()
	for _, f := range p.Files {
		if strings.HasSuffix(f.Path, "/"+name) {
			return string(f.Content)
		}
	}
	t.Fatalf("the plan has no %s", name)
	return ""
}
