package disks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/metal/dm"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// world is a computer whose disks are sparse files, whose kernel is a fake, and whose mke2fs and e2fsck are real. What an encrypted volume shows is a file
// that goes by its key; what is in a mounted file system is a folder beside it.
type world struct {
	t     *testing.T
	dir   string
	facts []Disk
	known map[string][]gpt.Partition // what the kernel has; lost at a reset
	maps  map[string]string          // name to path
	left  int                        // steps until the power goes; below 0: it stays
	cut   bool
	steps int

	pretend bool  // no program runs: quick
	noMount error // why nothing mounts
}

var errCut = errors.New("the power is gone")

// op is a step at which the power may go.
func (w *world) op() error {
	if w.cut {
		return errCut
	}
	w.steps++
	if w.left == 0 {
		w.cut = true
		return errCut
	}
	w.left--
	return nil
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir()}
	w.reset()
	return w
}

// reset is a power cut with the power coming back.
func (w *world) reset() {
	w.cut, w.left, w.steps = false, -1, 0
	w.maps = map[string]string{}
	w.known = map[string][]gpt.Partition{}
	for _, d := range w.facts {
		f, err := os.Open(w.file(d.Name))
		if err != nil {
			w.t.Fatal(err)
		}
		if t, err := gpt.Read(f, d.Size); err == nil {
			w.known[d.Name] = slices.Clone(t.Partitions)
		}
		f.Close()
	}
	os.RemoveAll(filepath.Join(w.dir, "state"))
	os.RemoveAll(filepath.Join(w.dir, "data"))
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name+".disk") }

