//go:build linux

package etcdcopy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/holdfast-edge/holdfast/internal/durable"
)

var taken = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func note() Note { return Note{Taken: taken, Minor: "1.36", Version: "1.4.0"} }

// etcd lays out a folder as etcd leaves it, each file filled from mark.
func etcd(t *testing.T, dir, mark string, at time.Time) {
	t.Helper()
	must(t, os.RemoveAll(dir))
	write(t, dir, mark, at)
}

func write(t *testing.T, dir, mark string, at time.Time) {
	t.Helper()
	log := make([]byte, 300<<10) // mostly zeros, as a preallocated segment
	copy(log, "log "+mark)
	copy(log[200<<10:], mark)
	for name, data := range map[string][]byte{
		"snap/db": bytes.Repeat([]byte("db "+mark), 5000), "snap/0000000000000002-0000000000000010.snap": []byte("snapshot " + mark),
		"wal/0000000000000000-0000000000000000.wal": log, "wal/0.tmp": make([]byte, 1000),
	} {
		file := filepath.Join(dir, member, name)
		must(t, os.MkdirAll(filepath.Dir(file), 0o700))
		must(t, os.WriteFile(file, data, 0o600))
		must(t, os.Chtimes(file, at, at))
	}
}

// content is every file below dir/member, but for segments that etcd makes anew.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(filepath.Join(dir, member), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, ".tmp") || e.Name() == label {
			return err
		}
		data, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		all[rel] = string(data)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	must(t, err)
	return all
}

func expect(t *testing.T, dir, mark string) map[string]string {
	t.Helper()
	model := filepath.Join(t.TempDir(), "model")
	etcd(t, model, mark, taken)
	return content(t, model)
}

