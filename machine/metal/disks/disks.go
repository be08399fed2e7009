package disks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/metal/dm"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/fat"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// Where the volumes are mounted.
const (
	StateDir = "/state"
	DataDir  = "/data"
)

// Options say where the machine is and what it may do.
type Options struct {
	Boot   osimage.Boot   // how it booted
	Verity osimage.Verity // of the running root; what is copied from a stick ends with its hashes. Zero: the whole partition is copied
	Rule   Rule

	TPM   Sealer  // nil: no TPM, and nothing is encrypted. A *tpm.TPM
	Notes box.Box // remembers the digest of STATE's key; needed with TPM

	StateSize   int64 // bytes; 0: osimage.StateSize
	DataSizeMin int64 // bytes; 0: osimage.DataSizeMin

	// Escrow encrypts the recovery key of a STATE that is made, for people. nil, or a result of no bytes: there will be no recovery key.
	Escrow     func(key []byte) ([]byte, error)
	Recipients string // names those people; noted beside the escrow

	Log *slog.Logger // nil: slog.Default()

	system system // nil: the real one
	mounts string // in front of StateDir and DataDir; tests
}

// Sealer is a TPM: what disks need of one.
type Sealer interface {
	ReadPCRs() (tpm.PCRs, error)
	Seal(secret []byte, to tpm.PCRs) ([]byte, error)
	Unseal(blob []byte) ([]byte, error)
}

var _ Sealer = (*tpm.TPM)(nil)

// Disks are the machine's disk, open and mounted.
type Disks struct {
	Disk, ESP, RootA, RootB, StatePart, DataPart string // the kernel's names

	Protection string   // box.ProtectionTPM or box.ProtectionNone
	Made       []string // what was made or made anew and why, in sentences
	Swapped    bool     // STATE was not the one that the machine remembers, and was made anew
	Installed  bool     // the whole OS, root and boot partition, was copied from the stick to the disk

	mu  sync.Mutex // guards the header of STATE
	rim *rim
}

// Open makes the disk what it should be and mounts STATE and DATA. ErrNoDisk, ErrSeveral, ErrForeign, ErrSmall, ErrLocked say what people have to mend.
func Open(ctx context.Context, o Options) (*Disks, error) {
	return open(ctx, o, nil)
}

// Unlock is Open with the recovery key for a STATE that is locked. It seals STATE to this boot, so the next boot like this one opens it by itself. ErrWrongKey; ErrSwapped.
func Unlock(ctx context.Context, o Options, recoveryKey []byte) (*Disks, error) {
	if len(recoveryKey) == 0 {
		return nil, fmt.Errorf("unlock STATE: %w: it is empty", ErrWrongKey)
	}
	return open(ctx, o, recoveryKey)
}

func open(ctx context.Context, o Options, recoveryKey []byte) (*Disks, error) {
	if o.system == nil {
		o.system = realSystem{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.StateSize == 0 {
		o.StateSize = osimage.StateSize
	}
	if o.DataSizeMin == 0 {
		o.DataSizeMin = osimage.DataSizeMin
	}
	if o.TPM != nil && o.Notes == nil {
		return nil, errors.New("open disks: with a TPM, notes are needed")
	}
	r := &rim{o: o, sys: o.system, recoveryKey: recoveryKey, copied: map[string]bool{}}
	d, err := r.run(ctx)
	if err != nil {
		r.close(ctx)
		return nil, fmt.Errorf("open disks: %w", err)
	}
	return d, nil
}

// Close unmounts what Open mounted and forgets the keys.
func (d *Disks) Close(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rim.close(ctx)
}

// rim carries the steps out.
type rim struct {
	o           Options
	sys         system
	recoveryKey []byte

	disk    Disk
	dev     device // the whole disk
	table   *gpt.Table
	state   opened
	data    opened
	made    []string
	swapped bool
	copied  map[string]bool // partitions, from the stick
}

// opened is a volume as far as this boot has come with it.
type opened struct {
	name       string // in sentences
	label, dir string
	fresh      bool   // formatted in this boot
	part       string // kernel's name
	dev        device // the partition
	volume     *luks.Volume
	key        []byte
	state      keyState
	path       string // of the mapping, or of the partition where nothing is encrypted
	mounted    bool
	revived    bool // the copy of the superblock was tried
}

func (r *rim) least() int64 {
	return osimage.ESPSize + 2*osimage.RootSize + r.o.StateSize + r.o.DataSizeMin + 3*osimage.Alignment
}

func (r *rim) run(ctx context.Context) (*Disks, error) {
	if err := r.find(); err != nil {
		return nil, err
	}
	r.state.name, r.data.name = "STATE", "DATA"
	r.state.label, r.state.dir = labelState, filepath.Join(r.o.mounts, StateDir)
	r.data.label, r.data.dir = labelData, filepath.Join(r.o.mounts, DataDir)
	before, repeated := done, 0
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		v, err := r.look()
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", r.disk.Name, err)
		}
		s, why, err := next(v)
		if err != nil {
			return nil, r.refuse(v, err)
		}
		if s == done {
			return r.result(), nil
		}
		if repeated++; s != before {
			before, repeated = s, 0
		} else if repeated > 2 {
			return nil, fmt.Errorf("disk %s: %s does not help", r.disk.Name, s)
		}
		r.o.Log.Info("disks", "step", s.String(), "why", why, "disk", r.disk.Name)
		if err := r.do(ctx, s, why); err != nil {
			return nil, fmt.Errorf("disk %s: %s: %w", r.disk.Name, s, err)
		}
	}
}

