package metal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/machine"
	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/metal/disks"
	"github.com/holdfast-edge/holdfast/machine/metal/efivar"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/machine/update"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
	"github.com/holdfast-edge/holdfast/release"
)

const (
	seedFile    = "/usr/share/holdfast/seed.json"
	profileFile = "/usr/share/holdfast/profile.json"
	stickDir    = runDir + "/stick"
	tpmDevice   = "/dev/tpmrm0"
)

// bootESP mounts the partition that the machine was booted from: the machine's
// own, or the stick's, of which nothing is changed. One that does not mount costs
// what lies there, hints and updates, and no more.
func (m *metal) bootESP(context.Context) error {
	if why := efivar.Unprotected(efivar.Dir); why != "" {
		m.faults.Set(faults.New(faults.UnsafeBoot, why))
	}
	if m.booted.Damaged != "" {
		m.faults.Set(faults.New(faults.DamagedSlot, m.booted.Damaged))
	}
	way, err := efivar.Started(efivar.Dir)
	if err != nil {
		m.log.Warn("what the firmware started", "err", err)
	}
	if m.way = way; slots.Another(way) {
		m.faults.Set(faults.New(faults.AnotherWay, way))
	}
	m.public = runDir + "/public"
	if err := m.modules.Need("vfat", "nls_cp437", "nls_ascii"); err != nil {
		return err
	}
	if m.booted.ESP != "" {
		var err error
		if m.booted.Slot == slotStick {
			err = mountStick(m.booted.ESP)
			m.faults.Set(faults.New(faults.FromStick))
		} else if err = mountESP(m.booted.ESP); err == nil {
			m.public = filepath.Join(espDir, osimage.PublicFolder)
		}
		if err != nil {
			m.faults.Set(faults.New(faults.BadDisk, m.booted.Disk, err))
		}
	}
	return os.MkdirAll(m.public, 0o700)
}

const slotStick = "stick"

func mountStick(device string) error {
	if err := os.MkdirAll(stickDir, 0o700); err != nil {
		return err
	}
	return unix.Mount("/dev/"+device, stickDir, "vfat", inert|unix.MS_RDONLY, "umask=0077")
}

// bootTPM opens the TPM and the box that it is. A machine without one has a box
// on its disk, once that is open. One whose TPM is broken is limited: what was
// sealed to it stays shut, and a blank disk is not taken for one that needs no lock.
func (m *metal) bootTPM(context.Context) error {
	if _, err := os.Stat(tpmDevice); errors.Is(err, fs.ErrNotExist) {
		m.log.Info("no TPM")
		return nil
	}
	t, err := tpm.Open(tpmDevice)
	if err == nil {
		var b *tpm.Box
		if b, err = t.Box(); err == nil {
			m.tpm, m.box = t, b
			return nil
		}
	}
	return m.limit(err, faults.New(faults.NoTPM, err))
}

// limit notes why the machine cannot run. On a trial that is a failed boot: the
// old slot may do better, and goes back by itself.
func (m *metal) limit(err error, f faults.Fault) error {
	if m.counted() {
		return failed(f, err)
	}
	m.faults.Set(f)
	m.limits = &machine.Limits{Reason: f}
	return nil
}

// blame says why the machine is limited now, in place of what was said before.
func (m *metal) blame(f faults.Fault) {
	m.faults.Clear(m.limits.Reason.Code, m.limits.Reason.Subject)
	m.faults.Set(f)
	m.limits.Reason = f
}

// profile is what of the OS image's profile concerns the machine.
type profile struct {
	StateSize   int64          `json:"stateSize"`
	DataSizeMin int64          `json:"dataSizeMin"`
	Disk        fleet.DiskRule `json:"disk"` // until a release says another
}

func readProfile(file string) (p profile, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("read the OS image's profile: %w", err)
	}
	return p, nil
}

