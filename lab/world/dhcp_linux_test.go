package world

import (
	"context"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// TestMachineGetsItsAddress asks as a machine would, from a namespace on the LAN.
func TestMachineGetsItsAddress(t *testing.T) {
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	router := netip.MustParseAddr("10.7.0.1")
	if err := w.AddLAN("cafe", netip.PrefixFrom(router, 24)); err != nil {
		t.Fatal(err)
	}
	ns := host(t, w, "cafe", netip.MustParsePrefix("10.7.0.99/24"), router)
	in, err := netlink.NewHandleAt(vnetns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	link, err := in.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	mac := link.Attrs().HardwareAddr.String()
	known := true
	lease := Lease{Address: netip.MustParsePrefix("10.7.0.11/24"), Router: router, DNS: []netip.Addr{router}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.ServeDHCP(ctx, "cafe", slog.New(slog.DiscardHandler), func(asks string) (Lease, bool) { return lease, known && asks == mac })
	}()
	var client *nclient4.Client
	err = netns.Do(ns, func() (err error) {
		client, err = nclient4.New("eth0", nclient4.WithTimeout(300*time.Millisecond), nclient4.WithRetry(10))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	got, err := client.Request(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := got.ACK
	if !a.YourIPAddr.Equal(lease.Address.Addr().AsSlice()) || !a.Router()[0].Equal(router.AsSlice()) || !a.DNS()[0].Equal(router.AsSlice()) ||
		a.IPAddressLeaseTime(0) != time.Hour || a.SubnetMask().String() != "ffffff00" {
		t.Errorf("got %s", a.Summary())
	}
	if again, err := client.Renew(ctx, got); err != nil || again.ACK.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renew: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLeaseAnswers(t *testing.T) {
	l := Lease{Address: netip.MustParsePrefix("10.7.0.11/24"), Router: netip.MustParseAddr("10.7.0.1")}
	mac := []byte{2, 0, 0, 0, 0, 1}
	for name, c := range map[string]struct {
		with []dhcpv4.Modifier
		want dhcpv4.MessageType // 0: no answer
	}{
		"discover":            {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}, dhcpv4.MessageTypeOffer},
		"request":             {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress([]byte{10, 7, 0, 11}))}, dhcpv4.MessageTypeAck},
		"renewal":             {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP([]byte{10, 7, 0, 11})}, dhcpv4.MessageTypeAck},
		"an address not ours": {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress([]byte{10, 9, 0, 11}))}, dhcpv4.MessageTypeNak},
		"another's offer":     {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithOption(dhcpv4.OptServerIdentifier([]byte{10, 9, 0, 1}))}, 0},
		"release":             {[]dhcpv4.Modifier{dhcpv4.WithMessageType(dhcpv4.MessageTypeRelease)}, 0},
	} {
		m, err := dhcpv4.New(append(c.with, dhcpv4.WithHwAddr(mac))...)
		if err != nil {
			t.Fatal(err)
		}
		got, err := l.answer(m)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if kind := dhcpv4.MessageTypeNone; got != nil && got.MessageType() != c.want || got == nil && c.want != kind {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
