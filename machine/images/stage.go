package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Runtime is what staging needs of containerd; [Containerd] is it.
type Runtime interface {
	// Pull pulls and unpacks a name through the mirror on loopback and returns the image's ID.
	Pull(ctx context.Context, name string) (id string, err error)
	// Records lists every name that the runtime knows.
	Records(ctx context.Context) (map[string]Record, error)
	// Put creates a name or changes it; a label with an empty value is taken away.
	Put(ctx context.Context, r Record) error
	// Present says whether the kubelet would find the name, and whether its garbage collection would pass it over.
	Present(ctx context.Context, name string) (present, pinned bool, err error)
}

// Stager makes images startable, and lets them go. Its methods may be called from any goroutine; one works at a time.
type Stager struct {
	Store   *Store
	Fetcher *Fetcher
	Runtime Runtime
	// Marker is the file in which the staged images stand. It is written after the flush of Root and believed from then on.
	Marker string
	// Root is a path on the file system of containerd's root folder.
	Root string
	Log  *slog.Logger // nil: slog.Default

	mu sync.Mutex // one Stage or Release at a time
}

// marker is the file's content.
type marker struct {
	Version int                 `json:"version"`
	Images  map[Digest][]string `json:"images"` // digest to the names that it was staged under, spelt out
}

func (s *Stager) read() (marker, error) {
	var m marker
	err := durable.ReadJSON(s.Marker, &m)
	if errors.Is(err, fs.ErrNotExist) {
		return marker{Version: 1, Images: map[Digest][]string{}}, nil
	}
	if err != nil || m.Version != 1 || m.Images == nil {
		// A marker is only a memory of work; the way out of damage is to do it again.
		s.log().Warn("marker of staged images is not readable, staging again", "file", s.Marker, "err", err)
		return marker{Version: 1, Images: map[Digest][]string{}}, nil
	}
	return m, nil
}

func (s *Stager) log() *slog.Logger {
	if s.Log == nil {
		return slog.Default()
	}
	return s.Log
}

// names are the image records that make an image startable however a pod spells it.
type names struct {
	image  Image
	digest string // registry/repository@digest
	tag    string // registry/repository:tag; empty when the reference has none
}

func namesOf(img Image) (names, error) {
	ref, err := ParseReference(img.Ref)
	if err != nil {
		return names{}, err
	}
	if _, err := ParseDigest(string(img.Digest)); err != nil {
		return names{}, fmt.Errorf("image %s: %w", img.Ref, err)
	}
	if ref.Digest != "" && ref.Digest != img.Digest {
		return names{}, fmt.Errorf("image %s: %w: the lock says %s", img.Ref, ErrDigest, img.Digest)
	}
	return names{image: img, digest: ref.At(img.Digest), tag: ref.Tagged()}, nil
}

func (n names) all() []string {
	if n.tag == "" {
		return []string{n.digest}
	}
	return []string{n.digest, n.tag}
}

// Staged says whether all images were staged and flushed, by the marker alone: cheap, and asks nobody.
func (s *Stager) Staged(images []Image) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read()
	if err != nil {
		return false
	}
	for _, img := range images {
		n, err := namesOf(img)
		if err != nil || !m.has(n) {
			return false
		}
	}
	return true
}

func (m marker) has(n names) bool {
	refs, ok := m.Images[n.image.Digest]
	return ok && !slices.ContainsFunc(n.all(), func(s string) bool { return !slices.Contains(refs, s) })
}