// refuse gives a refusal of the plan its facts.
func (r *rim) refuse(v inventory, err error) error {
	switch {
	case errors.Is(err, ErrLocked):
		return &LockedError{Reason: fmt.Errorf("it is encrypted: %w", tpm.ErrGone), Escrow: r.escrow()}
	case errors.Is(err, ErrForeign):
		what := r.disk.What
		for name, w := range map[string]volume{"STATE": v.state, "DATA": v.data} {
			if text := strings.TrimSpace(w.what); !v.foreign && text != "" {
				what = text + " where " + name + " should be"
			}
		}
		if what == "" {
			what = "a file system where an encrypted volume should be"
		}
		return &ForeignError{r.disk.Name, what}
	}
	return err
}

func (r *rim) result() *Disks {
	name := func(part string) string { return partitionName(r.disk.Name, r.table.Find(part)) }
	d := &Disks{
		Disk: r.disk.Name, ESP: name(osimage.PartESP), RootA: name(osimage.PartRootA), RootB: name(osimage.PartRootB),
		StatePart: name(osimage.PartState), DataPart: name(osimage.PartData),
		Protection: box.ProtectionNone, Made: r.made, Swapped: r.swapped, Installed: r.copied[osimage.PartRootA] && r.copied[osimage.PartESP], rim: r,
	}
	if r.o.TPM != nil {
		d.Protection = box.ProtectionTPM
	}
	return d
}

// find chooses the disk and opens it.
func (r *rim) find() error {
	all, err := r.sys.disks()
	if err != nil {
		return err
	}
	for i := range all {
		if err := r.examine(&all[i]); err != nil {
			if all[i].Name == r.o.Boot.Disk {
				return err
			}
			all[i].Holds, all[i].What = Foreign, "nothing that can be read: "+err.Error()
		}
	}
	if r.disk, err = choose(all, r.o.Boot, r.o.Rule, r.least()); err != nil {
		return err
	}
	r.dev, _, err = r.sys.open(r.disk.Name)
	return err
}

func (r *rim) examine(d *Disk) error {
	dev, size, err := r.sys.open(d.Name)
	if err != nil {
		return err
	}
	defer dev.Close()
	if size != d.Size {
		return fmt.Errorf("disk %s has %d bytes, and %d can be read", d.Name, d.Size, size)
	}
	d.Holds, d.What, _, err = examine(dev, size)
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	return nil
}

// look reads what is on the disk now.
func (r *rim) look() (inventory, error) {
	v := inventory{stick: r.o.Boot.Slot == slotStick, sealed: r.o.TPM != nil, wipe: r.o.Rule.Wipe}
	holds, what, table, err := examine(r.dev, r.disk.Size)
	if err != nil {
		return v, err
	}
	r.table, r.disk.What = table, what
	v.foreign = holds == Foreign || holds == Stick
	if table == nil || v.foreign {
		return v, nil
	}
	for _, name := range ourParts {
		if table.Find(name) == 0 {
			return v, nil
		}
	}
	v.table = true
	if v.kernel, err = r.sys.knows(r.disk.Name, table); err != nil || !v.kernel {
		return v, err
	}
	if v.stick {
		if v.root, err = r.probePart(osimage.PartRootA); err != nil {
			return v, err
		}
		if v.esp, err = r.probePart(osimage.PartESP); err != nil {
			return v, err
		}
	}
	if v.state, err = r.lookAt(&r.state, osimage.PartState); err != nil {
		return v, fmt.Errorf("STATE: %w", err)
	}
	if v.data, err = r.lookAt(&r.data, osimage.PartData); err != nil {
		return v, fmt.Errorf("DATA: %w", err)
	}
	return v, nil
}

