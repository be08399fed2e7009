package wire

import (
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// MaxStatus bounds the answer of a status call: some ten thousand sites.
const MaxStatus = 64 << 20

// Status is what the hub tells operators of a fleet (GET /v1/status). It is a
// contract: fields are added, never renamed.
type Status struct {
	Fleet      fleet.ID     `json:"fleet"`
	Name       string       `json:"name,omitempty"`
	Time       time.Time    `json:"time"`
	Head       Head         `json:"head"`
	Sites      []SiteStatus `json:"sites"`
	Quarantine int          `json:"quarantine"`       // machines that no release names
	Cursor     string       `json:"cursor,omitempty"` // give it to watch= to wait for the next change
}

// Head is the newest release that the hub has (GET /v1/release).
type Head struct {
	N      uint64    `json:"n"`
	Digest string    `json:"digest,omitempty"` // of the payload, in hex
	Time   time.Time `json:"time,omitzero"`
}

// SiteStatus is one site. State is ok, offline, staging, applying, waiting,
// refused or failed: of the four that are neither failed nor done each is itself.
type SiteStatus struct {
	Name     string          `json:"name"`
	Dir      string          `json:"dir,omitempty"`
	Ring     string          `json:"ring,omitempty"`
	State    Phase           `json:"state"`
	Detail   string          `json:"detail,omitempty"`
	N        uint64          `json:"n,omitempty"` // lowest that its machines run
	Machines []MachineStatus `json:"machines"`
}

// MachineStatus is one machine of a site, as the hub last heard of it.
type MachineStatus struct {
	ID            fleet.MachineID `json:"id"`
	Name          string          `json:"name"`
	State         Phase           `json:"state"`
	Detail        string          `json:"detail,omitempty"`
	Online        bool            `json:"online"`
	Since         time.Time       `json:"since,omitzero"` // of being online or offline
	Address       string          `json:"address,omitempty"`
	Version       string          `json:"version,omitempty"`
	N             uint64          `json:"n,omitempty"`
	Effect        string          `json:"effect,omitempty"`
	Reported      time.Time       `json:"reported,omitzero"` // when, by the hub's clock
	Apps          []AppStatus     `json:"apps,omitempty"`
	Conditions    []Condition     `json:"conditions,omitempty"`
	BytesSent     uint64          `json:"bytesSent"`     // hub to machine, below TLS
	BytesReceived uint64          `json:"bytesReceived"` // machine to hub
	Protection    string          `json:"protection,omitempty"`
	OS            string          `json:"os,omitempty"`         // version of the OS image; none when hosted
	Slot          string          `json:"slot,omitempty"`       // that it booted
	Trial         string          `json:"trial,omitempty"`      // phase of the trial that this OS is on
	Unverified    bool            `json:"unverified,omitempty"` // adopted without its code
}

// Guest is a machine in quarantine (GET /v1/quarantine).
type Guest struct {
	ID           fleet.MachineID `json:"id"`
	Introduction []byte          `json:"introduction,omitempty"` // signed: see ParseIntroduction
	Address      string          `json:"address,omitempty"`
	Since        time.Time       `json:"since,omitzero"`
	Online       bool            `json:"online"`
	Version      string          `json:"version,omitempty"`
	Architecture string          `json:"architecture,omitempty"`
}

// Quarantine is the answer of GET /v1/quarantine.
type Quarantine struct {
	Guests []Guest `json:"guests"`
}

// Validate checks what a hub sent and cleans what goes to a terminal.
func (s *Status) Validate() error {
	errs := []error{name("fleet", string(s.Fleet)), name("name", s.Name), name("cursor", s.Cursor), digest("head", s.Head.Digest)}
	for i := range s.Sites {
		if err := s.Sites[i].validate(); err != nil {
			errs = append(errs, fmt.Errorf("site %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

func (s *SiteStatus) validate() error {
	s.Detail = Clean(s.Detail)
	errs := []error{name("name", s.Name), name("dir", s.Dir), name("ring", s.Ring), name("state", string(s.State))}
	for i := range s.Machines {
		errs = append(errs, s.Machines[i].validate())
	}
	return errors.Join(errs...)
}

func (m *MachineStatus) validate() error {
	m.Detail = Clean(m.Detail)
	errs := []error{
		name("id", string(m.ID)), name("name", m.Name), name("state", string(m.State)), name("address", m.Address),
		name("version", m.Version), digest("effect", m.Effect), name("protection", m.Protection),
		name("os", m.OS), name("slot", m.Slot), name("trial", m.Trial),
		list("apps", m.Apps), list("conditions", m.Conditions),
	}
	for i := range m.Apps {
		errs = append(errs, m.Apps[i].validate())
	}
	for i := range m.Conditions {
		m.Conditions[i].Detail = Clean(m.Conditions[i].Detail)
		errs = append(errs, name("condition", m.Conditions[i].Name))
	}
	return errors.Join(errs...)
}

// Validate checks what a hub sent.
func (q *Quarantine) Validate() error {
	var errs []error
	for _, g := range q.Guests {
		_, err := fleet.ParseMachineID(string(g.ID))
		errs = append(errs, err, name("address", g.Address), name("version", g.Version), name("architecture", g.Architecture))
	}
	return errors.Join(errs...)
}