func (w *world) add(d Disk) {
	w.t.Helper()
	f, err := os.Create(w.file(d.Name))
	if err == nil {
		err = f.Truncate(d.Size)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	f.Close()
	w.facts = append(w.facts, d)
}

func (w *world) disks() ([]Disk, error) { return slices.Clone(w.facts), w.op() }

// part is a window on a file, which is a power source away from being written.
type part struct {
	*os.File
	w         *world
	at, size_ int64
}

func (p part) ReadAt(b []byte, at int64) (int, error) {
	if at >= p.size_ {
		return 0, io.EOF
	}
	n := min(int64(len(b)), p.size_-at)
	got, err := p.File.ReadAt(b[:n], p.at+at)
	if err == nil && n < int64(len(b)) {
		err = io.EOF
	}
	return got, err
}

func (p part) WriteAt(b []byte, at int64) (int, error) {
	if at < 0 || at+int64(len(b)) > p.size_ {
		return 0, fmt.Errorf("write beyond the end: %d bytes at %d of %d", len(b), at, p.size_)
	}
	if zero(b) && at > 1<<20 { // the wiping of what no test looks at
		if p.w.cut {
			return 0, errCut
		}
		return len(b), nil
	}
	if err := p.w.op(); err != nil {
		if len(b) > 4096 && p.w.left == 0 { // half of it
			p.w.left = -1
			p.File.WriteAt(b[:len(b)/2], p.at+at)
		}
		return 0, err
	}
	return p.File.WriteAt(b, p.at+at)
}

func (p part) Sync() error {
	if p.w.cut {
		return errCut
	}
	return nil
}

func (w *world) open(name string) (device, int64, error) {
	if w.cut {
		return nil, 0, errCut
	}
	if f, err := os.OpenFile(w.file(name), os.O_RDWR, 0); err == nil {
		st, err := f.Stat()
		return part{f, w, 0, st.Size()}, st.Size(), err
	}
	for disk, parts := range w.known {
		for i, p := range parts {
			if partitionName(disk, i+1) == name && p.Type != (gpt.GUID{}) {
				f, err := os.OpenFile(w.file(disk), os.O_RDWR, 0)
				return part{f, w, p.Offset(), p.Size()}, p.Size(), err
			}
		}
	}
	return nil, 0, fmt.Errorf("%s: %w", name, os.ErrNotExist)
}

func (w *world) knows(disk string, t *gpt.Table) (bool, error) {
	return slices.Equal(w.known[disk], t.Partitions), nil
}

func (w *world) tell(disk string, t *gpt.Table) error {
	w.known[disk] = slices.Clone(t.Partitions)
	return w.op()
}

func (w *world) mapCrypt(name string, c dm.CryptTarget) (string, error) {
	if err := w.op(); err != nil {
		return "", err
	}
	if w.maps[name] != "" {
		return "", dm.ErrExists
	}
	sum := sha256.Sum256(c.Key)
	path := fmt.Sprintf("/dev/dm-%x", sum[:6])
	file := w.file(filepath.Base(path))
	if _, err := os.Stat(file); err != nil {
		f, err := os.Create(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if err := f.Truncate(int64(c.Length)); err != nil {
			return "", err
		}
	}
	w.maps[name] = path
	return path, nil
}

func (w *world) unmap(name string) error {
	delete(w.maps, name)
	return nil
}

// path gives programs a file.
func (w *world) path(dev string) string {
	if strings.HasPrefix(filepath.Base(dev), "dm-") {
		return w.file(filepath.Base(dev))
	}
	return dev
}

func (w *world) content(dev string) string { return dev + ".content" }

func (w *world) mount(dev, dir string, _ uintptr) error {
	if err := w.op(); err != nil {
		return err
	}
	if w.noMount != nil {
		return w.noMount
	}
	if !strings.HasPrefix(dev, "/dev/") && !w.pretend {
		if out, err := exec.Command(e2fsck, "-n", "-f", dev).CombinedOutput(); err != nil {
			return fmt.Errorf("mount %s: structure needs cleaning: %v %s", dev, err, out)
		}
	}
	content := w.content(filepath.Join(w.dir, filepath.Base(dev)))
	if err := os.MkdirAll(content, 0o700); err != nil {
		return err
	}
	return os.Symlink(content, dir)
}

func (w *world) unmount(dir string) error { return os.Remove(dir) }

func (w *world) run(ctx context.Context, name string, args ...string) ([]byte, int, error) {
	dev := args[len(args)-1]
	if name == mke2fs {
		os.RemoveAll(w.content(filepath.Join(w.dir, filepath.Base(dev))))
	}
	if err := w.op(); err != nil {
		return nil, -1, err
	}
	part, ok := strings.CutPrefix(dev, "/dev/")
	if !ok && w.pretend {
		part, ok = strings.TrimSuffix(filepath.Base(dev), ".disk"), true
	}
	if ok { // what of a file system this package looks at
		d, _, err := w.open(part)
		if err != nil {
			return nil, -1, err
		}
		defer d.Close()
		if name == e2fsck {
			return nil, 8, nil
		}
		if name == mke2fs {
			label := make([]byte, 16)
			copy(label, args[slices.Index(args, "-L")+1])
			d.WriteAt(label, 1144)
			_, err = d.WriteAt([]byte("\x53\xef"), 1080)
		}
		return nil, 0, err
	}
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, exit.ExitCode(), nil
	}
	return out, 0, err
}

// chip is a TPM as far as this package sees one.
type chip struct {
	w    *world
	id   byte
	pcrs tpm.PCRs
	gone bool
}

func (c *chip) ReadPCRs() (tpm.PCRs, error) {
	if c.gone {
		return tpm.PCRs{}, tpm.ErrGone
	}
	return c.pcrs, nil
}

func (c *chip) Seal(secret []byte, to tpm.PCRs) ([]byte, error) {
	if err := c.w.op(); err != nil {
		return nil, err
	}
	if c.gone {
		return nil, tpm.ErrGone
	}
	policy := to.Policy()
	public := tpm2.Marshal(tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true}, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy[:]}}))
	private := tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: append(append([]byte{c.id}, policy[:]...), secret...)})
	return append(append(binary.BigEndian.AppendUint16([]byte("HFS1"), uint16(len(public))), public...), private...), nil
}

func (c *chip) Unseal(blob []byte) ([]byte, error) {
	if c.gone {
		return nil, tpm.ErrGone
	}
	n := int(binary.BigEndian.Uint16(blob[4:]))
	private := blob[6+n+2:]
	policy := c.pcrs.Policy()
	switch {
	case private[0] != c.id:
		return nil, tpm.ErrOtherTPM
	case !bytes.Equal(private[1:33], policy[:]):
		return nil, tpm.ErrMeasurements
	}
	return bytes.Clone(private[33:]), nil
}

// cutNotes is a box whose writes need power.
type cutNotes struct {
	box.Box
	w *world
}

