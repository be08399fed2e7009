package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/quarantine"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// strangerTime is how long a machine that no site lists may stay before it must dial
// again, so that places change hands.
const strangerTime = 30 * time.Minute

// admitStranger serves a machine that no site lists: it may say who it is, and gets
// nothing. It owns conn.
func (h *Hub) admitStranger(ctx context.Context, conn *tls.Conn, class link.Class, id fleet.MachineID) {
	from := addressOf(conn)
	if class != link.Control {
		h.refuse("unlisted", from, fmt.Errorf("machine %s asks for %s", id, class))
		conn.Close()
		return
	}
	if err := h.ward.Enter(id, from, time.Now()); err != nil {
		h.refuse("quarantine", from, err)
		conn.Close()
		return
	}
	defer h.roster.touch()
	defer func() { h.ward.Leave(id, time.Now()) }()
	link.Admit(conn, false)
	s, err := link.ServeQuarantined(conn)
	if err != nil {
		h.refuse("session", from, err)
		return
	}
	defer s.Close()
	h.patients.enter(s, id)
	defer h.patients.leave(s)
	if _, listed := h.head().index.Machine(id); listed {
		return // adopted this very moment: it dials again and is let in
	}
	h.roster.touch()
	ctx, cancel := context.WithTimeout(ctx, strangerTime)
	defer cancel()
	err = link.ServeHTTP(ctx, s, h.reception(id))
	h.log.Debug("quarantined session ended", "machine", id, "from", from, "err", err)
}

// reception is all that a stranger can call.
func (h *Hub) reception(id fleet.MachineID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != wire.PathHello {
			wire.Refuse(w, http.StatusForbidden, "no site lists this machine: adopt it first")
			return
		}
		var hello wire.Hello
		if wire.Read(w, r, &hello) != nil {
			return
		}
		if reason := h.wrongHello(hello, id); reason != "" {
			wire.Refuse(w, http.StatusForbidden, reason)
			return
		}
		words := quarantine.Words{Version: hello.Version, Architecture: hello.Architecture}
		if len(hello.Introduction) > 0 {
			if err := h.checkIntroduction(hello.Introduction, id); err != nil {
				wire.Refuse(w, http.StatusForbidden, err.Error())
				return
			}
			words.Introduction = hello.Introduction
		}
		introduced := h.ward.Introduce(id, words, time.Now())
		h.roster.touch()
		wire.Write(w, http.StatusOK, &wire.HelloReply{Capability: wire.Capability, Introduce: !introduced})
	})
}

func (h *Hub) checkIntroduction(signed []byte, id fleet.MachineID) error {
	in, err := wire.ParseIntroduction(signed)
	switch {
	case err != nil:
		return err
	case in.Machine != id:
		return fmt.Errorf("%w: it is another machine's", wire.ErrIntroduction)
	case in.Fleet != h.cfg.Seed.FleetID:
		return fmt.Errorf("%w: it is for another fleet", wire.ErrIntroduction)
	}
	return nil
}
