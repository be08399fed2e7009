package box

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/holdfast-edge/holdfast/link"
)

func mustOpen(t *testing.T, dir string) Box {
	t.Helper()
	b, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFolderKeepsItsKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "tpm")
	first, again := mustOpen(t, dir), mustOpen(t, dir)
	key, ok := first.Signer().Public().(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		t.Fatalf("identity key is %T", first.Signer().Public())
	}
	if !key.Equal(again.Signer().Public()) {
		t.Error("another identity after opening again")
	}
	if first.Recipient().String() != again.Recipient().String() {
		t.Error("another recipient after opening again")
	}
	if first.Protection() != ProtectionNone {
		t.Errorf("a folder protects by %q", first.Protection())
	}
	for _, name := range []string{"identity.key", "recipient.key"} { // the names of machines that exist
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %s", info.Mode())
	}
}

// What earlier versions wrote is read: keys as files, notes as files.
func TestFolderOfAnEarlierVersion(t *testing.T) {
	dir := t.TempDir()
	key, err := link.LoadOrCreateKey(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "recipient.key"), id.String()+"\n")
	put(t, filepath.Join(dir, "anchor.json"), "{}\n")
	put(t, filepath.Join(dir, "trust-0123456789ab.yaml"), strings.Repeat("not a note ", 1000))
	b := mustOpen(t, dir)
	if !key.Public().(*ecdsa.PublicKey).Equal(b.Signer().Public()) || b.Recipient().String() != id.String() {
		t.Error("other keys than the folder holds")
	}
	if note, err := b.ReadNote("anchor.json"); err != nil || string(note) != "{}\n" {
		t.Errorf("got %q, %v", note, err)
	}
	if err := b.WriteNote("applied.json", []byte("{}")); err != nil {
		t.Errorf("what is no note was counted: %v", err)
	}
}

