package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
)

// Bounds on relayed connections. Who dials one is known to the machine behind it and
// not to us, so they are few, in all, by network and by machine.
const (
	relaysInAll      = 1024
	relaysPerNetwork = 128
	relaysPerMachine = 48
	relayPatience    = 8 * time.Second // for a machine to open its relay session
)

var (
	errUnknownName = errors.New("no machine or site of that name in the newest release")
	errOffline     = errors.New("no machine behind that name is connected")
)

// TLS alerts, so that an operator's tool says more than "connection reset". We hold
// no key for these names and so can say no more than that.
const (
	alertUnrecognizedName = 112 // no such machine or site
	alertInternalError    = 80  // it is there but not connected
)

// relay joins a stranger's connection to a stream of the machine that the name
// means. Not one byte of it is ours to read.
func (h *Hub) relay(ctx context.Context, conn net.Conn, name link.RelayName) {
	from := addressOf(conn)
	leave, ok := h.relays.enter(from)
	if !ok {
		h.refuse("relays", from, errCrowded)
		conn.Close()
		return
	}
	defer leave()
	stream, err := h.openRelay(ctx, name)
	if err != nil {
		h.refuse("relay", from, fmt.Errorf("relay to %s: %w", name, err))
		code := byte(alertInternalError)
		if errors.Is(err, errUnknownName) {
			code = alertUnrecognizedName
		}
		alert(conn, code)
		return
	}
	link.Admit(conn, false) // its fate is the machine's to decide now
	in, out, err := link.Splice(ctx, conn, stream)
	h.metrics.relayed.WithLabelValues("in").Add(float64(in))
	h.metrics.relayed.WithLabelValues("out").Add(float64(out))
	h.log.Debug("relay ended", "name", name.String(), "from", from, "in", in, "out", out, "err", err)
}

// alert ends a connection whose handshake we do not take part in.
func alert(conn net.Conn, code byte) {
	conn.SetWriteDeadline(time.Now().Add(time.Second))
	conn.Write([]byte{21, 3, 3, 0, 2, 2, code}) // record of one fatal alert
	conn.Close()
}

// openRelay opens a stream to whoever answers for the name.
func (h *Hub) openRelay(ctx context.Context, name link.RelayName) (net.Conn, error) {
	machines, err := h.behind(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, relayPatience)
	defer cancel()
	err = errOffline
	for _, m := range machines {
		var stream net.Conn
		if stream, err = m.openRelay(ctx, name.Target); err == nil {
			return stream, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// behind returns the connected machines that answer for a name, in the order to try.
func (h *Hub) behind(name link.RelayName) ([]*machine, error) {
	if name.Fleet != h.cfg.Seed.FleetID {
		return nil, errUnknownName
	}
	index := h.head().index
	var ids []fleet.MachineID
	switch name.Target {
	case link.MachineTarget:
		id := fleet.MachineID(name.Label)
		if _, ok := index.Machine(id); !ok {
			return nil, errUnknownName
		}
		ids = append(ids, id)
	case link.KubeTarget:
		site, ok := index.Site(name.Label)
		if !ok {
			return nil, errUnknownName
		}
		for _, m := range site.Members {
			if m.ControlPlane() {
				ids = append(ids, m.ID)
			}
		}
		rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	}
	var machines []*machine
	for _, id := range ids {
		if m := h.roster.find(id); m != nil && m.session(link.Control) != nil {
			machines = append(machines, m)
		}
	}
	if len(machines) == 0 {
		return nil, errOffline
	}
	return machines, nil
}

// openRelay opens a stream on the machine's relay session, and asks the machine for
// such a session when it has none.
func (m *machine) openRelay(ctx context.Context, target link.Target) (net.Conn, error) {
	for attempt := 0; ; attempt++ {
		s, err := m.relaySession(ctx)
		if err != nil {
			return nil, err
		}
		if s.Streams() >= relaysPerMachine {
			return nil, errCrowded
		}
		stream, err := link.OpenRelay(ctx, s, target)
		// The machine closes an idle relay session at any time: ask once more.
		if err == nil || s.Err() == nil || attempt == 1 {
			return stream, err
		}
	}
}

func (m *machine) relaySession(ctx context.Context) (link.Session, error) {
	asked := false
	for {
		s, changed := m.watch(link.Relay)
		if s != nil && s.Err() == nil {
			return s, nil
		}
		if !asked {
			if err := m.askRelay(ctx); err != nil {
				return nil, err
			}
			asked = true
			continue // it may have come meanwhile
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a relay session of %s: %w", m.id, ctx.Err())
		}
	}
}

// askRelay asks over control; the session comes in by the door.
func (m *machine) askRelay(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+link.Host+"/v1/relay", bytes.NewReader(nil))
	if err != nil {
		return err
	}
	resp, err := m.call(req)
	if err != nil {
		return fmt.Errorf("ask %s for a relay session: %w", m.id, err)
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("ask %s for a relay session: it answers %s", m.id, resp.Status)
	}
	return nil
}