func (r *rim) probePart(name string) (kind, error) {
	dev, _, err := r.sys.open(partitionName(r.disk.Name, r.table.Find(name)))
	if err != nil {
		return 0, err
	}
	defer dev.Close()
	k, _, err := probe(dev, "")
	if err != nil || name != osimage.PartESP {
		return k, err
	}
	switch err := fat.Check(dev); {
	case err == nil: // or it is mended before it is mounted
		return kindFAT, nil
	case errors.Is(err, fat.ErrBeyond):
		return kindNothing, nil
	}
	return k, nil
}

func (r *rim) lookAt(o *opened, name string) (volume, error) {
	if o.mounted {
		return volume{mounted: true}, nil
	}
	if o.dev == nil {
		o.part = partitionName(r.disk.Name, r.table.Find(name))
		dev, _, err := r.sys.open(o.part)
		if err != nil {
			return volume{}, err
		}
		o.dev = dev
	}
	k, what, err := probe(o.dev, o.label)
	if err != nil {
		return volume{}, err
	}
	w := volume{outer: k, what: what, key: o.state, mapped: o.path != "", inner: kindNothing}
	if w.mapped {
		dev, _, err := r.sys.open(filepath.Base(o.path))
		if err != nil {
			return w, err
		}
		defer dev.Close()
		if w.inner, _, err = probe(dev, o.label); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (r *rim) do(ctx context.Context, s step, why string) error {
	switch s {
	case makeTable:
		return r.makeTable(why)
	case tellKernel:
		return r.sys.tell(r.disk.Name, r.table)
	case copyRoot:
		r.say("the root was copied from the stick: %s", why)
		return r.copyRoot(ctx)
	case copyESP:
		r.say("the boot partition was copied from the stick: %s", why)
		return r.copyESP(ctx)
	case formatState:
		r.say("STATE was made: %s", why)
		return r.formatState()
	case openState:
		return r.openState()
	case mapState:
		return r.mapVolume(&r.state)
	case makeStateFS:
		return r.makeFS(ctx, &r.state)
	case mountState:
		return r.mount(ctx, &r.state)
	case formatData:
		if r.data.state == keyForeign {
			why = "nothing opens it, since its key was on a STATE that is gone"
		}
		r.say("DATA was made: %s", why)
		return r.formatData()
	case openData:
		return r.openData()
	case mapData:
		return r.mapVolume(&r.data)
	case makeDataFS:
		return r.makeFS(ctx, &r.data)
	case mountData:
		return r.mount(ctx, &r.data)
	}
	panic("a step that nobody carries out: " + s.String())
}

func (r *rim) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(r.made, text) {
		r.made = append(r.made, text)
	}
}

// close gives everything back, as far as it can.
func (r *rim) close(ctx context.Context) error {
	var errs []error
	for _, o := range []*opened{&r.data, &r.state} {
		if o.mounted {
			if err := r.sys.unmount(o.dir); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", o.dir, err))
				continue
			}
			o.mounted = false
		}
		if o.path != "" && o.volume != nil {
			if err := r.sys.unmap(o.label); err != nil {
				errs = append(errs, err)
				continue
			}
			o.path = ""
		}
		clear(o.key)
		o.key = nil
		if o.dev != nil {
			o.dev.Close()
			o.dev = nil
		}
	}
	if r.dev != nil {
		r.dev.Close()
		r.dev = nil
	}
	return errors.Join(errs...)
}

func (r *rim) mapVolume(o *opened) error {
	size, err := r.partSize(o.part)
	if err != nil {
		return err
	}
	offset, sector := o.volume.Data()
	length := (size - offset) / int64(sector) * int64(sector)
	path, err := r.sys.mapCrypt(o.label, dm.CryptTarget{Device: devPath(o.part), Key: o.key, Offset: uint64(offset), Length: uint64(length), SectorSize: sector})
	if err != nil {
		return err
	}
	o.path = path
	return nil
}

func (r *rim) partSize(part string) (int64, error) {
	dev, size, err := r.sys.open(part)
	if err != nil {
		return 0, err
	}
	return size, dev.Close()
}
