package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// wire is the exchange over a port's raw socket, which works without an address.
type wire struct {
	port      string
	namespace *os.File // nil: the process's own
}

var asked = dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
	dhcpv4.OptionNTPServers, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionClasslessStaticRoute,
	dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue)

func (w wire) open(options ...nclient4.ClientOpt) (c *nclient4.Client, err error) {
	options = append(options, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(4))
	dial := func() error {
		c, err = nclient4.New(w.port, options...)
		return err
	}
	if w.namespace != nil {
		err = netns.Do(w.namespace, dial)
	} else {
		err = dial()
	}
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", w.port, err)
	}
	return c, nil
}

func (w wire) request(ctx context.Context) (*lease, error) {
	c, err := w.open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	got, err := c.Request(ctx, asked)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", w.port, err)
	}
	return leaseOf(got.ACK, time.Now())
}

func (w wire) extend(ctx context.Context, l *lease, all bool) (*lease, error) {
	old := l.raw.(*dhcpv4.DHCPv4)
	server := old.ServerIdentifier()
	var options []nclient4.ClientOpt // a raw socket, for everybody
	if all = all || server == nil; !all {
		// From the address itself: a kernel takes nothing from no address that is not for everybody.
		options = append(options, nclient4.WithUnicast(&net.UDPAddr{IP: l.Address.Addr().AsSlice(), Port: nclient4.ClientPort}))
	}
	c, err := w.open(options...)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	request, err := dhcpv4.NewRenewFromAck(old, asked)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: %w", w.port, err)
	}
	to, match := &net.UDPAddr{IP: net.IPv4bcast, Port: nclient4.ServerPort}, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak)
	if !all {
		to.IP, match = server, nclient4.IsAll(match, nclient4.IsCorrectServer(server))
	}
	answer, err := c.SendAndRead(ctx, to, request, match)
	if err != nil {
		return nil, fmt.Errorf("DHCP on %s: extend %v: %w", w.port, l.Address, err)
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, errRefused
	}
	return leaseOf(answer, time.Now())
}

// leaseOf reads a server's word, of which nothing but the address must be there.
func leaseOf(ack *dhcpv4.DHCPv4, now time.Time) (*lease, error) {
	address, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || address.IsUnspecified() || address.IsMulticast() || address.IsLoopback() {
		return nil, errors.New("the DHCP server grants no usable address")
	}
	bits := 24
	if mask := ack.SubnetMask(); mask != nil {
		ones, size := mask.Size()
		if size != 32 || ones == 0 {
			return nil, fmt.Errorf("the DHCP server grants %v with the mask %v", address, mask)
		}
		bits = ones
	}
	l := &lease{Address: netip.PrefixFrom(address, bits), From: now, raw: ack,
		Length: ack.IPAddressLeaseTime(0), Renew: ack.IPAddressRenewalTime(0), Bind: ack.IPAddressRebindingTime(0)}
	if l.Length >= (1<<32-1)*time.Second {
		l.Length = 0
	}
	for _, r := range ack.Router() {
		if a, ok := netip.AddrFromSlice(r.To4()); ok && !l.Router.IsValid() && !a.IsUnspecified() {
			l.Router = a
		}
	}
	for _, r := range ack.ClasslessStaticRoute() {
		to, okTo := netip.AddrFromSlice(r.Dest.IP.To4())
		via, okVia := netip.AddrFromSlice(r.Router.To4())
		if ones, size := r.Dest.Mask.Size(); okTo && okVia && size == 32 {
			l.Routes = append(l.Routes, route{netip.PrefixFrom(to, ones).Masked(), via})
		}
	}
	for _, d := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(d.To4()); ok {
			l.DNS = append(l.DNS, a)
		}
	}
	for _, n := range ack.NTPServers() {
		l.NTP = append(l.NTP, n.String())
	}
	if b := ack.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(b[0])<<8 | int(b[1]); mtu >= 1280 && mtu <= 9216 {
			l.MTU = mtu
		}
	}
	return l, nil
}
