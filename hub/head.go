package hub

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/hub/sites"
	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/release"
)

// head is the newest release and what follows from it. It does not change; another
// takes its place. N is 0 as long as there is no release: then only trust is set.
type head struct {
	store.Release
	tag   *release.Tag
	trust *fleet.Trust
	steps []trustStep // one for each version of the trust that we know, rising
	index *sites.Index
}

func (h *Hub) head() *head { return h.current.Load() }

// loadHead reads the newest release from the disk. It was judged when it came; what
// cannot be read now is damage, and a hub that is damaged refills from nothing.
func (h *Hub) loadHead(ctx context.Context, seed *fleet.Trust) (*head, error) {
	r, err := h.store.Head(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return &head{trust: seed}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the newest release: %w", err)
	}
	next, err := h.makeHead(ctx, r, nil)
	if err != nil {
		return nil, fmt.Errorf("read release %d from the hub's data: %w: move the folder away and start again; it refills by push or from Git", r.N, err)
	}
	if id := next.tag.Payload.FleetID; id != h.cfg.Seed.FleetID {
		return nil, fmt.Errorf("the hub's data is of fleet %s and its seed of fleet %s: give each fleet a folder of its own", id, h.cfg.Seed.FleetID)
	}
	return next, nil
}

// makeHead derives everything from a stored release; before may be nil.
func (h *Hub) makeHead(ctx context.Context, r store.Release, before *head) (*head, error) {
	tag, err := release.ParseTag(r.Tag)
	if err != nil {
		return nil, err
	}
	next := &head{Release: r, tag: tag}
	var old *sites.Index
	if before != nil {
		old = before.index
	}
	if next.steps, err = h.trustSteps(ctx, before, r.TrustVersion); err != nil {
		return nil, err
	}
	step, err := release.NewTrustStep(h.source, r.Tag)
	if err != nil {
		return nil, err
	}
	if next.trust, err = fleet.ParseTrust("trust.yaml", step.Trust); err != nil {
		return nil, err
	}
	if next.index, err = sites.Build(h.source, tag.Payload.TreeSHA256, old); err != nil {
		return nil, err
	}
	for _, f := range next.index.Faults {
		h.log.Warn("release has a fault", "release", r.N, "fault", f)
	}
	return next, nil
}

// trustStep proves one version of the trust.
type trustStep struct {
	version uint64
	proof   release.TrustStep
}

func (h *Hub) trustSteps(ctx context.Context, before *head, version uint64) ([]trustStep, error) {
	if before != nil && before.TrustVersion == version {
		return before.steps, nil
	}
	first, err := h.store.TrustSteps(ctx)
	if err != nil {
		return nil, err
	}
	var steps []trustStep
	for _, r := range first {
		proof, err := release.NewTrustStep(h.source, r.Tag)
		if err != nil {
			return nil, err
		}
		steps = append(steps, trustStep{r.TrustVersion, proof})
	}
	return steps, nil
}

// stepsTo are the steps that a slice of trust version r carries, whatever was learnt
// later, so that it can be cut again to the same bytes. The lowest version that we
// know needs no proof: nobody can be told to walk from below it.
func stepsTo(r uint64, steps []trustStep) []release.TrustStep {
	if len(steps) == 0 || steps[0].version >= r {
		return nil
	}
	var proofs []release.TrustStep
	for _, s := range steps {
		if s.version <= r {
			proofs = append(proofs, s.proof)
		}
	}
	return proofs
}

// switchHead makes a stored release the one that everybody gets. The caller holds
// intake. Trust takes effect here and now: operators are judged again, machines that
// the release does not name lose their sessions, those that it names anew may
// come in.
func (h *Hub) switchHead(next *head) {
	before := h.head()
	h.current.Store(next)
	h.authority.Recheck()
	listed := func(id fleet.MachineID) bool { _, ok := next.index.Machine(id); return ok }
	h.ward.Release(listed)
	h.patients.dismiss(listed)
	for _, m := range h.roster.all() {
		if !listed(m.id) {
			m.cut()
		}
	}
	h.deliverAll(before, next)
	h.roster.touch()
}

// deliverAll queues every connected machine: those whose site's own folder changed
// first, since a release is most often about them.
func (h *Hub) deliverAll(before, next *head) {
	var later []*machine
	for _, m := range h.roster.online() {
		place, ok := next.index.Machine(m.id)
		if !ok {
			continue
		}
		if was, ok := before.index.Machine(m.id); ok && was.Site.Tree == place.Site.Tree {
			later = append(later, m)
			continue
		}
		h.deliverer.add(m)
	}
	for _, m := range later {
		h.deliverer.add(m)
	}
}

// source reads objects from the store, with a small memory for those that all sites
// share. It is safe for concurrent use.
type source struct {
	store *store.Store

	mu    sync.Mutex
	held  map[release.ObjectID]release.Object
	bytes int
}

const sourceMemory = 32 << 20

func newSource(s *store.Store) *source {
	return &source{store: s, held: map[release.ObjectID]release.Object{}}
}

func (s *source) Object(id release.ObjectID) (string, []byte, error) {
	s.mu.Lock()
	o, ok := s.held[id]
	s.mu.Unlock()
	if ok {
		return o.Kind, o.Data, nil
	}
	kind, data, err := s.store.Object(id)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil, fmt.Errorf("object %s: %w", id, release.ErrObjectMissing)
	}
	if err != nil {
		return "", nil, fmt.Errorf("object %s: %w", id, err)
	}
	if len(data) < 64<<10 {
		s.keep(id, release.Object{Kind: kind, Data: data})
	}
	return kind, data, nil
}

// keep remembers an object in the place of some others: which ones matters little.
func (s *source) keep(id release.ObjectID, o release.Object) {
	const overhead = 128
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.held[id]; ok {
		return
	}
	s.held[id] = o
	s.bytes += len(o.Data) + overhead
	for other, x := range s.held {
		if s.bytes <= sourceMemory {
			return
		}
		delete(s.held, other)
		s.bytes -= len(x.Data) + overhead
	}
}

// patients are the sessions of machines in quarantine.
type patients struct {
	mu   sync.Mutex
	open map[link.Session]fleet.MachineID
}

func (p *patients) enter(s link.Session, id fleet.MachineID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[link.Session]fleet.MachineID{}
	}
	p.open[s] = id
}

func (p *patients) leave(s link.Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, s)
}

// dismiss ends the sessions of those who are listed now; they dial again and are let in.
func (p *patients) dismiss(listed func(fleet.MachineID) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s, id := range p.open {
		if listed(id) {
			go s.Close()
		}
	}
}