// bootDisks opens the machine's disk. What people have to mend is no failed boot
// but a limited machine; on a trial it is one, since the old slot may do better.
func (m *metal) bootDisks(ctx context.Context) error {
	if m.limits != nil {
		return nil // its TPM is broken
	}
	if err := m.modules.Need("ext4", "dm_crypt", "xts", "aesni_intel", "aes_ce_blk"); err != nil {
		m.log.Warn("kernel modules not loaded", "err", err) // a processor without AES instructions refuses theirs
	}
	options, err := m.diskOptions()
	if err != nil {
		return err
	}
	opened, err := disks.Open(ctx, options)
	if err == nil {
		return m.settle(opened)
	}
	if err := m.limit(err, diskFault(err, m.booted.Disk)); err != nil {
		return err
	}
	m.reopen = func(ctx context.Context, rule *fleet.DiskRule) error {
		if rule != nil { // of a release: it outranks the OS image's from here on
			options.Rule = disks.Rule(*rule)
		}
		opened, err := disks.Open(ctx, options)
		if err != nil {
			m.blame(diskFault(err, m.booted.Disk))
			return err
		}
		return m.settle(opened)
	}
	m.asks = errors.Is(err, disks.ErrNoDisk) || errors.Is(err, disks.ErrSeveral) || errors.Is(err, disks.ErrForeign)
	var locked *disks.LockedError
	if errors.As(err, &locked) {
		m.limits.Unlock = func(ctx context.Context, key []byte) error { return m.unlock(ctx, options, key) }
		m.limits.Escrow = func() ([]byte, error) {
			if len(locked.Escrow) > 0 {
				return locked.Escrow, nil
			}
			return os.ReadFile(filepath.Join(m.public, escrowName)) // a header that lost it: the copy on the boot partition
		}
	}
	return nil
}

// reopenEvery is how often a limited machine tries its disk again.
const reopenEvery = time.Minute

// errReopened ends a limited machine whose disk opened after all.
var errReopened = errors.New("the disk opened")

// runLimited runs the machine until its disk is open: somebody unlocked it, its
// release said which one it is, or it opened by itself. A TPM that did not answer, or a disk that was plugged in late,
// is to need nobody.
func (m *metal) runLimited(ctx context.Context) error {
	if m.reopen == nil {
		return machine.Limited(ctx, m.config(), *m.limits)
	}
	limited, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var opening sync.Mutex // one at a time: people, releases and ourselves
	limits := *m.limits
	if unlock := limits.Unlock; unlock != nil {
		limits.Unlock = func(ctx context.Context, key []byte) error {
			opening.Lock()
			defer opening.Unlock()
			if m.disks != nil {
				return nil
			}
			return unlock(ctx, key)
		}
	}
	try := func(ctx context.Context, rule *fleet.DiskRule) error {
		opening.Lock()
		defer opening.Unlock()
		if m.disks != nil {
			return nil
		}
		return m.reopen(ctx, rule)
	}
	if m.asks {
		limits.Disk = func(ctx context.Context, rule fleet.DiskRule) error { return try(ctx, &rule) }
	}
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		for tick := time.NewTicker(reopenEvery); ; {
			select {
			case <-limited.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			if err := try(limited, nil); err != nil {
				m.log.Warn("the disk stays shut", "err", err)
				continue
			}
			cancel(errReopened)
		}
	}()
	err := machine.Limited(limited, m.config(), limits)
	opened := errors.Is(context.Cause(limited), errReopened)
	cancel(nil)
	<-tried
	if opened {
		m.faults.Clear(limits.Reason.Code, limits.Reason.Subject)
		return nil
	}
	return err
}

func (m *metal) diskOptions() (disks.Options, error) {
	o := disks.Options{Boot: m.booted, Notes: m.box, Log: m.log}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return o, err
	}
	if o.Verity, err = osimage.ParseVerity(string(line)); err != nil {
		return o, err
	}
	p, err := readProfile(profileFile)
	if err != nil {
		return o, err
	}
	o.StateSize, o.DataSizeMin, o.Rule = p.StateSize, p.DataSizeMin, disks.Rule(p.Disk)
	if m.tpm != nil {
		// A STATE that is made is escrowed to the people of the seed's trust: what a
		// release said since is on no new disk, and followed as soon as it is known.
		seed, err := readSeed()
		if err != nil {
			return o, err
		}
		_, trust, err := seed.Anchor()
		if err != nil {
			return o, err
		}
		o.TPM, o.Recipients = m.tpm, recipients(trust.Recovery)
		o.Escrow = func(key []byte) ([]byte, error) {
			return sealEscrow(key, seed.FleetID, trust.Recovery, m.box.Signer())
		}
	}
	return o, nil
}

