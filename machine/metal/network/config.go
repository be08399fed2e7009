package network

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
)

// Config is how a machine reaches others: the spec of a network.yaml.
type Config = fleet.NetworkSpec

// anyPort is what a machine does when nobody says anything.
func anyPort() Config {
	return Config{Interfaces: []fleet.Interface{{Name: "any", Match: "*", DHCP: true}}}
}

// FromRelease is what a resolved site says of one machine's network.
func FromRelease(r *fleet.Resolved, machine string) Config {
	class := r.ClassOf(machine)
	c := Config{Interfaces: slices.Clone(class.Interfaces), Proxy: class.Proxy, DNS: r.Network.DNS, NTP: r.Network.NTP}
	for i := range c.Interfaces {
		c.Interfaces[i].MTU = cmp.Or(c.Interfaces[i].MTU, r.Network.MTU)
	}
	return c
}

// over lays c over base: what c does not say, base says.
func over(base, c Config) Config {
	if len(c.Interfaces) == 0 {
		c.Interfaces = base.Interfaces
	}
	c.Proxy = cmp.Or(c.Proxy, base.Proxy)
	if len(c.DNS) == 0 {
		c.DNS = base.DNS
	}
	if len(c.NTP) == 0 {
		c.NTP = base.NTP
	}
	if len(c.Hubs) == 0 {
		c.Hubs = base.Hubs
	}
	return c
}

// digest names a configuration; equal ones have equal digests.
func digest(c Config) string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // text, numbers and addresses
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Names of the files in the machine's public folder, and of the first on a stick.
const (
	HintsFile = "network.yaml"
	lastFile  = "network-last.json"
)

// last is network-last.json: what worked, and what did not.
type last struct {
	Version int     `json:"version"`
	Good    Config  `json:"good"`              // with which the hub was reached
	Source  string  `json:"source"`            // where Good came from
	Hints   string  `json:"hints,omitempty"`   // digest of the network.yaml that was there then
	Base    *Config `json:"base,omitempty"`    // that network.yaml, which may have gone with its stick
	Refused string  `json:"refused,omitempty"` // digest of the release's configuration that lost the hub
}

const lastVersion = 1

// readLast returns nil when there is none, and an error for one that is damaged.
func readLast(dir string) (*last, error) {
	b, err := os.ReadFile(filepath.Join(dir, lastFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the last good network: %w", err)
	}
	var l last
	if err := durable.DecodeJSON(b, &l); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, lastFile), err)
	}
	if l.Version != lastVersion || len(l.Good.Interfaces) == 0 {
		return nil, fmt.Errorf("%s: version %d with %d interfaces: not one of ours", filepath.Join(dir, lastFile), l.Version, len(l.Good.Interfaces))
	}
	return &l, nil
}

func writeLast(dir string, l last) error {
	l.Version = lastVersion
	b, err := json.MarshalIndent(l, "", " ")
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, lastFile), append(b, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep the network that works: %w", err)
	}
	return nil
}

// readHints returns the first network.yaml of the folders; nil when there is
// none. A faulty one is an error with its path, and the next ones are not read.
func readHints(dirs []string) (*Config, string, error) {
	for _, dir := range dirs {
		file := filepath.Join(dir, HintsFile)
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, file, err
		}
		c, err := fleet.ParseNetwork(HintsFile, b)
		if err != nil {
			return nil, file, err
		}
		whole := over(anyPort(), *c)
		return &whole, file, nil
	}
	return nil, "", nil
}
