package disks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/machine/box"
	"github.com/holdfast-edge/holdfast/machine/metal/luks"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm/tpmtest"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/fat"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

func TestFirstBootFromImage(t *testing.T) {
	m := newMachine(t).withImage()
	d := m.mustOpen()
	if d.Disk != "vda" || d.ESP != "vda1" || d.RootA != "vda2" || d.RootB != "vda3" || d.StatePart != "vda4" || d.DataPart != "vda5" {
		t.Errorf("names %+v", d)
	}
	if d.Protection != box.ProtectionTPM || d.Swapped || d.Installed || len(d.Made) != 2 {
		t.Errorf("protection %s, swapped %v, installed %v, made %q", d.Protection, d.Swapped, d.Installed, d.Made)
	}
	if !bytes.HasPrefix(d.Escrow(), []byte(escrowMark)) {
		t.Errorf("escrow %q", d.Escrow())
	}
	m.write("state/release", "17")
	m.write("data/app", "app")
	steps := m.steps
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(m.maps) != 0 {
		t.Errorf("mapped after Close: %v", m.maps)
	}
	m.reboot()
	d = m.mustOpen()
	if len(d.Made) != 0 || m.read("state/release") != "17" || m.read("data/app") != "app" {
		t.Errorf("second boot: made %q, state %q, data %q", d.Made, m.read("state/release"), m.read("data/app"))
	}
	if m.steps >= steps {
		t.Errorf("the second boot takes %d steps, the first took %d", m.steps, steps)
	}
	if out, code, err := m.run(t.Context(), "/usr/sbin/sgdisk", "-v", m.file("vda")); err != nil || code != 0 || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %d, %v, %s", code, err, out)
	}
}

// TestPowerCuts lets the power go at each step of a first boot, from an image
// and from a stick: the next boot goes on, and what was once promised (a note, a
// mounted STATE with something in it) is never made anew.
func TestPowerCuts(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *machine{
		"image": func(t *testing.T) *machine { return newMachine(t).withImage() },
		"stick": func(t *testing.T) *machine {
			m := newMachine(t).withStick()
			m.add(Disk{Name: "nvme0n1", Size: testDisk})
			return m
		},
		"foreign, wiped": func(t *testing.T) *machine {
			m := newMachine(t).withStick()
			m.rule.Wipe = true
			m.add(Disk{Name: "nvme0n1", Size: testDisk})
			m.divide("nvme0n1", map[string]int64{"Windows": 64 << 20}, "Windows")
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			step := 1
			if name != "image" {
				step = 5 // most are the image's
			}
			for n := 0; ; n += step {
				m := make(t)
				m.pretend = true
				m.left = n
				_, err := Open(t.Context(), m.options())
				if err == nil {
					if n < 15 {
						t.Errorf("%d cuts: the test does not test", n)
					}
					return
				}
				if !errors.Is(err, errCut) {
					t.Fatalf("cut %d: %v", n, err)
				}
				m.reset()
				m.left = n + 3 // and once more, further on
				if d, err := Open(t.Context(), m.options()); err == nil {
					m.write("state/kept", "kept")
					_ = d
				} else if !errors.Is(err, errCut) {
					t.Fatalf("second cut %d: %v", n, err)
				}
				kept := m.read("state/kept")
				m.reset()
				d := m.mustOpen()
				if got := m.read("state/kept"); got != kept || kept != "" && len(d.Made) > 0 {
					t.Errorf("cut %d: STATE held %q, now %q; made %q", n, kept, got, d.Made)
				}
			}
		})
	}
}