// readSeed reads the fleet seed.
func readSeed() (seed release.Seed, err error) {
	if err := durable.ReadJSON(seedFile, &seed); err != nil {
		return seed, fmt.Errorf("read the fleet seed: %w", err)
	}
	return seed, nil
}

// unlock opens a locked disk with what people brought.
func (m *metal) unlock(ctx context.Context, o disks.Options, key []byte) error {
	opened, err := disks.Unlock(ctx, o, key)
	if errors.Is(err, disks.ErrWrongKey) {
		return fmt.Errorf("%w: %w", machine.ErrWrongKey, err)
	}
	if err != nil {
		return err
	}
	return m.settle(opened)
}

// settle puts everything in its place on open disks.
func (m *metal) settle(d *disks.Disks) error {
	m.disks = d
	for _, made := range d.Made {
		m.ring.say(levelNotice, "disk: "+made)
	}
	if d.Swapped {
		m.faults.Set(faults.New(faults.StateSwapped, strings.Join(d.Made, "; ")))
	}
	if m.booted.Slot == slotStick && d.ESP != "" {
		if err := mountESP(d.ESP); err != nil {
			return err
		}
		m.public = filepath.Join(espDir, osimage.PublicFolder)
		if err := os.MkdirAll(m.public, 0o700); err != nil {
			return err
		}
		if err := m.repair(d); err != nil { // the machine works, from its stick
			m.faults.Set(faults.New(faults.NoSlot, slots.A, err))
		}
	}
	if err := bindLasting(); err != nil {
		return err
	}
	if err := keepMachineID(); err != nil {
		return err
	}
	if m.tpm == nil { // the key is as safe as the disk
		b, err := box.OpenFolderFrom(runDir+"/box", stateDir+"/box")
		if err != nil {
			return err
		}
		m.box = b
	}
	if m.limits != nil {
		m.faults.Clear(m.limits.Reason.Code, m.limits.Reason.Subject)
	}
	if m.box.Protection() == box.ProtectionNone {
		m.faults.Set(faults.New(faults.Unprotected))
		m.faults.Set(faults.New(faults.RollbackByDisk))
	}
	return keepEscrow(m.public, d.Escrow())
}

