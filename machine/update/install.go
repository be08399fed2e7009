package update

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/artefact"
	"github.com/holdfast-edge/holdfast/osimage/delta"
)

// Installer brings an OS version onto the machine by its digest and writes it into
// the idle slot. What is fetched lies in the store of app images, whole, before the
// slot is touched; every step goes on where a power cut ended it.
type Installer struct {
	Slots        *slots.Slots
	Store        *images.Store
	Fetcher      *images.Fetcher
	Architecture string
	Progress     func(done, total int64) // of what is fetched; may be nil
	Log          *slog.Logger            // nil: slog.Default()
}

// ErrArtefact: what the release's digest leads to is not the OS that the release describes.
var ErrArtefact = errors.New("the artefact is not what the release says")

const maxConfig = 1 << 20

// Install is Platform.Install.
func (i *Installer) Install(ctx context.Context, idle slots.Slot, t Target) (System, error) {
	s, err := i.fetch(ctx, idle, t)
	if err != nil {
		return System{}, err
	}
	if err := i.Slots.Discard(idle); err != nil {
		return System{}, err
	}
	if err := i.root(ctx, idle, s); err != nil {
		return System{}, err
	}
	if err := i.uki(ctx, idle, s); err != nil {
		return System{}, err
	}
	return System{Version: s.config.Version, Kubernetes: s.config.Kubernetes, Slot: idle, Root: root(s.tree), Digest: t.Digest}, nil
}

// staged is a version whose bytes are here.
type staged struct {
	image   images.Image
	layers  map[string]images.Descriptor
	config  *artefact.Config
	tree    osimage.Verity
	set     artefact.Set
	running slots.Entry
}

// fetch brings the config, and then the set of deltas that this machine can use.
func (i *Installer) fetch(ctx context.Context, idle slots.Slot, t Target) (*staged, error) {
	s := &staged{image: images.Image{Ref: artefact.Ref(t.Version, i.Architecture), Digest: images.Digest(t.Digest)}, layers: map[string]images.Descriptor{}}
	tree, err := i.Fetcher.Tree(ctx, s.image)
	if err != nil {
		return nil, err
	}
	if err := i.Fetcher.Blobs(ctx, s.image, []images.Descriptor{tree.Config}, nil); err != nil {
		return nil, err
	}
	data, err := i.Store.Read(tree.Config.Digest, maxConfig)
	if err != nil {
		return nil, err
	}
	if s.config, err = artefact.Parse(data); err != nil {
		return nil, err
	}
	if c := s.config; c.Version != t.Version || c.Architecture != i.Architecture || c.Kubernetes != t.Kubernetes {
		return nil, fmt.Errorf("%w: it is OS %s for %s with Kubernetes %s", ErrArtefact, c.Version, c.Architecture, c.Kubernetes)
	}
	if s.tree, err = s.config.Tree(); err != nil {
		return nil, err
	}
	for _, l := range tree.Layers {
		s.layers[string(l.Digest)] = l
	}
	running, ok, err := i.Slots.Entry(idle.Other())
	if err != nil {
		return nil, err
	}
	s.set = s.config.Whole
	if ok {
		digest, err := i.ukiDigest(running)
		if err != nil {
			return nil, err
		}
		s.running, s.set = running, s.config.Choose(root(running.Verity), digest)
	}
	return s, i.blobs(ctx, s)
}

// blobs fetches the set, whole.
func (i *Installer) blobs(ctx context.Context, s *staged) error {
	var list []images.Descriptor
	for _, f := range []artefact.File{s.set.Root, s.set.UKI} {
		l, ok := s.layers[f.Digest]
		if !ok || l.Size != f.Size {
			return fmt.Errorf("%w: its manifest does not name %s", ErrArtefact, f.Digest)
		}
		list = append(list, l)
	}
	return i.Fetcher.Blobs(ctx, s.image, list, i.Progress)
}

