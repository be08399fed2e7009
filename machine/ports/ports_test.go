package ports

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/link/wire"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"00000000:1D13":                         "0.0.0.0:7443",
		"0100007F:0016":                         "127.0.0.1:22",
		"0B07A8C0:00A1":                         "192.168.7.11:161",
		"00000000000000000000000000000000:1D13": "[::]:7443",
		"00000000000000000000000001000000:0050": "[::1]:80",
		"000080FE00000000FF0054520B0007FE:0222": "[fe80::5254:ff:fe07:b]:546",
		"0000000000000000FFFF00000B07A8C0:0050": "192.168.7.11:80", // an IPv4 address in an IPv6 socket
	} {
		if got, err := parse(text); err != nil || got != netip.MustParseAddrPort(want) {
			t.Errorf("%s: got %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "00000000", "0000:0050", "0000000:0050", "00000000:12345", "xx000000:0050"} {
		if got, err := parse(text); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}

// What the kernel really says of sockets that really listen.
func TestRead(t *testing.T) {
	tcp := func(network, address string) (int, error) {
		l, err := net.Listen(network, address)
		if err != nil {
			return 0, err
		}
		t.Cleanup(func() { l.Close() })
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	udp := func(network, address string) (int, error) {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return 0, err
		}
		t.Cleanup(func() { c.Close() })
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	must := func(port int, err error) uint16 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return uint16(port)
	}
	want := []wire.Listener{
		{Protocol: "tcp", Address: "0.0.0.0", Port: must(tcp("tcp4", "0.0.0.0:0")), Program: "me"},
		{Protocol: "udp", Address: "0.0.0.0", Port: must(udp("udp4", "0.0.0.0:0")), Program: "me"},
	}
	if _, err := os.Stat("/proc/net/tcp6"); err == nil {
		want = append(want, wire.Listener{Protocol: "tcp", Address: "::", Port: must(tcp("tcp", ":0")), Program: "me"})
	}
	inside := must(tcp("tcp4", "127.0.0.1:0"))
	got, err := Read("/proc", func(dir string) (string, error) {
		if filepath.Base(dir) == filepath.Base(self(t)) {
			return "me", nil
		}
		return "", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	found := map[uint16]wire.Listener{}
	for _, l := range got {
		if l.Program == "me" {
			found[l.Port] = l
		}
	}
	for _, w := range want {
		if diff := cmp.Diff(w, found[w.Port]); diff != "" {
			t.Errorf("port %d (-want +got):\n%s", w.Port, diff)
		}
	}
	if l, ok := found[inside]; ok {
		t.Errorf("what listens on loopback is told: %+v", l)
	}
}

func self(t *testing.T) string {
	t.Helper()
	to, err := os.Readlink("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	return to
}

func TestReadRefuses(t *testing.T) {
	proc := t.TempDir()
	if err := os.Mkdir(filepath.Join(proc, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(proc, "net", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func(string) (string, error) { return "", nil }
	if _, err := Read(proc, nobody); err == nil {
		t.Error("a kernel without lists: want an error, not an empty list")
	}
	const heading = "  sl  local_address rem_address   st\n"
	write("tcp", heading+"   0: 00000000:1D13 00000000:0000 0A 0:0 00:0 0 0 0 17\n   1: 00000000:1D14 00000000:0000 01 0:0 00:0 0 0 0 18\n")
	write("udp", heading)
	got, err := Read(proc, nobody)
	if want := []wire.Listener{{Protocol: "tcp", Address: "0.0.0.0", Port: 7443}}; err != nil || !cmp.Equal(got, want) {
		t.Errorf("one that listens, one that is connected, no IPv6: got %+v, %v", got, err)
	}
	write("udp", heading+"   0: 00000000 0A\n")
	if _, err := Read(proc, nobody); err == nil {
		t.Error("half a line: want an error")
	}
}
