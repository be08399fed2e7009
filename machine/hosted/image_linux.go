package hosted

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/internal/flock"
	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// images are the open, locked disk images of a machine. The lock belongs to the open file, which the loop device keeps: it is free again only when
// the device is, however the processes ended. So holding the lock means that nobody has the image mounted.
type images struct{ state, data *os.File }

// releaseTime is how long an earlier life of the machine may take to let go of its images: it has been killed, but the kernel writes back first.
const releaseTime = 60 * time.Second

func openImages(ctx context.Context, s *Spec) (*images, error) {
	var im images
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		im.state, err = openImage(ctx, filepath.Join(s.Root, "state.img"), "STATE", s.StateSize)
		return err
	})
	g.Go(func() (err error) {
		im.data, err = openImage(ctx, filepath.Join(s.Root, "data.img"), "DATA", s.DataSize)
		return err
	})
	if err := g.Wait(); err != nil {
		im.close()
		return nil, err
	}
	return &im, nil
}

func (im *images) close() {
	im.state.Close() // nil is allowed
	im.data.Close()
}

// openImage opens and locks an image, after making it where there is none.
func openImage(ctx context.Context, path, label string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeImage(ctx, path, label, size); err != nil {
			return nil, fmt.Errorf("make disk image %s: %w", path, err)
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open disk image: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	if err := flock.WaitFile(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("disk image %s is still in use by an earlier run: %w", path, err)
	}
	return f, nil
}

// makeImage makes a sparse image under another name and renames it: an image that exists is whole. What a killed try left is
// unlinked and not written over: its mkfs may be dying still, with a write under way.
func makeImage(ctx context.Context, path, label string, size int64) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	// 4 KiB blocks whatever the size, nothing reserved for root; the file is all zeros already, so journal and inode tables need no writing.
	_, err = spawn.Run(ctx, nil, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-L", label, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", tmp)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// waitReleased returns when no loop device holds an image any more.
func waitReleased(ctx context.Context, root string) error {
	for _, name := range []string{"state.img", "data.img"} {
		f, err := os.OpenFile(filepath.Join(root, name), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = flock.WaitFile(ctx, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("wait for the loop device of %s to go away: %w", name, err)
		}
	}
	return nil
}
