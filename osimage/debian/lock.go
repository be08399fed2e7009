// Package debian brings the few foreign programs of an OS image, and its kernel,
// from Debian packages that are pinned by name, version and SHA-256. It promises
// that what comes out is what the lock names, whatever a mirror sends, and that a
// package fetched once is never asked for again. It leaves out solving
// dependencies, maintainer scripts and Debian's signatures: the command update
// writes the locks with apt, which checks those.
package debian

import (
	"bytes"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strings"
)

//go:embed lock-*.json
var locks embed.FS

// Lock pins the packages of an architecture.
type Lock struct {
	Suite        string            `json:"suite"`
	Architecture string            `json:"architecture"`
	Snapshot     string            `json:"snapshot"` // when it was made, as snapshot.debian.org writes times
	Kernels      map[string]string `json:"kernels"`  // flavour: package
	Packages     []Package         `json:"packages"` // sorted by name
}

// Package is a binary package of Debian.
type Package struct {
	Name         string `json:"name"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"`
	Path         string `json:"path"` // below a mirror: debian/pool/...
	Size         int64  `json:"size"`
	SHA256       string `json:"sha256"`
}

// Architectures that have a lock.
func Architectures() []string { return []string{"amd64", "arm64"} }

// ReadLock is the lock that this program was built with.
func ReadLock(architecture string) (*Lock, error) {
	data, err := locks.ReadFile("lock-" + architecture + ".json")
	if err != nil {
		return nil, fmt.Errorf("no Debian packages are pinned for %q: there are %s", architecture, strings.Join(Architectures(), " and "))
	}
	return ParseLock(data)
}

// ParseLock reads a lock and refuses what could name a file outside of the cache.
func ParseLock(data []byte) (*Lock, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	var l Lock
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("read the lock of Debian packages: %w", err)
	}
	for i, p := range l.Packages {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("read the lock of Debian packages: %w", err)
		}
		if i > 0 && l.Packages[i-1].Name >= p.Name {
			return nil, fmt.Errorf("read the lock of Debian packages: %s and %s are not in order", l.Packages[i-1].Name, p.Name)
		}
	}
	for flavour, name := range l.Kernels {
		if _, err := l.Package(name); err != nil {
			return nil, fmt.Errorf("kernel of flavour %s: %w", flavour, err)
		}
	}
	return &l, nil
}

var (
	packageName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	packageVersion = regexp.MustCompile(`^[A-Za-z0-9.+~:-]+$`)
)

const packageSizeMax = 1 << 30

func (p Package) check() error {
	switch sum, err := hex.DecodeString(p.SHA256); {
	case !packageName.MatchString(p.Name), !packageVersion.MatchString(p.Version), !packageName.MatchString(p.Architecture):
		return fmt.Errorf("%q %q %q are no name, version and architecture of a package", p.Name, p.Version, p.Architecture)
	case err != nil || len(sum) != 32:
		return fmt.Errorf("%s: %q is no SHA-256", p.Name, p.SHA256)
	case p.Size <= 0 || p.Size > packageSizeMax:
		return fmt.Errorf("%s: %d bytes", p.Name, p.Size)
	case path.Clean("/"+p.Path) != "/"+p.Path || !strings.Contains(p.Path, "/pool/"):
		return fmt.Errorf("%s: %q is no path of a pool", p.Name, p.Path)
	}
	return nil
}

// Package finds a package by its name.
func (l *Lock) Package(name string) (Package, error) {
	for _, p := range l.Packages {
		if p.Name == name {
			return p, nil
		}
	}
	return Package{}, fmt.Errorf("the lock has no Debian package %s for %s", name, l.Architecture)
}

// file is the name that apt gives the package in its own cache.
func (p Package) file() string {
	return p.Name + "_" + strings.ReplaceAll(p.Version, ":", "%3a") + "_" + p.Architecture + ".deb"
}
