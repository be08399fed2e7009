package fleet_test

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestParseNetwork(t *testing.T) {
	data, err := os.ReadFile("testdata/network/network.yaml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := fleet.ParseNetwork("network.yaml", data)
	if err != nil {
		t.Fatal(err)
	}
	want := &fleet.NetworkSpec{
		Interfaces: []fleet.Interface{
			{Name: "wan", Match: "52:54:00:12:34:56"},
			{Name: "office", VLAN: fleet.VLAN{ID: 12, Of: "wan"}, Addresses: []string{"192.0.2.10/24"}, Gateway: netip.MustParseAddr("192.0.2.1"), MTU: 1400},
			{Name: "rest", Match: "*", DHCP: true},
		},
		Proxy: "http://proxy.example.com:3128", DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, NTP: []string{"time.example.com"}, Hubs: []string{"hub.example.com:443"},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

func TestParseNetworkNamesAllFaults(t *testing.T) {
	_, err := fleet.ParseNetwork("network.yaml", []byte(`apiVersion: holdfast.dev/v1alpha1
kind: Network
spec:
  interfaces:
    - {name: lan, dhpc: true}
  proxy: proxy.example.com
  dns: [2001:db8::1]
  hubs: [hub.example.com]
`))
	const want = `network.yaml:5:5: spec.interfaces: none gets an address: dhcp: true, or addresses, on one of them
network.yaml:5:19: spec.interfaces[0].dhpc: is not a field here: did you mean "dhcp"?
network.yaml:6:10: spec.proxy: "proxy.example.com" is no address of a proxy: http://name:port, nothing after it
network.yaml:7:9: spec.dns[0]: is "2001:db8::1": should be an address such as 10.213.0.11
network.yaml:8:10: spec.hubs[0]: "hub.example.com" is no host with a port: such as hub.example.com:443`
	if err == nil || strings.TrimSpace(err.Error()) != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, err := fleet.ParseNetwork("network.yaml", []byte("apiVersion: holdfast.dev/v1alpha1\nkind: Site\nspec: {}\n")); err == nil {
		t.Error("a site is no network.yaml")
	}
}

func FuzzParseNetwork(f *testing.F) {
	data, err := os.ReadFile("testdata/network/network.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := fleet.ParseNetwork("network.yaml", data)
		if (got == nil) == (err == nil) {
			t.Errorf("%v, %v", got, err)
		}
	})
}
