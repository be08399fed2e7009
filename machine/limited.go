package machine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link/operator"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// Limits says why a machine is limited, and how it is opened.
type Limits struct {
	Reason faults.Fault
	// Unlock opens the disk with the recovery key. ErrWrongKey when that is not its
	// key; any other error is told to the operator as it is. One call at a time.
	// Nil: there is nothing to open (no disk).
	Unlock func(ctx context.Context, key []byte) error
	// Escrow reads the recovery key as it was encrypted to the fleet's recovery
	// recipients (wire.SignEscrow, then age). Nil: there is none.
	Escrow func() ([]byte, error)
	// Disk tries the disk by what the machine's release says of it, and leaves it
	// open where it returns nil. One call at a time. Nil: no rule opens it.
	Disk func(ctx context.Context, rule fleet.DiskRule) error

	rules  chan said // the newest that a release said; nobody waits for it
	opened func()
}

// said is the rule of a release.
type said struct {
	n    uint64
	rule fleet.DiskRule
}

// ErrWrongKey is what Limits.Unlock wraps for a key that does not open the disk.
var ErrWrongKey = errors.New("this key does not open the disk")

// unlockTime bounds one attempt to open the disk, whether the operator waits or not.
const unlockTime = 2 * time.Minute

// Limited runs a machine whose disk is locked or not there: linked, reported,
// and behind its door only what opens it. Whom it trusts it takes from the public
// folder, as far as the anchor proves it. It takes no release, since it could
// keep none; and of operators those of the whole fleet only, since without a
// slice it cannot tell which site it is of. One that waits to be told which disk
// to live on verifies its releases, reads that from them and keeps nothing.
//
// It returns nil when the disk was opened: then the machine is to Run. It
// returns ctx's error when ctx ends first.
func Limited(ctx context.Context, config Config, limits Limits) error {
	return newMachine(config).limited(ctx, limits)
}

func (m *Machine) limited(ctx context.Context, limits Limits) error {
	m.opened = make(chan struct{})
	limits.rules, limits.opened = make(chan said, 1), sync.OnceFunc(func() { close(m.opened) })
	m.limits = &limits
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	group, work := errgroup.WithContext(work)
	m.group = group
	err := m.walk(work, work, []phase{
		{"identity", m.bootIdentity},
		{"seed", m.bootSeed},
		{"memory", m.bootMemory},
		{"limits", m.bootLimits},
		{"door", m.bootDoor},
		{"uplink", m.bootUplink},
	})
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("a limited machine: %w", err), group.Wait())
	}
	if work.Err() == nil {
		m.log.Warn("limited", "machine", m.identity.ID(), "fault", limits.Reason.String())
	}
	group.Go(func() error {
		select {
		case <-work.Done():
		case <-m.opened:
			m.door.farewell(work)
			cancel()
		}
		return nil
	})
	err = group.Wait()
	select {
	case <-m.opened:
		m.faults.Clear(limits.Reason.Code, limits.Reason.Subject)
		m.log.Info("opened", "machine", m.identity.ID())
		return nil
	default:
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (m *Machine) bootLimits(ctx context.Context) error {
	m.group.Go(func() error { m.tryRules(ctx); return nil })
	m.faults.Set(m.limits.Reason)
	m.reporter.update(func(r *wire.Report) {
		r.Phase, r.Detail, r.N = wire.Locked, m.limits.Reason.String(), m.memory.number()
	})
	m.console.show("release", fmt.Sprintf("%d was accepted", m.memory.number()))
	return nil
}

// readRule verifies a slice, as a machine does that could keep it, and has the
// disk tried by what it says of it.
func (m *Machine) readRule(encoded []byte) error {
	if m.limits.Disk == nil {
		return errLocked
	}
	t, err := m.memory.look(encoded)
	if err != nil {
		return err
	}
	if t.Evicted {
		return errEvicted
	}
	rule, err := t.disk()
	if err != nil {
		return fmt.Errorf("read what release %d says of the disk: %w", t.Tag.Payload.N, err)
	}
	select {
	case <-m.limits.rules: // an older one that nobody has tried yet
	default:
	}
	m.limits.rules <- said{t.Tag.Payload.N, rule} // there is room: one slice is judged at a time
	return nil
}

// disk is what the content says of this machine's disk.
func (t *taken) disk() (fleet.DiskRule, error) {
	if t.ContentErr != nil {
		return fleet.DiskRule{}, t.ContentErr
	}
	site, ok := t.Fleet.Site(t.site())
	if !ok {
		return fleet.DiskRule{}, fmt.Errorf("it does not describe site %s", t.site())
	}
	resolved, err := t.Fleet.Resolve(site)
	if err != nil {
		return fleet.DiskRule{}, err
	}
	return resolved.ClassOf(t.Member.Name).Disk, nil
}

// tryRules tries the disk by each rule that a release brings.
func (m *Machine) tryRules(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-m.limits.rules:
			err := m.limits.Disk(ctx, s.rule)
			m.log.Warn("the disk was tried by what a release says of it", "n", s.n, "rule", s.rule, "err", err)
			if err == nil {
				m.limits.opened()
				return
			}
			m.reporter.update(func(r *wire.Report) { r.Detail = fmt.Sprintf("by release %d: %v", s.n, err) })
		}
	}
}

