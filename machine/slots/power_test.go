package slots

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// The power goes during every operation on the ESP, and of what was not synced
// every part reaches the disk or not. Each time the loader finds an entry that
// may be booted, and the same steps made again end where they would have.
func TestPowerCuts(t *testing.T) {
	stage := func(version string) func(*Slots) error {
		return func(s *Slots) error {
			if err := s.Discard(s.Idle()); err != nil {
				return err
			}
			text := uki(version)
			if _, err := s.WriteUKI(context.Background(), s.Idle(), strings.NewReader(text), int64(len(text)), sha256.Sum256([]byte(text))); err != nil {
				return err
			}
			return s.Arm(s.Idle())
		}
	}
	tests := []struct {
		name    string
		files   map[string]string
		running Slot
		do      func(*Slots) error
		first   []string // versions that may be first at a cut
		present string   // slot:version that must be bootable at each cut
		want    []string // files at the end, the loader's first one first
	}{
		{"Upgrade", map[string]string{"holdfast-a.efi": uki("1.0")}, A, stage("1.1"), []string{"1.0", "1.1"}, "a:1.0",
			[]string{"holdfast-b+3.efi", "holdfast-a.efi"}},
		{"UpgradeOverAnOldSlot", map[string]string{"holdfast-a.efi": uki("0.9"), "holdfast-b.efi": uki("1.0")}, B, stage("1.1"), []string{"1.0", "1.1"}, "b:1.0",
			[]string{"holdfast-a+3.efi", "holdfast-b.efi"}},
		{"UpgradeOverACondemnedSlot", map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+0-3.efi": uki("1.2")}, A, stage("1.3"), []string{"1.0", "1.3"}, "a:1.0",
			[]string{"holdfast-b+3.efi", "holdfast-a.efi"}},
		{"Downgrade", map[string]string{"holdfast-a.efi": uki("1.2")}, A, stage("1.1"), []string{"1.1", "1.2"}, "a:1.2",
			[]string{"holdfast-b+3.efi", "holdfast-a+0.efi"}},
		{"DowngradeFromB", map[string]string{"holdfast-b.efi": uki("1.2"), "holdfast-a+0-4.efi": uki("1.3")}, B, stage("1.1"), []string{"1.1", "1.2"}, "b:1.2",
			[]string{"holdfast-a+3.efi", "holdfast-b+0.efi"}},
		{"SameVersion", map[string]string{"holdfast-b.efi": uki("1.2")}, B, stage("1.2"), []string{"1.2"}, "b:1.2",
			[]string{"holdfast-a+3.efi", "holdfast-b+0.efi"}},
		{"Bless", map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+2-1.efi": uki("1.1")}, B, (*Slots).Bless, []string{"1.1"}, "a:1.0",
			[]string{"holdfast-b.efi", "holdfast-a.efi"}},
		{"BlessADowngrade", map[string]string{"holdfast-a+0.efi": uki("1.2"), "holdfast-b+2-1.efi": uki("1.1")}, B, (*Slots).Bless, []string{"1.1"}, "b:1.1",
			[]string{"holdfast-b.efi", "holdfast-a+0.efi"}},
		{"Rearm", map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+2-1.efi": uki("1.1")}, B, (*Slots).Rearm, []string{"1.1"}, "b:1.1",
			[]string{"holdfast-b+3.efi", "holdfast-a.efi"}},
		{"Condemn", map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+2-1.efi": uki("1.1")}, B, func(s *Slots) error { return s.Condemn(B) }, []string{"1.0", "1.1"}, "a:1.0",
			[]string{"holdfast-a.efi", "holdfast-b+0.efi"}},
		{"RestoreAfterADowngrade", map[string]string{"holdfast-a+0-1.efi": uki("1.2"), "holdfast-b+0-1.efi": uki("1.1")}, A, (*Slots).Bless, []string{"1.2"}, "a:1.2",
			[]string{"holdfast-a.efi", "holdfast-b+0-1.efi"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cuts := 0
			for left := 0; ; left++ {
				for mask := 0; ; mask++ {
					d := newFAT(tt.files)
					d.left = left
					s := on(d, tt.running)
					err := tt.do(s)
					if err == nil && mask == 0 {
						check(t, d, s, tt.want)
						if cuts < 3 {
							t.Fatalf("only %d cuts were tried", cuts)
						}
						return
					}
					if !errors.Is(err, errPower) {
						t.Fatalf("cut at %d: %v", left, err)
					}
					if mask >= 1<<len(d.pending) {
						break
					}
					cuts++
					what := fmt.Sprintf("cut at %d, arrived %b", left, mask)
					d.reboot(mask)
					bootable(t, what, s, tt.first, tt.present)
					if err := s.Clean(tt.running.Other()); err != nil {
						t.Fatalf("%s: clean: %v", what, err)
					}
					bootable(t, what+", cleaned", s, tt.first, tt.present)
					if err := tt.do(s); err != nil && !isArmed(s, tt.want) {
						t.Fatalf("%s: again: %v", what, err)
					}
					check(t, d, s, tt.want)
				}
			}
		})
	}
}

