// Package artefact is an OS version as it travels: an OCI artefact for one
// architecture, which any registry keeps and a machine fetches by the digest that
// os/VERSION.yaml names.
//
//	manifest -> config: what the version is (Config), with the digests of all that follows
//	         -> whole: root and UKI, each a delta from nothing
//	         -> for each older version that was named: root and UKI as deltas from its
//
// The root is the data of the file system alone: the machine makes the hash tree
// itself and holds it against the root hash, so hashes cost no bytes on the way.
//
// It promises that the same versions give the same bytes, and that a Config that
// was read is within bounds. It leaves out fetching (package machine/update) and
// pushing (package cli), and it vouches for nothing: the digest does.
package artefact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
)

// Media types.
const (
	Type        = "application/vnd.holdfast.os.v1"
	ConfigMedia = "application/vnd.holdfast.os.config.v1+json"
	DeltaMedia  = "application/vnd.holdfast.os.delta.v1"
)

// Format is the newest that this program reads and the one that it writes. A
// program reads older ones, and fields that it does not know in its own: machines
// follow versions that were made two years after them.
const Format = 1

// Repository is the name under which registries keep artefacts.
const Repository = "holdfast.dev/os"

// Ref names the artefact of a version.
func Ref(version, architecture string) string {
	return Repository + ":" + strings.ReplaceAll(version, "+", "_") + "-" + architecture
}

// Config says what an OS version is.
type Config struct {
	Format       int       `json:"format"`
	OS           string    `json:"os"` // linux, for tools that ask
	Architecture string    `json:"architecture"`
	Version      string    `json:"version"`
	Kubernetes   string    `json:"kubernetes"` // minor, such as 1.36
	Built        time.Time `json:"created"`
	Follows      []string  `json:"follows,omitempty"`
	UKI          File      `json:"uki"`
	Root         File      `json:"root"`
	Verity       string    `json:"verity"` // the root's argument on the command line
	Whole        Set       `json:"whole"`
	Deltas       []Set     `json:"deltas,omitempty"`
}

// File is content by digest.
type File struct {
	Digest string `json:"digest"` // sha256: and 64 hex digits
	Size   int64  `json:"size"`
}

// Set makes root and UKI: from nothing, or from those of another version.
type Set struct {
	From     string `json:"from,omitempty"`     // its version
	FromRoot string `json:"fromRoot,omitempty"` // its root hash, hex
	FromUKI  string `json:"fromUKI,omitempty"`  // its UKI's digest
	Root     File   `json:"root"`
	UKI      File   `json:"uki"`
}

// Size is how many bytes travel.
func (s Set) Size() int64 { return s.Root.Size + s.UKI.Size }

const (
	maxConfig = 1 << 20
	maxUKI    = 256 << 20
	maxDeltas = 64
)

var (
	digestRE  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	hashRE    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versionRE = regexp.MustCompile(`^[A-Za-z0-9]+([._+-][A-Za-z0-9]+)*$`)
	minorRE   = regexp.MustCompile(`^1\.[0-9]{1,4}$`)
)

// ErrConfig: the config of an artefact is not one, or out of bounds.
var ErrConfig = errors.New("not the config of an OS version")

// Parse reads a Config.
func Parse(data []byte) (*Config, error) {
	if len(data) > maxConfig {
		return nil, fmt.Errorf("%w: %d bytes", ErrConfig, len(data))
	}
	c := &Config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return c, nil
}

func (c *Config) check() error {
	switch {
	case c.Format < 1 || c.Format > Format:
		return fmt.Errorf("format %d: this program reads 1 to %d", c.Format, Format)
	case !versionRE.MatchString(c.Version) || len(c.Version) > 64:
		return fmt.Errorf("version %.80q", c.Version)
	case c.Architecture != "amd64" && c.Architecture != "arm64":
		return fmt.Errorf("architecture %.80q: want amd64 or arm64", c.Architecture)
	case !minorRE.MatchString(c.Kubernetes):
		return fmt.Errorf("kubernetes %.80q: want a minor such as 1.36", c.Kubernetes)
	case len(c.Deltas) > maxDeltas || len(c.Follows) > maxDeltas:
		return fmt.Errorf("%d deltas, %d versions to follow: at most %d", len(c.Deltas), len(c.Follows), maxDeltas)
	}
	for _, v := range c.Follows {
		if !versionRE.MatchString(v) {
			return fmt.Errorf("it follows %.80q", v)
		}
	}
	v, err := c.Tree()
	if err != nil {
		return err
	}
	if c.Root.Size != int64(v.DataBlocks)*osimage.VerityBlock || c.Root.Size > osimage.RootSize {
		return fmt.Errorf("a root of %d bytes with %d blocks", c.Root.Size, v.DataBlocks)
	}
	if c.UKI.Size > maxUKI {
		return fmt.Errorf("a UKI of %d bytes", c.UKI.Size)
	}
	for _, s := range append([]Set{c.Whole}, c.Deltas...) {
		for _, f := range []File{c.UKI, c.Root, s.UKI, s.Root} {
			if !digestRE.MatchString(f.Digest) || f.Size <= 0 || f.Size > 2*osimage.RootSize {
				return fmt.Errorf("%.80q with %d bytes", f.Digest, f.Size)
			}
		}
	}
	for _, d := range c.Deltas {
		if !versionRE.MatchString(d.From) || !hashRE.MatchString(d.FromRoot) || !digestRE.MatchString(d.FromUKI) {
			return fmt.Errorf("a delta from %.80q with root %.80q and UKI %.80q", d.From, d.FromRoot, d.FromUKI)
		}
	}
	return nil
}

// Tree is the root's hash tree.
func (c *Config) Tree() (osimage.Verity, error) {
	v, err := osimage.ParseVerity(c.Verity)
	if err == nil && v.Argument() != c.Verity {
		err = fmt.Errorf("%.200q is more than the argument", c.Verity)
	}
	return v, err
}

// Choose returns the smallest set that a machine with that root and UKI can use.
func (c *Config) Choose(rootHash, ukiDigest string) Set {
	best := c.Whole
	for _, d := range c.Deltas {
		if d.FromRoot == rootHash && d.FromUKI == ukiDigest && d.Size() < best.Size() {
			best = d
		}
	}
	return best
}

// layers lists every blob once, in order.
func (c *Config) layers() []File {
	var list []File
	for _, s := range append([]Set{c.Whole}, c.Deltas...) {
		for _, f := range []File{s.Root, s.UKI} {
			if !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	return list
}

// Source is a version at hand, in files.
type Source struct {
	Version string
	Root    io.ReaderAt // its data; the tree may follow
	UKI     io.ReaderAt
	UKISize int64
	Verity  osimage.Verity
}
