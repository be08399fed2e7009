package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/release"
)

// mirror is a bare copy of the release tags of a Git remote. Git names the bytes; what
// is believed is judged as if somebody had pushed it.
type mirror struct {
	repo    *git.Repo
	refused map[string]string // tag name -> why, as last logged
}

// mirrorTries bounds the tags that are looked at after one fetch, newest first, so
// that a thousand forged names cost little.
const mirrorTries = 16

// fetchTime bounds one fetch from the remote.
const fetchTime = 10 * time.Minute

// poll follows the Git remote until ctx ends.
func (h *Hub) poll(ctx context.Context) {
	var m *mirror
	var last string // the last error, so that an outage makes one line and not one a minute
	for {
		err := func() (err error) {
			if m == nil {
				if m, err = h.openMirror(ctx); err != nil {
					return err
				}
			}
			return h.follow(ctx, m)
		}()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			h.metrics.gitPolls.WithLabelValues("ok").Inc()
			last = ""
		default:
			h.metrics.gitPolls.WithLabelValues("failed").Inc()
			if err.Error() != last {
				h.log.Warn("follow the Git remote", "remote", h.cfg.GitRemote, "err", err, "retry", h.cfg.PollEvery)
			}
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(h.cfg.PollEvery):
		}
	}
}

func (h *Hub) openMirror(ctx context.Context) (*mirror, error) {
	dir := filepath.Join(h.cfg.DataDir, "mirror.git")
	if err := removeLocks(dir); err != nil {
		return nil, err
	}
	repo, err := git.InitBare(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &mirror{repo: repo, refused: map[string]string{}}, nil
}

// removeLocks removes what a killed git left; the folder is ours alone, so nobody
// holds them.
func removeLocks(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".lock") {
			return err
		}
		return os.Remove(path)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// follow fetches, and takes what is new.
func (h *Hub) follow(ctx context.Context, m *mirror) error {
	fetch, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	err := m.repo.Fetch(fetch, h.cfg.GitRemote, "refs/tags/release/*:refs/tags/release/*")
	if errors.Is(err, git.ErrRace) {
		// Somebody moved a tag. We keep the first; what else is new still counts.
		h.log.Error("a release tag was changed at the remote", "remote", h.cfg.GitRemote, "err", err)
		h.metrics.releases.WithLabelValues("git", "moved").Inc()
	} else if err != nil {
		return err
	}
	tags, err := m.candidates(ctx, h.head().N)
	if err != nil {
		return err
	}
	for _, steps := range [][]*release.Tag{trustChanges(tags, h.head().trust.Version), newestFirst(tags)} {
		for _, t := range steps {
			if t.Payload.N <= h.head().N {
				continue
			}
			if err := h.takeFromGit(ctx, m, t); err != nil && ctx.Err() != nil {
				return err
			}
		}
	}
	return nil
}

// candidates are the tags above n that can be read, by rising number.
func (m *mirror) candidates(ctx context.Context, n uint64) ([]*release.Tag, error) {
	names, err := m.repo.Tags(ctx, "release/*")
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, name := range names {
		k, err := strconv.ParseUint(strings.TrimPrefix(name, "release/"), 10, 64)
		if err == nil && k > n && name == release.TagName(k) {
			numbers = append(numbers, k)
		}
	}
	slices.Sort(numbers)
	var tags []*release.Tag
	for _, k := range numbers {
		raw, err := m.repo.ReadTag(ctx, release.TagName(k))
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			continue // not a tag object: a name without a signature is no release
		}
		if t, err := release.ParseTag(raw); err == nil && t.Payload.N == k {
			tags = append(tags, t)
		}
	}
	return tags, nil
}

// trustChanges are the first releases of each trust version above r, by which a hub
// on an empty disk walks to the trust of today.
func trustChanges(tags []*release.Tag, r uint64) []*release.Tag {
	var steps []*release.Tag
	for _, t := range tags {
		if v := t.Payload.TrustVersion; v > r {
			steps, r = append(steps, t), v
		}
	}
	return steps
}

func newestFirst(tags []*release.Tag) []*release.Tag {
	tags = slices.Clone(tags)
	slices.Reverse(tags)
	return tags[:min(len(tags), mirrorTries)]
}

// takeFromGit imports one release. A refusal is logged once, and is no reason not to
// look at the next.
func (h *Hub) takeFromGit(ctx context.Context, m *mirror, t *release.Tag) error {
	name := release.TagName(t.Payload.N)
	err := h.importRelease(ctx, m, t)
	switch {
	case err == nil:
		h.metrics.releases.WithLabelValues("git", "taken").Inc()
		delete(m.refused, name)
	case errors.Is(err, errSame):
		return nil
	case m.refused[name] != err.Error():
		if len(m.refused) > 4*mirrorTries {
			clear(m.refused)
		}
		m.refused[name] = err.Error()
		h.metrics.releases.WithLabelValues("git", "refused").Inc()
		h.log.Warn("release from Git refused", "release", t.Payload.N, "err", err)
	}
	return err
}

func (h *Hub) importRelease(ctx context.Context, m *mirror, t *release.Tag) error {
	if _, err := h.judgeTag(t.Raw, nil); err != nil {
		return err
	}
	tree, err := m.repo.Tree(ctx, t.Payload.Object, t.Payload.Root)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		return err
	}
	s, err := h.newSpool()
	if err != nil {
		return err
	}
	defer s.close()
	root, err := release.Import(tree, func(id release.ObjectID, kind string, data []byte) error {
		return s.add(id, release.Object{Kind: kind, Data: data})
	})
	if err != nil {
		return err
	}
	if root != t.Payload.TreeSHA256 {
		return fmt.Errorf("import %s: %w: commit %s has the tree %s, the tag names %s", release.TagName(t.Payload.N), release.ErrAltered, t.Payload.Object, root, t.Payload.TreeSHA256)
	}
	_, err = h.take(ctx, t.Raw, nil, s, "git")
	return err
}
