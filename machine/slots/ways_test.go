package slots

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/osimage"
)

func TestWays(t *testing.T) {
	d := newFAT(map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+2-1.efi": uki("1.1")})
	loaders := []Way{{Name: "Holdfast boot loader", File: bootLoader}, {Name: "Holdfast copy of the boot loader", File: osimage.BootLoaderCopy}}
	way := func(slot, file string) Way { return Way{Name: "Holdfast slot " + slot, File: "EFI/Linux/" + file} }
	for _, c := range []struct {
		what string
		do   func(*Slots) error
		want []Way
	}{
		{"an OS on trial has a way by the loader alone", func(*Slots) error { return nil }, []Way{way("a", "holdfast-a.efi")}},
		{"it is blessed", (*Slots).Bless, []Way{way("b", "holdfast-b.efi"), way("a", "holdfast-a.efi")}},
		{"the other one is put last", func(s *Slots) error { return s.Condemn(A) }, []Way{way("b", "holdfast-b.efi"), way("a", "holdfast-a+0.efi")}},
		{"it is discarded", func(s *Slots) error { return s.Discard(A) }, []Way{way("b", "holdfast-b.efi")}},
	} {
		s := on(d, B)
		if err := c.do(s); err != nil {
			t.Fatal(err)
		}
		got, err := (&Ways{slots: s}).list()
		if diff := cmp.Diff(slices.Concat(loaders, c.want), got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.what, err, diff)
		}
	}
	for way, want := range map[string]bool{wayLoader: false, wayNew: false, wayCopy: true, "Holdfast slot b": true, "": false, "UEFI Misc Device": false} {
		if Another(way) != want {
			t.Errorf("%q is another way: %t, want %t", way, !want, want)
		}
	}
}

// texts are the files of a folder, as they are read now.
func texts(d *fat) map[string]string {
	all := map[string]string{}
	for name, i := range d.now {
		all[name] = string(i.data)
	}
	return all
}

