package disks

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/osimage"
)

// Refusals. The errors that Open returns say more: which disks, and what is on them.
var (
	// ErrNoDisk: no disk is large enough and allowed.
	ErrNoDisk = errors.New("no disk to live on")
	// ErrSeveral: more than one disk fits and nothing says which.
	ErrSeveral = errors.New("several disks could be used")
	// ErrForeign: the disk is somebody else's. A *ForeignError says whose.
	ErrForeign = errors.New("the disk is somebody else's and is not touched")
	// ErrSmall: the disk has not enough room.
	ErrSmall = errors.New("the disk is too small")
	// ErrLocked: STATE did not open. A *LockedError says why.
	ErrLocked = errors.New("STATE stays locked")
	// ErrWrongKey: the recovery key does not open STATE.
	ErrWrongKey = errors.New("the recovery key does not open STATE")
	// ErrSwapped: the recovery key opens a STATE that is not the one this machine remembers.
	ErrSwapped = errors.New("this STATE is not the one that the machine remembers")
)

// ForeignError names a disk, or a partition of ours, that holds what is not ours.
type ForeignError struct{ Disk, What string }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("disk %s holds %s and is not touched", e.Disk, e.What)
}
func (e *ForeignError) Unwrap() error { return ErrForeign }

// LockedError says why STATE did not open.
type LockedError struct {
	Reason  error    // wraps tpm.ErrMeasurements, tpm.ErrOtherTPM, tpm.ErrGone, …
	Differs []string // which measurements are not those that STATE was sealed to, such as "PCR 11"; as far as STATE's header is to be believed
	Escrow  []byte   // the encrypted recovery key; nil when there is none
}

func (e *LockedError) Error() string {
	text := fmt.Sprintf("%v: %v", ErrLocked, e.Reason)
	if len(e.Differs) > 0 {
		text += " (" + strings.Join(e.Differs, ", ") + ")"
	}
	return text
}
func (e *LockedError) Unwrap() []error { return []error{ErrLocked, e.Reason} }

// Disk is what is known of a disk.
type Disk struct {
	Name      string // the kernel's, such as vda
	Size      int64  // bytes
	Removable bool
	ReadOnly  bool
	Model     string
	Serial    string
	Path      string // of the device below /sys/devices, such as pci0000:00/0000:00:1f.2/ata1/…: the same as long as the cable is in the same socket
	Holds     Holds
	What      string // for Foreign, in words
}

// Holds is what is on a disk.
type Holds int

// What a disk may hold.
const (
	Blank   Holds = iota // nothing, or less than a table of ours
	Ours                 // a table with partitions of ours
	Stick                // an installation stick of ours
	Foreign              // anything else
)

// Rule chooses among disks, as the fleet's documents have it; the zero Rule takes the only one that fits.
type Rule fleet.DiskRule

// usable returns why nobody would want to live there, or "". What is removable may be somebody's stick: a rule has to name it.
func (r Rule) usable(d Disk) string {
	switch {
	case d.ReadOnly:
		return "read-only"
	case d.Removable && r.Path == "" && r.Serial == "" && r.Model == "":
		return "removable"
	case d.Holds == Stick:
		return "an installation stick"
	}
	return ""
}

// allows returns why not, or "".
func (r Rule) allows(d Disk) string {
	switch {
	case r.Model != "" && !match(r.Model, d.Model):
		return fmt.Sprintf("model %q", d.Model)
	case r.Serial != "" && !match(r.Serial, d.Serial):
		return fmt.Sprintf("serial number %q", d.Serial)
	case r.Path != "" && !match(r.Path, d.Path):
		return "at " + d.Path
	case r.MinSize > 0 && d.Size < int64(r.MinSize), r.MaxSize > 0 && d.Size > int64(r.MaxSize):
		return size(d.Size)
	}
	return ""
}

// match compares whole strings.
func match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d bytes", n)
}

// choose picks the machine's disk. Booted from a disk, that is the one. Booted from a stick, it is the one that is ours already, which a rule that has
// changed leaves where it is, else the one that the rule or the lack of others decides on, of those that hold nothing, else, with Wipe, of all.
func choose(all []Disk, boot osimage.Boot, rule Rule, least int64) (Disk, error) {
	if boot.Slot != slotStick {
		i := slices.IndexFunc(all, func(d Disk) bool { return d.Name == boot.Disk })
		if i < 0 {
			return Disk{}, fmt.Errorf("%w: the machine booted from %q, which is not there", ErrNoDisk, boot.Disk)
		}
		return all[i], nil
	}
	var no []string // why each is out
	var ours []Disk
	byHolds := map[Holds][]Disk{}
	for _, d := range all {
		if d.Name == boot.Disk {
			continue
		}
		why := rule.usable(d)
		if why == "" && d.Holds == Ours {
			ours = append(ours, d)
		}
		if why == "" {
			why = rule.allows(d)
		}
		if why == "" && d.Holds != Ours && d.Size < least {
			why = fmt.Sprintf("has %s, %s are needed", size(d.Size), size(least))
		}
		if why != "" {
			no = append(no, d.Name+": "+why)
			continue
		}
		byHolds[d.Holds] = append(byHolds[d.Holds], d)
	}
	if fit := byHolds[Ours]; len(fit) == 0 && len(ours) > 0 {
		return one(ours, rule)
	}
	for _, kind := range []Holds{Ours, Blank} {
		if fit := byHolds[kind]; len(fit) > 0 {
			return one(fit, rule)
		}
	}
	foreign := byHolds[Foreign]
	switch {
	case len(foreign) == 0:
		return Disk{}, fmt.Errorf("%w: %s", ErrNoDisk, strings.Join(append(no, "nothing else"), "; "))
	case rule.Wipe:
		return one(foreign, rule)
	}
	return Disk{}, &ForeignError{foreign[0].Name, foreign[0].What}
}

// one decides among disks that all fit.
func one(fit []Disk, rule Rule) (Disk, error) {
	slices.SortStableFunc(fit, func(a, b Disk) int { return int(min(max(a.Size-b.Size, -1), 1)) })
	same := len(fit) > 1
	switch rule.BySize {
	case "smallest":
		same = same && fit[0].Size == fit[1].Size
	case "largest":
		slices.Reverse(fit)
		same = same && fit[0].Size == fit[1].Size
	}
	if same {
		var names []string
		for _, d := range fit {
			names = append(names, fmt.Sprintf("%s (%s, %s, serial number %s)", d.Name, size(d.Size), d.Model, d.Serial))
		}
		return Disk{}, fmt.Errorf("%w: %s", ErrSeveral, strings.Join(names, ", "))
	}
	return fit[0], nil
}

// partitionName is the kernel's name of a partition.
func partitionName(disk string, number int) string {
	if last := disk[len(disk)-1]; last >= '0' && last <= '9' {
		return fmt.Sprintf("%sp%d", disk, number)
	}
	return fmt.Sprintf("%s%d", disk, number)
}

func devPath(name string) string { return filepath.Join("/dev", name) }
