package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

var (
	// ErrNotFound: the content is not there (in the store, or at the source that was asked).
	ErrNotFound = errors.New("not found")
	// ErrExists: [Store.Begin] found the blob complete, there is nothing to write.
	ErrExists = errors.New("already complete")
	// ErrQuota: the blob does not fit into what the store may hold.
	ErrQuota = errors.New("over the quota of the image store")
	// ErrDigest: bytes do not match their digest.
	ErrDigest = errors.New("content does not match its digest")
	// ErrSize: content is longer or shorter than its descriptor says.
	ErrSize = errors.New("content does not have the size that was announced")
)

// Store holds blobs by digest under a folder of its own:
//
//	blobs/sha256/HEX   complete, verified, flushed
//	partial/HEX        a download that was interrupted; its bytes are believed only after the whole was hashed
//
// One Store per folder and process. Methods may be called from any goroutine.
type Store struct {
	dir   string
	quota int64

	mu   sync.Mutex
	used int64                    // bytes of blobs and of partial files, and what open writers may still add
	busy map[Digest]chan struct{} // digests with an open writer; closed when it ends
}

// OpenStore opens or makes the store under dir. It may hold quota bytes; 0 means no bound.
// It is also the recovery after a crash: whatever lies in partial/ is either continued or swept later, and needs no repair.
func OpenStore(dir string, quota int64) (*Store, error) {
	s := &Store{dir: dir, quota: quota, busy: map[Digest]chan struct{}{}}
	for _, d := range []string{s.blobs(), s.partial()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
		if err := each(d, func(_ Digest, size int64) { s.used += size }); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) blobs() string               { return filepath.Join(s.dir, "blobs", "sha256") }
func (s *Store) partial() string             { return filepath.Join(s.dir, "partial") }
func (s *Store) blobPath(d Digest) string    { return filepath.Join(s.blobs(), d.Hex()) }
func (s *Store) partialPath(d Digest) string { return filepath.Join(s.partial(), d.Hex()) }

// each calls f for every file in dir whose name is a digest.
func each(dir string, f func(Digest, int64)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		d, err := ParseDigest(digestPrefix + e.Name())
		if err != nil {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		f(d, info.Size())
	}
	return nil
}

// Used is how many bytes count against the quota.
func (s *Store) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Has says whether the blob is complete. It does not read it.
func (s *Store) Has(d Digest) bool {
	_, err := os.Stat(s.blobPath(d))
	return err == nil
}

// Open returns the blob for reading; ErrNotFound when it is not complete here.
func (s *Store) Open(d Digest) (*os.File, error) {
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", d, err)
	}
	return f, nil
}

// Read returns a small blob (a manifest, a config), at most limit bytes, hashed again on the way.
// One that has rotted on disk is removed and not found, so that it is fetched again.
func (s *Store) Read(d Digest, limit int64) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read blob %s: longer than %d bytes: %w", d, limit, ErrSize)
	}
	if DigestOf(data) != d {
		return nil, errors.Join(fmt.Errorf("blob %s has rotted on disk: %w", d, ErrNotFound), s.Delete(d))
	}
	return data, nil
}

// Verify hashes the blob again. A rotten one is removed; the result is then ErrNotFound, as for one that is not here.
func (s *Store) Verify(ctx context.Context, d Digest) error {
	f, err := s.Open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, &ctxReader{ctx, f}); err != nil {
		return fmt.Errorf("verify blob %s: %w", d, err)
	}
	if digestFrom(h.Sum(nil)) != d {
		return errors.Join(fmt.Errorf("blob %s has rotted on disk: %w", d, ErrNotFound), s.Delete(d))
	}
	return nil
}

// Put writes a small blob whole. A blob that is there already is fine.
func (s *Store) Put(ctx context.Context, d Digest, data []byte) error {
	if DigestOf(data) != d {
		return fmt.Errorf("put blob %s: %w", d, ErrDigest)
	}
	w, err := s.Begin(ctx, d, int64(len(data)))
	if errors.Is(err, ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Reset(); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Commit()
}

// Delete removes a complete blob. One that is not there is fine.
func (s *Store) Delete(d Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(s.blobPath(d))
}

// remove unlinks a file and gives its bytes back; the mutex is held.
func (s *Store) remove(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("image store: %w", err)
	}
	s.used -= info.Size()
	return nil
}

// Sweep removes every blob and every interrupted download that keep does not want, and returns how many bytes that freed.
// What is being written at the moment stays.
func (s *Store) Sweep(keep func(Digest) bool) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.used
	var failed []error
	for _, dir := range []string{s.blobs(), s.partial()} {
		err := each(dir, func(d Digest, _ int64) {
			if _, writing := s.busy[d]; !writing && !keep(d) {
				failed = append(failed, s.remove(filepath.Join(dir, d.Hex())))
			}
		})
		failed = append(failed, err)
	}
	return before - s.used, errors.Join(failed...)
}