func (n cutNotes) WriteNote(name string, data []byte) error {
	if err := n.w.op(); err != nil {
		return err
	}
	return n.Box.WriteNote(name, data)
}

const (
	testState = 64 << 20
	testData  = 64 << 20
	testDisk  = osimage.ESPSize + 2*osimage.RootSize + testState + testData + 8<<20
)

// machine is a computer with a disk, a TPM and a memory.
type machine struct {
	*world
	tpm   *chip
	notes box.Box
	boot  osimage.Boot
	rule  Rule
	plain bool
}

const escrowMark = "escrow of "

func (m *machine) options() Options {
	o := Options{Boot: m.boot, Rule: m.rule, Notes: cutNotes{m.notes, m.world}, StateSize: testState, DataSizeMin: testData,
		Escrow: func(key []byte) ([]byte, error) { return append([]byte(escrowMark), key...), nil }, Recipients: "first",
		Log: slog.New(slog.DiscardHandler), system: m.world, mounts: m.dir}
	if !m.plain {
		o.TPM = m.tpm
	}
	return o
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	w := newWorld(t)
	notes, err := box.OpenFolder(filepath.Join(t.TempDir(), "tpm"))
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{world: w, notes: notes, tpm: &chip{w: w, id: 1, pcrs: tpm.Expect(tpm.Digest{7}, tpm.Digest{11})}}
	return m
}

// withImage gives the machine a disk with an OS image as it comes from a download: boot partition and one root.
func (m *machine) withImage() *machine {
	m.t.Helper()
	m.add(Disk{Name: "vda", Size: testDisk})
	m.divide("vda", map[string]int64{osimage.PartESP: osimage.ESPSize, osimage.PartRootA: osimage.RootSize}, osimage.PartESP, osimage.PartRootA)
	m.boot = osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda2", Slot: slotA}
	return m
}

// divide makes a table and puts what is recognized into boot and root partitions.
func (m *machine) divide(disk string, sizes map[string]int64, order ...string) {
	m.t.Helper()
	i := slices.IndexFunc(m.facts, func(d Disk) bool { return d.Name == disk })
	f, err := os.OpenFile(m.file(disk), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	t := &gpt.Table{ID: newGUID(), Size: m.facts[i].Size}
	for _, name := range order {
		n, err := t.Add(gpt.Partition{Type: gpt.TypeLinux, ID: newGUID(), Name: name}, sizes[name])
		if err != nil {
			m.t.Fatal(err)
		}
		at := t.Partitions[n-1].Offset()
		if strings.Contains(name, "esp") {
			f.WriteAt([]byte("FAT32   "), at+82)
			f.WriteAt([]byte{0x55, 0xaa}, at+510)
			f.WriteAt([]byte("boot files of "+disk), at+100_000)
		} else if strings.Contains(name, "root") {
			f.WriteAt([]byte("\xe2\xe1\xf5\xe0"), at+1024)
			f.WriteAt([]byte("root of "+disk), at+100_000)
		}
	}
	if err := t.Write(f); err != nil {
		m.t.Fatal(err)
	}
	m.reset()
}

// withStick lets the machine boot from a stick.
func (m *machine) withStick() *machine {
	m.t.Helper()
	m.add(Disk{Name: "sda", Size: 24 << 20, Removable: true})
	m.divide("sda", map[string]int64{osimage.PartStickESP: 8 << 20, osimage.PartStickRoot: 8 << 20}, osimage.PartStickESP, osimage.PartStickRoot)
	m.boot = osimage.Boot{Disk: "sda", ESP: "sda1", Root: "sda2", Slot: slotStick}
	return m
}

func (m *machine) mustOpen() *Disks {
	m.t.Helper()
	d, err := Open(m.t.Context(), m.options())
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

// reboot ends the machine without goodbye.
func (m *machine) reboot() { m.reset() }

func (m *machine) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(m.dir, name))
	return string(b)
}

// raw changes bytes of a partition, or of a whole disk.
func (m *machine) raw(name string, at int64, b []byte) {
	m.t.Helper()
	d, _, err := m.open(name)
	if err != nil {
		m.t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.(part).File.WriteAt(b, d.(part).at+at); err != nil {
		m.t.Fatal(err)
	}
}
