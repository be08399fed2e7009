package lab

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestCodeIsReadFromTheSerialLine(t *testing.T) {
	for name, c := range map[string]struct{ console, want string }{
		"nothing":      {"", ""},
		"as shown":     {"holdfast: Holdfast 1\r\nholdfast: code      ABCD-EFGH-2345\r\n", "ABCD-EFGH-2345"},
		"the last":     {"  code AAAA-BBBB\n[ 1.0] x\n  code      CCCC-DDDD  \n", "CCCC-DDDD"},
		"with colours": {"\x1b[0;1mcode\x1b[0m \x1b[32mABCD-EFGH\x1b[0m\n", "ABCD-EFGH"},
		"in a word":    {"barcode ABCD-EFGH\nexit code 0x1\nstatus code ABCD\n", ""},
		"cut off":      {"holdfast: code      ABCD-", ""},
	} {
		path := filepath.Join(t.TempDir(), "serial.log")
		if err := os.WriteFile(path, []byte(c.console), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := codeIn(path); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	if got := codeIn("/nowhere"); got != "" {
		t.Errorf("no console: got %q", got)
	}
}

func TestHintsOfTheLabAreRead(t *testing.T) {
	for name, data := range networkHints() {
		n, err := fleet.ParseNetwork(name, data)
		if err != nil {
			t.Fatal(err)
		}
		if len(n.Hubs) != 1 || n.Hubs[0] != HubAddress {
			t.Errorf("hubs %v, want %s", n.Hubs, HubAddress)
		}
	}
}

// TestTroubleIsTold: what keeps a machine off stands where lab up and lab status look.
func TestTroubleIsTold(t *testing.T) {
	l := Lab{Dir: t.TempDir()}
	m := (&Wanted{}).Add("london", "m1", 1<<30, l.path("boxes"))
	m.Runtime = Virtual
	if err := os.MkdirAll(l.MachineDir(*m), 0o700); err != nil {
		t.Fatal(err)
	}
	b := &box{lab: l, key: m.Key(), log: slog.New(slog.DiscardHandler)}
	for _, why := range []error{nil, errors.New("no room"), errors.New("no QEMU\nat all"), nil, nil} {
		b.trouble(*m, why)
		want := ""
		if why != nil {
			want = why.Error()
		}
		if got := l.Trouble(*m); got != want || strings.Contains(l.Console(*m), "cannot be started: "+want) != (why != nil) {
			t.Errorf("got %q, want %q; console %q", got, want, l.Console(*m))
		}
	}
}

// TestOnlyVirtualMachinesHaveThese asks a hosted machine for what it has not.
func TestOnlyVirtualMachinesHaveThese(t *testing.T) {
	l := Lab{Dir: t.TempDir()}
	w := &Wanted{}
	w.Add("berlin", "m1", 1<<30, l.path("boxes"))
	v := w.Add("london", "m1", 1<<30, l.path("boxes"))
	v.Runtime, v.Disks = Virtual, []int64{1 << 20, 1 << 20}
	v.Run = false
	if err := l.Want(w); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(name string) error{
		"power cut":  func(n string) error { _, err := l.PowerCut(t.Context(), n, 0, false); return err },
		"pull disk":  func(n string) error { _, err := l.PullDisk(t.Context(), n, 0, false); return err },
		"swap TPM":   func(n string) error { _, err := l.SwapTPM(t.Context(), n, false); return err },
		"link":       func(n string) error { return l.SetLink(t.Context(), n, false) },
		"screenshot": func(n string) error { return l.Screenshot(t.Context(), n, "x.png") },
		"stick":      func(n string) error { return l.SetStick(t.Context(), n, true) },
	}
	for name, call := range calls {
		var no *NotVirtual
		if err := call("berlin"); !errors.As(err, &no) || !strings.Contains(err.Error(), "berlin.m1 is hosted") {
			t.Errorf("%s of a hosted machine: %v", name, err)
		}
		if err := call("rome"); err == nil || errors.As(err, &no) {
			t.Errorf("%s of a machine that is not there: %v", name, err)
		}
	}
	for _, name := range []string{"power cut", "screenshot"} {
		if err := calls[name]("london"); err == nil || !strings.Contains(err.Error(), "off") {
			t.Errorf("%s of a machine that is off: %v", name, err)
		}
	}
}

// TestPartsOfAMachineThatIsOff pulls a disk and swaps the TPM there and back.
func TestPartsOfAMachineThatIsOff(t *testing.T) {
	l := Lab{Dir: t.TempDir()}
	w := &Wanted{}
	m := w.Add("london", "m1", 1<<30, l.path("boxes"))
	m.Runtime, m.Disks, m.Run = Virtual, []int64{1 << 20, 1 << 20}, false
	if err := l.Want(w); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) string { b, _ := os.ReadFile(path); return string(b) }

	write(l.disk(*m, 1), "secrets")
	pulled, err := l.PullDisk(t.Context(), "london", 1, false)
	if err != nil || read(pulled) != "secrets" {
		t.Errorf("pulled %s (%v) with %q", pulled, err, read(pulled))
	}
	if info, err := os.Stat(l.disk(*m, 1)); err != nil || info.Size() != 1<<20 || strings.Trim(read(l.disk(*m, 1)), "\x00") != "" {
		t.Errorf("in its place: %v", err)
	}
	if _, err := l.PullDisk(t.Context(), "london", 2, false); err == nil {
		t.Error("a third disk was pulled")
	}

	if _, err := l.SwapTPM(t.Context(), "london", true); err == nil {
		t.Error("a TPM was put back that was never taken out")
	}
	write(filepath.Join(m.tpm(), "state"), "mine")
	if _, err := l.SwapTPM(t.Context(), "london", false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.tpm()); err == nil {
		t.Error("the TPM is still there")
	}
	write(filepath.Join(m.tpm(), "state"), "another")
	out, err := l.SwapTPM(t.Context(), "london", true)
	if err != nil || read(filepath.Join(m.tpm(), "state")) != "mine" || read(filepath.Join(out, "state")) != "another" {
		t.Errorf("put back: %v, in it %q, out %q", err, read(filepath.Join(m.tpm(), "state")), read(filepath.Join(out, "state")))
	}
}

// TestOrdersGoThroughALongPath is the socket of a lab that lies deep.
func TestOrdersGoThroughALongPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40), "control")
	for range 2 { // the second after a process that was killed
		listener, err := listenAt(path)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			var o order
			json.NewDecoder(c).Decode(&o)
			json.NewEncoder(c).Encode(outcome{Error: "no " + o.Do})
		}()
		c, err := dialAt(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		var out outcome
		if err := errors.Join(json.NewEncoder(c).Encode(order{Do: "dance"}), json.NewDecoder(c).Decode(&out)); err != nil || out.Error != "no dance" {
			t.Errorf("%+v, %v", out, err)
		}
		c.Close()
		listener.Close()
	}
}