func same(t *testing.T, what, dir string, want map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, content(t, dir)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func folders(t *testing.T) (dir, to string) {
	state := t.TempDir()
	return filepath.Join(state, "etcd"), filepath.Join(state, "etcd-before")
}

func TestTakeAndRestore(t *testing.T) {
	dir, to := folders(t)
	etcd(t, dir, "old", taken)
	if _, err := Find(to); !errors.Is(err, ErrNone) {
		t.Errorf("find before: %v, want ErrNone", err)
	}
	if _, err := Restore(dir, to); !errors.Is(err, ErrNone) {
		t.Errorf("restore without a copy: %v, want ErrNone", err)
	}
	must(t, Take(dir, to, note()))
	n, err := Find(to)
	must(t, err)
	if n.Minor != "1.36" || len(n.Files) != 3 {
		t.Errorf("note %+v, want three files of 1.36", n)
	}
	same(t, "the copy", to, expect(t, dir, "old"))
	same(t, "the data", dir, expect(t, dir, "old"))

	write(t, dir, "new", taken.Add(90*time.Second))
	want := Loss{From: taken, To: taken.Add(90 * time.Second), Minor: "1.36", Version: "1.4.0", Newer: filepath.Join(to, member)}
	for range 2 { // the second is the one after a power cut
		loss, err := Restore(dir, to)
		must(t, err)
		loss.To = loss.To.UTC()
		if loss != want {
			t.Errorf("loss %+v, want %+v", loss, want)
		}
		same(t, "the data put back", dir, expect(t, dir, "old"))
		same(t, "the newer data", to, expect(t, dir, "new"))
	}
	for _, word := range []string{"2026-11-22T12:00:00Z", "2026-11-22T12:01:30Z", "1m30s", "is lost", want.Newer} {
		if !strings.Contains(want.String(), word) {
			t.Errorf("%q does not say %s", want, word)
		}
	}
	write(t, dir, "after", taken.Add(time.Hour))
	if _, err := Restore(dir, to); err != nil {
		t.Fatal(err)
	}
	same(t, "the data that runs again", dir, expect(t, dir, "after"))

	must(t, Discard(dir, to))
	if _, err := Restore(dir, to); !errors.Is(err, ErrNone) {
		t.Errorf("restore after discard: %v, want ErrNone", err)
	}
	same(t, "the data after discard", dir, expect(t, dir, "after"))
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(left) != 1 {
		t.Errorf("after discard there are %q, want etcd's folder alone", left)
	}
	must(t, Discard(dir, to))

	// A second trial after a first that was put back and never discarded.
	must(t, Take(dir, to, note()))
	write(t, dir, "newer", taken)
	_, err = Restore(dir, to)
	must(t, err)
	must(t, Take(dir, to, note()))
	write(t, dir, "newest", taken)
	_, err = Restore(dir, to)
	must(t, err)
	same(t, "the second time", dir, expect(t, dir, "after"))
}

func TestRestoreWhereNothingIs(t *testing.T) {
	dir, to := folders(t)
	etcd(t, dir, "old", taken)
	must(t, Take(dir, to, note()))
	must(t, os.RemoveAll(filepath.Join(dir, member)))
	loss, err := Restore(dir, to)
	must(t, err)
	if !strings.Contains(loss.String(), "nothing was written after it") {
		t.Errorf("loss %s", loss)
	}
	same(t, "the data", dir, expect(t, dir, "old"))
}

// While etcd has its database open, neither works.
func TestRunning(t *testing.T) {
	dir, to := folders(t)
	etcd(t, dir, "old", taken)
	lock := func() *os.File {
		f, err := os.OpenFile(filepath.Join(dir, member, "snap/db"), os.O_RDWR, 0)
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		return f
	}
	f := lock()
	if err := Take(dir, to, note()); !errors.Is(err, ErrRuns) {
		t.Errorf("take: %v, want ErrRuns", err)
	}
	f.Close()
	must(t, Take(dir, to, note()))
	defer lock().Close()
	if _, err := Restore(dir, to); !errors.Is(err, ErrRuns) {
		t.Errorf("restore: %v, want ErrRuns", err)
	}
}

// A copy that is not what was taken is refused, and nothing is touched.
func TestDamage(t *testing.T) {
	edit := func(change func(*Note)) func(t *testing.T, copied string) {
		return func(t *testing.T, copied string) {
			var n Note
			must(t, durable.ReadJSON(filepath.Join(copied, label), &n))
			change(&n)
			must(t, durable.WriteJSON(filepath.Join(copied, label), n, 0o600))
		}
	}
	for name, spoil := range map[string]func(t *testing.T, copied string){
		"a bit":           func(t *testing.T, c string) { flip(t, filepath.Join(c, "snap/db")) },
		"cut":             func(t *testing.T, c string) { must(t, os.Truncate(filepath.Join(c, "snap/db"), 17)) },
		"missing":         func(t *testing.T, c string) { must(t, os.RemoveAll(filepath.Join(c, "wal"))) },
		"label cut":       func(t *testing.T, c string) { must(t, os.Truncate(filepath.Join(c, label), 40)) },
		"label empty":     func(t *testing.T, c string) { must(t, os.Truncate(filepath.Join(c, label), 0)) },
		"another format":  edit(func(n *Note) { n.Format = 2 }),
		"no files":        edit(func(n *Note) { n.Files = nil }),
		"a path to leave": edit(func(n *Note) { n.Files[0].Path = "../../../etcd/member/snap/db" }),
	} {
		t.Run(name, func(t *testing.T) {
			dir, to := folders(t)
			etcd(t, dir, "old", taken)
			must(t, Take(dir, to, note()))
			write(t, dir, "new", taken)
			spoil(t, filepath.Join(to, member))
			if _, err := Restore(dir, to); !errors.Is(err, ErrDamaged) {
				t.Errorf("restore: %v, want ErrDamaged", err)
			}
			same(t, "the data", dir, expect(t, dir, "new"))
		})
	}
	t.Run("a link", func(t *testing.T) {
		dir, to := folders(t)
		etcd(t, dir, "old", taken)
		must(t, os.Symlink("/", filepath.Join(dir, member, "snap/root")))
		if err := Take(dir, to, note()); err == nil || !strings.Contains(err.Error(), "neither file nor folder") {
			t.Errorf("take: %v", err)
		}
		if _, err := os.Stat(to + ".part"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("an unfinished copy stays: %v", err)
		}
	})
}

func flip(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	must(t, err)
	data[len(data)/2] ^= 1
	must(t, os.WriteFile(file, data, 0o600))
}

var errCut = errors.New("power cut")

// cut lets n steps happen and none after.
func cut(n int) (disk, *[]string) {
	var seen []string
	return disk{step: func(what string) error {
		if len(seen) == n {
			return errCut
		}
		seen = append(seen, what)
		return nil
	}}, &seen
}

// The power fails before and after each change of each operation. Whatever was the
// last, etcd's folder is whole, a copy is complete or none, and doing it again
// ends as if nothing had been.
func TestPowerCuts(t *testing.T) {
	var order []string
	for n := 0; ; n++ {
		dir, to := folders(t)
		etcd(t, dir, "older", taken)
		must(t, Take(dir, to, note()))
		etcd(t, dir, "old", taken)
		d, seen := cut(n)
		err := d.take(dir, to, note())
		same(t, "the data while it is copied", dir, expect(t, dir, "old"))
		switch found, ferr := Find(to); {
		case ferr == nil:
			if verr := verify(filepath.Join(to, member), found); verr != nil {
				t.Errorf("cut after %q: a copy is found and is not whole: %v", (*seen)[len(*seen)-1], verr)
			}
		case !errors.Is(ferr, ErrNone):
			t.Errorf("find after a cut: %v", ferr)
		}
		if err == nil {
			order = *seen
			break
		}
		must(t, Take(dir, to, note()))
		same(t, "the copy taken again", to, expect(t, dir, "old"))
	}
	flushed(t, order)

	for n := 0; ; n++ {
		dir, to := folders(t)
		etcd(t, dir, "old", taken)
		must(t, Take(dir, to, note()))
		write(t, dir, "new", taken.Add(time.Minute))
		d, seen := cut(n)
		_, err := d.restore(dir, to)
		// etcd may be started by whoever was cut: it finds the one or the other.
		got := content(t, dir)
		if !cmp.Equal(got, expect(t, dir, "old")) && !cmp.Equal(got, expect(t, dir, "new")) {
			t.Fatalf("cut after %q: etcd's folder is neither old nor new", *seen)
		}
		if err == nil {
			break
		}
		loss, err := Restore(dir, to)
		must(t, err)
		if loss.To.Sub(loss.From) != time.Minute {
			t.Errorf("cut after %q: loss %+v, want a minute", *seen, loss)
		}
		same(t, "the data put back", dir, expect(t, dir, "old"))
	}

	for n := 0; ; n++ {
		dir, to := folders(t)
		etcd(t, dir, "old", taken)
		must(t, Take(dir, to, note()))
		write(t, dir, "new", taken)
		_, err := Restore(dir, to)
		must(t, err)
		d, seen := cut(n)
		err = d.discard(dir, to)
		same(t, "the data while the copy goes", dir, expect(t, dir, "old"))
		if err == nil {
			break
		}
		if _, rerr := Restore(dir, to); rerr != nil && !errors.Is(rerr, ErrNone) {
			t.Errorf("cut after %q: restore: %v", *seen, rerr)
		}
		same(t, "the data after a cut", dir, expect(t, dir, "old"))
		must(t, Discard(dir, to))
	}
}

// flushed wants each file on disk before the label, and the label before the name.
func flushed(t *testing.T, order []string) {
	t.Helper()
	at := map[string]int{}
	for i, what := range order {
		at[what] = i
	}
	for _, f := range []string{"db", "0000000000000002-0000000000000010.snap", "0000000000000000-0000000000000000.wal", "snap", "wal"} {
		if i, ok := at["after sync "+f]; !ok || i > at["before label"] {
			t.Errorf("%s is not flushed before the label is written: %q", f, order)
		}
	}
	if at["after label"] > at["before publish"] || at["after publish"] > at["before sync parent"] {
		t.Errorf("published too early: %q", order)
	}
}

func TestNoRoom(t *testing.T) {
	dir, to := folders(t)
	etcd(t, dir, "old", taken)
	must(t, os.MkdirAll(to, 0o700))
	err := room(filepath.Join(dir, member), to, []string{"snap/db"}, 1<<60)
	var st unix.Statfs_t
	must(t, unix.Statfs(to, &st))
	if st.Type != unix.BTRFS_SUPER_MAGIC && st.Type != unix.XFS_SUPER_MAGIC && !errors.Is(err, ErrNoRoom) {
		t.Errorf("room for an exbibyte: %v, want ErrNoRoom", err)
	}
}

func FuzzNote(f *testing.F) {
	good, err := json.Marshal(Note{Format: format, Taken: taken, Files: []File{{Path: "snap/db", Size: 1, SHA256: "00"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, label), data, 0o600))
		n, err := readNote(dir)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("%v is not ErrDamaged", err)
			}
			return
		}
		if err := verify(dir, n); err == nil {
			t.Errorf("%+v was found whole in an empty folder", n)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
