package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Progress is told how many bytes of how many are here. It may be called from several goroutines at once.
type Progress func(done, total int64)

// Fetcher brings images from one place, by digest, into a store. The place (hub, neighbour, mirror) is trusted with nothing.
type Fetcher struct {
	Store  *Store
	Client *http.Client // over whatever connection the caller chose; nil: http.DefaultClient

	// Base is the URL of a repository: content stands under Base/blobs/DIGEST and Base/manifests/DIGEST.
	Base string
	// Repository, when set, gives the part of the path between Base and /blobs/ for an image; nil: nothing stands between.
	Repository func(Image) string

	Platform Platform      // zero: this machine's
	Parallel int           // blobs at once; 0: 2
	Stall    time.Duration // a connection that brings no byte for so long is given up and tried again; 0: 60 s
	Attempts int           // failures in a row without a single new byte before it gives up; 0: 6
	Backoff  time.Duration // longest pause before the second attempt, doubling, with full jitter, up to 30 s; 0: 200 ms
	Log      *slog.Logger  // nil: slog.Default
}

func (f *Fetcher) platform() Platform {
	if f.Platform == (Platform{}) {
		return ThisPlatform()
	}
	return f.Platform
}

func (f *Fetcher) log() *slog.Logger {
	if f.Log == nil {
		return slog.Default()
	}
	return f.Log
}

// Tree fetches what is missing of an image's indexes and manifest, and returns all that the image needs.
func (f *Fetcher) Tree(ctx context.Context, img Image) (Tree, error) {
	t, err := walk(img.Digest, f.platform(), func(d Descriptor) ([]byte, error) {
		data, err := f.Store.Read(d.Digest, maxManifest)
		if errors.Is(err, ErrNotFound) {
			data, err = f.manifest(ctx, img, d)
		}
		if err == nil && d.Size >= 0 && int64(len(data)) != d.Size {
			err = fmt.Errorf("manifest %s: %w", d.Digest, ErrSize)
		}
		return data, err
	})
	if err != nil {
		return Tree{}, fmt.Errorf("fetch image %s@%s: %w", img.Ref, img.Digest, err)
	}
	return t, nil
}