func (i *Installer) ukiDigest(e slots.Entry) (string, error) {
	f, err := os.Open(i.Slots.Path(e.File))
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// whole is what is fetched when the running version turned out not to be what
// its names say: a damaged disk.
func (i *Installer) whole(ctx context.Context, s *staged, err error) error {
	if s.set.From == "" || ctx.Err() != nil {
		return err
	}
	log := i.Log
	if log == nil {
		log = slog.Default()
	}
	log.Warn("the delta does not fit, fetching the whole OS", "version", s.config.Version, "from", s.set.From, "err", err)
	s.set = s.config.Whole
	if err := i.blobs(ctx, s); err != nil {
		return err
	}
	return nil
}

func (i *Installer) root(ctx context.Context, idle slots.Slot, s *staged) error {
	write := func() error {
		return i.Slots.WriteRoot(ctx, idle, s.tree, func(to slots.Target) error {
			var old io.ReaderAt
			if s.set.From != "" {
				f, err := i.Slots.OpenRoot(idle.Other())
				if err != nil {
					return err
				}
				defer f.Close()
				old = f
			}
			return i.apply(ctx, s.set.Root, s.config.Root.Size, old, to)
		})
	}
	err := write()
	if err != nil && s.set.From != "" {
		if err = i.whole(ctx, s, err); err == nil {
			err = write()
		}
	}
	return err
}

func (i *Installer) uki(ctx context.Context, idle slots.Slot, s *staged) error {
	digest, err := hex.DecodeString(images.Digest(s.config.UKI.Digest).Hex())
	if err != nil {
		return err
	}
	write := func() error {
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.CloseWithError(i.applyUKI(ctx, s, idle, w))
		}()
		_, err := i.Slots.WriteUKI(ctx, idle, r, s.config.UKI.Size, [32]byte(digest))
		r.CloseWithError(err)
		<-done
		return err
	}
	err = write()
	if err != nil && s.set.From != "" {
		if err = i.whole(ctx, s, err); err == nil {
			err = write()
		}
	}
	if err != nil {
		return err
	}
	if e, ok := i.Slots.Staged(idle); !ok || e.Version != s.config.Version || e.Verity != s.tree {
		return errors.Join(fmt.Errorf("%w: its UKI is of OS %q and boots another root", ErrArtefact, e.Version), i.Slots.Discard(idle))
	}
	return nil
}

func (i *Installer) applyUKI(ctx context.Context, s *staged, idle slots.Slot, w io.Writer) error {
	var old io.ReaderAt
	if s.set.From != "" {
		f, err := os.Open(i.Slots.Path(s.running.File))
		if err != nil {
			return err
		}
		defer f.Close()
		old = f
	}
	return i.apply(ctx, s.set.UKI, s.config.UKI.Size, old, &sequential{w: w})
}

// apply makes a file of size bytes from a blob of the store.
func (i *Installer) apply(ctx context.Context, blob artefact.File, size int64, old io.ReaderAt, to delta.Target) error {
	f, err := i.Store.Open(images.Digest(blob.Digest))
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := delta.Open(f, blob.Size)
	if err != nil {
		return err
	}
	if d.NewSize() != size || d.OldSize() > 0 && old == nil {
		return fmt.Errorf("%w: a delta that makes %d bytes, want %d", ErrArtefact, d.NewSize(), size)
	}
	return d.Apply(ctx, old, to, nil)
}

// sequential is a target that only takes what comes next.
type sequential struct {
	w  io.Writer
	at int64
}

var errSequential = errors.New("not in order")

func (s *sequential) ReadAt([]byte, int64) (int, error) { return 0, io.EOF } // nothing is there yet

func (s *sequential) WriteAt(p []byte, off int64) (int, error) {
	if off != s.at {
		return 0, errSequential
	}
	n, err := s.w.Write(p)
	s.at += int64(n)
	return n, err
}