func TestInstallFromStick(t *testing.T) {
	m := newMachine(t).withStick()
	m.pretend = true
	m.add(Disk{Name: "nvme0n1", Size: testDisk})
	d := m.mustOpen()
	if !d.Installed || d.Disk != "nvme0n1" || d.RootA != "nvme0n1p2" {
		t.Errorf("installed %v on %+v", d.Installed, d)
	}
	for name, want := range map[string]string{"nvme0n1p1": "boot files of sda", "nvme0n1p2": "root of sda"} {
		f, _, err := m.open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := readSome(f, 100_000, len(want)); string(got) != want {
			t.Errorf("%s holds %q", name, got)
		}
		f.Close()
	}
	m.write("state/x", "x")
	// From the disk, and from the stick again, which leaves it as it is.
	for _, boot := range []osimage.Boot{{Disk: "nvme0n1", ESP: "nvme0n1p1", Root: "nvme0n1p2", Slot: slotA}, m.boot} {
		m.reset()
		m.boot = boot
		if d := m.mustOpen(); d.Installed || len(d.Made) > 0 || m.read("state/x") != "x" {
			t.Errorf("booted from %s: installed %v, made %q, STATE %q", boot.Disk, d.Installed, d.Made, m.read("state/x"))
		}
	}
	// A new disk: the same machine, and STATE and DATA are said to be new.
	m.reset()
	m.facts = m.facts[:1]
	os.Remove(m.file("nvme0n1"))
	m.add(Disk{Name: "nvme0n1", Size: testDisk})
	m.reset()
	if d := m.mustOpen(); !d.Installed || d.Swapped || len(d.Made) != 5 || m.read("state/x") != "" {
		t.Errorf("a new disk: installed %v, made %q", d.Installed, d.Made)
	}
}

// A stick fills a boot partition anew whose folders are damaged, and nothing else;
// one that can be mended it leaves to that.
func TestStickFillsTheBootPartition(t *testing.T) {
	m := newMachine(t).withStick()
	m.pretend = true
	m.add(Disk{Name: "nvme0n1", Size: testDisk})
	m.mustOpen()
	m.write("state/x", "x")
	volume := fat.Volume{Size: osimage.ESPSize, Files: map[string][]byte{"EFI/Linux/holdfast-a.efi": []byte("another OS")}}
	const reserved, rootCluster, copied = 32 * 512, 2, 6 * 512
	for _, c := range []struct {
		what   string
		damage func(f device)
		filled bool
	}{
		{"sound", func(device) {}, false},
		{"its boot sector is none", func(f device) { f.WriteAt(make([]byte, 512), 0) }, false},
		{"the root folder has no cluster", func(f device) {
			head := make([]byte, 512)
			f.ReadAt(head, 0)
			table := int64(binary.LittleEndian.Uint32(head[36:])) * 512
			for _, at := range []int64{reserved, reserved + table} {
				f.WriteAt(make([]byte, 4), at+4*rootCluster)
			}
		}, true},
		{"there is no boot sector at all", func(f device) { f.WriteAt(make([]byte, 512), 0); f.WriteAt(make([]byte, 512), copied) }, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			m.reset()
			f, size, err := m.open("nvme0n1p1")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if volume.Size = size; size != osimage.ESPSize {
				t.Fatalf("the boot partition has %d bytes", size)
			}
			if err := volume.Write(f); err != nil {
				t.Fatal(err)
			}
			c.damage(f)
			d := m.mustOpen()
			filled := slices.ContainsFunc(d.Made, func(s string) bool { return strings.Contains(s, "the boot partition was copied from the stick") })
			if filled != c.filled || d.Installed || m.read("state/x") != "x" || len(d.Made) > 1 {
				t.Errorf("made %q, installed %v, STATE %q", d.Made, d.Installed, m.read("state/x"))
			}
		})
	}
}

func TestForeignDiskIsNotTouched(t *testing.T) {
	for name, fill := range map[string]func(m *machine){
		"partitions": func(m *machine) { m.divide("vda", map[string]int64{"Windows": 64 << 20}, "Windows") },
		"ext4":       func(m *machine) { m.raw("vda", 1080, []byte{0x53, 0xef}) },
		"xfs":        func(m *machine) { m.raw("vda", 0, []byte("XFSB")) },
		"luks":       func(m *machine) { m.raw("vda", 0, []byte("LUKS\xba\xbe\x00\x01")) },
		"mbr": func(m *machine) {
			m.raw("vda", 446, []byte{0x80, 0, 0, 0, 0x83})
			m.raw("vda", 510, []byte{0x55, 0xaa})
		},
		"fat":        func(m *machine) { m.raw("vda", 82, []byte("FAT32   ")); m.raw("vda", 510, []byte{0x55, 0xaa}) },
		"raid":       func(m *machine) { m.raw("vda", 4096, []byte("\xfc\x4e\x2b\xa9")) },
		"raw data":   func(m *machine) { m.raw("vda", 700_000, []byte("a database without a file system")) },
		"at the end": func(m *machine) { m.raw("vda", testDisk-65536, []byte("metadata of old RAID")) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t).withStick()
			m.pretend = true
			m.add(Disk{Name: "vda", Size: testDisk, Model: "QEMU"})
			fill(m)
			m.reset()
			before, err := os.ReadFile(m.file("sda"))
			if err != nil {
				t.Fatal(err)
			}
			head := m.head("vda")
			_, err = Open(t.Context(), m.options())
			var foreign *ForeignError
			if !errors.Is(err, ErrForeign) || !errors.As(err, &foreign) || foreign.Disk != "vda" || foreign.What == "" {
				t.Errorf("got %v", err)
			}
			if !bytes.Equal(m.head("vda"), head) {
				t.Error("it was written to")
			}
			m.rule.Wipe = true
			if d := m.mustOpen(); !d.Installed {
				t.Error("with wipe: not installed")
			}
			if after, _ := os.ReadFile(m.file("sda")); !bytes.Equal(before, after) {
				t.Error("the stick was written to")
			}
		})
	}
}

