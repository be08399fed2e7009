package world

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"

	"github.com/holdfast-edge/holdfast/internal/netns"
)

// Lease is what a machine learns by DHCP.
type Lease struct {
	Address netip.Prefix
	Router  netip.Addr
	DNS     []netip.Addr
	NTP     []netip.Addr
	For     time.Duration // default: one hour
}

// ServeDHCP answers the machines of a LAN until ctx ends. lease tells what the
// machine with an address of its network card gets; false: it gets no answer.
func (w *World) ServeDHCP(ctx context.Context, lan string, log *slog.Logger, lease func(mac string) (Lease, bool)) error {
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		l, ok := lease(m.ClientHWAddr.String())
		if !ok {
			return
		}
		answer, err := l.answer(m)
		if err != nil || answer == nil {
			log.Debug("no answer by DHCP", "machine", m.ClientHWAddr.String(), "asked", m.MessageType().String(), "err", err)
			return
		}
		if _, err := conn.WriteTo(answer.ToBytes(), peer); err != nil && ctx.Err() == nil {
			log.Warn("answer by DHCP", "machine", m.ClientHWAddr.String(), "err", err)
		}
	}
	var server *server4.Server
	err := netns.Do(w.ns, func() (err error) {
		server, err = server4.NewServer(Bridge(lan), &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort}, handler)
		return err
	})
	if err != nil {
		return fmt.Errorf("serve DHCP on LAN %s: %w", lan, err)
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(); ctx.Err() == nil {
		return fmt.Errorf("serve DHCP on LAN %s: %w", lan, err)
	}
	return nil
}

// answer is what to say to m; nil: nothing.
func (l Lease) answer(m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || m.ClientHWAddr == nil {
		return nil, nil
	}
	kind := dhcpv4.MessageTypeOffer
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeAck
		if id := m.ServerIdentifier(); id != nil && !id.Equal(l.Router.AsSlice()) {
			return nil, nil // another server's offer was taken
		}
		want := m.RequestedIPAddress()
		if want == nil {
			want = m.ClientIPAddr
		}
		if !want.Equal(l.Address.Addr().AsSlice()) {
			return dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), dhcpv4.WithServerIP(l.Router.AsSlice()),
				dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Router.AsSlice())))
		}
	default:
		return nil, nil
	}
	with := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(l.Address.Addr().AsSlice()), dhcpv4.WithServerIP(l.Router.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(l.Router.AsSlice())), dhcpv4.WithNetmask(net.CIDRMask(l.Address.Bits(), 32)),
		dhcpv4.WithRouter(l.Router.AsSlice()), dhcpv4.WithLeaseTime(uint32(l.length().Seconds())),
	}
	if len(l.DNS) > 0 {
		with = append(with, dhcpv4.WithDNS(ips(l.DNS)...))
	}
	if len(l.NTP) > 0 {
		with = append(with, dhcpv4.WithOption(dhcpv4.OptNTPServers(ips(l.NTP)...)))
	}
	return dhcpv4.NewReplyFromRequest(m, with...)
}

func (l Lease) length() time.Duration {
	if l.For == 0 {
		return time.Hour
	}
	return l.For
}

func ips(list []netip.Addr) []net.IP {
	var all []net.IP
	for _, a := range list {
		all = append(all, a.AsSlice())
	}
	return all
}
