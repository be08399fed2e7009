package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Hello is the first thing a machine says on a control session. Who it is, the
// handshake has shown; Machine only lets both ends notice a mistake.
type Hello struct {
	Capability   int             `json:"capability"`
	Fleet        fleet.ID        `json:"fleet"`
	Machine      fleet.MachineID `json:"machine"`
	Introduction []byte          `json:"introduction,omitempty"` // see SignIntroduction; told to a hub that does not list us
	N            uint64          `json:"n,omitempty"`            // accepted release
	Slice        string          `json:"slice,omitempty"`        // digest, in hex, of the encoded slice that it holds: a dictionary
	Version      string          `json:"version,omitempty"`      // of machined
	Architecture string          `json:"architecture,omitempty"` // as Go names it
	Addresses    []netip.Addr    `json:"addresses,omitempty"`    // on its LAN, for people
	Seq          uint64          `json:"seq,omitempty"`          // of its last report
	Locked       bool            `json:"locked,omitempty"`       // it can keep no slice and wants to read none, so it is to be offered none
}

// Validate checks what a stranger sent.
func (h *Hello) Validate() error {
	if _, err := fleet.ParseID(string(h.Fleet)); err != nil {
		return err
	}
	if _, err := fleet.ParseMachineID(string(h.Machine)); err != nil {
		return err
	}
	if h.Capability < 1 {
		return fmt.Errorf("capability %d", h.Capability)
	}
	if len(h.Introduction) > maxIntroduction {
		return fmt.Errorf("introduction: longer than %d bytes", maxIntroduction)
	}
	return errors.Join(digest("slice", h.Slice), name("version", h.Version),
		name("architecture", h.Architecture), list("addresses", h.Addresses))
}

// HelloReply is the hub's answer.
type HelloReply struct {
	Capability int    `json:"capability"`
	Listed     bool   `json:"listed,omitempty"`   // the newest release that the hub has names this machine
	Site       string `json:"site,omitempty"`     // where; for people, machines believe slices
	Reported   uint64 `json:"reported,omitempty"` // Seq of the last report that the hub holds; another one needs the whole
	// Introduce asks for an introduction: the hub does not list this machine.
	Introduce bool `json:"introduce,omitempty"`
}

// Validate checks what a hub sent.
func (h *HelloReply) Validate() error {
	if h.Capability < 1 {
		return fmt.Errorf("capability %d", h.Capability)
	}
	return name("site", h.Site)
}

// RelayRequest asks a machine to have a relay session open.
type RelayRequest struct {
	ID string `json:"id,omitempty"` // for logs
}

// Validate checks what a hub sent.
func (r *RelayRequest) Validate() error { return name("id", r.ID) }

// digest checks an optional SHA-256 in lower-case hex.
func digest(field, s string) error {
	if s == "" {
		return nil
	}
	if b, err := hex.DecodeString(s); err != nil || len(b) != 32 || hex.EncodeToString(b) != s {
		return fmt.Errorf("%s: want 64 lower-case hex digits", field)
	}
	return nil
}