// head is what of a disk decides whose it is.
func (m *machine) head(name string) []byte {
	f, size, err := m.open(name)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	a, _ := readSome(f, 0, 4<<20)
	b, _ := readSome(f, size-4<<20, 4<<20)
	return append(a, b...)
}

func TestForeignPartitionContent(t *testing.T) {
	m := newMachine(t).withImage()
	m.pretend = true
	m.mustOpen()
	m.reset()
	zeros := make([]byte, 2<<20)
	m.raw("vda4", 0, zeros)
	m.raw("vda4", 0, []byte("XFSB"))
	if _, err := Open(t.Context(), m.options()); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "XFS") {
		t.Errorf("XFS where STATE was: %v", err)
	}
	m.reset()
	m.raw("vda4", 0, zeros)
	d := m.mustOpen()
	if len(d.Made) != 2 { // and DATA, which nothing opens any more
		t.Errorf("STATE blank: made %q", d.Made)
	}
}

// TestWipeIsForWhatIsNotOurs: a TPM that somebody switches off or on in the
// firmware must not cost the machine its STATE, whatever the class allows.
func TestWipeIsForWhatIsNotOurs(t *testing.T) {
	for name, plain := range map[string]bool{"TPM switched off": false, "TPM switched on": true} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t).withImage()
			m.pretend, m.rule.Wipe, m.plain = true, true, plain
			m.mustOpen()
			m.write("state/release", "17")
			m.reset()
			m.plain = !plain
			if _, err := Open(t.Context(), m.options()); !errors.Is(err, ErrLocked) && !errors.Is(err, ErrForeign) {
				t.Errorf("got %v", err)
			}
			m.reset()
			m.plain = plain
			if d := m.mustOpen(); len(d.Made) > 0 || m.read("state/release") != "17" {
				t.Errorf("made %q, STATE holds %q", d.Made, m.read("state/release"))
			}
		})
	}
	m := newMachine(t).withImage()
	m.pretend, m.rule.Wipe = true, true
	m.mustOpen()
	m.reset()
	m.raw("vda4", 0, make([]byte, 2<<20))
	m.raw("vda4", 0, []byte("XFSB"))
	if d := m.mustOpen(); len(d.Made) != 2 {
		t.Errorf("somebody else's file system where STATE was: made %q", d.Made)
	}
}

