package metal

import (
	"context"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/machine"
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
		Log:    m.log,
	})
	if err != nil {
		return err
	}
	m.network = n
	m.background.Go(func() {
		if err := n.Run(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("network", "err", err)
		}
	})
	return nil
}

// hints are how the hub is reached, as the network's configuration says now.
func (m *metal) hints() machine.Network {
	c := m.network.Config()
	return machine.Network{Hubs: c.Hubs, Proxy: c.Proxy}
}

// contact tells the network that its configuration reaches the hub, or does not.
func (m *metal) contact(s link.State) { m.network.Contact(s.Connected) }
