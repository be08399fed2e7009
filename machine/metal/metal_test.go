package metal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/machine/faults"
	"github.com/holdfast-edge/holdfast/machine/metal/disks"
	"github.com/holdfast-edge/holdfast/machine/metal/tpm"
)

// TestPhasesAreATable: names are words for people, each once, and what others
// build on stands before them.
func TestPhasesAreATable(t *testing.T) {
	var names []string
	for _, p := range phases {
		if p.name == "" || p.do == nil || slices.Contains(names, p.name) {
			t.Errorf("phase %q", p.name)
		}
		if e, ok := faults.Lookup(p.code); !ok || e.Subject || strings.Count(e.Sentence, "%s") != 1 {
			t.Errorf("phase %s: code %q has no sentence for an error", p.name, p.code)
		}
		names = append(names, p.name)
	}
	for _, order := range [][2]string{
		{"mounts", "settings"}, {"watchdog", "devices"}, {"screen", "devices"}, {"devices", "modules"},
		{"devices", "tpm"}, {"tpm", "disks"}, {"disks", "network"},
	} {
		if a, b := slices.Index(names, order[0]), slices.Index(names, order[1]); a < 0 || a > b {
			t.Errorf("%s must come before %s: %v", order[0], order[1], names)
		}
	}
}

// TestLastPicture: who stands before a machine that does not boot has a code to look up.
func TestLastPicture(t *testing.T) {
	bad := errors.New("EROFS said no")
	limit := failed(faults.New(faults.OSTooOld, "1.2.0", "1.3.0"), bad)
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"a phase", failed(faults.New(faults.BootClock, bad), fmt.Errorf("boot phase clock: %w", bad)), "E67 the boot stopped, the clock: EROFS said no"},
		{"a limit on trial", failed(faults.New(faults.BootDisks, limit), fmt.Errorf("boot phase disks: %w", limit)), "E37 OS version 1.2.0 is below the floor 1.3.0 of this machine"},
		{"machine.Run's table", failed(runFault(fmt.Errorf("boot phase memory: %w", bad)), bad), "E44 the machine stopped at memory: EROFS said no"},
		{"machine.Run", failed(runFault(bad), bad), "E44 the machine stopped at work: EROFS said no"},
		{"no code", bad, "EROFS said no"},
	} {
		want := "Holdfast\n\n  fault     " + c.want + "\n            the machine reboots in 57 seconds\n"
		if got := lastPicture(c.err, 57*time.Second); got != want || !errors.Is(c.err, bad) {
			t.Errorf("%s: got %q, want %q", c.name, got, want)
		}
	}
}

func TestFailedBootsAreNoStorm(t *testing.T) {
	for _, c := range []struct{ since, want time.Duration }{
		{3 * time.Second, 57 * time.Second}, {55 * time.Second, standing}, {time.Hour, standing},
	} {
		if got := lingerFor(c.since); got != c.want {
			t.Errorf("%v after the kernel: got %v, want %v", c.since, got, c.want)
		}
	}
}

const mountinfo = `1 0 0:2 / / rw shared:1 - rootfs rootfs rw
22 1 254:0 / / ro,nosuid shared:2 - erofs /dev/dm-0 ro
23 22 0:5 / /dev rw shared:3 - devtmpfs devtmpfs rw
24 22 0:20 / /run rw shared:4 - tmpfs tmpfs rw
30 22 254:1 / /efi rw shared:5 - vfat /dev/vda1 rw
31 22 253:1 / /state rw shared:6 - ext4 /dev/mapper/state rw
32 22 253:2 / /data rw shared:7 - ext4 /dev/mapper/data rw
33 22 253:2 /kubelet /var/lib/kubelet rw shared:7 - ext4 /dev/mapper/data rw
34 33 0:50 / /var/lib/kubelet/pods/x/volumes/a\040b rw shared:8 - tmpfs tmpfs rw
35 32 0:51 / /data/containerd/merged rw shared:9 - overlay overlay rw
36 32 0:52 / /data/kubelet/token rw shared:9 - tmpfs tmpfs rw
broken line
`

