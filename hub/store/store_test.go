package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, l Limits) *Store {
	t.Helper()
	s, err := Open(dir, l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func objects(texts ...string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for _, x := range texts {
			if !yield(Object{ID: sha256.Sum256([]byte(x)), Kind: "blob", Data: []byte(x)}, nil) {
				return
			}
		}
	}
}

func release(n uint64, content string) Release {
	return Release{N: n, Payload: sha256.Sum256([]byte(content)), Tag: []byte(content), Tree: sha256.Sum256([]byte("tree " + content)), TrustVersion: 1, Origin: "push", Received: t0}
}

func TestRelease(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	s := open(t, dir, Limits{})
	if _, err := s.Head(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatalf("head of an empty store: %v, want ErrNotFound", err)
	}
	one := release(1, "one")
	if added, err := s.PutRelease(ctx, one, objects("a", "b", "")); err != nil || !added {
		t.Fatalf("put: %v, %v", added, err)
	}
	if added, err := s.PutRelease(ctx, one, objects("never")); err != nil || added {
		t.Fatalf("put again: %v, %v, want nothing added", added, err)
	}
	missing, err := s.Missing(ctx, []ID{sha256.Sum256([]byte("never")), sha256.Sum256([]byte("a")), sha256.Sum256(nil)})
	if err != nil || len(missing) != 1 || missing[0] != sha256.Sum256([]byte("never")) {
		t.Fatalf("missing = %x, %v", missing, err)
	}

	t.Run("ErrFork", func(t *testing.T) {
		_, err := s.PutRelease(ctx, release(1, "other"), objects("lost"))
		var c *ConflictError
		if !errors.As(err, &c) || c.Old || c.Head.Payload != one.Payload {
			t.Fatalf("err = %v", err)
		}
	})
	if _, err := s.PutRelease(ctx, release(7, "seven"), objects("c")); err != nil {
		t.Fatal(err)
	}
	t.Run("ErrOld", func(t *testing.T) {
		_, err := s.PutRelease(ctx, release(3, "three"), objects("lost"))
		var c *ConflictError
		if !errors.As(err, &c) || !c.Old || c.Head.N != 7 {
			t.Fatalf("err = %v", err)
		}
	})
	t.Run("ErrHalfWay", func(t *testing.T) {
		broken := errors.New("broken off")
		_, err := s.PutRelease(ctx, release(8, "eight"), func(yield func(Object, error) bool) {
			for o := range objects("half") {
				if !yield(o, nil) {
					return
				}
			}
			yield(Object{}, broken)
		})
		if !errors.Is(err, broken) {
			t.Fatalf("err = %v", err)
		}
		if _, _, err := s.Object(sha256.Sum256([]byte("half"))); !errors.Is(err, ErrNotFound) {
			t.Fatalf("half a release was kept: %v", err)
		}
	})

	steps, err := s.TrustSteps(ctx)
	if err != nil || len(steps) != 1 || steps[0].N != 1 {
		t.Errorf("trust steps: %v, %v", steps, err)
	}
	s.Close()
	s = open(t, dir, Limits{})
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(release(7, "seven"), head); d != "" {
		t.Errorf("head after reopening (-want +got):\n%s", d)
	}
	kind, data, err := s.Object(sha256.Sum256(nil))
	if err != nil || kind != "blob" || len(data) != 0 {
		t.Errorf("empty blob: %q %q %v", kind, data, err)
	}
	if _, err := s.Release(ctx, 2); !errors.Is(err, ErrNotFound) {
		t.Errorf("release 2: %v", err)
	}
}

func TestReportHistoryIsBounded(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), Limits{HistoryPerMachine: 3, History: 7})
	for i := range 10 {
		for _, m := range []string{"a", "b", "c"} {
			if err := s.PutReport(ctx, Report{Machine: m, Received: t0.Add(time.Duration(i) * time.Second), Body: fmt.Appendf(nil, "%s%d", m, i)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	last, err := s.LatestReport(ctx, "b")
	if err != nil || string(last.Body) != "b9" || !last.Received.Equal(t0.Add(9*time.Second)) {
		t.Fatalf("latest = %s %v %v", last.Body, last.Received, err)
	}
	h, err := s.History(ctx, "c")
	if err != nil || len(h) != 3 || string(h[0].Body) != "c8" {
		t.Fatalf("history = %v, %v", h, err)
	}
	total := 0
	for _, m := range []string{"a", "b", "c"} {
		h, _ := s.History(ctx, m)
		total += len(h)
	}
	if total > 7 {
		t.Errorf("%d reports kept, want 7 at most", total)
	}
	count := 0
	if err := s.LatestReports(ctx, func(Report) error { count++; return nil }); err != nil || count != 3 {
		t.Errorf("%d latest reports, %v", count, err)
	}
}

func TestMachines(t *testing.T) {
	ctx := context.Background()
	s := open(t, t.TempDir(), Limits{})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Saw(ctx, Sighting{ID: "m", At: t0, Sent: 10, Received: 1}, Sighting{ID: "n", At: t0}))
	must(s.Saw(ctx, Sighting{ID: "m", At: t0.Add(time.Minute), Sent: 5, Received: 2}))
	got, err := s.Machine(ctx, "m")
	must(err)
	want := Machine{ID: "m", FirstSeen: t0, LastSeen: t0.Add(time.Minute), Sent: 15, Received: 3}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("machine (-want +got):\n%s", d)
	}
	if all, err := s.Machines(ctx); err != nil || len(all) != 2 {
		t.Errorf("machines = %v, %v", all, err)
	}
	if _, err := s.Machine(ctx, "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown machine: %v", err)
	}
}

func TestWritersShareFlushes(t *testing.T) {
	s := open(t, t.TempDir(), Limits{})
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			if err := s.PutReport(context.Background(), Report{Machine: fmt.Sprint(i), Received: t0, Body: []byte("x")}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	s.LatestReports(context.Background(), func(Report) error { n++; return nil })
	if n != 400 {
		t.Errorf("%d reports, want 400", n)
	}
}

func TestErrInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Limits{})
	if _, err := Open(dir, Limits{}); !errors.Is(err, ErrInUse) {
		t.Fatalf("second hub in one folder: %v, want ErrInUse", err)
	}
}

func TestErrClosed(t *testing.T) {
	s := open(t, t.TempDir(), Limits{})
	s.Close()
	if err := s.Saw(context.Background(), Sighting{ID: "m", At: t0}); !errors.Is(err, ErrClosed) {
		t.Fatalf("err = %v, want ErrClosed", err)
	}
}

func TestErrNewerSchema(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Limits{}).Close()
	db, err := sql.Open("sqlite", filepath.Join(dir, "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("PRAGMA user_version = 99"); err != nil {
		t.Fatal(err)
	}
	db.Close()
	if _, err := Open(dir, Limits{}); err == nil || !strings.Contains(err.Error(), "newer hub") {
		t.Fatalf("err = %v", err)
	}
}

func TestErrNotADatabase(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hub.db"), []byte(strings.Repeat("this is a letter to my aunt\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Limits{}); err == nil {
		t.Fatal("a letter was opened as a store")
	}
}

func TestFolderWithOddName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%20?c#d&e")
	s := open(t, dir, Limits{})
	if err := s.Saw(context.Background(), Sighting{ID: "m", At: t0}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "hub.db")); err != nil {
		t.Fatal(err)
	}
}
