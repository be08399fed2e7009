package slots

import (
	"context"
	"crypto/sha256"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/osimage"
)

// Folder is where UKIs are, on the ESP.
const Folder = "EFI/Linux"

// Errors that a caller tells apart.
var (
	// ErrRunning: the slot that runs is not written to.
	ErrRunning = errors.New("the slot runs")
	// ErrBootable: a root is not written to while its UKI can be booted.
	ErrBootable = errors.New("the slot can be booted")
	// ErrContent: what was written is not what was announced.
	ErrContent = errors.New("what was written differs from what was announced")
)

// Config of Slots.
type Config struct {
	ESP   string          // where the ESP is mounted
	Roots map[Slot]string // devices (or files) of the root partitions
	Slot  Slot            // the one that runs
}

// Slots are the two boot slots. Its methods are called by one goroutine at a time.
type Slots struct {
	Config
	disk    disk
	inspect func(r io.ReaderAt, size int64) (Entry, error)
}

// Entry is a UKI on the ESP.
type Entry struct {
	Slot    Slot
	File    string // its name in Folder
	Count   Count
	Version string         // IMAGE_VERSION of its .osrel
	Verity  osimage.Verity // of the root that it boots
	sortKey string
}

// New returns the slots of a machine.
func New(c Config) (*Slots, error) {
	if !c.Slot.Valid() || c.ESP == "" || c.Roots[A] == "" || c.Roots[B] == "" {
		return nil, fmt.Errorf("boot slots: running slot %q, ESP %q, roots %q: want a or b, a folder and two devices", c.Slot, c.ESP, c.Roots)
	}
	return &Slots{Config: c, disk: onESP(path.Join(c.ESP, Folder)), inspect: inspect}, nil
}

// OnTrial says, by the ESP alone, whether the slot that runs is on trial, with
// another one to go back to. A machine that cannot open its disks in such a boot
// cannot judge itself; it reboots, and the counter leads back.
func OnTrial(esp string, running Slot) (bool, error) {
	s := &Slots{Config: Config{ESP: esp, Slot: running}, disk: onESP(path.Join(esp, Folder)), inspect: inspect}
	self, ok, err := s.Entry(running)
	if err != nil || !ok || !self.Count.Counted || self.Count.spent() {
		return false, err
	}
	_, ok, err = s.Entry(s.Idle())
	return ok, err
}

// Idle is the slot that does not run.
func (s *Slots) Idle() Slot { return s.Slot.Other() }

// Path is where a file of Entry.File or Staged lies.
func (s *Slots) Path(file string) string { return path.Join(s.ESP, Folder, file) }

// Entries lists the UKIs as the boot loader tries them. A file that is no UKI is
// passed over, as the loader does.
func (s *Slots) Entries() ([]Entry, error) {
	names, err := s.disk.list()
	if err != nil {
		return nil, fmt.Errorf("list boot entries: %w", err)
	}
	var entries []Entry
	for _, name := range names {
		slot, count, ok := parseName(name)
		if !ok {
			continue
		}
		e, err := s.read(name)
		if err != nil {
			continue
		}
		e.Slot, e.File, e.Count = slot, name, count
		entries = append(entries, e)
	}
	return sorted(entries), nil
}

func (s *Slots) read(name string) (Entry, error) {
	f, size, err := s.disk.open(name)
	if err != nil {
		return Entry{}, err
	}
	defer f.Close()
	return s.inspect(f, size)
}

// Entry is the entry of a slot; ok is false where it has none.
func (s *Slots) Entry(slot Slot) (e Entry, ok bool, err error) {
	entries, err := s.Entries()
	if err != nil {
		return Entry{}, false, err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Slot == slot })
	if i < 0 {
		return Entry{}, false, nil
	}
	return entries[i], true, nil
}

