package world

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

func TestMain(m *testing.M) {
	if os.Getenv("WORLD_TEST_OPEN") != "" { // another process that inherits the world
		w, err := Open(os.NewFile(3, "world"))
		if err == nil {
			err = w.AddLAN("late", netip.MustParsePrefix("10.9.0.1/24"))
		}
		fmt.Println(err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func hostLinks(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		addrs, _ := l.Addrs()
		fmt.Fprintln(&b, l.Name, l.MTU, l.HardwareAddr, addrs)
	}
	return b.String()
}

// host plugs a computer into a LAN: a namespace with eth0.
func host(t *testing.T, w *World, lan string, addr netip.Prefix, gateway netip.Addr) *os.File {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	h, err := w.handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	bridge, err := h.LinkByName(Bridge(lan))
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("t%x", addr.Addr().As4()), bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := h.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	in, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	eth0, err := in.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{in.AddrAdd(eth0, address(addr)), in.LinkSetUp(eth0), in.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice()})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// TestHubIsReachedFromEveryLAN serves HTTP from the host's namespace at the hub address, and asks from two LANs and across them.
func TestHubIsReachedFromEveryLAN(t *testing.T) {
	before := hostLinks(t)
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 { // the second time changes nothing
		for lan, router := range map[string]string{"berlin": "10.1.0.1/24", "a site with a rather long name": "10.2.0.1/24"} {
			if err := w.AddLAN(lan, netip.MustParsePrefix(router)); err != nil {
				t.Fatal(err)
			}
		}
	}
	l, err := ListenIn(w.File(), HubAddress.String()+":443")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, r.RemoteAddr) })}
	go server.Serve(l)
	defer server.Close()
	berlin := host(t, w, "berlin", netip.MustParsePrefix("10.1.0.11/24"), netip.MustParseAddr("10.1.0.1"))
	other := host(t, w, "a site with a rather long name", netip.MustParsePrefix("10.2.0.11/24"), netip.MustParseAddr("10.2.0.1"))
	for from, ns := range map[string]*os.File{"10.1.0.11:": berlin, "10.2.0.11:": other, HubAddress.String() + ":": w.File()} {
		if got := get(t, ns, HubAddress.String()+":443"); !strings.HasPrefix(got, from) {
			t.Errorf("the hub saw %q, want %s", got, from)
		}
	}
	across, err := ListenIn(other, "10.2.0.11:80")
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(across, server.Handler)
	defer across.Close()
	if got := get(t, berlin, "10.2.0.11:80"); !strings.HasPrefix(got, "10.1.0.11:") {
		t.Errorf("across LANs: %q", got)
	}
	if after := hostLinks(t); after != before {
		t.Errorf("the host's network changed:\n%s\n%s", before, after)
	}
}

func get(t *testing.T, ns *os.File, addr string) string {
	t.Helper()
	c, err := DialIn(t.Context(), ns, "tcp", addr)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Error(err)
		return ""
	}
	body, _ := io.ReadAll(resp.Body)
	return string(body)
}

func TestOtherProcessesShareIt(t *testing.T) {
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "WORLD_TEST_OPEN=1")
	cmd.ExtraFiles = []*os.File{w.File()}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "<nil>\n" {
		t.Fatalf("the other process: %s %v", out, err)
	}
	h, err := w.handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.LinkByName(Bridge("late")); err != nil {
		t.Errorf("the other's LAN: %v", err)
	}
	for range 2 {
		if err := w.RemoveLAN("late"); err != nil {
			t.Error(err)
		}
	}
	to := netip.MustParsePrefix("10.213.0.0/24")
	if err := w.AddLAN("r", netip.MustParsePrefix("10.3.0.1/24")); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{w.AddRoute(to, netip.MustParseAddr("10.3.0.11")), w.AddRoute(to, netip.MustParseAddr("10.3.0.12")), w.RemoveRoute(to), w.RemoveRoute(to)} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestRefusals(t *testing.T) {
	self, err := netns.Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(self); err == nil || !strings.Contains(err.Error(), "is none") {
		t.Errorf("the host's namespace as a world: got %v", err)
	}
	if _, err := ListenIn(self, "localhost:80"); err == nil {
		t.Error("a name was accepted as an address to listen at")
	}
	if _, err := DialIn(t.Context(), self, "tcp", "localhost:80"); err == nil {
		t.Error("a name was accepted as an address to dial")
	}
}

// TestNothingStays looks for the world among all processes' namespaces after it was closed.
func TestNothingStays(t *testing.T) {
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", w.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), info) {
		t.Error("the namespace is mounted somewhere")
	}
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, task := range tasks {
		if got, _ := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net"); got == info {
			t.Errorf("thread %s is still inside", task.Name())
		}
	}
}
