//go:build vm

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/osimage/cpio"
	"github.com/holdfast-edge/holdfast/osimage/debian"
	"github.com/holdfast-edge/holdfast/osimage/fat"
)

// modules of the guest, in the order of loading.
var modules = []string{"virtio_blk", "failover", "net_failover", "virtio_net", "rng-core", "virtio-rng", "watchdog", "i6300esb", "fat", "vfat", "nls_cp437", "nls_ascii"}

// small makes a kernel with the guest's program.
func small(t *testing.T) *Kernel {
	t.Helper()
	dir := t.TempDir()
	lock, err := debian.ReadLock("amd64")
	if err != nil {
		t.Fatal(err)
	}
	where, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p, err := lock.Package(lock.Kernels["cloud"])
	if err != nil {
		t.Fatal(err)
	}
	a, err := (&debian.Cache{Dir: where, Snapshot: lock.Snapshot}).Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-o", program, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	init, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	entries := []cpio.Entry{{Name: "init", Mode: cpio.File | 0o755, Data: init}, {Name: "dev", Mode: cpio.Folder | 0o755}, {Name: "proc", Mode: cpio.Folder | 0o755},
		{Name: "sys", Mode: cpio.Folder | 0o755}, {Name: "modules", Mode: cpio.Folder | 0o755}, {Name: "dev/console", Mode: cpio.Char | 0o600, Major: 5, Minor: 1}}
	k := &Kernel{File: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Arguments: "console=ttyS0 quiet panic=-1"}
	name := func(file string) string { return strings.TrimSuffix(filepath.Base(file), ".ko.xz") }
	found := 0
	err = a.Each(func(file string) bool {
		return strings.HasPrefix(file, "boot/vmlinuz") || strings.HasSuffix(file, ".ko.xz") && slices.Contains(modules, name(file))
	}, func(f debian.File) error {
		if strings.HasPrefix(f.Name, "boot/") {
			return os.WriteFile(k.File, f.Data, 0o600)
		}
		found++
		entries = append(entries, cpio.Entry{Name: fmt.Sprintf("modules/%02d-%s", slices.Index(modules, name(f.Name)), name(f.Name)), Mode: cpio.File | 0o644, Data: f.Data})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d modules", found)
	archive, err := cpio.Archive(entries)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k.Initrd, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestMachine is the life of a machine: what it is made of, a cable pulled, its
// power cut, a watchdog that fires, another TPM.
func TestMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	kernel := small(t)
	dir := t.TempDir()
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.AddLAN("cafe", netip.MustParsePrefix("10.7.0.1/24")); err != nil {
		t.Fatal(err)
	}
	s := Spec{Dir: filepath.Join(dir, "a folder, with a comma"), Name: "till", Memory: 256 << 20, TPM: filepath.Join(dir, "tpm"), Kernel: kernel, Clock: "2031-05-06T07:08:09",
		Disks: []Disk{{File: filepath.Join(dir, "disk0.raw")}, {File: filepath.Join(dir, "disk1.raw"), WriteThrough: true}}}
	for _, d := range s.Disks {
		if err := Blank(d.File, 64<<20); err != nil {
			t.Fatal(err)
		}
	}
	start := func(arguments string, clock string) *VM {
		t.Helper()
		s := s
		k := *kernel
		k.Arguments += " " + arguments
		s.Kernel, s.Clock = &k, clock
		if s.Tap, err = w.Tap("cafe"); err != nil {
			t.Fatal(err)
		}
		v, err := Start(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			v.PowerCut(0)
			if t.Failed() {
				t.Logf("console:\n%s", v.Console())
			}
		})
		return v
	}
	says := func(v *VM, text string) {
		t.Helper()
		if err := v.WaitConsole(ctx, text); err != nil {
			t.Fatal(err)
		}
	}

	began := time.Now()
	v := start("do=write do=carrier", "2031-05-06T07:08:09")
	says(v, "guest: clock 2031-05-06T07:0")
	for _, file := range []string{"/dev/tpm0", "/dev/vda", "/dev/vdb", "/dev/watchdog0", "/dev/hwrng", "/sys/class/net/eth0"} {
		says(v, "guest: "+file+" true")
	}
	says(v, "guest: serial disk0")
	says(v, "guest: carrier 1")
	t.Logf("up and done after %v", time.Since(began))
	if _, err := Start(ctx, Spec{Dir: "", Disks: s.Disks}); err == nil {
		t.Error("a machine without a folder was started")
	}
	busy, stop := context.WithTimeout(ctx, 5*time.Second)
	if _, err := Start(busy, s); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("started twice: %v", err)
	}
	stop()
	if err := v.SetLink(ctx, false); err != nil {
		t.Fatal(err)
	}
	says(v, "guest: carrier 0")
	if err := v.SetLink(ctx, true); err != nil {
		t.Fatal(err)
	}
	shot := filepath.Join(dir, "screen.png")
	if err := v.Screenshot(ctx, shot); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(shot); err != nil {
		t.Error(err)
	} else if picture, err := png.Decode(bytes.NewReader(b)); err != nil || picture.Bounds().Dx() < 320 {
		t.Errorf("the screenshot is no picture: %v", err)
	}
	says(v, "guest: written and not flushed")
	c, err := v.PowerCut(0)
	if err != nil || c.Lost == 0 {
		t.Errorf("cut: %+v, %v; want that something is lost", c, err)
	}
	if err := v.Wait(); err != nil {
		t.Errorf("a cut is no error: %v", err)
	}
	after, err := os.ReadFile(s.Disks[0].File)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(after, []byte{'S'}); n != 1<<20 {
		t.Errorf("of what was flushed %d bytes are there", n)
	}
	if n := bytes.Count(after, []byte{'U'}); n != 0 {
		t.Errorf("of what was not flushed %d bytes are there", n)
	}

	v = start("do=watchdog", "")
	if err := v.WaitEvent(ctx, "WATCHDOG", 1); err != nil {
		t.Fatal(err)
	}
	says(v, "guest: clock "+time.Now().UTC().Format("2006-01-02"))
	says(v, "guest: back after the watchdog")
	if err := v.Wait(); err != nil {
		t.Errorf("a machine that switched itself off: %v", err)
	}
	if err := v.SetLink(ctx, true); !errors.Is(err, errGone) {
		t.Errorf("a cable of a machine that is off: %v", err)
	}

	// The end of the context is an orderly one.
	cause, end := context.WithCancel(ctx)
	s.TPM = filepath.Join(dir, "another tpm")
	k := *kernel
	k.Arguments += " do=write"
	s.Kernel, s.Disks = &k, s.Disks[:1]
	last, err := Start(cause, s)
	if err != nil {
		t.Fatal(err)
	}
	says(last, "guest: written and not flushed")
	end()
	if err := last.Wait(); err != nil {
		t.Error(err)
	}
	if after, err = os.ReadFile(s.Disks[0].File); err != nil || bytes.Count(after, []byte{'U'}) != 1<<20 {
		t.Errorf("an orderly end lost what was written (%v)", err)
	}
	t.Logf("all after %v", time.Since(began))
}