func TestLockedAndUnlocked(t *testing.T) {
	m := newMachine(t).withImage()
	m.pretend = true
	m.mustOpen()
	m.write("state/release", "17")
	m.reset()
	good := m.tpm.pcrs
	var locked *LockedError
	check := func(name string, reason error, differs ...string) {
		t.Helper()
		m.reset()
		_, err := Open(t.Context(), m.options())
		if !errors.Is(err, ErrLocked) || !errors.Is(err, reason) || !errors.As(err, &locked) {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(locked.Differs, differs) || !bytes.HasPrefix(locked.Escrow, []byte(escrowMark)) {
			t.Errorf("%s: differs %q, escrow %q", name, locked.Differs, locked.Escrow)
		}
	}
	m.tpm.pcrs = tpm.Expect(tpm.Digest{7}, tpm.Digest{99})
	check("another image", tpm.ErrMeasurements, "PCR 11")
	m.tpm.pcrs = tpm.Expect(tpm.Digest{77}, tpm.Digest{11})
	check("other Secure Boot keys", tpm.ErrMeasurements, "PCR 7")
	m.tpm.pcrs = good
	m.tpm.pcrs.PCR12 = tpm.Digest{1}
	check("a command line from the boot partition", tpm.ErrMeasurements, "PCR 12 or 13")
	m.tpm.pcrs, m.tpm.id = good, 2
	check("another TPM", tpm.ErrOtherTPM)
	m.tpm.id, m.tpm.gone = 1, true
	check("no TPM", tpm.ErrGone)
	m.tpm.gone = false
	m.plain = true
	check("started without a TPM", tpm.ErrGone)
	m.plain = false

	key := bytes.TrimPrefix(locked.Escrow, []byte(escrowMark))
	m.tpm.pcrs = tpm.Expect(tpm.Digest{77}, tpm.Digest{11})
	m.reset()
	if _, err := Unlock(t.Context(), m.options(), bytes.Repeat([]byte{1}, 32)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("a wrong key: %v", err)
	}
	m.reset()
	if _, err := Unlock(t.Context(), m.options(), nil); !errors.Is(err, ErrWrongKey) {
		t.Errorf("no key: %v", err)
	}
	for n := 0; ; n++ { // with the power going at each step
		m.reset()
		m.left = n
		d, err := Unlock(t.Context(), m.options(), key)
		if err == nil {
			if m.read("state/release") != "17" || len(d.Made) != 1 {
				t.Errorf("unlocked: STATE %q, made %q", m.read("state/release"), d.Made)
			}
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", n, err)
		}
	}
	m.reset()
	if d := m.mustOpen(); len(d.Made) != 0 || m.read("state/release") != "17" {
		t.Errorf("the boot after: made %q", d.Made)
	}
	m.tpm.pcrs = good
	check("the boot before, which is not trusted any more", tpm.ErrMeasurements, "PCR 7")
}

// TestSwappedState: somebody formats a STATE with forged content, has this very
// TPM seal its secret to this very boot, and puts it in.
func TestSwappedState(t *testing.T) {
	thief := newMachine(t).withImage()
	thief.pretend = true
	thief.mustOpen()
	thief.write("state/trust", "forged")
	thiefDisk := thief.file("vda")
	recovery := func(m *machine) []byte {
		v, err := luks.Open(mustPart(m, "vda4"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.TrimPrefix(escrowOf(v), []byte(escrowMark))
	}

	m := newMachine(t).withImage()
	m.pretend = true
	m.mustOpen()
	m.write("state/trust", "true")
	m.reset()
	if err := os.Remove(m.file("vda")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(thiefDisk, m.file("vda")); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(thief.dir, "dm-*"))
	for _, f := range files {
		os.Rename(f, filepath.Join(m.dir, filepath.Base(f)))
	}
	m.reset()
	// An operator who is fooled into giving its recovery key does not open it either.
	if _, err := Unlock(t.Context(), m.options(), recovery(m)); !errors.Is(err, ErrSwapped) {
		t.Errorf("unlock a forged STATE: %v", err)
	}
	m.reset()
	d := m.mustOpen()
	if !d.Swapped || m.read("state/trust") != "" || len(d.Made) != 2 || !strings.Contains(d.Made[0], "was not read") {
		t.Errorf("swapped %v, STATE holds %q, made %q", d.Swapped, m.read("state/trust"), d.Made)
	}
	// The note gone, as a foreign OS on the box can do: a blank machine.
	m.write("state/x", "x")
	if err := m.notes.RemoveNote(stateNote); err != nil {
		t.Fatal(err)
	}
	m.reset()
	if d := m.mustOpen(); !d.Swapped || m.read("state/x") != "" {
		t.Error("a STATE without a note was believed")
	}
}

func mustPart(m *machine, name string) device {
	m.t.Helper()
	d, _, err := m.open(name)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { d.Close() })
	return d
}

func TestSealForTheNextSlot(t *testing.T) {
	m := newMachine(t).withImage()
	m.pretend = true
	d := m.mustOpen()
	next := tpm.Digest{0xb}
	if err := d.SealTo(t.Context(), "stick", next); err == nil {
		t.Error("sealed for a slot that is none")
	}
	if err := d.SealTo(t.Context(), slotB, next); err != nil {
		t.Fatal(err)
	}
	steps := m.steps
	if err := d.SealTo(t.Context(), slotB, next); err != nil || m.steps != steps {
		t.Errorf("the same again: %v, %d steps", err, m.steps-steps)
	}
	m.reset()
	m.boot.Slot, m.tpm.pcrs = slotB, tpm.Expect(tpm.Digest{7}, next)
	d = m.mustOpen()
	if len(d.Made) > 0 {
		t.Errorf("slot b: made %q", d.Made)
	}
	m.reset()
	m.boot.Slot, m.tpm.pcrs = slotA, tpm.Expect(tpm.Digest{7}, tpm.Digest{11})
	if d = m.mustOpen(); len(d.Made) > 0 {
		t.Errorf("back in slot a: made %q", d.Made)
	}
	// Once this boot could not open STATE again, no reboot is to be planned.
	m.tpm.pcrs.PCR7 = tpm.Digest{1}
	if err := d.SealTo(t.Context(), slotB, tpm.Digest{0xc}); !errors.Is(err, tpm.ErrMeasurements) {
		t.Errorf("measurements changed under way: %v", err)
	}
}

func TestNobodyForRecovery(t *testing.T) {
	m := newMachine(t).withImage()
	m.pretend = true
	o := m.options()
	o.Escrow = func([]byte) ([]byte, error) { return nil, nil }
	d, err := Open(t.Context(), o)
	if err != nil || d.Escrow() != nil {
		t.Fatalf("escrow %q, %v", d.Escrow(), err)
	}
	if escrow, err := d.Rekey("p", m.options().Escrow); err != nil || !bytes.HasPrefix(escrow, []byte(escrowMark)) {
		t.Errorf("recipients named later: %q, %v", escrow, err)
	}
}

func TestRekey(t *testing.T) {
	m := newMachine(t).withImage()
	m.pretend = true
	d := m.mustOpen()
	old := bytes.TrimPrefix(d.Escrow(), []byte(escrowMark))
	escrow, err := d.Rekey("two", func(key []byte) ([]byte, error) { return append([]byte("new "), key...), nil })
	if err != nil || !bytes.HasPrefix(escrow, []byte("new ")) || !bytes.Equal(escrow, d.Escrow()) {
		t.Fatalf("%q, %v", escrow, err)
	}
	m.reset()
	if _, err := Unlock(t.Context(), m.options(), old); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the old key: %v", err)
	}
	m.reset()
	if _, err := Unlock(t.Context(), m.options(), bytes.TrimPrefix(escrow, []byte("new "))); err != nil {
		t.Errorf("the new key: %v", err)
	}
}

// TestRekeyPowerCuts lets the power go at each write of a change of the recovery
// key: the escrow in the header opens STATE each time. As long as the old key
// opens anything that is still on the disk, the recipients are not noted.
func TestRekeyPowerCuts(t *testing.T) {
	const to = "new "
	for _, nobody := range []bool{false, true} {
		escrow := func(key []byte) ([]byte, error) {
			if nobody {
				return nil, nil
			}
			return append([]byte(to), key...), nil
		}
		for n := 0; ; n++ {
			m := newMachine(t).withImage()
			m.pretend = true
			d := m.mustOpen()
			m.write("state/release", "17")
			if d.Recipients() != "first" || !d.Recoverable() {
				t.Fatalf("made for %q", d.Recipients())
			}
			old := bytes.TrimPrefix(d.Escrow(), []byte(escrowMark))
			before := secondSlot(t, d)
			m.left = n
			_, err := d.Rekey("second", escrow)
			done := err == nil
			if !done && !errors.Is(err, errCut) {
				t.Fatalf("cut %d: %v", n, err)
			}
			m.reset()
			d = m.mustOpen()
			if m.read("state/release") != "17" {
				t.Fatalf("cut %d: STATE is lost", n)
			}
			now, named := d.Escrow(), d.Recipients()
			if now != nil {
				key, isNew := bytes.CutPrefix(now, []byte(to))
				if !isNew {
					key = bytes.TrimPrefix(now, []byte(escrowMark))
				}
				if _, err := d.rim.state.volume.Unlock(recoverySlot, key); err != nil {
					t.Errorf("cut %d: the escrow in the header does not open: %v", n, err)
				}
				if isNew && named == "first" || !isNew && named != "first" {
					t.Errorf("cut %d: new %t, and made for %q", n, isNew, named)
				}
			}
			if settled := named == "second" || !d.Recoverable(); settled && bytes.Equal(secondSlot(t, d), before) {
				t.Errorf("cut %d: what the old key opens is still on the disk", n)
			}
			if _, err := d.Rekey("second", escrow); err != nil {
				t.Fatalf("cut %d: once more: %v", n, err)
			}
			if _, err := d.rim.state.volume.Unlock(recoverySlot, old); err == nil {
				t.Errorf("cut %d: the old key opens STATE", n)
			}
			if d.Recoverable() == nobody || !nobody && d.Recipients() != "second" {
				t.Errorf("cut %d: at the end for %q, recoverable %t", n, d.Recipients(), d.Recoverable())
			}
			if done {
				if n < 6 {
					t.Errorf("only %d cuts", n)
				}
				break
			}
		}
	}
}

// secondSlot is a part of what Format wrote for the recovery key's slot: the
// second area, behind both copies of the header.
func secondSlot(t *testing.T, d *Disks) []byte {
	t.Helper()
	b := make([]byte, 4096)
	if _, err := d.rim.state.dev.ReadAt(b, 2*16384+258048+8192); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWithoutTPM(t *testing.T) {
	m := newMachine(t).withImage()
	m.plain = true
	d := m.mustOpen()
	if d.Protection != box.ProtectionNone || d.Escrow() != nil || len(d.Made) != 0 {
		t.Logf("made %q", d.Made)
	}
	if err := d.SealTo(t.Context(), slotB, tpm.Digest{}); err != nil {
		t.Error(err)
	}
	m.write("state/x", "x")
	m.reset()
	if d := m.mustOpen(); m.read("state/x") != "x" || len(d.Made) != 0 {
		t.Errorf("second boot: %q, made %q", m.read("state/x"), d.Made)
	}
	m.reset()
	m.plain = false
	if _, err := Open(t.Context(), m.options()); !errors.Is(err, ErrForeign) {
		t.Errorf("a plain STATE with a TPM: %v", err)
	}
}

func TestDamagedFileSystem(t *testing.T) {
	m := newMachine(t).withImage()
	m.facts[0].Size += 128 << 20
	if err := os.Truncate(m.file("vda"), m.facts[0].Size); err != nil {
		t.Fatal(err)
	}
	o := m.options()
	o.StateSize = 160 << 20 // large enough for a copy of the superblock where it is looked for
	open := func() (*Disks, error) {
		m.reset()
		return Open(t.Context(), o)
	}
	if _, err := open(); err != nil {
		t.Fatal(err)
	}
	m.write("state/x", "x")
	state := m.path(m.maps[labelState])
	damage := func(at int64, b []byte) {
		t.Helper()
		f, err := os.OpenFile(state, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	for name, do := range map[string]func(){
		"superblock gone":  func() { damage(1024, make([]byte, 1024)) },
		"superblock wrong": func() { damage(1024+0x10, []byte{0xff, 0xff}) },
		"group descriptor": func() { damage(4096+0x0c, []byte{0xff}) },
	} {
		do()
		if d, err := open(); err != nil || len(d.Made) > 0 || m.read("state/x") != "x" {
			t.Fatalf("%s: made %v, STATE %q, %v", name, d, m.read("state/x"), err)
		}
	}
	damage(0, make([]byte, 140<<20))
	if d, err := open(); err != nil || len(d.Made) != 2 || !strings.Contains(d.Made[0], "STATE held no file system") || !strings.Contains(d.Made[1], "key was on a STATE") {
		t.Errorf("nothing left: %+v, %v", d, err)
	}
	m.write("state/x", "y")
	m.noMount = errors.New("no such module")
	if _, err := open(); !errors.Is(err, m.noMount) || errors.Is(err, ErrLocked) {
		t.Errorf("a file system that does not mount: %v", err)
	}
	m.noMount = nil
	if d, err := open(); err != nil || len(d.Made) > 0 || m.read("state/x") != "y" {
		t.Errorf("after that: %+v, %v", d, err)
	}
}

func TestSmallDisk(t *testing.T) {
	m := newMachine(t)
	m.add(Disk{Name: "vda", Size: testDisk - 32<<20})
	m.divide("vda", map[string]int64{osimage.PartESP: osimage.ESPSize, osimage.PartRootA: osimage.RootSize}, osimage.PartESP, osimage.PartRootA)
	m.boot = osimage.Boot{Disk: "vda", ESP: "vda1", Root: "vda2", Slot: slotA}
	before := m.head("vda")
	if _, err := Open(t.Context(), m.options()); !errors.Is(err, ErrSmall) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(before, m.head("vda")) {
		t.Error("it was written to")
	}
}

// TestRealTPM goes through install, locked and unlocked with swtpm.
func TestRealTPM(t *testing.T) {
	c := tpmtest.New(t)
	chip := c.Open()
	notes, err := chip.Box()
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(t).withImage()
	o := m.options()
	o.TPM, o.Notes = chip, notes
	d, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	m.write("state/x", "x")
	pcrs, err := chip.ReadPCRs()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SealTo(t.Context(), slotB, pcrs.PCR11); err != nil {
		t.Fatal(err)
	}
	key := bytes.TrimPrefix(d.Escrow(), []byte(escrowMark))
	m.reset()
	chip.Close()
	c.Reset()
	o.TPM = c.Open()
	if d, err := Open(t.Context(), o); err != nil || len(d.Made) > 0 || m.read("state/x") != "x" {
		t.Fatalf("second boot: %v", err)
	}
	m.reset()
	other := tpmtest.New(t).Open()
	if o.Notes, err = other.Box(); err != nil {
		t.Fatal(err)
	}
	o.TPM = other
	if _, err := Open(t.Context(), o); !errors.Is(err, tpm.ErrOtherTPM) || !errors.Is(err, ErrLocked) {
		t.Errorf("another TPM: %v", err)
	}
	m.reset()
	if _, err := Unlock(t.Context(), o, key); err != nil || m.read("state/x") != "x" {
		t.Errorf("unlock with another TPM: %v", err)
	}
	m.reset()
	if _, err := Open(t.Context(), o); err != nil {
		t.Errorf("the boot after that: %v", err)
	}
}

func TestChoose(t *testing.T) {
	const gib = 1 << 30
	stick := osimage.Boot{Disk: "sda", Slot: slotStick}
	a := Disk{Name: "a", Size: 10 * gib, Model: "Samsung SSD 980", Serial: "S1", Path: "pci0000:00/0000:00:1f.2/ata1"}
	b := Disk{Name: "b", Size: 20 * gib, Model: "WDC WD20", Serial: "S2", Path: "pci0000:00/0000:00:1d.0/nvme"}
	with := func(d Disk, change func(*Disk)) Disk { change(&d); return d }
	ours := with(b, func(d *Disk) { d.Holds = Ours })
	foreign := with(b, func(d *Disk) { d.Holds, d.What = Foreign, "Windows" })
	for name, c := range map[string]struct {
		disks []Disk
		boot  osimage.Boot
		rule  Rule
		want  string
		err   error
	}{
		"only one":             {disks: []Disk{a}, boot: stick, want: "a"},
		"two":                  {disks: []Disk{a, b}, boot: stick, err: ErrSeveral},
		"none":                 {boot: stick, err: ErrNoDisk},
		"the stick itself":     {disks: []Disk{with(a, func(d *Disk) { d.Name, d.Holds = "sda", Stick })}, boot: stick, err: ErrNoDisk},
		"another stick":        {disks: []Disk{with(a, func(d *Disk) { d.Holds = Stick })}, boot: stick, err: ErrNoDisk},
		"ours, another rule":   {disks: []Disk{a, ours}, boot: stick, rule: Rule{Serial: "S1", MaxSize: 15 * gib}, want: "b"},
		"two are ours":         {disks: []Disk{with(a, func(d *Disk) { d.Holds = Ours }), ours}, boot: stick, err: ErrSeveral},
		"one of ours is named": {disks: []Disk{with(a, func(d *Disk) { d.Holds = Ours }), ours}, boot: stick, rule: Rule{Serial: "S1"}, want: "a"},
		"ours on a stick":      {disks: []Disk{a, with(ours, func(d *Disk) { d.Removable = true })}, boot: stick, want: "a"},
		"wipe, but not named":  {disks: []Disk{foreign}, boot: stick, rule: Rule{Serial: "S1", Wipe: true}, err: ErrNoDisk},
		"wipe, of two":         {disks: []Disk{foreign, with(foreign, func(d *Disk) { d.Name = "c" })}, boot: stick, rule: Rule{Wipe: true}, err: ErrSeveral},
		"ours wins":            {disks: []Disk{a, ours}, boot: stick, want: "b"},
		"blank beside foreign": {disks: []Disk{a, foreign}, boot: stick, want: "a"},
		"foreign":              {disks: []Disk{foreign}, boot: stick, err: ErrForeign},
		"foreign, wipe":        {disks: []Disk{foreign}, boot: stick, rule: Rule{Wipe: true}, want: "b"},
		"wipe prefers blank":   {disks: []Disk{foreign, a}, boot: stick, rule: Rule{Wipe: true}, want: "a"},
		"rule names foreign":   {disks: []Disk{foreign, a}, boot: stick, rule: Rule{Serial: "S2"}, err: ErrForeign},
		"model":                {disks: []Disk{a, b}, boot: stick, rule: Rule{Model: "Samsung*980"}, want: "a"},
		"path":                 {disks: []Disk{a, b}, boot: stick, rule: Rule{Path: "*/nvme*"}, want: "b"},
		"serial, no such":      {disks: []Disk{a, b}, boot: stick, rule: Rule{Serial: "S9"}, err: ErrNoDisk},
		"min size":             {disks: []Disk{a, b}, boot: stick, rule: Rule{MinSize: 15 * gib}, want: "b"},
		"max size":             {disks: []Disk{a, b}, boot: stick, rule: Rule{MaxSize: 15 * gib}, want: "a"},
		"smallest":             {disks: []Disk{b, a}, boot: stick, rule: Rule{BySize: "smallest"}, want: "a"},
		"largest":              {disks: []Disk{a, b}, boot: stick, rule: Rule{BySize: "largest"}, want: "b"},
		"two of a size":        {disks: []Disk{a, with(a, func(d *Disk) { d.Name = "c" })}, boot: stick, rule: Rule{BySize: "largest"}, err: ErrSeveral},
		"removable":            {disks: []Disk{with(a, func(d *Disk) { d.Removable = true })}, boot: stick, err: ErrNoDisk},
		"removable by serial":  {disks: []Disk{with(a, func(d *Disk) { d.Removable = true })}, boot: stick, rule: Rule{Serial: "S1"}, want: "a"},
		"read-only":            {disks: []Disk{with(a, func(d *Disk) { d.ReadOnly = true })}, boot: stick, err: ErrNoDisk},
		"too small":            {disks: []Disk{with(a, func(d *Disk) { d.Size = gib })}, boot: stick, err: ErrNoDisk},
		"booted from disk":     {disks: []Disk{a, ours}, boot: osimage.Boot{Disk: "b", Slot: slotA}, want: "b"},
		"boot disk gone":       {disks: []Disk{a}, boot: osimage.Boot{Disk: "b", Slot: slotA}, err: ErrNoDisk},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := choose(c.disks, c.boot, c.rule, 4*gib)
			if got.Name != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got.Name, err, c.want, c.err)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"a*", "ab", true}, {"*b", "ab", true}, {"*", "", true}, {"a*c*e", "abcde", true},
		{"a*c*e", "abde", false}, {"ab*ba", "aba", false}, {"*nvme*", "pci/nvme/nvme0", true},
	} {
		if got := match(c.pattern, c.s); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.s, got)
		}
	}
}