// Begin opens the blob for writing and goes on where an earlier attempt stopped: see [Writer.Offset].
// It waits while another writer has the same digest. ErrExists: complete already. ErrQuota: size bytes do not fit.
func (s *Store) Begin(ctx context.Context, d Digest, size int64) (*Writer, error) {
	if size < 0 {
		return nil, fmt.Errorf("write blob %s: negative size: %w", d, ErrSize)
	}
	if err := s.claim(ctx, d); err != nil {
		return nil, err
	}
	w := &Writer{store: s, digest: d, size: size, hash: sha256.New()}
	if err := w.open(); err != nil {
		s.yield(d)
		return nil, err
	}
	return w, nil
}

// claim makes the caller the only writer of d.
func (s *Store) claim(ctx context.Context, d Digest) error {
	for {
		s.mu.Lock()
		if s.Has(d) {
			s.mu.Unlock()
			return fmt.Errorf("blob %s: %w", d, ErrExists)
		}
		other, taken := s.busy[d]
		if !taken {
			s.busy[d] = make(chan struct{})
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return fmt.Errorf("wait for another writer of blob %s: %w", d, ctx.Err())
		}
	}
}

func (s *Store) yield(d Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.busy[d])
	delete(s.busy, d)
}

// reserve takes n more bytes (or gives -n back).
func (s *Store) reserve(d Digest, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.quota > 0 && s.used+n > s.quota {
		return fmt.Errorf("blob %s needs %d bytes more, %d of %d are in use: %w", d, n, s.used, s.quota, ErrQuota)
	}
	s.used += n
	return nil
}

// Writer writes one blob. It is used by one goroutine and must be closed.
type Writer struct {
	store  *Store
	digest Digest
	size   int64
	file   *os.File
	hash   hash.Hash
	offset int64
	found  int64 // bytes that an earlier attempt left
	done   bool
}

func (w *Writer) open() (err error) {
	f, err := os.OpenFile(w.store.partialPath(w.digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	found := info.Size()
	w.found = found
	if err := w.store.reserve(w.digest, w.size-found); err != nil {
		return err
	}
	w.file = f
	if w.found > w.size { // an earlier source announced another size: worth nothing
		err = w.Reset()
	} else {
		w.offset, err = io.Copy(w.hash, f)
	}
	if err != nil {
		_ = w.store.reserve(w.digest, found-w.size)
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	return nil
}

// Offset is how many bytes are there; the next Write goes behind them.
func (w *Writer) Offset() int64 { return w.offset }

// Resumed says whether bytes of an earlier attempt are under the offset. They may be damaged (a power cut leaves zeros),
// so that a failed Commit then deserves one attempt from the first byte.
func (w *Writer) Resumed() bool { return w.found > 0 && w.offset > 0 }

// Reset throws away what is there and begins at the first byte.
func (w *Writer) Reset() error {
	if err := w.file.Truncate(0); err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	w.hash.Reset()
	w.offset = 0
	w.found = 0
	return nil
}

// Write appends. A byte beyond the announced size is refused, and nothing of p is written then.
func (w *Writer) Write(p []byte) (int, error) {
	if w.offset+int64(len(p)) > w.size {
		return 0, fmt.Errorf("write blob %s: more than the %d bytes announced: %w", w.digest, w.size, ErrSize)
	}
	n, err := w.file.Write(p)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	return n, nil
}

// Commit verifies, flushes and names the blob. ErrSize: bytes are missing, they can still be written.
// ErrDigest: the bytes were wrong and are gone; the writer stands at the first byte again.
func (w *Writer) Commit() error {
	if w.offset != w.size {
		return fmt.Errorf("write blob %s: %d of %d bytes: %w", w.digest, w.offset, w.size, ErrSize)
	}
	if digestFrom(w.hash.Sum(nil)) != w.digest {
		return errors.Join(fmt.Errorf("write blob %s: %w", w.digest, ErrDigest), w.Reset())
	}
	// A crash before the rename leaves a partial file, which the next attempt hashes and commits; after it, the blob.
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	if err := os.Rename(w.store.partialPath(w.digest), w.store.blobPath(w.digest)); err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	w.done = true
	if err := syncDir(w.store.blobs()); err != nil {
		return fmt.Errorf("write blob %s: %w", w.digest, err)
	}
	return nil
}

// Close ends the writing. Without a Commit the bytes stay for the next attempt.
func (w *Writer) Close() error {
	if w.file == nil {
		return nil
	}
	if !w.done {
		_ = w.store.reserve(w.digest, w.offset-w.size) // negative or zero: gives back
		if w.offset == 0 {
			_ = os.Remove(w.store.partialPath(w.digest))
		}
	}
	err := w.file.Close()
	w.file = nil
	w.store.yield(w.digest)
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) { // a file system that cannot flush folders
		err = nil
	}
	return errors.Join(err, d.Close())
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
