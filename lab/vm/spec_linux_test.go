package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCopyIsSparseAndWhole(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("begin"), 0)
	f.WriteAt([]byte("middle"), 40<<20)
	if err := errors.Join(f.Truncate(64<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "to")
	if err := Copy(to, from, 128<<20); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(to, &st); err != nil || st.Size != 128<<20 || st.Blocks*512 > 4<<20 {
		t.Errorf("%d bytes that take %d (%v)", st.Size, st.Blocks*512, err)
	}
	a, _ := os.ReadFile(from)
	if b, _ := os.ReadFile(to); !bytes.Equal(a, b[:len(a)]) {
		t.Error("the copy differs")
	}
	if err := Copy(to, from, 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("copied over a disk: %v", err)
	}
	if err := Copy(filepath.Join(dir, "new"), filepath.Join(dir, "nothing"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("copied nothing: %v", err)
	}
	if err := Blank(to, 1<<20); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made a blank disk over another: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*.tmp"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// foreign is a processor that this computer does not have.
var foreign = map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]

func TestSpecsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spec Spec
		want string
	}{
		"no folder":     {Spec{}, "no folder"},
		"little memory": {Spec{Dir: "x", Memory: 1 << 20}, "too few"},
		"a bus":         {Spec{Dir: "x", Disks: []Disk{{File: "f", Bus: "scsi"}}}, `"scsi"`},
		"a processor":   {Spec{Dir: "x", Architecture: "vax"}, `"vax"`},
		"another's KVM": {Spec{Dir: "x", Architecture: foreign, Accel: KVM}, "KVM runs no " + foreign},
		"a serial":      {Spec{Dir: "x", Disks: []Disk{{File: "f", Serial: strings.Repeat("x", 21)}}}, "more than 20"},
	} {
		if _, err := Start(t.Context(), c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want something with %s", name, err, c.want)
		}
	}
}

// TestCommandLine: what is promised to machines is asked of QEMU.
func TestCommandLine(t *testing.T) {
	s := Spec{Dir: "/lab/a,b", Architecture: "amd64", Serial: "lab-1", Clock: "1970-01-01T00:00:00", TPM: "t", Tap: os.Stdin,
		Disks: []Disk{{File: "d0"}, {File: "d1", Bus: USB, Serial: "stick"}, {File: "d2", Bus: NVMe, WriteThrough: true}}}.withDefaults()
	f := wires{qmp: os.Stdin, tpm: os.Stdin, disks: []*os.File{os.Stdin, os.Stdin, os.Stdin}}
	line := " " + strings.Join(s.describe("/lab/a,b/vars.fd", "/lab/a,b/serial.log", f).list, " ") + " "
	for _, want := range []string{
		" -machine q35,smm=on,vmport=off,hpet=off,accel=tcg,pflash0=code,pflash1=vars ", " -cpu max,la57=off ", " -smp 2 ", " -m 2048M ",
		"property=secure,value=on", " -device i6300esb -action watchdog=reset ", "tpm-crb,tpmdev=tpm0", "path=/lab/a,,b/serial.log", `"filename":"/lab/a,b/vars.fd"`,
		" -rtc base=1970-01-01T00:00:00 ", "serial=lab-1", `"bootindex":0,"drive":"d0","driver":"virtio-blk-pci"`, `"driver":"usb-storage"`, `"serial":"stick"`, `"driver":"nvme"`,
		"tap,id=lan,vhost=off,fd=8", " -nodefaults ",
	} {
		if !strings.Contains(line, want) {
			t.Errorf("%s is not in:\n%s", want, line)
		}
	}
	s.Kernel, s.Accel, s.Tap = &Kernel{File: "k", Initrd: "i", Arguments: "a b"}, KVM, nil
	line = " " + strings.Join(s.describe("v", "s", f).list, " ") + " "
	for _, banned := range []string{"pflash", "bootindex", "netdev", "la57", "user"} {
		if strings.Contains(strings.ReplaceAll(line, "-no-user-config", ""), banned) {
			t.Errorf("%s is in:\n%s", banned, line)
		}
	}
	if !strings.Contains(line, " -kernel k -append a b -initrd i ") || !strings.Contains(line, " -cpu host ") {
		t.Errorf("a kernel without firmware:\n%s", line)
	}
	s = Spec{Dir: "v", Architecture: "arm64", TPM: "t", Disks: []Disk{{File: "d0"}}}.withDefaults()
	line = " " + strings.Join(s.describe("v", "s", f).list, " ") + " "
	for _, want := range []string{" -machine virt,accel=tcg,pflash0=code,pflash1=vars ", " -cpu neoverse-n1 ", "tpm-tis-device,tpmdev=tpm0", "AAVMF_CODE.fd", " -device i6300esb "} {
		if !strings.Contains(line, want) {
			t.Errorf("%s is not in:\n%s", want, line)
		}
	}
	for _, banned := range []string{"smm", "ICH9", "property=secure", "-vga"} { // of another board
		if strings.Contains(line, banned) {
			t.Errorf("%s is in:\n%s", banned, line)
		}
	}
	if MAC("a").String() == MAC("b").String() || MAC("a")[0]&3 != 2 {
		t.Errorf("addresses %s and %s: want two that are set by hand", MAC("a"), MAC("b"))
	}
}

// TestMonitor talks with a QEMU that answers out of order, tells of events and dies.
func TestMonitor(t *testing.T) {
	ours, theirs := net.Pipe()
	events := make(chan Event, 1)
	q := &qmp{conn: ours, hear: func(e Event) { events <- e }, waiting: map[int]chan answer{}}
	go q.listen()
	go func() {
		in, out := json.NewDecoder(theirs), json.NewEncoder(theirs)
		out.Encode(map[string]any{"QMP": map[string]any{}})
		var orders []struct {
			Execute string
			ID      int
		}
		for range 2 {
			var o struct {
				Execute string
				ID      int
			}
			if in.Decode(&o) != nil {
				return
			}
			orders = append(orders, o)
		}
		out.Encode(map[string]any{"event": "RESET", "data": map[string]any{"guest": true}})
		for _, o := range []int{1, 0} {
			if orders[o].Execute == "good" {
				out.Encode(map[string]any{"id": orders[o].ID, "return": map[string]any{"x": 1}})
			} else {
				out.Encode(map[string]any{"id": orders[o].ID, "error": map[string]any{"desc": "no such thing"}})
			}
		}
		var o any
		in.Decode(&o)
		theirs.Close()
	}()
	bad := make(chan error, 1)
	go func() {
		_, err := q.do(t.Context(), "bad", nil)
		bad <- err
	}()
	got, err := q.do(t.Context(), "good", map[string]any{"a": 1})
	if err != nil || string(got) != `{"x":1}` {
		t.Errorf("good: %s, %v", got, err)
	}
	if err := <-bad; err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("bad: %v", err)
	}
	if e := <-events; e.Name != "RESET" {
		t.Errorf("event %q", e.Name)
	}
	for _, what := range []string{"one that dies meanwhile", "one that is dead"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := q.do(ctx, "quit", nil); !errors.Is(err, errGone) {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
}