// lock is the part of a limited machine's door that opens the disk.
type lock struct {
	*door
	trying sync.Mutex
}

func (l *lock) routes(mux *http.ServeMux) {
	mux.Handle("GET /v1/escrow", operator.Require(operator.Operate, http.HandlerFunc(l.escrow)))
	mux.Handle("POST /v1/unlock", operator.Require(operator.Operate, http.HandlerFunc(l.unlock)))
}

func (l *lock) escrow(w http.ResponseWriter, _ *http.Request) {
	if l.limits.Escrow == nil {
		wire.Refuse(w, http.StatusNotFound, "this machine has no recovery key in escrow")
		return
	}
	data, err := l.limits.Escrow()
	if err != nil {
		wire.Refuse(w, http.StatusNotFound, "read the escrow: "+err.Error())
		return
	}
	wire.Write(w, http.StatusOK, &wire.Escrowed{Age: data})
}

// unlock tries a key. What it does to the disk is finished even if the operator
// goes away meanwhile.
func (l *lock) unlock(w http.ResponseWriter, r *http.Request) {
	var request wire.Unlock
	if wire.Read(w, r, &request) != nil {
		return
	}
	defer clear(request.Key)
	grant, ok := operator.From(r.Context())
	if !ok || l.limits.Unlock == nil {
		wire.Refuse(w, http.StatusConflict, "there is nothing to unlock: "+l.limits.Reason.String())
		return
	}
	if !l.trying.TryLock() {
		wire.Refuse(w, http.StatusConflict, "another key is being tried: wait for that")
		return
	}
	defer l.trying.Unlock()
	select {
	case <-l.opened:
		wire.Write(w, http.StatusNoContent, nil) // somebody was faster
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), unlockTime)
	defer cancel()
	err := l.limits.Unlock(ctx, request.Key)
	l.log.Warn("a recovery key was tried", "person", grant.Name, "fingerprint", grant.Fingerprint, "remote", r.RemoteAddr, "err", err)
	switch {
	case errors.Is(err, ErrWrongKey):
		wire.Refuse(w, http.StatusUnprocessableEntity, ErrWrongKey.Error()) // who lacks a role is forbidden
	case err != nil:
		wire.Refuse(w, http.StatusInternalServerError, "unlock: "+err.Error())
	default:
		wire.Write(w, http.StatusNoContent, nil)
		_ = http.NewResponseController(w).Flush() // before the door closes
		l.limits.opened()
	}
}