// Stage makes every image startable with no network: its blobs in the store, pulled and unpacked, reachable by tag and by digest, pinned,
// flushed to disk, and noted so. What is staged already costs one question to containerd. It waits while containerd is away, until ctx ends.
//
// The caller has given the registry its table before.
func (s *Stager) Stage(ctx context.Context, images []Image, progress Progress) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read()
	if err != nil {
		return err
	}
	want, err := distinct(images)
	if err != nil {
		return err
	}
	if err := s.fetch(ctx, want, progress); err != nil {
		return err
	}
	var records map[string]Record
	err = s.patient(ctx, "list images", func(ctx context.Context) (err error) {
		records, err = s.Runtime.Records(ctx)
		return err
	})
	if err != nil {
		return err
	}
	var fresh []names
	for _, n := range want {
		if m.has(n) && ready(records, n) {
			continue
		}
		if err := s.unpack(ctx, n); err != nil {
			return fmt.Errorf("stage image %s: %w", n.image.Ref, err)
		}
		fresh = append(fresh, n)
	}
	if len(fresh) == 0 {
		return nil
	}
	// A power cut before the flush leaves images that containerd calls whole and that may not be: no marker, so the next run pulls again.
	if err := syncFileSystem(s.Root); err != nil {
		return err
	}
	for _, n := range fresh {
		for _, name := range n.all() {
			if !slices.Contains(m.Images[n.image.Digest], name) {
				m.Images[n.image.Digest] = append(m.Images[n.image.Digest], name)
			}
		}
	}
	if err := durable.WriteJSON(s.Marker, m, 0o600); err != nil {
		return fmt.Errorf("note staged images: %w", err)
	}
	return nil
}

func distinct(images []Image) ([]names, error) {
	var want []names
	for _, img := range images {
		n, err := namesOf(img)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(want, func(o names) bool { return o.digest == n.digest && o.tag == n.tag }) {
			want = append(want, n)
		}
	}
	return want, nil
}

// fetch brings all blobs of all images into the store: first the manifests, so that the total is known from the first byte of the rest.
func (s *Stager) fetch(ctx context.Context, want []names, progress Progress) error {
	trees := make([]Tree, len(want))
	var total int64
	for i, n := range want {
		t, err := s.Fetcher.Tree(ctx, n.image)
		if err != nil {
			return err
		}
		trees[i] = t
		total += t.Size()
	}
	var before int64
	for i, n := range want {
		report := func(done, _ int64) {
			if progress != nil {
				progress(before+done, total)
			}
		}
		if err := s.Fetcher.Blobs(ctx, n.image, trees[i].Blobs(), report); err != nil {
			return err
		}
		before += trees[i].Size()
	}
	return nil
}

// ready says whether containerd has all names of an image, on the right content and pinned.
func ready(records map[string]Record, n names) bool {
	for _, name := range n.all() {
		r, ok := records[name]
		if !ok || r.Target.Digest != n.image.Digest || r.Labels[labelPinned] != "pinned" || r.Labels[labelManaged] != "managed" {
			return false
		}
	}
	return true
}

// unpack has containerd pull one image from the store and gives it its names and pins.
func (s *Stager) unpack(ctx context.Context, n names) error {
	var id string
	for attempt := 1; ; attempt++ {
		err := s.patient(ctx, "pull "+n.digest, func(ctx context.Context) (err error) {
			id, err = s.Runtime.Pull(ctx, n.digest)
			return err
		})
		if err == nil {
			break
		}
		if ctx.Err() != nil || attempt == 3 {
			return err
		}
		// Most likely a blob that has rotted in the store: containerd saw a wrong digest. Look, and fetch again what is gone.
		s.log().Warn("containerd could not pull an image that is here, looking at its bytes again", "image", n.digest, "err", err)
		if err := s.heal(ctx, n); err != nil {
			return err
		}
	}
	return s.patient(ctx, "pin "+n.digest, func(ctx context.Context) error { return s.pin(ctx, n, id) })
}