// inspect reads what the loader and we go by from a UKI.
func inspect(r io.ReaderAt, size int64) (Entry, error) {
	f, err := pe.NewFile(io.NewSectionReader(r, 0, size))
	if err != nil {
		return Entry{}, fmt.Errorf("not a UKI: %w", err)
	}
	release, err := section(f, ".osrel")
	if err != nil {
		return Entry{}, err
	}
	cmdline, err := section(f, ".cmdline")
	if err != nil {
		return Entry{}, err
	}
	var e Entry
	if e.Verity, err = osimage.ParseVerity(cmdline); err != nil {
		return Entry{}, fmt.Errorf("not our UKI: %w", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(release) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		values[key] = strings.Trim(value, `"'`)
	}
	for _, key := range []string{"IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"} {
		if e.Version = values[key]; e.Version != "" {
			break
		}
	}
	if e.sortKey = values["IMAGE_ID"]; e.sortKey == "" {
		e.sortKey = values["ID"]
	}
	if e.Version == "" || e.sortKey == "" {
		return Entry{}, errors.New("not our UKI: its .osrel names no version or no ID")
	}
	return e, nil
}

const maxText = 64 << 10 // of a section that is text

func section(f *pe.File, name string) (string, error) {
	s := f.Section(name)
	if s == nil || s.Size > maxText {
		return "", fmt.Errorf("not a UKI: no section %s, or a large one", name)
	}
	data, err := s.Data()
	if err != nil {
		return "", fmt.Errorf("section %s of a UKI: %w", name, err)
	}
	if n := int(s.VirtualSize); n > 0 && n < len(data) {
		data = data[:n]
	}
	return string(data), nil
}

// Discard removes the UKI of the idle slot, before its root is overwritten: from
// here until Arm the machine has one slot.
func (s *Slots) Discard(slot Slot) error {
	if slot == s.Slot {
		return fmt.Errorf("discard slot %s: %w", slot, ErrRunning)
	}
	names, err := s.disk.list()
	if err != nil {
		return fmt.Errorf("discard slot %s: %w", slot, err)
	}
	for _, name := range names {
		if of, _, ok := parseName(name); ok && of == slot || unfinished(name) {
			if err := s.disk.remove(name); err != nil {
				return fmt.Errorf("discard slot %s: %w", slot, err)
			}
		}
	}
	return s.disk.sync()
}

// WriteUKI writes a UKI under its hidden name, flushed and read back. It returns
// the path, for whoever seals to it.
func (s *Slots) WriteUKI(ctx context.Context, slot Slot, r io.Reader, size int64, digest [32]byte) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("write the UKI of slot %s: %w", slot, err)
	}
	if slot == s.Slot {
		return fail(ErrRunning)
	}
	if err := s.stage(slot, &counted{ctx: ctx, r: io.LimitReader(r, size+1), most: size}, digest); err != nil {
		return fail(err)
	}
	return s.Path(hidden(slot)), nil
}

// stage writes a UKI under its hidden name, flushed and read back.
func (s *Slots) stage(slot Slot, r io.Reader, digest [32]byte) error {
	name := hidden(slot)
	if err := s.disk.write(name, r); err != nil {
		return err
	}
	if err := s.disk.sync(); err != nil {
		return err
	}
	got, err := s.digest(name)
	if err == nil && got != digest {
		err = ErrContent
	}
	if err == nil {
		_, err = s.read(name)
	}
	return err
}

// counted refuses more than was announced, and ends with its context.
type counted struct {
	ctx  context.Context
	r    io.Reader
	most int64
}

func (c *counted) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if c.most -= int64(n); c.most < 0 {
		return 0, ErrContent
	}
	return n, err
}

func (s *Slots) digest(name string) (sum [32]byte, err error) {
	f, size, err := s.disk.open(name)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), nil
}

// Staged says whether a UKI lies under the slot's hidden name, and whose.
func (s *Slots) Staged(slot Slot) (Entry, bool) {
	e, err := s.read(hidden(slot))
	e.Slot, e.File = slot, hidden(slot)
	return e, err == nil
}

// Arm gives the slot its tries: its staged UKI becomes an entry, and the first
// that the loader tries. Where the running OS would sort before it (a downgrade),
// that one is put last, where it still is what the loader falls back to.
func (s *Slots) Arm(slot Slot) error {
	if slot == s.Slot {
		return fmt.Errorf("arm slot %s: %w", slot, ErrRunning)
	}
	staged, ok := s.Staged(slot)
	if !ok {
		return fmt.Errorf("arm slot %s: no UKI is staged there", slot)
	}
	to := staged
	to.Count = Count{Counted: true, Left: Tries}
	to.File = fileName(slot, to.Count)
	running, ok, err := s.Entry(s.Slot)
	if err != nil {
		return err
	}
	if ok && !less(to, running) && !running.Count.spent() {
		if err := s.recount(running, Count{Counted: true}); err != nil {
			return fmt.Errorf("put slot %s last: %w", s.Slot, err)
		}
	}
	if err := s.disk.rename(hidden(slot), to.File); err != nil {
		return fmt.Errorf("arm slot %s: %w", slot, err)
	}
	if err := s.disk.sync(); err != nil {
		return fmt.Errorf("arm slot %s: %w", slot, err)
	}
	return nil
}

// Rearm gives the running slot its full tries again.
func (s *Slots) Rearm() error { return s.change(s.Slot, Count{Counted: true, Left: Tries}) }

// Bless makes the running slot the one that is booted from now on.
func (s *Slots) Bless() error { return s.change(s.Slot, Count{}) }

// Condemn puts a slot last: the loader tries it when nothing else is left.
func (s *Slots) Condemn(slot Slot) error { return s.change(slot, Count{Counted: true}) }

// change gives the slot's entry a count. One that has it already is left alone; a
// spent counter stays what it is, whatever it says of tries made.
func (s *Slots) change(slot Slot, to Count) error {
	e, ok, err := s.Entry(slot)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("count of slot %s: it has no UKI: %w", slot, fs.ErrNotExist)
	}
	if e.Count == to || e.Count.spent() && to.spent() {
		return nil
	}
	if err := s.recount(e, to); err != nil {
		return fmt.Errorf("count of slot %s: %w", slot, err)
	}
	return nil
}

