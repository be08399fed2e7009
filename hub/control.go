package hub

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

// welcome serves one session of a machine, until it ends. It owns conn.
func (h *Hub) welcome(ctx context.Context, conn *tls.Conn, class link.Class) {
	from := addressOf(conn)
	id, err := link.PeerMachine(conn.ConnectionState())
	if err != nil {
		h.refuse("key", from, err)
		conn.Close()
		return
	}
	if _, listed := h.head().index.Machine(id); !listed {
		h.admitStranger(ctx, conn, class, id)
		return
	}
	link.Admit(conn, true)
	s, err := link.Serve(conn)
	if err != nil {
		h.refuse("session", from, err)
		return
	}
	defer s.Close()
	m := h.roster.need(id)
	m.enter(s, from)
	defer h.roster.touch()
	defer m.leave(s)
	// A release may have put it out between the look and the entry.
	if _, listed := h.head().index.Machine(id); !listed {
		return
	}
	h.roster.touch()
	h.log.Debug("session opened", "machine", id, "class", class, "from", from)
	switch class {
	case link.Control:
		err = link.ServeHTTP(ctx, s, h.control(m))
	case link.Bulk:
		err = link.ServeHTTP(ctx, s, h.bulk(m))
	case link.Relay: // streams are ours to open
		select {
		case <-ctx.Done():
		case <-s.Done():
			err = s.Err()
		}
	}
	h.log.Debug("session ended", "machine", id, "class", class, "err", err)
}

// control answers a machine that a site lists.
func (h *Hub) control(m *machine) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && r.URL.Path == wire.PathHello:
			h.hello(w, r, m)
		case r.Method == http.MethodPost && r.URL.Path == wire.PathReport:
			h.report(w, r, m)
		default:
			wire.Refuse(w, http.StatusNotFound, "no such call")
		}
	})
}

// bulk answers on the session for what is large.
func (h *Hub) bulk(m *machine) http.Handler {
	pull := h.images.Pull()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasPrefix(r.URL.Path, "/v2/"):
			pull.ServeHTTP(w, r)
		case r.Method == http.MethodGet && r.URL.Path == wire.PathSlice:
			h.sendSlice(w, r, m)
		default:
			wire.Refuse(w, http.StatusNotFound, "no such call")
		}
	})
}

func (h *Hub) hello(w http.ResponseWriter, r *http.Request, m *machine) {
	var hello wire.Hello
	if wire.Read(w, r, &hello) != nil {
		return
	}
	if reason := h.wrongHello(hello, m.id); reason != "" {
		wire.Refuse(w, http.StatusForbidden, reason)
		return
	}
	place, listed := h.head().index.Machine(m.id)
	if !listed {
		wire.Refuse(w, http.StatusForbidden, "no site lists this machine any more")
		return
	}
	m.mu.Lock()
	m.version, m.locked = hello.Version, hello.Locked
	m.refused = refusal{} // it may have been restarted with another mind
	reply := wire.HelloReply{Capability: wire.Capability, Listed: true, Site: place.Site.Name}
	if m.report != nil {
		reply.Reported = m.report.Seq
	}
	m.mu.Unlock()
	if hello.Slice == "" {
		m.hold(held{}) // a blank disk, whatever it held yesterday
	}
	h.learnHeld(m, hello.Slice, hello.N)
	wire.Write(w, http.StatusOK, &reply)
	h.roster.touch()
	h.deliverer.add(m)
}

// wrongHello says why a greeting cannot be meant for us, or "".
func (h *Hub) wrongHello(hello wire.Hello, shown any) string {
	switch {
	case hello.Fleet != h.cfg.Seed.FleetID:
		return fmt.Sprintf("this is the hub of fleet %s", h.cfg.Seed.FleetID)
	case any(hello.Machine) != shown:
		return fmt.Sprintf("the key shown is that of machine %s", shown)
	}
	return ""
}

// report takes what a machine says of itself. Who it is, the session has shown; no
// word in the report can make it another's.
func (h *Hub) report(w http.ResponseWriter, r *http.Request, m *machine) {
	var update wire.Update
	if wire.Read(w, r, &update) != nil {
		h.metrics.reports.WithLabelValues("malformed").Inc()
		return
	}
	if _, listed := h.head().index.Machine(m.id); !listed {
		wire.Refuse(w, http.StatusForbidden, "no site lists this machine any more")
		return
	}
	err := h.takeReport(r.Context(), m, update)
	switch {
	case errors.Is(err, wire.ErrBase):
		h.metrics.reports.WithLabelValues("rebased").Inc()
		wire.Refuse(w, http.StatusConflict, "the hub holds another report: send the whole")
	case errors.Is(err, errUnsaved):
		h.metrics.reports.WithLabelValues("failed").Inc()
		h.log.Error("store a report", "machine", m.id, "err", err)
		wire.Refuse(w, http.StatusServiceUnavailable, "the hub cannot store reports now")
	case err != nil:
		h.metrics.reports.WithLabelValues("malformed").Inc()
		wire.Refuse(w, http.StatusBadRequest, err.Error())
	default:
		h.metrics.reports.WithLabelValues("taken").Inc()
		w.WriteHeader(http.StatusNoContent)
	}
}

var errUnsaved = errors.New("not stored")

// takeReport stores the report before it counts: what a machine was told is taken
// must not be gone after a crash, since only differences follow.
func (h *Hub) takeReport(ctx context.Context, m *machine, update wire.Update) error {
	m.mu.Lock()
	before, version := m.report, m.version
	m.mu.Unlock()
	next, err := update.Apply(before)
	if err != nil {
		return err
	}
	body, err := json.Marshal(saved{Report: *next, Version: version})
	if err != nil {
		return err
	}
	now := time.Now()
	if err := h.store.PutReport(ctx, store.Report{Machine: string(m.id), Received: now, Body: body}); err != nil {
		return fmt.Errorf("%w: %w", errUnsaved, err)
	}
	m.mu.Lock()
	m.report, m.reported = next, now
	overtaken := next.N < m.held.n // written before the machine took its last slice
	m.mu.Unlock()
	if !overtaken {
		h.learnHeld(m, next.Slice, next.N)
	}
	h.roster.touch()
	return nil
}

// learnHeld notes which slice a machine says it holds, if that is news. Where to cut
// it again is a guess, which the digest proves or not when it is used.
func (h *Hub) learnHeld(m *machine, slice string, n uint64) {
	digest, err := release.ParseDigest(slice)
	if err != nil {
		return // it says nothing about it
	}
	place, listed := h.head().index.Machine(m.id)
	if !listed {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held.slice != digest {
		m.held = held{digest, n, place.Site.Dir}
	}
}
