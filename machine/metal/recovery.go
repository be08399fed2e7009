package metal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// Files of the public folder. STATE's header has the escrow too, and its own is
// what an operator is given; these are for people with the disk and stock tools.
const (
	escrowName = "recovery.age"
	escrowNext = "recovery.next.age" // of a key that may not open STATE yet
)

// lockable is what has a recovery key: disks.Disks.
type lockable interface {
	Escrow() []byte
	Recipients() string
	Recoverable() bool
	Rekey(recipients string, escrow func(key []byte) ([]byte, error)) ([]byte, error)
}

// recipients names recovery recipients, in whatever order; "" for none.
func recipients(recovery []string) string {
	if len(recovery) == 0 {
		return ""
	}
	list := slices.Clone(recovery)
	slices.Sort(list)
	sum := sha256.Sum256([]byte(strings.Join(slices.Compact(list), "\n")))
	return hex.EncodeToString(sum[:])
}

// trusted is told whom the trust names that now holds. A person who may bring the
// fleet back no more is not to open this machine's disk either.
func (m *metal) trusted(recovery []string) {
	if m.disks == nil || m.disks.Protection != box.ProtectionTPM {
		return
	}
	seal := func(key []byte) ([]byte, error) {
		seed, err := readSeed()
		if err != nil {
			return nil, err
		}
		return sealEscrow(key, seed.FleetID, recovery, m.box.Signer())
	}
	made, err := followTrust(m.disks, m.public, recovery, seal)
	if made {
		m.ring.say(levelNotice, "disk: a new recovery key, for the recovery recipients of trust.yaml")
	}
	m.faults.Turn(err, faults.OldRecovery)
}

// followTrust makes a new recovery key where the one that is there was made to
// others than the trust names, or nobody noted to whom, or not to its end. Whenever
// the power goes, one of the two files opens STATE, as does the header's escrow.
// A boot partition that takes no writes does not keep the old key alive.
func followTrust(d lockable, public string, recovery []string, seal func(key []byte) ([]byte, error)) (made bool, err error) {
	want := recipients(recovery)
	if d.Recipients() == want && (want != "" || !d.Recoverable()) {
		return false, nil
	}
	var unkept error
	escrow, err := d.Rekey(want, func(key []byte) ([]byte, error) {
		sealed, err := seal(key)
		if err == nil && len(sealed) > 0 {
			unkept = durable.WriteFile(filepath.Join(public, escrowNext), sealed, 0o600)
		}
		return sealed, err
	})
	if err != nil {
		return false, err
	}
	return true, errors.Join(unkept, keepEscrow(public, escrow))
}

// keepEscrow makes the public folder hold the escrow of the key that opens STATE,
// or none.
func keepEscrow(public string, escrow []byte) error {
	kept := filepath.Join(public, escrowName)
	if len(escrow) == 0 {
		return errors.Join(durable.Remove(kept), durable.Remove(filepath.Join(public, escrowNext)))
	}
	old, err := os.ReadFile(kept)
	if err != nil || !bytes.Equal(old, escrow) {
		if err := durable.WriteFile(kept, escrow, 0o600); err != nil {
			return fmt.Errorf("keep the escrow of the recovery key: %w", err)
		}
	}
	if _, err := os.Lstat(filepath.Join(public, escrowNext)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return durable.Remove(filepath.Join(public, escrowNext))
}