// recount gives an entry another count by way of a copy. A power cut leaves the
// old file, or both, each with its own bytes.
func (s *Slots) recount(e Entry, to Count) error {
	if err := s.duplicate(e.File, fileName(e.Slot, to), e.Slot); err != nil {
		return err
	}
	if err := s.disk.remove(e.File); err != nil {
		return err
	}
	return s.disk.sync()
}

// duplicate copies a file, flushed before it has its name.
func (s *Slots) duplicate(from, to string, slot Slot) error {
	f, size, err := s.disk.open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.disk.write(copying(slot), io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	if err := s.disk.sync(); err != nil {
		return err
	}
	if err := s.disk.rename(copying(slot), to); err != nil {
		return err
	}
	return s.disk.sync()
}

// Clean brings the ESP in order after a power cut; it is called once, before
// anything else. keep says which slot's staged UKI is still wanted, if any.
//
// Two entries of a slot are the work of recount, or of firmware that counts: the
// one that is blessed stays, else the one with the fewest tries, so that an
// interrupted change is made again and never believed.
func (s *Slots) Clean(keep Slot) error {
	if err := s.untie(); err != nil {
		return fmt.Errorf("clean the boot entries: %w", err)
	}
	entries, err := s.Entries()
	if err != nil {
		return err
	}
	names, err := s.disk.list()
	if err != nil {
		return fmt.Errorf("clean the boot entries: %w", err)
	}
	best := map[Slot]Entry{}
	for _, e := range entries {
		if had, ok := best[e.Slot]; !ok || better(e, had) {
			best[e.Slot] = e
		}
	}
	changed := false
	for _, name := range names {
		slot, _, ours := parseName(name)
		switch {
		case ours && best[slot].File == "" && slot == s.Slot: // unreadable, and it runs: not touched
			continue
		case ours && best[slot].File == name, name == hidden(keep):
			continue
		case !ours && !unfinished(name):
			continue
		}
		if err := s.disk.remove(name); err != nil {
			return fmt.Errorf("clean the boot entries: %w", err)
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return s.disk.sync()
}

func unfinished(name string) bool {
	for _, slot := range []Slot{A, B} {
		if name == hidden(slot) || name == copying(slot) || strings.HasPrefix(name, untying(slot)) {
			return true
		}
	}
	return false
}

func better(a, b Entry) bool {
	if a.Count.Counted != b.Count.Counted {
		return !a.Count.Counted
	}
	return a.Count.Left < b.Count.Left
}

// untie gives entries clusters of their own that may share them with another
// name: a rename that the power cut in two leaves both names on FAT, and removing
// one would free what the other needs. Equal bytes under two names of one slot are
// taken for that. The entry is written again, and its new name takes the old one's
// place; what is removed after that frees nothing that is in use. The kernel may
// find clusters freed twice and say so; the ESP is mounted to go on then.
func (s *Slots) untie() error {
	names, err := s.disk.list()
	if err != nil {
		return err
	}
	for _, slot := range []Slot{A, B} {
		var twins []string
		for _, name := range names {
			if of, _, ok := parseName(name); ok && of == slot || unfinished(name) && strings.HasPrefix(name, "holdfast-"+string(slot)+".") {
				twins = append(twins, name)
			}
		}
		if len(twins) < 2 {
			continue
		}
		if err := s.untieSlot(slot, twins); err != nil {
			return err
		}
	}
	return nil
}

func (s *Slots) untieSlot(slot Slot, twins []string) error {
	sums := map[[32]byte][]string{}
	for _, name := range twins {
		sum, err := s.digest(name)
		if err != nil {
			return err
		}
		sums[sum] = append(sums[sum], name)
	}
	for _, names := range sums {
		if len(names) < 2 {
			continue
		}
		keep := slices.IndexFunc(names, func(n string) bool { _, _, ok := parseName(n); return ok })
		if keep < 0 {
			continue // both hidden: no entry depends on them
		}
		for _, n := range names {
			_, c, ok := parseName(n)
			_, had, _ := parseName(names[keep])
			if ok && better(Entry{Count: c}, Entry{Count: had}) {
				keep = slices.Index(names, n)
			}
		}
		if err := s.rewrite(slot, names[keep], names); err != nil {
			return err
		}
	}
	return nil
}

func (s *Slots) rewrite(slot Slot, name string, all []string) error {
	fresh := untying(slot)
	for slices.Contains(all, fresh) {
		fresh += "x" // an earlier attempt's may share clusters, too
	}
	f, size, err := s.disk.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.disk.write(fresh, io.NewSectionReader(f, 0, size)); err != nil {
		return err
	}
	if err := s.disk.sync(); err != nil {
		return err
	}
	if err := s.disk.rename(fresh, name); err != nil {
		return err
	}
	if err := s.disk.sync(); err != nil {
		return err
	}
	for _, n := range all {
		if n != name {
			if err := s.disk.remove(n); err != nil {
				return err
			}
		}
	}
	return s.disk.sync()
}