// Blobs fetches what is missing of an image's blobs.
func (f *Fetcher) Blobs(ctx context.Context, img Image, blobs []Descriptor, progress Progress) error {
	var done, total atomic.Int64
	add := func(n int64) {
		if now := done.Add(n); progress != nil {
			progress(now, total.Load())
		}
	}
	var missing []Descriptor
	for _, b := range blobs {
		total.Add(b.Size)
		if f.Store.Has(b.Digest) {
			done.Add(b.Size)
			continue
		}
		missing = append(missing, b)
	}
	add(0)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(f.Parallel, 1))
	if f.Parallel == 0 {
		group.SetLimit(2)
	}
	for _, b := range missing {
		group.Go(func() error {
			if err := f.blob(ctx, img, b, add); err != nil {
				return fmt.Errorf("fetch image %s@%s: %w", img.Ref, img.Digest, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Image fetches what is missing of an image.
func (f *Fetcher) Image(ctx context.Context, img Image, progress Progress) (Tree, error) {
	t, err := f.Tree(ctx, img)
	if err != nil {
		return Tree{}, err
	}
	return t, f.Blobs(ctx, img, t.Blobs(), progress)
}

// manifest fetches one index or manifest, which is small enough for memory.
func (f *Fetcher) manifest(ctx context.Context, img Image, d Descriptor) ([]byte, error) {
	var data []byte
	err := f.retry(ctx, "manifest "+string(d.Digest), func(ctx context.Context, alive func()) (int64, error) {
		resp, err := f.get(ctx, alive, img, "manifests", d.Digest, 0)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		data, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
		switch {
		case err != nil:
			return 0, err
		case len(data) > maxManifest:
			return 0, permanent{fmt.Errorf("longer than %d bytes: %w", maxManifest, ErrSize)}
		case resp.ContentLength >= 0 && int64(len(data)) != resp.ContentLength:
			return 0, io.ErrUnexpectedEOF
		case DigestOf(data) != d.Digest:
			return 0, permanent{ErrDigest}
		}
		return 0, nil
	})
	if err != nil {
		return nil, err
	}
	return data, f.Store.Put(ctx, d.Digest, data)
}

// blob fetches one blob, going on at the byte where the last attempt ended, in this process or an earlier one.
func (f *Fetcher) blob(ctx context.Context, img Image, b Descriptor, add func(int64)) error {
	w, err := f.Store.Begin(ctx, b.Digest, b.Size)
	if errors.Is(err, ErrExists) {
		add(b.Size)
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	counted := int64(0)
	count := func() { add(w.Offset() - counted); counted = w.Offset() }
	count()
	second := w.Resumed() // bytes of an earlier process, or of two answers in one file, may be wrong where one whole answer is right
	for {
		err := f.retry(ctx, "blob "+string(b.Digest), func(ctx context.Context, alive func()) (int64, error) {
			from := w.Offset()
			if from == b.Size {
				return 0, nil
			}
			err := f.download(ctx, alive, img, b, w, count)
			if err != nil && w.Offset() > 0 {
				second = true
			}
			return w.Offset() - from, err
		})
		if err != nil {
			return err
		}
		err = w.Commit()
		count() // a wrong blob takes its bytes back
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrDigest) || !second {
			return err
		}
		f.log().Warn("continued download was damaged, fetching from the first byte", "digest", b.Digest)
		second = false
	}
}

// download is one request: from the writer's offset to the end of the blob.
func (f *Fetcher) download(ctx context.Context, alive func(), img Image, b Descriptor, w *Writer, count func()) error {
	from := w.Offset()
	resp, err := f.get(ctx, alive, img, "blobs", b.Digest, from)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	want := b.Size - from
	if resp.StatusCode == http.StatusPartialContent {
		if start, ok := rangeStart(resp.Header.Get("Content-Range")); !ok || start != from {
			return permanent{fmt.Errorf("asked for bytes from %d, got Content-Range %.80q", from, resp.Header.Get("Content-Range"))}
		}
	} else if from > 0 { // the whole blob, though a part was asked for
		want = b.Size
	}
	if resp.ContentLength >= 0 && resp.ContentLength != want {
		return permanent{fmt.Errorf("%d bytes offered, %d expected: %w", resp.ContentLength, want, ErrSize)}
	}
	if _, err := io.CopyN(io.Discard, resp.Body, want-(b.Size-from)); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return permanent{err} // too long, or the disk is full: another attempt changes neither
			}
			count()
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if w.Offset() < b.Size {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(s, "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(first, 10, 64)
	return n, err == nil && n >= 0
}

// permanent marks a failure that another attempt at the same source cannot mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

var manifestTypes = []string{typeOCIIndex, typeOCIManifest, typeDockerList, typeDockerManifest}

// get asks for content and sorts the answers: 200 and 206 are returned, the rest are errors.
func (f *Fetcher) get(ctx context.Context, alive func(), img Image, kind string, d Digest, from int64) (*http.Response, error) {
	url := strings.TrimSuffix(f.Base, "/")
	if f.Repository != nil {
		url += "/" + strings.Trim(f.Repository(img), "/")
	}
	url += "/" + kind + "/" + string(d)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, permanent{err}
	}
	req.Header.Set("Accept-Encoding", "identity") // or the transport would unpack what is hashed packed
	if kind == "manifests" {
		req.Header.Set("Accept", strings.Join(manifestTypes, ", "))
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	client := f.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent && from > 0 {
		resp.Body = aliveReader{resp.Body, alive}
		return resp, nil
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
	err = fmt.Errorf("%s answered %s", kind, resp.Status)
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return nil, permanent{fmt.Errorf("%w: %w", err, ErrNotFound)}
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return nil, err
	default:
		return nil, permanent{err}
	}
}

// attempt is one request; it calls alive for every byte that arrives and returns how many new ones it kept.
type attempt func(ctx context.Context, alive func()) (int64, error)

// retry runs one until it succeeds, fails for good, or failed f.Attempts times in a row without a new byte.
// Each attempt is cut off when it brings nothing for f.Stall.
func (f *Fetcher) retry(ctx context.Context, what string, one attempt) error {
	attempts, longest := f.Attempts, f.Backoff
	if attempts == 0 {
		attempts = 6
	}
	if longest == 0 {
		longest = 200 * time.Millisecond
	}
	pause := longest
	for left := attempts; ; {
		brought, err := f.guarded(ctx, one)
		if err == nil {
			return nil
		}
		if brought > 0 {
			left, pause = attempts, longest
		}
		left--
		if ctx.Err() != nil {
			return fmt.Errorf("fetch %s: %w", what, ctx.Err())
		}
		if p := (permanent{}); errors.As(err, &p) || left <= 0 {
			return fmt.Errorf("fetch %s: %w", what, err)
		}
		f.log().Debug("fetch interrupted, trying again", "what", what, "err", err)
		timer := time.NewTimer(rand.N(pause) + 1)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		pause = min(2*pause, 30*time.Second)
	}
}

// guarded gives one attempt a context that ends when alive was not called for f.Stall.
func (f *Fetcher) guarded(ctx context.Context, one attempt) (int64, error) {
	stall := f.Stall
	if stall == 0 {
		stall = time.Minute
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(stall, func() { cancel(fmt.Errorf("no byte for %s", stall)) })
	defer timer.Stop()
	n, err := one(ctx, func() { timer.Reset(stall) })
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}

// aliveReader tells the guard about every byte that arrives.
type aliveReader struct {
	io.ReadCloser
	alive func()
}

func (r aliveReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.alive()
	}
	return n, err
}

// Keep returns the digests that the trees of images need; an image whose tree is not whole keeps what is known of it.
func (s *Store) Keep(p Platform, images ...Image) func(Digest) bool {
	keep := map[Digest]bool{}
	for _, img := range images {
		keep[img.Digest] = true
		t, err := s.Tree(img.Digest, p)
		if err != nil {
			continue
		}
		for _, b := range t.Blobs() {
			keep[b.Digest] = true
		}
	}
	return func(d Digest) bool { return keep[d] }
}