// heal verifies every blob of an image in the store and fetches what was damaged.
func (s *Stager) heal(ctx context.Context, n names) error {
	t, err := s.Fetcher.Tree(ctx, n.image)
	if err != nil {
		return err
	}
	for _, b := range t.Blobs() {
		if err := s.Store.Verify(ctx, b.Digest); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	_, err = s.Fetcher.Image(ctx, n.image, nil)
	return err
}

// pin labels the names of a pulled image and waits until the kubelet would see them so.
func (s *Stager) pin(ctx context.Context, n names, id string) error {
	records, err := s.Runtime.Records(ctx)
	if err != nil {
		return err
	}
	target := records[n.digest].Target
	if target.Digest != n.image.Digest {
		return fmt.Errorf("containerd has %q under the name %s: %w", target.Digest, n.digest, ErrDigest)
	}
	labels := map[string]string{labelManaged: "managed", labelPinned: "pinned", labelStaged: "true"}
	all := n.all()
	if r, ok := records[id]; ok && r.Target.Digest == target.Digest {
		all = append(all, id) // the image's ID is a name too, under which the kubelet would delete it
	}
	for _, name := range all {
		if err := s.Runtime.Put(ctx, Record{Name: name, Target: target, Labels: labels}); err != nil {
			return err
		}
	}
	// The CRI plugin learns of names through containerd's events, a moment later.
	for _, name := range n.all() {
		err := poll(ctx, 10*time.Second, func() (bool, error) {
			present, pinned, err := s.Runtime.Present(ctx, name)
			return present && pinned, err
		})
		if err != nil {
			return fmt.Errorf("wait until the kubelet can see %s as pinned: %w", name, err)
		}
	}
	return nil
}

// Released is what [Stager.Release] let go.
type Released struct {
	Names int   // image names that the kubelet may now delete
	Bytes int64 // bytes that the store has free again
}

// Release unpins what no image in keep needs and sweeps the store. What runs goes on: the kubelet deletes an image only when it
// needs the space and no container uses it. Run again after a crash it ends in the same state.
func (s *Stager) Release(ctx context.Context, keep []Image) (Released, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out Released
	m, err := s.read()
	if err != nil {
		return out, err
	}
	kept, err := distinct(keep)
	if err != nil {
		return out, err
	}
	wanted := map[string]bool{}
	digests := map[Digest]bool{}
	for _, n := range kept {
		digests[n.image.Digest] = true
		for _, name := range n.all() {
			wanted[name] = true
		}
	}
	// The marker first: what is not pinned must not be called staged.
	if m.drop(wanted) {
		if err := durable.WriteJSON(s.Marker, m, 0o600); err != nil {
			return out, fmt.Errorf("note released images: %w", err)
		}
	}
	err = s.patient(ctx, "unpin images", func(ctx context.Context) error {
		records, err := s.Runtime.Records(ctx)
		if err != nil {
			return err
		}
		for name, r := range records {
			_, isID := ParseDigest(name)
			if r.Labels[labelStaged] == "" || wanted[name] || isID == nil && digests[r.Target.Digest] {
				continue
			}
			unpinned := Record{Name: name, Target: r.Target, Labels: map[string]string{labelPinned: "", labelStaged: ""}}
			if err := s.Runtime.Put(ctx, unpinned); err != nil {
				return err
			}
			out.Names++
		}
		return nil
	})
	if err != nil {
		return out, err
	}
	out.Bytes, err = s.Store.Sweep(s.Store.Keep(s.Fetcher.platform(), keep...))
	return out, err
}

// drop forgets names that are not wanted and says whether any was there.
func (m marker) drop(wanted map[string]bool) (changed bool) {
	for d, refs := range m.Images {
		left := slices.DeleteFunc(slices.Clone(refs), func(name string) bool { return !wanted[name] })
		changed = changed || len(left) != len(refs)
		if len(left) == 0 {
			delete(m.Images, d)
			continue
		}
		m.Images[d] = left
	}
	return changed
}

// patient runs do again for as long as containerd is away.
func (s *Stager) patient(ctx context.Context, what string, do func(context.Context) error) error {
	said := false
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := do(ctx)
		if err == nil || !away(err) {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w (%w)", what, ctx.Err(), err)
		}
		if !said && pause > 500*time.Millisecond {
			s.log().Info("containerd is away, waiting for it", "for", what, "err", err)
			said = true
		}
		wait(ctx, pause/2+rand.N(pause/2))
	}
}

// poll asks until the answer is yes, in short steps that grow.
func poll(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		if !wait(ctx, pause) {
			return ctx.Err()
		}
	}
}

// wait sleeps; false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// syncFileSystem flushes everything on the file system that path is on.
func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("flush images: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("flush the file system of %s: %w", path, err)
	}
	return nil
}
