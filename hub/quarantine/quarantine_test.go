package quarantine

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func id(i int) fleet.MachineID { return fleet.MachineIDOf(fmt.Append(nil, i)) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestErrNetworkFull(t *testing.T) {
	w := New(Config{PerNetwork: 2})
	for i, from := range []string{"10.0.0.1", "10.0.0.2"} {
		if err := w.Enter(id(i), addr(from), t0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Enter(id(2), addr("10.0.0.250"), t0); !errors.Is(err, ErrNetworkFull) {
		t.Fatalf("err = %v", err)
	}
	if err := w.Enter(id(2), addr("::ffff:10.0.0.9"), t0); !errors.Is(err, ErrNetworkFull) {
		t.Fatalf("a mapped address is another network: %v", err)
	}
	if err := w.Enter(id(3), addr("10.0.1.1"), t0); err != nil {
		t.Fatalf("another network pays for it: %v", err)
	}
	for i := range 2 {
		if err := w.Enter(id(10+i), addr(fmt.Sprintf("2001:db8:0:1::%d", i)), t0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Enter(id(12), addr("2001:db8:0:1:ffff::"), t0); !errors.Is(err, ErrNetworkFull) {
		t.Fatalf("err = %v", err)
	}
	if _, refused := w.Count(); refused != 3 {
		t.Errorf("refused = %d", refused)
	}
	// Who left makes room; who is there does not.
	w.Leave(id(0), t0.Add(time.Second))
	if err := w.Enter(id(2), addr("10.0.0.250"), t0); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.List(t0) {
		if e.Machine == id(0) {
			t.Error("the one that left is still there")
		}
	}
}

func TestErrFull(t *testing.T) {
	w := New(Config{Total: 3, PerNetwork: 2})
	for i := range 3 {
		if err := w.Enter(id(i), addr(fmt.Sprintf("10.0.%d.1", i)), t0); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Enter(id(9), addr("10.0.9.1"), t0); !errors.Is(err, ErrFull) {
		t.Fatalf("err = %v", err)
	}
	if err := w.Enter(id(1), addr("10.0.1.1"), t0); err != nil {
		t.Fatalf("one that is here already: %v", err)
	}
}

func TestEntry(t *testing.T) {
	w := New(Config{})
	w.Enter(id(1), addr("10.0.0.1"), t0)
	w.Enter(id(1), addr("10.0.0.1"), t0)
	if w.Introduce(id(1), Words{Version: "1"}, t0) {
		t.Error("introduced without an introduction")
	}
	w.Introduce(id(1), Words{Introduction: []byte("hello")}, t0)
	if !w.Introduce(id(1), Words{Version: "2"}, t0) {
		t.Error("its introduction is forgotten")
	}
	if w.Introduce(id(2), Words{Introduction: []byte("never came")}, t0) {
		t.Error("one that is not here was introduced")
	}
	w.Leave(id(1), t0)
	got := w.List(t0)
	if len(got) != 1 || !got[0].Connected || string(got[0].Introduction) != "hello" || got[0].Version != "2" {
		t.Fatalf("list = %+v", got)
	}
	if err := w.Enter(id(1), addr("10.9.0.1"), t0); !errors.Is(err, ErrNetworkFull) {
		t.Errorf("one key in two networks at once: %v", err)
	}
	w.Leave(id(1), t0)
	if got := w.List(t0); got[0].Connected {
		t.Error("still connected")
	}
	if err := w.Enter(id(1), addr("10.9.0.1"), t0); err != nil {
		t.Errorf("it moved: %v", err)
	}
	w.Leave(id(1), t0)
	if got := w.List(t0.Add(time.Hour)); len(got) != 0 || len(w.network) != 0 {
		t.Errorf("not forgotten: %+v %v", got, w.network)
	}
	w.Enter(id(1), addr("10.0.0.1"), t0)
	w.Release(func(m fleet.MachineID) bool { return m == id(1) })
	w.Leave(id(1), t0)
	if n, _ := w.Count(); n != 0 || len(w.network) != 0 {
		t.Error("an adopted machine stays in quarantine")
	}
}
