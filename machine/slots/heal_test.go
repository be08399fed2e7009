package slots

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/osimage"
)

func TestWays(t *testing.T) {
	d := newFAT(map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+2-1.efi": uki("1.1")})
	loaders := []Way{{wayLoader, bootLoader}, {wayCopy, osimage.BootLoaderCopy}}
	for _, c := range []struct {
		what string
		do   func(*Slots) error
		want []Way
	}{
		{"an OS on trial has a way by the loader alone", func(*Slots) error { return nil }, []Way{{"Holdfast slot a", "EFI/Linux/holdfast-a.efi"}}},
		{"it is blessed", (*Slots).Bless, []Way{{"Holdfast slot b", "EFI/Linux/holdfast-b.efi"}, {"Holdfast slot a", "EFI/Linux/holdfast-a.efi"}}},
		{"the other one is put last", func(s *Slots) error { return s.Condemn(A) }, []Way{{"Holdfast slot b", "EFI/Linux/holdfast-b.efi"}, {"Holdfast slot a", "EFI/Linux/holdfast-a+0.efi"}}},
		{"it is discarded", func(s *Slots) error { return s.Discard(A) }, []Way{{"Holdfast slot b", "EFI/Linux/holdfast-b.efi"}}},
	} {
		s := on(d, B)
		if err := c.do(s); err != nil {
			t.Fatal(err)
		}
		got, err := s.Ways()
		if diff := cmp.Diff(slices.Concat(loaders, c.want), got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", c.what, err, diff)
		}
	}
	for way, want := range map[string]bool{wayLoader: false, wayCopy: true, "Holdfast slot b": true, "": false, "UEFI Misc Device": false} {
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

// With the power going at every write: what was started is never touched, and the
// next try ends it.
func TestHeal(t *testing.T) {
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
			a: one.root, first: wrong, copy: loader[:len(loader)/2], faults: "is what was signed; a stick"},
		{name: "both loaders are damaged in the same place, and a UKI", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": flip(one.uki), "holdfast-b+0.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki},
			a: one.root, b: one.root, first: wrong, copy: wrong, said: "the boot image of slot a was written anew", faults: "is what was signed; a stick"},
		{name: "the slot that was started is gone", way: "Holdfast slot b", running: A,
			files: map[string]string{"holdfast-a.efi": one.uki}, want: map[string]string{"holdfast-a.efi": one.uki},
			a: one.root, first: loader, copy: loader, becomes: loader, faults: "has no UKI"},
	} {
		t.Run(c.name, func(t *testing.T) {
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
					heal := func() ([]string, error) {
						h := &healer{Slots: s, esp: esp, root: func(slot Slot) (device, error) { return roots[slot], nil }}
						err := h.heal(t.Context(), c.way)
						return h.said, err
					}
					said, err := heal()
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
						_, err = heal()
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
