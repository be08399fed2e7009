package hub

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/holdfast-edge/holdfast/hub/store"
	"github.com/holdfast-edge/holdfast/release"
)

// Releases come in one at a time, by whichever way, and are judged alike: first by
// what the tag alone shows (so that a stranger causes no work), then by the whole
// tree, then by the store, which has the last word on who was first.

// errSame says that the release is here already.
var errSame = errors.New("this release is here already")

// errBelowSeed says that the seed rules the number out.
var errBelowSeed = errors.New("below the lowest release that the hub's seed allows")

// judgeTag is the judgement of the tag alone, against the head. For a release that is
// here it returns the tag and errSame.
func (h *Hub) judgeTag(raw []byte, further [][]byte) (*release.Tag, error) {
	t, err := release.ParseTag(raw)
	if err != nil {
		return nil, err
	}
	p, now := t.Payload, h.head()
	what := release.TagName(p.N)
	switch {
	case p.FleetID != h.cfg.Seed.FleetID:
		return nil, fmt.Errorf("take %s: %w: of %s, and this is the hub of %s", what, release.ErrFleet, p.FleetID, h.cfg.Seed.FleetID)
	case p.N < h.cfg.Seed.Lowest:
		return nil, fmt.Errorf("take %s: %w: %w, %d", what, release.ErrOld, errBelowSeed, h.cfg.Seed.Lowest)
	case p.N == now.N && t.Digest() == now.Payload:
		return t, errSame
	case p.N == now.N:
		return nil, fmt.Errorf("take %s: %w", what, &store.ConflictError{Head: now.Release})
	case p.N < now.N:
		if err := h.judgeOld(t, now); err != errSame {
			return nil, fmt.Errorf("take %s: %w", what, err)
		}
		return t, errSame
	}
	floor := time.Time{}
	if now.tag != nil {
		floor = now.tag.Payload.Time
	}
	if _, err := t.Verify(now.trust, floor, further...); err != nil {
		return nil, fmt.Errorf("take %s: %w", what, err)
	}
	return t, nil
}

// judgeOld tells a release that we had, or never had, from one that took its number.
func (h *Hub) judgeOld(t *release.Tag, now *head) error {
	r, err := h.store.Release(context.Background(), t.Payload.N)
	switch {
	case err == nil && r.Payload == t.Digest():
		return errSame
	case err == nil:
		return &store.ConflictError{Head: r}
	case errors.Is(err, store.ErrNotFound):
		return &store.ConflictError{Head: now.Release, Old: true}
	}
	return err
}

// take judges a release whose new objects are in s, stores it and makes it the head.
// It returns errSame when another was faster with the same.
func (h *Hub) take(ctx context.Context, raw []byte, further [][]byte, s *spool, origin string) (*head, error) {
	h.intake.Lock()
	defer h.intake.Unlock()
	began := time.Now()
	t, err := h.judgeTag(raw, further) // again: the head may have moved
	if err != nil {
		return nil, err
	}
	now := h.head()
	if _, err := release.VerifyRelease(s.over(h.source), raw, now.trust, now.tag, further...); err != nil {
		return nil, err
	}
	r := store.Release{
		N: t.Payload.N, Payload: t.Digest(), Tag: t.Raw, Tree: t.Payload.TreeSHA256,
		TrustVersion: t.Payload.TrustVersion, Origin: origin, Received: time.Now(),
	}
	added, err := h.store.PutRelease(ctx, r, s.reachable(h.source, r.Tree))
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", release.TagName(r.N), err)
	}
	if !added {
		return now, errSame
	}
	// From here the release is the head on disk; a crash makes it so at the next start.
	next, err := h.makeHead(ctx, r, now)
	if err != nil {
		return nil, fmt.Errorf("read back %s: %w", release.TagName(r.N), err)
	}
	h.switchHead(next)
	h.log.Info("release taken", "release", r.N, "digest", release.Digest(r.Payload), "origin", origin, "sites", len(next.index.Sites()), "objects", s.size(), "took", time.Since(began))
	return next, nil
}

// spool holds the objects of a release while it is judged, in a file without a name
// that outlives us. Whoever makes one closes it.
type spool struct {
	file  *os.File
	end   int64
	index map[release.ObjectID]span
}

type span struct {
	at   int64
	size int
	kind string
}

func (h *Hub) newSpool() (*spool, error) {
	f, err := os.CreateTemp(h.spoolDir(), "release-*")
	if err != nil {
		return nil, fmt.Errorf("spool a release: %w", err)
	}
	return &spool{file: f, index: map[release.ObjectID]span{}}, nil
}

func (s *spool) close() {
	s.file.Close()
	os.Remove(s.file.Name())
}

func (s *spool) size() int { return len(s.index) }

// add takes one object; it has the shapes that DecodeBundle and Import want.
func (s *spool) add(id release.ObjectID, o release.Object) error {
	if _, ok := s.index[id]; ok {
		return nil
	}
	if _, err := s.file.WriteAt(o.Data, s.end); err != nil {
		return fmt.Errorf("spool a release: %w", err)
	}
	s.index[id] = span{s.end, len(o.Data), o.Kind}
	s.end += int64(len(o.Data))
	return nil
}

// over is the spool where it has the object, else below.
func (s *spool) over(below release.Source) release.Source { return overlay{s, below} }

type overlay struct {
	*spool
	below release.Source
}

func (o overlay) Object(id release.ObjectID) (string, []byte, error) {
	x, ok := o.index[id]
	if !ok {
		return o.below.Object(id)
	}
	data := make([]byte, x.size)
	if _, err := o.file.ReadAt(data, x.at); err != nil {
		return "", nil, fmt.Errorf("read back object %s: %w", id, err)
	}
	return x.kind, data, nil
}

// reachable yields the spooled objects that the tree needs, each once; what else was
// sent is dropped, since nobody signed it. What the store has is whole below, so the
// walk ends there.
func (s *spool) reachable(below release.Source, root release.ObjectID) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		seen := map[release.ObjectID]bool{root: true}
		src := s.over(below)
		for due := []release.ObjectID{root}; len(due) > 0; {
			id := due[len(due)-1]
			due = due[:len(due)-1]
			if _, spooled := s.index[id]; !spooled {
				continue
			}
			kind, data, err := src.Object(id)
			if err == nil && kind == release.KindTree {
				var entries []release.Entry
				entries, err = release.ParseTree(data)
				for _, e := range entries {
					if !seen[e.ID] {
						seen[e.ID] = true
						due = append(due, e.ID)
					}
				}
			}
			if !yield(store.Object{ID: id, Kind: kind, Data: data}, err) || err != nil {
				return
			}
		}
	}
}
