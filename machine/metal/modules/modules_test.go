package modules

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage/kmod"
)

// fake is an index, and a kernel that refuses a module before those that it needs.
type fake struct {
	mu    sync.Mutex
	order []string
	fail  map[string]error
}

func (f *fake) insert(file string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := kmod.Name(file)
	if err := f.fail[name]; err != nil {
		return err
	}
	if slices.Contains(f.order, name) {
		return errors.New("loaded twice")
	}
	f.order = append(f.order, name)
	return nil
}

var index = kmod.Index{
	Load: []string{"erofs", "dm_verity"},
	Modules: map[string]kmod.Module{
		"erofs":          {File: "fs/erofs.ko.xz", Deps: []string{"crc32c_generic", "libcrc32c"}},
		"libcrc32c":      {File: "libcrc32c.ko.xz", Deps: []string{"crc32c_generic"}},
		"crc32c_generic": {File: "crc32c_generic.ko.xz", Aliases: []string{"crypto-crc32c"}},
		"dm_verity":      {File: "dm-verity.ko.xz", Deps: []string{"dm_bufio"}},
		"dm_bufio":       {File: "dm-bufio.ko.xz"},
		"virtio_net":     {File: "virtio_net.ko.xz", Deps: []string{"net_failover"}, Aliases: []string{"virtio:d00000001v*"}},
		"net_failover":   {File: "net_failover.ko.xz"},
		"e1000e":         {File: "e1000e.ko.xz", Aliases: []string{"pci:v00008086d000010D3sv*sd*bc*sc*i*"}},
	},
	BuiltIn: []string{"ext4"},
}

func TestEachIsLoadedOnceAfterWhatItNeeds(t *testing.T) {
	k := &fake{}
	l := newLoader(index, k.insert)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if err := l.Load(append(l.Listed(), "libcrc32c", "dm-verity", "ext4")...); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(k.order) != 5 {
		t.Fatalf("loaded %v, want 5 modules", k.order)
	}
	for name, m := range index.Modules {
		at := slices.Index(k.order, name)
		for _, d := range m.Deps {
			if at >= 0 && slices.Index(k.order, d) > at {
				t.Errorf("%s was loaded before %s: %v", name, d, k.order)
			}
		}
	}
}

func TestFaultsNameTheModule(t *testing.T) {
	broken := errors.New("unknown symbol")
	k := &fake{fail: map[string]error{"dm_bufio": broken, "net_failover": broken, "dm_verity": broken}}
	l := newLoader(index, k.insert)
	err := l.Load("erofs", "dm_verity", "nosuch", "virtio_net")
	if err == nil || !errors.Is(err, broken) || !errors.Is(err, kmod.ErrUnknown) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"dm_verity", "nosuch"} {
		if !strings.Contains(err.Error(), "module "+want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "virtio_net") || !slices.Contains(k.order, "virtio_net") {
		t.Errorf("virtio_net should load without what it only likes to have: %v, %v", err, k.order)
	}
}

func TestColdplug(t *testing.T) {
	sys := t.TempDir()
	for dev, alias := range map[string]string{
		"bus/pci/devices/0000:00:02.0":    "pci:v00008086d000010D3sv00001AF4sd00001100bc02sc00i00",
		"bus/virtio/devices/virtio0":      "virtio:d00000001v00001AF4",
		"bus/platform/devices/nothing":    "platform:nothing",
		"bus/acpi/devices/NOTHING0001:00": "acpi:NOTHING0001:",
	} {
		if err := os.MkdirAll(filepath.Join(sys, dev), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, dev, "modalias"), []byte(alias+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k := &fake{}
	if err := newLoader(index, k.insert).Coldplug(sys); err != nil {
		t.Fatal(err)
	}
	slices.Sort(k.order)
	if want := []string{"e1000e", "net_failover", "virtio_net"}; !slices.Equal(k.order, want) {
		t.Errorf("loaded %v, want %v", k.order, want)
	}
}

func TestAppeared(t *testing.T) {
	for _, c := range []struct{ name, event, want string }{
		{"device", "add@/devices/pci0/usb1\x00ACTION=add\x00MODALIAS=usb:v0BDA\x00SEQNUM=7\x00", "usb:v0BDA"},
		{"no alias", "add@/devices/x\x00ACTION=add\x00", ""},
		{"gone", "remove@/devices/x\x00ACTION=remove\x00MODALIAS=usb:v0BDA\x00", ""},
		{"empty", "", ""},
	} {
		got, ok := appeared([]byte(c.event))
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, ok, c.want)
		}
	}
}

func FuzzAppeared(f *testing.F) {
	f.Add([]byte("add@/devices/pci0/usb1\x00ACTION=add\x00MODALIAS=usb:v0BDA\x00SEQNUM=7\x00"))
	f.Add([]byte("remove@"))
	f.Fuzz(func(t *testing.T, event []byte) {
		if alias, ok := appeared(event); ok && (alias == "" || strings.Contains(alias, "\x00")) {
			t.Errorf("alias %q", alias)
		}
	})
}