// writeFile makes a file of a root.
func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "loader.efi")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// With the power going at every write: what was started is never touched, and the
// next try ends it.
func TestSeeMends(t *testing.T) {
	key, cert := signer(t)
	one, two := makeOS(t, key, cert, "1.1"), makeOS(t, key, cert, "1.2")
	loader, wrong := two.uki, flip(two.uki)
	signature := func(s string) string { // what is signed is right, and the signature is not
		b := []byte(s)
		b[len(b)-20] ^= 1
		return string(b)
	}
	for _, c := range []struct {
		name         string
		way          string
		running      Slot
		files, want  map[string]string
		a, b         []byte // roots
		first, copy  string // boot loaders
		becomes      string // both of them
		own          string // of the OS; "": loader
		said, faults string
	}{
		{name: "all is well", way: wayLoader, running: A, files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			first: loader, copy: loader, becomes: loader},
		{name: "no copy of the loader yet", way: "UEFI Misc Device", running: A, files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			first: loader, becomes: loader, said: "the copy of the boot loader was written anew"},
		{name: "another loader", way: wayLoader, running: A, files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			first: loader, copy: one.uki, becomes: loader, said: "the copy of the boot loader was written anew"},
		{name: "a damaged loader", way: wayCopy, running: A, files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			first: signature(loader), copy: loader, becomes: loader, said: "the boot loader was written anew"},
		{name: "no loader", way: wayCopy, running: A, files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			copy: loader, becomes: loader, said: "the boot loader was written anew"},
		{name: "a damaged UKI of a slot with a copy", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": flip(one.uki), "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: loader, copy: loader, becomes: loader, said: "the boot image of slot a was written anew"},
		{name: "a damaged signature of a UKI", way: "Holdfast slot b", running: B,
			files: map[string]string{"holdfast-a.efi": signature(one.uki), "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: loader, copy: loader, becomes: loader, said: "the boot image of slot a was written anew"},
		{name: "half a UKI", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki[:700], "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: loader, copy: loader, becomes: loader, said: "the boot image of slot a was written anew"},
		{name: "a damaged UKI of another OS", way: "Holdfast slot a", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": flip(two.uki)}, want: map[string]string{"holdfast-a.efi": one.uki},
			a: one.root, b: two.root, first: loader, copy: loader, becomes: loader, said: "slot b is not booted any more: its boot image was not what was signed"},
		{name: "another OS that is sound", way: "Holdfast slot a", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b.efi": two.uki},
			a: one.root, b: two.root, first: wrong, copy: loader, becomes: loader, said: "the boot loader was written anew"},
		{name: "both loaders are damaged", way: "Holdfast slot a", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			a: one.root, first: wrong, copy: loader[:len(loader)/2], becomes: loader, said: "the boot loader was written anew; the copy of the boot loader was written anew"},
		{name: "both loaders are damaged in the same place, and a UKI", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": flip(one.uki), "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: wrong, copy: wrong, becomes: loader, said: "the boot loader was written anew; the copy of the boot loader was written anew; the boot image of slot a was written anew"},
		{name: "no loader is whole anywhere, and a UKI is damaged", way: "Holdfast slot b", running: A, own: wrong,
			files: map[string]string{"holdfast-a.efi": flip(one.uki), "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: wrong, copy: wrong, said: "the boot image of slot a was written anew", faults: "is what was signed; a stick"},
		{name: "the slot that was started is gone", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			a: one.root, first: loader, copy: loader, becomes: loader, faults: "has no UKI"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.own == "" {
				c.own = loader
			}
			own := writeFile(t, c.own)
			loaders := map[string]string{}
			for name, text := range map[string]string{bootLoader: c.first, osimage.BootLoaderCopy: c.copy} {
				if text != "" {
					loaders[name] = text
				}
			}
			started := map[string]string{}
			for name, text := range c.files {
				if c.want[name] == text {
					started[name] = text
				}
			}
			cuts := 0
			for left, done := 0, false; !done; left++ {
				masks := 1
				for mask := 0; mask < masks; mask++ {
					d, esp := newFAT(c.files), newFAT(loaders)
					d.left, esp.left = left, left
					s := &Slots{Config: Config{ESP: "/efi", Slot: c.running}, disk: d, inspect: inspect}
					roots := map[Slot]*memory{A: {c.a, d}, B: {c.b, d}}
					w := &Ways{slots: s, esp: esp, root: func(slot Slot) (device, error) { return roots[slot], nil }}
					w.Started, w.Loader, w.Tell = c.way, own, func([]Way) error { return nil }
					said, err := w.See(t.Context(), false)
					switch {
					case errors.Is(err, errPower):
						cuts++
						masks = max(masks, 1<<max(len(d.pending), len(esp.pending)))
						d.reboot(mask & (1<<len(d.pending) - 1))
						esp.reboot(mask & (1<<len(esp.pending) - 1))
						for name, text := range started {
							if texts(d)[name] != text {
								t.Fatalf("cut at %d, arrived %b: %s, which is sound, is not what it was", left, mask, name)
							}
						}
						if intact([]byte(c.first)) || intact([]byte(c.copy)) {
							if !intact([]byte(texts(esp)[bootLoader])) && !intact([]byte(texts(esp)[osimage.BootLoaderCopy])) {
								t.Fatalf("cut at %d, arrived %b: no boot loader is whole", left, mask)
							}
						}
						if err := s.Clean(""); err != nil {
							t.Fatal(err)
						}
						_, err = w.See(t.Context(), false)
					case c.said != "" && strings.Join(said, "; ") != c.said, c.said == "" && len(said) > 0:
						t.Errorf("it says %q, want %q", said, c.said)
						fallthrough
					default:
						done = true
					}
					if c.faults == "" && err != nil || c.faults != "" && (err == nil || !strings.Contains(err.Error(), c.faults)) {
						t.Fatalf("cut at %d, arrived %b: %v, want %q", left, mask, err, c.faults)
					}
					if !maps.Equal(texts(d), c.want) {
						t.Errorf("cut at %d, arrived %b: the slots are %q", left, mask, slices.Sorted(maps.Keys(d.now)))
					}
					if c.becomes != "" && (texts(esp)[bootLoader] != c.becomes || texts(esp)[osimage.BootLoaderCopy] != c.becomes) {
						t.Errorf("cut at %d, arrived %b: the boot loaders are not both right", left, mask)
					}
				}
			}
			if c.said != "" && cuts < 2 {
				t.Errorf("only %d cuts were tried", cuts)
			}
		})
	}
}

// firmware starts what it was told to start next, once, and else the first way that starts.
type firmware struct {
	starts func(program string) bool
	deaf   bool // to what it is to start next
	ways   []Way
	tried  int // how often it tried a new boot loader
}

func (f *firmware) tell(ways []Way) error {
	f.ways = ways
	return nil
}

func (f *firmware) boot(esp *fat) (way string) {
	var order []Way
	for _, w := range f.ways {
		switch {
		case !w.Once:
			order = append(order, w)
		case !f.deaf:
			order = slices.Insert(order, 0, w)
		}
	}
	f.ways = slices.DeleteFunc(f.ways, func(w Way) bool { return w.Once })
	for _, w := range order {
		program, there := texts(esp)[w.File]
		if w.Once && there {
			f.tried++
		}
		if f.starts(program) {
			return w.Name
		}
	}
	return "" // UKIs are not on this disk
}

// An OS brings another boot loader. With the power going at every write of every
// boot: a loader that is known to start is always there, and the one that came takes
// its place when it has started the machine, and not before.
func TestNewLoader(t *testing.T) {
	key, cert := signer(t)
	before, after := makeOS(t, key, cert, "1.1").uki, makeOS(t, key, cert, "1.2").uki
	known := func(program string) bool { return program == before }
	for _, c := range []struct {
		what   string
		own    string
		deaf   bool
		trial  bool // of another OS, in the second boot
		starts func(string) bool
		kept   bool // the one before stays
		fault  error
	}{
		{what: "one that starts", own: after, starts: func(p string) bool { return p == before || p == after }},
		{what: "one that does not", own: after, starts: known, kept: true, fault: ErrLoader},
		{what: "a firmware that does not do what it is told", own: after, starts: known, deaf: true, kept: true, fault: ErrLoader},
		{what: "one that starts, and an OS on trial", own: after, starts: func(p string) bool { return p == before || p == after }, trial: true},
		{what: "one without a signature", own: "MZ", starts: known, kept: true, fault: ErrContent},
	} {
		t.Run(c.what, func(t *testing.T) {
			own, cuts := writeFile(t, c.own), 0
			for cutBoot := 1; cutBoot <= 4; cutBoot++ {
				for left, done := 0, false; !done; left++ {
					masks := 1
					for mask := 0; mask < masks; mask++ {
						esp := newFAT(map[string]string{bootLoader: before, bootLoaderCopy: before})
						f := &firmware{starts: c.starts, deaf: c.deaf}
						way, cut := wayLoader, false
						var last error
						for boot := 1; boot <= 8; boot++ {
							w := &Ways{slots: on(newFAT(map[string]string{"holdfast-a.efi": uki("1.0")}), A), esp: esp}
							w.Started, w.Loader, w.Tell = way, own, f.tell
							if esp.left = -1; boot == cutBoot {
								esp.left = left
							}
							_, last = w.See(t.Context(), c.trial && boot == 2)
							if last == nil || !errors.Is(last, errPower) {
								_, last = w.See(t.Context(), c.trial && boot == 2) // minutes later: nothing is new
							}
							if errors.Is(last, errPower) {
								cut = true
								masks = max(masks, 1<<len(esp.pending))
							}
							esp.reboot(mask & (1<<len(esp.pending) - 1))
							if way = f.boot(esp); way == "" {
								t.Fatalf("boot %d, cut at %d, arrived %b: no boot loader starts", cutBoot, left, mask)
							}
						}
						if done = !cut; cut {
							cuts++
						}
						want := c.own
						if c.kept {
							want = before
						}
						if got := texts(esp); got[bootLoader] != want || got[bootLoaderCopy] != want {
							t.Errorf("boot %d, cut at %d, arrived %b: the boot loaders are not both right", cutBoot, left, mask)
						} else if _, there := got[newBootLoader(0)]; there != errors.Is(c.fault, ErrLoader) {
							t.Errorf("boot %d, cut at %d, arrived %b: the new one lies there: %t", cutBoot, left, mask, there)
						}
						if c.fault == nil && last != nil || !errors.Is(last, c.fault) {
							t.Errorf("boot %d, cut at %d, arrived %b: it says %v, want %v", cutBoot, left, mask, last, c.fault)
						}
						if f.tried > Tries {
							t.Errorf("boot %d, cut at %d, arrived %b: tried %d times", cutBoot, left, mask, f.tried)
						}
					}
				}
			}
			if c.fault != ErrContent && cuts < 8 {
				t.Errorf("only %d cuts were tried", cuts)
			}
		})
	}
}
