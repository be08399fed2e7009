package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Mirrors are asked in this order. Debian's own forgets versions after a while;
// the snapshot archive forgets none, and is slow.
var mirrors = []string{"https://deb.debian.org", snapshotMirror}

const snapshotMirror = "https://snapshot.debian.org/archive"

// Cache keeps packages that were fetched, each beside its unpacked content.
type Cache struct {
	Dir      string       // made when missing
	Mirrors  []string     // URLs above debian/ and debian-security/; nil: Debian's own, then its snapshot archive
	Client   *http.Client // nil: one that gives up on silence, not on slowness
	Progress func(string) // called with a line before what takes time; may be nil
	Snapshot string       // time to ask the snapshot archive for: Lock.Snapshot
}

// CacheDir is the folder that people's caches are in.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache for Debian packages: %w", err)
	}
	return filepath.Join(dir, "holdfast", "debian"), nil
}

// Fetch returns the path of the package's file, verified now; the network is used only when it is not there.
func (c *Cache) Fetch(ctx context.Context, p Package) (string, error) {
	if err := p.check(); err != nil {
		return "", err
	}
	path := filepath.Join(c.Dir, p.file())
	switch err := verifyFile(path, p); {
	case err == nil:
		return path, nil
	case !errors.Is(err, os.ErrNotExist):
		c.say("%s: %v; fetching it again", path, err)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	var faults []error
	for _, mirror := range c.mirrors() {
		address := c.address(mirror, p)
		c.say("fetch %s %s, %.1f MB, from %s", p.Name, p.Version, float64(p.Size)/1e6, host(address))
		err := c.download(ctx, address, path, p)
		if err == nil {
			return path, nil
		}
		faults = append(faults, err)
		if ctx.Err() != nil {
			break
		}
	}
	return "", fmt.Errorf("fetch the Debian package %s %s: %w", p.Name, p.Version, errors.Join(faults...))
}

func (c *Cache) say(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

func (c *Cache) mirrors() []string {
	if len(c.Mirrors) > 0 {
		return c.Mirrors
	}
	return mirrors
}

// address is where a mirror has the package. The snapshot archive wants a time between the archive's name and the pool.
func (c *Cache) address(mirror string, p Package) string {
	path := p.Path
	if strings.TrimSuffix(mirror, "/") == snapshotMirror {
		archive, rest, _ := strings.Cut(path, "/")
		path = archive + "/" + c.Snapshot + "/" + rest
	}
	return strings.TrimSuffix(mirror, "/") + "/" + (&url.URL{Path: path}).EscapedPath()
}

func host(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Host
	}
	return address
}

// silence is how long a mirror may send nothing.
const silence = time.Minute

func (c *Cache) download(ctx context.Context, address, path string, p Package) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	client := c.Client
	if client == nil {
		client = http.DefaultClient
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", address, answer.Status)
	}
	// One byte more than there should be tells a longer file from the right one.
	body := io.LimitReader(answer.Body, p.Size+1)
	return place(path, func(w io.Writer) error {
		check := newVerifier(p)
		for {
			n, err := io.CopyN(io.MultiWriter(w, check), body, 1<<20)
			quiet.Reset(silence)
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("get %s: after %d bytes: %w", address, check.n+n, err)
			}
		}
		if err := check.verdict(); err != nil {
			return fmt.Errorf("get %s: %w", address, err)
		}
		return nil
	})
}

// place writes a file that is whole or not there.
func place(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".part-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// verifier counts and hashes what is written to it.
type verifier struct {
	want Package
	sum  hash.Hash
	n    int64
}

func newVerifier(p Package) *verifier { return &verifier{want: p, sum: sha256.New()} }

func (v *verifier) Write(b []byte) (int, error) {
	v.n += int64(len(b))
	return v.sum.Write(b)
}

// ErrDigest is returned for a file that is not what the lock names.
var ErrDigest = errors.New("not the package that is pinned")

func (v *verifier) verdict() error {
	if v.n != v.want.Size {
		return fmt.Errorf("%w: at least %d bytes, want %d", ErrDigest, v.n, v.want.Size)
	}
	if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.want.SHA256 {
		return fmt.Errorf("%w: SHA-256 %s, want %s", ErrDigest, got, v.want.SHA256)
	}
	return nil
}

func verifyFile(path string, p Package) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	check := newVerifier(p)
	if _, err := io.Copy(check, io.LimitReader(f, p.Size+1)); err != nil {
		return err
	}
	return check.verdict()
}

// Open returns the package's content, fetched and unpacked if need be. Unpacking
// the kernels is slow (their compression is), so the bare tar is kept as well.
func (c *Cache) Open(ctx context.Context, p Package) (*Archive, error) {
	base := filepath.Join(c.Dir, p.file()+"."+p.SHA256[:16])
	if a, err := openArchive(p, base); err == nil {
		return a, nil
	}
	deb, err := c.Fetch(ctx, p)
	if err != nil {
		return nil, err
	}
	c.say("unpack %s", p.Name)
	f, err := os.Open(deb)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	err = place(base+".tar", func(w io.Writer) error {
		data, err := dataOf(f)
		if err != nil {
			return err
		}
		n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(data, unpackedMax))
		if err == nil && n == unpackedMax {
			err = fmt.Errorf("more than %d bytes", unpackedMax)
		}
		return err
	})
	if err == nil {
		err = durable.WriteFile(base+".sum", []byte(hex.EncodeToString(sum.Sum(nil))), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack the Debian package %s: %w", deb, err)
	}
	return openArchive(p, base)
}

// openArchive opens what was unpacked before, if it is still the same.
func openArchive(p Package, base string) (*Archive, error) {
	want, err := os.ReadFile(base + ".sum")
	if err != nil {
		return nil, err
	}
	f, err := os.Open(base + ".tar")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	if hex.EncodeToString(sum.Sum(nil)) != string(want) {
		return nil, fmt.Errorf("%s.tar is damaged", base)
	}
	return &Archive{Package: p, path: base + ".tar"}, nil
}
