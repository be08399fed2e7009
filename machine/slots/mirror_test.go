package slots

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// With the power going at every write: what can be booted is whole at each
// instant, the running slot is never touched, and the next try ends it.
func TestMirror(t *testing.T) {
	key, cert := signer(t)
	one, two := makeOS(t, key, cert, "1.1"), makeOS(t, key, cert, "1.2")
	const room = 4 << 20
	sized := func(root []byte) []byte { return append(slices.Clone(root), make([]byte, room-len(root))...) }
	for _, c := range []struct {
		name string
		esp  map[string]string
		b    []byte
		cuts int
	}{
		{"an empty slot", map[string]string{"holdfast-a.efi": one.uki}, nil, 8},
		{"an OS that was sent back", map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0-3.efi": two.uki}, two.root, 8},
		{"a damaged copy", map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": one.uki}, []byte(flip(string(one.root))), 2},
		{"a copy with a damaged UKI", map[string]string{"holdfast-a.efi": one.uki, "holdfast-b+0.efi": flip(one.uki)}, one.root, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			cuts := 0
			for left, done := 0, false; !done; left++ {
				masks := 1
				for mask := 0; mask < masks; mask++ {
					d := newFAT(c.esp)
					d.left = left
					roots := map[Slot]*memory{A: {sized(one.root), d}, B: {sized(c.b), d}}
					s := &Slots{Config: Config{ESP: "/efi", Slot: A}, disk: d, inspect: inspect}
					mirror := func() error {
						return s.mirror(context.Background(), func(slot Slot) (device, error) { return roots[slot], nil })
					}
					whole := func(when string) {
						t.Helper()
						entries, err := s.Entries()
						if err != nil || !slices.ContainsFunc(entries, func(e Entry) bool { return e.Slot == A && !e.Count.Counted }) {
							t.Fatalf("cut at %d, arrived %b, %s: entries %+v, %v", left, mask, when, entries, err)
						}
						for _, e := range entries {
							text, err := (&repair{Slots: s}).whole(e.File)
							if err != nil || string(text) != one.uki && string(text) != two.uki && string(text) != c.esp[e.File] {
								t.Errorf("cut at %d, arrived %b, %s: %s is half a UKI, %v", left, mask, when, e.File, err)
							}
							// What was sound before stays so, until it is no entry any more.
							if err := verity.Check(roots[e.Slot], e.Verity); err != nil && (e.Slot == A || !bytes.Equal(roots[B].data, sized(c.b))) {
								t.Errorf("cut at %d, arrived %b, %s: %s can be booted: %v", left, mask, when, e.File, err)
							}
						}
					}
					err := mirror()
					if err != nil {
						if !errors.Is(err, errPower) {
							t.Fatalf("cut at %d: %v", left, err)
						}
						cuts++
						masks = 1 << len(d.pending)
						d.reboot(mask)
						whole("after it")
						if err := s.Clean(""); err != nil {
							t.Fatal(err)
						}
						whole("cleaned")
						if err := mirror(); err != nil {
							t.Fatalf("cut at %d, arrived %b: once more: %v", left, mask, err)
						}
					} else {
						done = true
					}
					whole("done")
					e, ok, err := s.Entry(B)
					if err != nil || !ok || e.File != "holdfast-b+0.efi" || e.Verity != one.v || !bytes.Equal(roots[B].data[:len(one.root)], one.root) {
						t.Errorf("cut at %d, arrived %b: slot b has %+v, %t, %v", left, mask, e, ok, err)
					}
				}
			}
			if cuts < c.cuts {
				t.Errorf("only %d cuts were tried", cuts)
			}
		})
	}
}

// The root that runs was booted by the other slot's UKI, whose own root is damaged.
func TestMirrorUnderTheOthersUKI(t *testing.T) {
	key, cert := signer(t)
	one := makeOS(t, key, cert, "1.1")
	d := newFAT(map[string]string{"holdfast-a.efi": one.uki})
	roots := map[Slot]*memory{A: {[]byte(flip(string(one.root))), d}, B: {slices.Clone(one.root), d}}
	s := &Slots{Config: Config{ESP: "/efi", Slot: B}, disk: d, inspect: inspect}
	if err := s.mirror(t.Context(), func(slot Slot) (device, error) { return roots[slot], nil }); err != nil {
		t.Fatal(err)
	}
	if names, err := d.list(); err != nil || !slices.Equal(names, []string{"holdfast-a.efi"}) {
		t.Errorf("the ESP has %q, %v", names, err)
	}
	if !bytes.Equal(roots[A].data, one.root) || !bytes.Equal(roots[B].data, one.root) {
		t.Error("the roots are not both whole")
	}
}

func TestMirrorRefuses(t *testing.T) {
	key, cert := signer(t)
	one, two := makeOS(t, key, cert, "1.1"), makeOS(t, key, cert, "1.2")
	for _, c := range []struct {
		name string
		esp  map[string]string
		a    []byte
		want error
	}{
		{"a damaged root", map[string]string{"holdfast-a.efi": one.uki}, []byte(flip(string(one.root))), ErrContent},
		{"a damaged UKI", map[string]string{"holdfast-a.efi": flip(one.uki)}, one.root, ErrContent},
		{"no UKI of what runs", map[string]string{}, one.root, ErrContent},
		{"an OS on trial", map[string]string{"holdfast-a+2-1.efi": one.uki}, one.root, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.esp["holdfast-b.efi"] = two.uki
			d := newFAT(c.esp)
			d.left = -1
			roots := map[Slot]*memory{A: {slices.Clone(c.a), d}, B: {slices.Clone(two.root), d}}
			s := &Slots{Config: Config{ESP: "/efi", Slot: A}, disk: d, inspect: inspect}
			err := s.mirror(t.Context(), func(slot Slot) (device, error) { return roots[slot], nil })
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if e, ok, err := s.Entry(B); err != nil || !ok || e.Verity != two.v || !bytes.Equal(roots[B].data, two.root) {
				t.Errorf("slot b was touched: %+v, %t, %v", e, ok, err)
			}
		})
	}
}