// repair makes the disk's boot slots whole again with what the stick has, as far as
// this OS may run here: what a stick below the version floor brings is left on it.
// Identity, STATE and DATA are not touched.
func (m *metal) repair(d *disks.Disks) error {
	if m.booted.ESP == "" || d.Installed {
		return nil // started without firmware; or all of it was just copied
	}
	if m.box != nil && update.CheckFloor(m.box, osRelease("IMAGE_VERSION")) != nil {
		return nil
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	from := slots.Stick{}
	if from.Verity, err = osimage.ParseVerity(string(line)); err != nil {
		return err
	}
	if from.UKI, err = os.ReadFile(filepath.Join(stickDir, slots.Folder, slots.FirstUKI)); err != nil {
		return err
	}
	if from.Loader, err = os.ReadFile(osimage.LoaderFile); err != nil {
		return err
	}
	root, err := os.Open("/dev/" + m.booted.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	from.Root = root
	said, err := slots.Repair(context.Background(), espDir, map[slots.Slot]string{slots.A: "/dev/" + d.RootA, slots.B: "/dev/" + d.RootB}, from)
	for _, s := range said {
		m.ring.say(levelNotice, "disk: "+s)
	}
	return err
}

// counted tells whether the boot loader counts this boot: the OS is on trial.
func (m *metal) counted() bool {
	found, _ := filepath.Glob(efivar.Dir + "/LoaderBootCountPath-*")
	return len(found) > 0
}

// diskFault is what people are told of a disk that did not open.
func diskFault(err error, disk string) faults.Fault {
	var locked *disks.LockedError
	var foreign *disks.ForeignError
	switch {
	case errors.As(err, &locked) && len(locked.Differs) > 0:
		return faults.New(faults.LockedBoot, strings.Join(locked.Differs, ", "))
	case errors.As(err, &locked):
		return faults.New(faults.Locked, locked.Reason)
	case errors.As(err, &foreign):
		return faults.New(faults.ForeignDisk, foreign.Disk, foreign.What)
	case errors.Is(err, disks.ErrSeveral):
		return faults.New(faults.SeveralDisks, err)
	case errors.Is(err, disks.ErrSmall):
		return faults.New(faults.SmallDisk, err)
	case errors.Is(err, disks.ErrNoDisk):
		return faults.New(faults.NoDisk, err)
	}
	return faults.New(faults.BadDisk, disk, err)
}

// standIn is the box of a machine that has neither TPM nor disk: it lasts until
// the next boot, and nobody knows the machine by it.
func (m *metal) standIn() error {
	if m.box != nil {
		return nil
	}
	b, err := box.OpenFolder(runDir + "/box")
	m.box = b
	return err
}

// tally changes what the firmware keeps for the next boot. It is a help and no more.
func (m *metal) tally(change func(dir string) error) {
	if err := change(efivar.Dir); err != nil {
		m.log.Warn("the tally of boots", "err", err)
	}
}

// tellWays makes the ways into the machine boot options of the firmware.
func (m *metal) tellWays(ways []slots.Way) error {
	f, err := os.Open("/dev/" + m.booted.Disk)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	table, err := gpt.Read(f, size)
	if err != nil {
		return err
	}
	n := table.Find(osimage.PartESP)
	if n == 0 {
		return fmt.Errorf("disk %s has no partition %s", m.booted.Disk, osimage.PartESP)
	}
	p := table.Partitions[n-1]
	esp := efivar.Partition{Number: uint32(n), First: p.First, Blocks: p.Last - p.First + 1, ID: p.ID}
	var options []efivar.Option
	for _, w := range ways {
		options = append(options, efivar.Option{Name: w.Name, Partition: esp, File: w.File, Once: w.Once})
	}
	changed, err := efivar.SetOptions(efivar.Dir, slots.WayPrefix, options)
	if err == nil && changed {
		m.log.Log(context.Background(), update.Notice, "the firmware learnt the ways into the machine", "ways", len(ways))
	}
	return err
}

// platform is what an update of the OS needs; nil where there are no slots: on a
// stick, without firmware, or on a disk that is not open.
func (m *metal) platform() *machine.Platform {
	slot := slots.Slot(m.booted.Slot)
	if m.disks == nil || !slot.Valid() || m.public != filepath.Join(espDir, osimage.PublicFolder) {
		return nil
	}
	if _, err := os.Stat("/sys/firmware/efi"); err != nil {
		return nil
	}
	s, err := slots.New(slots.Config{
		ESP: espDir, Slot: slot,
		Roots: map[slots.Slot]string{slots.A: "/dev/" + m.disks.RootA, slots.B: "/dev/" + m.disks.RootB},
	})
	if err != nil {
		m.log.Error("the OS cannot be updated", "err", err)
		return nil
	}
	ways, err := s.Ways(slots.WaysConfig{Started: m.way, Loader: osimage.LoaderFile, Tell: m.tellWays})
	if err != nil {
		m.log.Error("the OS cannot be updated", "err", err)
		return nil
	}
	p := &machine.Platform{
		Running: update.System{
			Version: osRelease("IMAGE_VERSION"), Kubernetes: osRelease("HOLDFAST_KUBERNETES"), Slot: slot, Root: m.booted.RootHash,
		},
		Slots:  s,
		Reboot: func(reason string) { m.power.request(reboot, reason) },

		Settled: func() { m.tally(efivar.Settle) },
		Damaged: slots.Slot(m.booted.Damaged),
		Mended:  func() { m.tally(efivar.Mended) },

		Ways: ways,
	}
	if m.tpm != nil {
		p.Seal = func(ctx context.Context, to slots.Slot, uki string) error {
			err := m.disks.Seal(ctx, string(to), uki)
			m.faults.Turn(err, faults.Unmeasured)
			return err
		}
	}
	return p
}
