package durable

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var errInjected = errors.New("injected")

// faulty lets the n-th step fail: before it does anything, or (persisted) after it was done.
type faulty struct {
	n         int
	persisted bool
	step      int
	name      string // of the step that failed
}

func (f *faulty) do(name string, step func() error) error {
	f.step++
	if f.step != f.n {
		return step()
	}
	f.name = name
	if f.persisted {
		_ = step()
	}
	return errInjected
}

type faultyFile struct {
	*os.File
	f *faulty
}

func (t faultyFile) Write(b []byte) (n int, err error) {
	err = t.f.do("write", func() error {
		n, err = t.File.Write(b)
		return err
	})
	if err == errInjected && !t.f.persisted {
		n, _ = t.File.Write(b[:len(b)/2]) // a full disk: half of it went in
	}
	return n, err
}
func (t faultyFile) Sync() error { return t.f.do("sync", t.File.Sync) }
func (t faultyFile) Chmod(m fs.FileMode) error {
	return t.f.do("chmod", func() error { return t.File.Chmod(m) })
}
func (t faultyFile) Close() error {
	err := t.f.do("close", t.File.Close)
	if err == errInjected {
		_ = t.File.Close()
	}
	return err
}

func (f *faulty) system() system {
	return system{
		create: func(dir, pattern string) (file, error) {
			var tmp *os.File
			err := f.do("create", func() (err error) { tmp, err = os.CreateTemp(dir, pattern); return err })
			if err != nil {
				return nil, err
			}
			return faultyFile{tmp, f}, nil
		},
		rename:   func(a, b string) error { return f.do("rename", func() error { return os.Rename(a, b) }) },
		remove:   func(p string) error { return f.do("remove", func() error { return os.Remove(p) }) },
		syncFile: func(p string) error { return f.do("syncFile", func() error { return flush(p) }) },
		syncDir:  func(d string) error { return f.do("syncDir", func() error { return flush(d) }) },
	}
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// Every step fails once, without and with effect: the reader finds old or new, whole, and after Clean nothing else is there.
func TestWriteFileEachStepFails(t *testing.T) {
	old, fresh := bytes.Repeat([]byte("old "), 1000), bytes.Repeat([]byte("fresh "), 1000)
	var seen []string
	for _, persisted := range []bool{false, true} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "state.json")
			if err := WriteFile(path, old, 0o600); err != nil {
				t.Fatal(err)
			}
			f := &faulty{n: n, persisted: persisted}
			err := f.system().writeFile(path, fresh, 0o600)
			if f.name == "" { // n is past the last step
				if err != nil {
					t.Fatalf("no fault: %v", err)
				}
				break
			}
			if !errors.Is(err, errInjected) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: got error %v, want the fault with the path", f.name, err)
			}
			got, err := os.ReadFile(path)
			if err != nil || (!bytes.Equal(got, old) && !bytes.Equal(got, fresh)) {
				t.Errorf("%s (persisted %v): file has %d bytes, %v; want old or new whole", f.name, persisted, len(got), err)
			}
			if err := Clean(dir); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"state.json"}, names(t, dir)); diff != "" {
				t.Errorf("%s: left in the folder (-want +got):\n%s", f.name, diff)
			}
			if err := WriteFile(path, fresh, 0o600); err != nil {
				t.Errorf("%s: the next write: %v", f.name, err)
			}
			if !persisted {
				seen = append(seen, f.name)
			}
		}
	}
	want := []string{"create", "write", "chmod", "sync", "close", "rename", "syncFile", "syncDir"}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	for _, content := range []string{"one", "", "three"} {
		if err := WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("got %q, %v; want %q", got, err, content)
		}
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600 whatever the umask says", st.Mode(), err)
	}
	if err := WriteFile(filepath.Join(dir, "no", "such"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: got %v, want fs.ErrNotExist", err)
	}
	t.Chdir(dir)
	if err := WriteFile("bare", []byte("x"), 0o644); err != nil {
		t.Errorf("name without folder: %v", err)
	}
}

func TestClean(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{".a" + mark + "123", ".b.json" + mark + "9", "a", ".hidden", "x" + mark + "not-ours"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, ".gone"+mark+"1", "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Clean(dir); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{".hidden", "a", "x" + mark + "not-ours"}, names(t, dir)); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
	if err := Clean(filepath.Join(dir, "none")); err != nil {
		t.Errorf("no folder: %v", err)
	}
}

func TestJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "v.json")
	type doc struct{ N int }
	var got doc
	if err := ReadJSON(path, &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: got %v, want fs.ErrNotExist", err)
	}
	if err := WriteJSON(path, doc{7}, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(path, &got); err != nil || got.N != 7 {
		t.Errorf("got %v, %v", got, err)
	}
	for name, bad := range map[string]string{"unknown key": `{"N":1,"M":2}`, "tail": `{"N":1} {}`, "half": `{"N":`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ReadJSON(path, &got); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error with the path", name, err)
		}
	}
}

// A folder is there whole or not at all, whichever step fails.
func TestRemoveAllEachStepFails(t *testing.T) {
	for _, persisted := range []bool{false, true} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			path := filepath.Join(dir, "machine")
			if err := MkdirAll(filepath.Join(path, "a", "b"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := WriteFile(filepath.Join(path, "a", "f"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			f := &faulty{n: n, persisted: persisted}
			err := f.system().removeAll(path)
			if f.name == "" {
				if err != nil {
					t.Fatalf("no fault: %v", err)
				}
				if left := names(t, dir); len(left) != 0 {
					t.Errorf("left %v", left)
				}
				break
			}
			if _, err := os.Stat(path); err == nil {
				if _, err := os.Stat(filepath.Join(path, "a", "f")); err != nil {
					t.Errorf("%s: folder is there but not whole: %v", f.name, err)
				}
			}
			if err := Clean(dir); err != nil {
				t.Fatal(err)
			}
			if err := RemoveAll(path); err != nil {
				t.Errorf("%s: again: %v", f.name, err)
			}
			if left := names(t, dir); len(left) != 0 {
				t.Errorf("%s: left %v", f.name, left)
			}
		}
	}
	if err := RemoveAll(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("not there: %v", err)
	}
}

func TestMkdirAllOverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MkdirAll(path, 0o700); err == nil {
		t.Error("got nil, want an error: a file stands there")
	}
}