func TestBegunTable(t *testing.T) {
	m := newMachine(t)
	m.add(Disk{Name: "vda", Size: testDisk})
	table := &gpt.Table{ID: newGUID(), Size: testDisk}
	if _, err := table.Add(gpt.Partition{Type: gpt.TypeESP, ID: newGUID(), Name: osimage.PartESP}, osimage.ESPSize); err != nil {
		t.Fatal(err)
	}
	f := mustPart(m, "vda")
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	head, _ := readSome(f, 0, 1<<20)
	for mask := range 8 { // of MBR, header, entries: whatever had reached the disk
		part := bytes.Clone(head)
		for i, r := range [][2]int{{0, 512}, {512, 1024}, {1024, 17408}} {
			if mask>>i&1 == 0 {
				clear(part[r[0]:r[1]])
			}
		}
		if !begun(part) {
			t.Errorf("pieces %03b of our table count as foreign", mask)
		}
	}
	table.Partitions[0].Name = "someone else's"
	table.Write(f)
	head, _ = readSome(f, 0, 1<<20)
	if begun(head) {
		t.Error("someone else's table counts as ours")
	}
}

func FuzzProbe(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe\x00\x02"), int64(4<<20))
	f.Add(bytes.Repeat([]byte{0}, 2048), int64(4<<20))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		d := memory(b)
		probe(d, labelState)
		examine(d, size)
	})
}

type memory []byte

func (m memory) ReadAt(b []byte, at int64) (int, error) {
	if at < 0 || at >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(b, m[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}
func (m memory) WriteAt(b []byte, at int64) (int, error) { return 0, os.ErrPermission }
func (m memory) Sync() error                             { return nil }