// isArmed: the step had been made whole before the cut.
func isArmed(s *Slots, want []string) bool {
	entries, err := s.Entries()
	return err == nil && len(entries) > 0 && entries[0].File == want[0]
}

func bootable(t *testing.T, what string, s *Slots, first []string, present string) {
	t.Helper()
	entries, err := s.Entries()
	if err != nil || len(entries) == 0 {
		t.Fatalf("%s: nothing to boot (%v)", what, err)
	}
	if !slices.Contains(first, entries[0].Version) {
		t.Fatalf("%s: the loader boots %s of %s, want one of %q", what, entries[0].Version, entries[0].File, first)
	}
	if !slices.ContainsFunc(entries, func(e Entry) bool { return string(e.Slot)+":"+e.Version == present }) {
		t.Fatalf("%s: %s is gone; there are %v", what, present, entries)
	}
}

func check(t *testing.T, d *fat, s *Slots, want []string) {
	t.Helper()
	entries, err := s.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.File)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the loader sees %q, want %q", got, want)
	}
	if all := slices.Sorted(maps.Keys(d.now)); len(all) != len(want) {
		t.Fatalf("left behind: %q", all)
	}
}

// A rename that the power cut in two, and then a second cut while that is mended:
// at worst the new slot is lost, and the old one is there.
func TestUntieSurvivesPowerCuts(t *testing.T) {
	for left := 0; ; left++ {
		for mask := 0; ; mask++ {
			d := newFAT(map[string]string{"holdfast-a.efi": uki("1.0"), "holdfast-b+3.efi": uki("1.1")})
			d.now["holdfast-b.new"] = d.now["holdfast-b+3.efi"] // a rename that the power cut in two
			d.disk = maps.Clone(d.now)
			d.left = left
			s := on(d, A)
			err := s.Clean(B)
			if err == nil && mask == 0 {
				d.left = -1
				if d.write("other", strings.NewReader("x")) != nil {
					t.Fatal("write")
				}
				bootable(t, "cleaned", s, []string{"1.1"}, "b:1.1")
				return
			}
			if mask >= 1<<len(d.pending) {
				break
			}
			d.reboot(mask)
			what := fmt.Sprintf("cut at %d, arrived %b", left, mask)
			bootable(t, what, s, []string{"1.1"}, "a:1.0")
			if err := s.Clean(B); err != nil {
				t.Fatal(err)
			}
			if d.write("other", strings.NewReader("x")) != nil {
				t.Fatal("write")
			}
			bootable(t, what+", cleaned", s, []string{"1.0", "1.1"}, "a:1.0")
		}
	}
}

// What the loader does with what we arm: three tries, then the old slot.
func TestTriesRunOut(t *testing.T) {
	for _, version := range []string{"1.1", "0.9"} { // newer and older than what runs
		t.Run(version, func(t *testing.T) {
			d := newFAT(map[string]string{"holdfast-a.efi": uki("1.0")})
			s := on(d, A)
			text := uki(version)
			if _, err := s.WriteUKI(t.Context(), B, strings.NewReader(text), int64(len(text)), sha256.Sum256([]byte(text))); err != nil {
				t.Fatal(err)
			}
			if err := s.Arm(B); err != nil {
				t.Fatal(err)
			}
			for try := range Tries {
				if e, err := d.boot(s); err != nil || e.Version != version || e.Count.Left != Tries-1-try {
					t.Fatalf("try %d boots %+v, %v", try, e, err)
				}
			}
			for range 3 {
				if e, err := d.boot(s); err != nil || e.Version != "1.0" {
					t.Fatalf("after the tries boots %+v, %v; want the old one", e, err)
				}
			}
		})
	}
}