func TestToUnmount(t *testing.T) {
	want := []string{"/data/kubelet/token", "/data/containerd/merged", "/var/lib/kubelet/pods/x/volumes/a b", "/var/lib/kubelet", "/efi"}
	if got := toUnmount(mountinfo); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestSwapHeader: the tools of others must take it for what it is.
func TestSwapHeader(t *testing.T) {
	const size = 1 << 20
	path := filepath.Join(t.TempDir(), "swap")
	data := make([]byte, size)
	copy(data, swapHeader(size))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("blkid", "-p", "-o", "export", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "TYPE=swap") || !strings.Contains(string(out), "VERSION=1") {
		t.Errorf("blkid says %v: %s", err, out)
	}
}

func TestLogGoesToTheRing(t *testing.T) {
	var out bytes.Buffer
	r := &ring{to: &out}
	l := r.logger()
	l.Info("booted", "machine", "abc")
	l.With("part", "door").WithGroup("peer").Warn("it\nis odd", "err", errors.New("no"))
	l.Log(context.Background(), slog.LevelDebug, "unseen")
	l.Error(strings.Repeat("x", 1000))
	l.Error(strings.Repeat("y", 10000))
	r.notices().Write([]byte("holdfast: one\nholdfast: two\n"))
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	want := []string{
		"<6>holdfast: msg=booted machine=abc",
		`<4>holdfast: msg="it\nis odd" part=door peer.err=no`,
		"<3>holdfast: msg=" + strings.Repeat("x", longestLine-4), "<3>holdfast: " + strings.Repeat("x", 104),
		"", "", "", "", "", "", "<5>holdfast: one", "<5>holdfast: two",
	}
	if len(got) != len(want) {
		t.Fatalf("got %d lines: %q", len(got), got)
	}
	for i, w := range want {
		if w != "" && got[i] != w {
			t.Errorf("line %d: got %q, want %q", i, got[i], w)
		}
	}
	if last := got[3+mostLines]; len(last) > 1000 || !strings.HasPrefix(last, "<3>holdfast: yyy") || !strings.HasSuffix(last, "y ...") {
		t.Errorf("the end of what is far too long has %d bytes: %q", len(last), last)
	}
}

func TestTheFirstRequestCounts(t *testing.T) {
	p := newPower()
	p.request(off, "the button")
	p.request(reboot, "an update")
	<-p.asked
	if a, why := p.requested(); a != off || why != "the button" {
		t.Errorf("got %s, %s", a, why)
	}
}

// event is a message as the kernel sends it for a button.
func event(class string) []byte {
	b := make([]byte, 20+4+20+15+1+8)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	copy(b[24:], class)
	return b
}

func TestPressed(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want bool
	}{
		{"power", event("button/power"), true},
		{"lid", event("button/lid"), false},
		{"the second of two", append(event("thermal_zone"), event("button/power")...), true},
		{"short", event("button/power")[:30], false},
		{"nothing", nil, false},
	} {
		if got := pressed(c.in); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
}

func FuzzPressed(f *testing.F) {
	f.Add(append(event("thermal_zone"), event("button/power")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if pressed(b) && !bytes.Contains(b, []byte("button/power")) {
			t.Error("pressed by nothing")
		}
	})
}

func TestDiskFault(t *testing.T) {
	for _, c := range []struct {
		err  error
		want faults.Code
	}{
		{&disks.LockedError{Reason: tpm.ErrMeasurements, Differs: []string{"PCR 11"}}, faults.LockedBoot},
		{&disks.LockedError{Reason: tpm.ErrOtherTPM}, faults.Locked},
		{fmt.Errorf("open disks: %w", &disks.ForeignError{Disk: "sda", What: "ntfs"}), faults.ForeignDisk},
		{fmt.Errorf("open disks: %w", disks.ErrSeveral), faults.SeveralDisks},
		{fmt.Errorf("open disks: %w", disks.ErrNoDisk), faults.NoDisk},
		{fmt.Errorf("open disks: %w", disks.ErrSmall), faults.SmallDisk},
		{errors.New("input/output error"), faults.BadDisk},
	} {
		if got := diskFault(c.err, "vda"); got.Code != c.want {
			t.Errorf("%v: got %s, want %s", c.err, got, c.want)
		}
	}
}

// TestProfile: package build writes it.
func TestProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(file, []byte(`{"flavour":"cloud","stateSize":5,"disk":{"model":"QEMU*","minSize":68719476736,"wipe":true}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := readProfile(file)
	if want := (profile{StateSize: 5, Disk: fleet.DiskRule{Model: "QEMU*", MinSize: 64 << 30, Wipe: true}}); err != nil || p != want {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestForeign(t *testing.T) {
	for stat, want := range map[string]bool{
		"1 (init) S 0 1 1":                false,
		"2 (kthreadd) S 0 0 0":            false,
		"31 (kworker/0:1) I 2 0 0":        false,
		"400 (containerd) S 1 400":        true,
		"401 (a ) S 2 b) S 1 401":         true,
		"402 (containerd-shim) Z 1 402 0": false,
		"":                                false,
	} {
		if got := foreign(stat); got != want {
			t.Errorf("%q: got %v", stat, got)
		}
	}
}