// A machine that had no disk keeps its name once it has one, whenever the power
// goes meanwhile; one that comes back to its own disk keeps that one's.
func TestFolderFromAStandIn(t *testing.T) {
	standIn := filepath.Join(t.TempDir(), "run")
	if err := mustOpen(t, standIn).WriteNote("anchor.json", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	name := func(b Box) string {
		note, _ := b.ReadNote("anchor.json")
		return fmt.Sprint(b.Signer().Public(), b.Recipient(), string(note))
	}
	want := name(mustOpen(t, standIn))
	errCut := errors.New("the power is gone")
	for cuts := 0; ; cuts++ {
		dir, left := filepath.Join(t.TempDir(), "box"), cuts
		cutting := onDisk
		cutting.write = func(path string, data []byte, perm fs.FileMode) error {
			if left--; left < 0 {
				return errCut
			}
			return onDisk.write(path, data, perm)
		}
		b, err := openFolderFrom(standIn, dir, cutting)
		if err == nil && cuts < 3 || err != nil && !errors.Is(err, errCut) {
			t.Fatalf("cut %d: %v", cuts, err)
		}
		again, failed := OpenFolderFrom(standIn, dir)
		if failed != nil || name(again) != want || err == nil && name(b) != want {
			t.Fatalf("cut %d: another box, %v", cuts, failed)
		}
		if err == nil {
			break
		}
	}
	own := t.TempDir()
	want = name(mustOpen(t, own))
	if b, err := OpenFolderFrom(standIn, own); err != nil || name(b) != want {
		t.Errorf("the disk's own box was replaced, %v", err)
	}
	if b, err := OpenFolderFrom(filepath.Join(standIn, "none"), filepath.Join(t.TempDir(), "x")); err != nil || b.Protection() != ProtectionNone {
		t.Errorf("without a stand-in: %v", err)
	}
}

func TestErrDamagedKeys(t *testing.T) {
	for _, name := range []string{"identity.key", "recipient.key"} {
		for what, text := range map[string]string{"empty": "", "garbage": "AGE-SECRET-KEY-1AAAA"} {
			t.Run(name+" "+what, func(t *testing.T) {
				dir := t.TempDir()
				mustOpen(t, dir)
				put(t, filepath.Join(dir, name), text)
				if _, err := OpenFolder(dir); err == nil {
					t.Fatal("taken")
				}
				if now, _ := os.ReadFile(filepath.Join(dir, name)); string(now) != text {
					t.Error("replaced: it may have been the only copy")
				}
			})
		}
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNotes(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	if _, err := b.ReadNote("anchor.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("no note: got %v, want ErrNotExist", err)
	}
	if err := b.RemoveNote("anchor.json"); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
	for _, text := range []string{"one", "", "three"} {
		if err := b.WriteNote("anchor.json", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := mustOpen(t, dir).ReadNote("anchor.json"); err != nil || string(got) != text {
			t.Errorf("got %q, %v; want %q", got, err, text)
		}
	}
	if err := b.RemoveNote("anchor.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadNote("anchor.json"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: got %v", err)
	}
}

func TestErrFull(t *testing.T) {
	b := mustOpen(t, t.TempDir())
	room := MaxNotes - len("a.json")
	if err := b.WriteNote("a.json", bytes.Repeat([]byte{'a'}, room+1)); !errors.Is(err, ErrFull) {
		t.Errorf("one byte too many: got %v", err)
	}
	if err := b.WriteNote("a.json", bytes.Repeat([]byte{'a'}, room)); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteNote("b.json", nil); !errors.Is(err, ErrFull) {
		t.Errorf("a further name: got %v", err)
	}
	if err := b.WriteNote("a.json", bytes.Repeat([]byte{'b'}, room)); err != nil {
		t.Errorf("in its own place: %v", err)
	}
	if err := b.RemoveNote("a.json"); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteNote("b.json", []byte("{}")); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

func TestErrName(t *testing.T) {
	b := mustOpen(t, t.TempDir())
	for _, name := range []string{"", ".json", "a", "identity.key", "../a.json", "a/b.json", "A.json", "a.json.json", "\x00.json", strings.Repeat("a", 40) + ".json"} {
		_, err := b.ReadNote(name)
		for _, err := range []error{err, b.WriteNote(name, nil), b.RemoveNote(name)} {
			if !errors.Is(err, ErrName) {
				t.Errorf("%q: got %v, want ErrName", name, err)
			}
		}
	}
}

// A note that is no plain small file was not written here.
func TestStrangeNote(t *testing.T) {
	dir := t.TempDir()
	b := mustOpen(t, dir)
	path := filepath.Join(dir, "anchor.json")
	for what, prepare := range map[string]func() error{
		"link":   func() error { return os.Symlink("/dev/zero", path) },
		"folder": func() error { return os.Mkdir(path, 0o700) },
		"large":  func() error { return os.WriteFile(path, make([]byte, MaxNotes+1), 0o600) },
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadNote("anchor.json"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v", what, err)
		}
		os.RemoveAll(path)
	}
}

var errPower = errors.New("the power is gone")

// The power goes at every write of a life; each time the folder opens again, with
// the same keys, and each note as it was before the write or after it.
func TestPowerGoesAtEveryWrite(t *testing.T) {
	life := func(b Box, told func(n int)) error {
		for n := range 3 {
			for _, name := range []string{"anchor.json", "applied.json"} {
				if err := b.WriteNote(name, fmt.Append(nil, n)); err != nil {
					return err
				}
			}
			told(n)
		}
		return b.RemoveNote("applied.json")
	}
	for k := 1; ; k++ {
		reached := false
		for _, persisted := range []bool{false, true} {
			dir, left, n := t.TempDir(), k, -1
			blow := func(do func() error) error {
				switch left--; {
				case left > 0:
					return do()
				case left == 0 && persisted:
					do()
				}
				return errPower
			}
			b, err := openFolder(dir, rim{
				write: func(p string, d []byte, m fs.FileMode) error {
					return blow(func() error { return os.WriteFile(p, d, m) })
				},
				remove: func(p string) error { return blow(func() error { return os.Remove(p) }) },
			})
			if err == nil {
				err = life(b, func(done int) { n = done })
			}
			reached = reached || errors.Is(err, errPower)
			// Something unfinished lies about, as a cut write leaves it.
			put(t, filepath.Join(dir, ".anchor.json.durable-123"), "half")
			c := mustOpen(t, dir)
			if b != nil && !b.Signer().Public().(*ecdsa.PublicKey).Equal(c.Signer().Public()) {
				t.Fatalf("write %d: another identity", k)
			}
			for _, name := range []string{"anchor.json", "applied.json"} {
				got, err := c.ReadNote(name)
				gone := errors.Is(err, fs.ErrNotExist) && (n == -1 || n == 2 && name == "applied.json")
				if !gone && (err != nil || string(got) != fmt.Sprint(n) && string(got) != fmt.Sprint(n+1)) {
					t.Fatalf("write %d, persisted %v: %s holds %q (%v) after %d was done", k, persisted, name, got, err, n)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, ".anchor.json.durable-123")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the unfinished write stays: %v", err)
			}
		}
		if !reached {
			if k < 8 {
				t.Fatalf("only %d writes seen: the rim leaks", k-1)
			}
			return
		}
	}
}
