package metal

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/machine"
	"github.com/holdfast-edge/holdfast/machine/metal/clock"
	"github.com/holdfast-edge/holdfast/machine/metal/network"
	"github.com/holdfast-edge/holdfast/osimage"
)

// bootNetwork begins to configure the ports, and waits for nobody: a machine
// without a network works on.
func (m *metal) bootNetwork(ctx context.Context) error {
	n, err := network.New(network.Options{
		Public: m.public,
		Hints:  []string{filepath.Join(stickDir, osimage.PublicFolder)},
		Resolv: runDir + "/resolv.conf",
		Faults: m.faults,
		Switched: func() {
			select {
			case m.rerouted <- struct{}{}:
			default: // a wish waits already
			}
		},
		Log: m.log,
	})
	if err != nil {
		return err
	}
	m.network = n
	for name, run := range map[string]func(context.Context) error{"network": n.Run, "clock": m.clock.Run} {
		m.background.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				m.log.Error("no longer looked after", "part", name, "err", err)
			}
		})
	}
	return nil
}

// hints are how the hub is reached, as the network's configuration says now.
func (m *metal) hints() machine.Network {
	c := m.network.Config()
	return machine.Network{Hubs: c.Hubs, Proxy: c.Proxy}
}

// upstreams are the name servers of the configuration, or those that DHCP names.
func (m *metal) upstreams() []netip.Addr { return m.network.DNS() }

// configure takes what the content that runs says of the box.
func (m *metal) configure(site *fleet.Resolved, name string) {
	m.network.Apply(network.FromRelease(site, name))
}

// contact tells the network that its configuration reaches the hub, or does not.
func (m *metal) contact(s link.State) { m.network.Contact(s.Connected) }

// bootClock sets the clock to what the hardware says, and never before the OS
// image was built. Time servers are asked once there is a network.
func (m *metal) bootClock(context.Context) error {
	built, err := time.Parse(time.RFC3339, osRelease("BUILD_ID"))
	if err != nil {
		return fmt.Errorf("read when the OS image was built: %w", err)
	}
	m.clock = clock.New(clock.Options{Floor: built, Servers: m.timeServers, Faults: m.faults, Log: m.log})
	return m.clock.Set()
}

func (m *metal) timeServers() []string {
	if m.network == nil {
		return nil
	}
	return m.network.NTP()
}
