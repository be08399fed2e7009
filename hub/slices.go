package hub

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
	"github.com/holdfast-edge/holdfast/release"
)

const (
	deliveries      = 256              // machines that are given a slice at the same time
	deliveryTime    = 3 * time.Minute  // for one, on the worst of links
	deliveryRetry   = 30 * time.Second // after a failure while the machine stays connected
	bulkRetry       = 2 * time.Minute  // after a slice was named that is to be fetched on bulk
	largestOnWire   = 64 << 10         // packed; larger ones go by bulk
	cutterMemory    = 128 << 20        // encoded slices that are kept
	sliceHeader     = "Holdfast-Slice" // names a slice to be fetched on bulk
	attemptsPerTurn = 3
)

// deliver brings one machine to the head's slice. It is what a worker of the queue does.
func (h *Hub) deliver(ctx context.Context, m *machine) {
	ctx, cancel := context.WithTimeout(ctx, deliveryTime)
	defer cancel()
	for range attemptsPerTurn {
		again, err := h.offer(ctx, m)
		if err != nil && m.connected() && h.worthRetry(err) {
			h.metrics.slices.WithLabelValues("failed").Inc()
			h.log.Warn("deliver a slice", "machine", m.id, "err", err, "retry", deliveryRetry)
			time.AfterFunc(deliveryRetry, func() { h.deliverer.add(m) })
		}
		if err != nil || !again {
			return
		}
	}
}

// worthRetry: a slice that cannot be cut stays so until the next release.
func (h *Hub) worthRetry(err error) bool {
	if errors.Is(err, errCut) {
		h.metrics.slices.WithLabelValues("uncut").Inc()
		h.log.Error("cut a slice", "err", err)
		return false
	}
	return true
}

// offer makes one attempt; again asks for another, after what the machine said.
func (h *Hub) offer(ctx context.Context, m *machine) (again bool, err error) {
	now := h.head()
	place, listed := now.index.Machine(m.id)
	if !listed || !m.connected() {
		return false, nil
	}
	want, err := h.cutter.cut(ctx, now.Release, now.steps, place.Site.Dir)
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	has, refused, locked := m.held, m.refused.slice, m.locked
	m.mu.Unlock()
	if locked || has.slice == want.digest || refused == want.digest {
		return false, nil
	}
	dictionary := h.recut(ctx, now, has)
	body, err := h.cutter.compress(ctx, want, dictionary)
	if err != nil {
		return false, err
	}
	resp, err := h.putSlice(ctx, m, want, dictionary, body)
	if err != nil {
		return false, fmt.Errorf("give machine %s its slice: %w", m.id, err)
	}
	return h.answered(m, resp, held{want.digest, now.N, place.Site.Dir})
}