// TestDurableOnFAT cuts the power when a file on a boot partition is said to be
// durable. FAT keeps where a file begins and ends beside its name: they are written
// with the file, not with the folder.
func TestDurableOnFAT(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	kernel, dir := small(t), t.TempDir()
	disk := filepath.Join(dir, "disk0.raw")
	const size = 64 << 20
	if err := Blank(disk, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := (fat.Volume{Size: size, Files: map[string][]byte{"holdfast/README": []byte("x")}}).Write(f); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a new name", "one that has a file already"} {
		k := *kernel
		k.Arguments += fmt.Sprintf(" do=fat text=%q", strings.Repeat(name, 20))
		v, err := Start(ctx, Spec{Dir: filepath.Join(dir, "vm"), Name: "till", Memory: 256 << 20, Kernel: &k, Disks: []Disk{{File: disk}}})
		if err != nil {
			t.Fatal(err)
		}
		err = v.WaitConsole(ctx, "guest: durable")
		c, fault := v.PowerCut(0)
		if err := errors.Join(err, fault, v.Wait()); err != nil {
			t.Fatalf("%v; console:\n%s", err, v.Console())
		}
		if _, err := fat.Mend(f, func(name string) bool { return strings.Contains(name, ".durable-") }); err != nil {
			t.Fatal(err)
		}
		pieces, err := fat.Locate(f, "holdfast/file")
		got := make([]byte, 0, 4096)
		for _, p := range pieces {
			part := make([]byte, p.Size)
			if _, err := f.ReadAt(part, p.Offset); err != nil {
				t.Fatal(err)
			}
			got = append(got, part...)
		}
		if !bytes.Contains(got, []byte(strings.Repeat(name, 20))) {
			t.Errorf("%s, %d writes lost: the file holds %q, %v", name, c.Lost, got, err)
		}
	}
}

// TestProbe: the verdict says how this computer is, and is not found twice.
func TestProbe(t *testing.T) {
	kernel, keep := small(t), filepath.Join(t.TempDir(), "new", "kvm.json")
	began := time.Now()
	accel, why, err := BestAccel(t.Context(), kernel.File, keep)
	if err != nil || accel != TCG && accel != KVM || (accel == TCG) != (why != "") {
		t.Fatalf("%q, %q, %v", accel, why, err)
	}
	t.Logf("%s after %v: %s", accel, time.Since(began), why)
	if again, reason, err := BestAccel(t.Context(), "/nowhere", keep); again != accel || reason != why || err != nil {
		t.Errorf("the second time %q, %q, %v", again, reason, err)
	}
}