func (h *Hub) putSlice(ctx context.Context, m *machine, want, dictionary *cut, body []byte) (*http.Response, error) {
	large := len(body) > largestOnWire
	if large {
		body = nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+link.Host+wire.PathSlice, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	switch {
	case large:
		req.Header.Set(sliceHeader, want.digest.String())
	case dictionary != nil:
		req.Header.Set(wire.DictionaryHeader, wire.DictionaryName(dictionary.digest.String()))
	}
	h.metrics.sliceBytes.Add(float64(len(body)))
	return m.call(req)
}

// answered acts on what the machine said to a slice.
func (h *Hub) answered(m *machine, resp *http.Response, taken held) (again bool, err error) {
	err = wire.Answer(resp, nil)
	if err == nil {
		if resp.StatusCode == http.StatusAccepted {
			h.metrics.slices.WithLabelValues("bulk").Inc()
			// It fetches, and reports what it then holds. Should that not happen, or
			// should it have been busy with an older one, it is told again.
			time.AfterFunc(bulkRetry, func() { h.deliverer.add(m) })
			return false, nil
		}
		h.metrics.slices.WithLabelValues("taken").Inc()
		m.hold(taken)
		h.roster.touch()
		return false, nil
	}
	if r, ok := wire.AsRefusal(err, http.StatusConflict); ok {
		h.metrics.slices.WithLabelValues("conflict").Inc()
		m.learnHave(r.Have, taken)
		return true, nil
	}
	if r, ok := wire.AsRefusal(err, http.StatusUnprocessableEntity); ok {
		h.metrics.slices.WithLabelValues("refused").Inc()
		h.log.Warn("machine refuses a slice", "machine", m.id, "release", taken.n, "reason", r.Reason)
		m.mu.Lock()
		m.refused = refusal{slice: taken.slice, n: taken.n, reason: r.Reason}
		m.mu.Unlock()
		h.roster.touch()
		return false, nil
	}
	return false, err
}

func (m *machine) hold(x held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held = x
}

// learnHave corrects what we thought the machine holds. One that names nothing, or
// what we tried already, gets the whole.
func (m *machine) learnHave(have string, offered held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	digest, err := release.ParseDigest(have)
	switch {
	case err != nil || digest == m.held.slice:
		m.held = held{}
	case digest == offered.slice:
		m.held = offered
	default: // an older one, if the cutter remembers it
		m.held = held{slice: digest}
	}
}

// recut makes the slice that a machine holds once more, from the release that it was
// cut from; nil when that does not give the same bytes.
func (h *Hub) recut(ctx context.Context, now *head, has held) *cut {
	if has.slice.IsZero() {
		return nil
	}
	if c := h.cutter.find(has.slice); c != nil {
		return c
	}
	if has.n == 0 {
		return nil
	}
	r, err := h.store.Release(ctx, has.n)
	if err != nil {
		return nil
	}
	c, err := h.cutter.cut(ctx, r, now.steps, has.dir)
	if err != nil || c.digest != has.slice {
		return nil
	}
	return c
}

// sendSlice gives the head's slice on bulk, against what the machine names.
func (h *Hub) sendSlice(w http.ResponseWriter, r *http.Request, m *machine) {
	now := h.head()
	place, listed := now.index.Machine(m.id)
	if !listed {
		wire.Refuse(w, http.StatusForbidden, "no site lists this machine any more")
		return
	}
	want, err := h.cutter.cut(r.Context(), now.Release, now.steps, place.Site.Dir)
	if err != nil {
		h.log.Error("cut a slice", "machine", m.id, "err", err)
		wire.Refuse(w, http.StatusInternalServerError, "the hub cannot cut this slice")
		return
	}
	m.mu.Lock()
	has := m.held
	m.mu.Unlock()
	var dictionary *cut
	if named := r.Header.Get(wire.DictionaryHeader); named != "" && wire.DictionaryName(named) == wire.DictionaryName(has.slice.String()) {
		dictionary = h.recut(r.Context(), now, has)
	}
	body, err := h.cutter.compress(r.Context(), want, dictionary)
	if err != nil {
		wire.Refuse(w, http.StatusServiceUnavailable, "the hub is busy")
		return
	}
	if dictionary != nil {
		w.Header().Set(wire.DictionaryHeader, wire.DictionaryName(dictionary.digest.String()))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	h.metrics.sliceBytes.Add(float64(len(body)))
	w.Write(body)
}

// cutter makes slices and remembers the last ones. Cutting and packing take processor
// and memory, so few are at it at the same time.
type cutter struct {
	source release.Source
	busy   chan struct{}

	mu       sync.Mutex // guards all below
	bytes    int
	order    *list.List // of *cut, the latest used first
	byKey    map[cutKey]*list.Element
	byDigest map[release.Digest]*list.Element
}

type cutKey struct {
	n   uint64
	dir string
}

// cut is one encoded slice.
type cut struct {
	key    cutKey
	plain  []byte
	digest release.Digest
}

var errCut = errors.New("the slice cannot be cut")

func newCutter(src release.Source) *cutter {
	return &cutter{
		source: src, busy: make(chan struct{}, runtime.GOMAXPROCS(0)), order: list.New(),
		byKey: map[cutKey]*list.Element{}, byDigest: map[release.Digest]*list.Element{},
	}
}

// cut returns the slice of a site in a release; the same arguments give the same bytes.
func (c *cutter) cut(ctx context.Context, r store.Release, steps []trustStep, dir string) (*cut, error) {
	key := cutKey{r.N, dir}
	if s := c.get(key); s != nil {
		return s, nil
	}
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.leave()
	if s := c.get(key); s != nil { // another machine of the site was waiting, too
		return s, nil
	}
	slice, err := release.Cut(c.source, r.Tag, dir, stepsTo(r.TrustVersion, steps)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCut, err)
	}
	s := &cut{key: key, plain: slice.Encode()}
	s.digest = sha256.Sum256(s.plain)
	c.keep(s)
	return s, nil
}

// compress packs want against dictionary, which may be nil.
func (c *cutter) compress(ctx context.Context, want, dictionary *cut) ([]byte, error) {
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	defer c.leave()
	if dictionary == nil {
		return release.Compress(want.plain, nil), nil
	}
	return release.Compress(want.plain, dictionary.plain), nil
}

func (c *cutter) enter(ctx context.Context) error {
	select {
	case c.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a turn to cut: %w", ctx.Err())
	}
}

func (c *cutter) leave() { <-c.busy }

func (c *cutter) get(key cutKey) *cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use(c.byKey[key])
}

func (c *cutter) find(digest release.Digest) *cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.use(c.byDigest[digest])
}

func (c *cutter) use(e *list.Element) *cut {
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cut)
}

func (c *cutter) keep(s *cut) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.order.PushFront(s)
	c.byKey[s.key], c.byDigest[s.digest] = e, e
	c.bytes += len(s.plain)
	for c.bytes > cutterMemory && c.order.Len() > 1 {
		old := c.order.Remove(c.order.Back()).(*cut)
		delete(c.byKey, old.key)
		delete(c.byDigest, old.digest)
		c.bytes -= len(old.plain)
	}
}

// queue holds machines that are due a delivery, each once; one that is added while it
// is being served is served again.
type queue struct {
	mu     sync.Mutex // guards all below
	due    []*machine
	states map[*machine]bool // true: being served and due again; false: in due or being served
	ready  *sync.Cond
	ended  bool
}

func newQueue() *queue {
	q := &queue{states: map[*machine]bool{}}
	q.ready = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(m *machine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	if _, known := q.states[m]; known {
		q.states[m] = true
		return
	}
	q.states[m] = false
	q.due = append(q.due, m)
	q.ready.Signal()
}

// run serves the queue with so many workers until ctx ends.
func (q *queue) run(ctx context.Context, workers int, serve func(context.Context, *machine)) {
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for m := q.next(); m != nil; m = q.next() {
				serve(ctx, m)
				q.done(m)
			}
		})
	}
	<-ctx.Done()
	q.mu.Lock()
	q.ended = true
	q.ready.Broadcast()
	q.mu.Unlock()
	all.Wait()
}

func (q *queue) next() *machine {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.due) == 0 && !q.ended {
		q.ready.Wait()
	}
	if q.ended {
		return nil
	}
	m := q.due[0]
	q.due = q.due[1:]
	return m
}

func (q *queue) done(m *machine) {
	q.mu.Lock()
	defer q.mu.Unlock()
	again := q.states[m]
	delete(q.states, m)
	if again && !q.ended {
		q.states[m] = false
		q.due = append(q.due, m)
		q.ready.Signal()
	}
}

func (q *queue) size() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.states)
}
