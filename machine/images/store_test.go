package images

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestStoreKeepsWhatIsWhole(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	data := content(1, 100_000)
	d := DigestOf(data)
	must(t, s.Put(ctx, d, data))
	must(t, s.Put(ctx, d, data))
	got, err := s.Read(d, maxManifest)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read back %d bytes, err %v", len(got), err)
	}
	_, err = s.Begin(ctx, d, int64(len(data)))
	wantErr(t, err, ErrExists)
	_, err = s.Read(d, 10)
	wantErr(t, err, ErrSize)
	police(t, s)
	must(t, s.Delete(d))
	must(t, s.Delete(d))
	_, err = s.Open(d)
	wantErr(t, err, ErrNotFound)
	police(t, s)
}

func TestStoreRefuses(t *testing.T) {
	data := content(2, 1000)
	d := DigestOf(data)
	t.Run("ErrWrongBytes", func(t *testing.T) {
		s := newStore(t)
		wantErr(t, s.Put(t.Context(), d, data[1:]), ErrDigest)
		w, err := s.Begin(t.Context(), d, 1000)
		must(t, err)
		bad := bytes.Clone(data)
		bad[999] ^= 1
		_, err = w.Write(bad)
		must(t, err)
		wantErr(t, w.Commit(), ErrDigest)
		if w.Offset() != 0 {
			t.Errorf("wrong bytes are kept: offset %d", w.Offset())
		}
		_, err = w.Write(data) // the right ones are taken right after
		must(t, err)
		must(t, w.Commit())
		must(t, w.Close())
		police(t, s)
	})
	t.Run("ErrTooLong", func(t *testing.T) {
		s := newStore(t)
		w, err := s.Begin(t.Context(), d, 999)
		must(t, err)
		_, err = w.Write(data)
		wantErr(t, err, ErrSize)
		must(t, w.Close())
		police(t, s)
	})
	t.Run("ErrTooShort", func(t *testing.T) {
		s := newStore(t)
		w, err := s.Begin(t.Context(), d, 1000)
		must(t, err)
		_, _ = w.Write(data[:999])
		wantErr(t, w.Commit(), ErrSize)
		must(t, w.Close())
		if s.Has(d) {
			t.Error("a short blob got its name")
		}
		police(t, s)
	})
	t.Run("ErrQuota", func(t *testing.T) {
		s, err := OpenStore(t.TempDir(), 1500)
		must(t, err)
		must(t, s.Put(t.Context(), d, data))
		other := content(3, 1000)
		wantErr(t, s.Put(t.Context(), DigestOf(other), other), ErrQuota)
		must(t, s.Delete(d))
		must(t, s.Put(t.Context(), DigestOf(other), other))
		police(t, s)
	})
	t.Run("ErrQuotaOfOpenWriters", func(t *testing.T) {
		s, err := OpenStore(t.TempDir(), 1500)
		must(t, err)
		w, err := s.Begin(t.Context(), d, 1000)
		must(t, err)
		_, err = s.Begin(t.Context(), DigestOf(data[:600]), 600)
		wantErr(t, err, ErrQuota)
		must(t, w.Close())
		must(t, s.Put(t.Context(), DigestOf(data[:600]), data[:600]))
		police(t, s)
	})
	t.Run("ErrRotten", func(t *testing.T) {
		s := newStore(t)
		must(t, s.Put(t.Context(), d, data))
		must(t, os.WriteFile(s.blobPath(d), data[:500], 0o600))
		wantErr(t, s.Verify(t.Context(), d), ErrNotFound)
		must(t, s.Put(t.Context(), d, data))
		must(t, os.WriteFile(s.blobPath(d), content(9, 1000), 0o600))
		_, err := s.Read(d, maxManifest)
		wantErr(t, err, ErrNotFound)
		if s.Has(d) {
			t.Error("a rotten blob is still there")
		}
	})
	for _, bad := range []string{"", "sha256:", "sha256:../../x", "sha512:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("A", 64), string(d) + "0", string(d)[:70]} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) is taken", bad)
		}
	}
}

func TestStoreResumesAtEveryOffset(t *testing.T) {
	data := content(4, 257)
	d := DigestOf(data)
	for cut := range len(data) + 1 {
		s := newStore(t)
		w, err := s.Begin(t.Context(), d, int64(len(data)))
		must(t, err)
		_, err = w.Write(data[:cut])
		must(t, err)
		must(t, w.Close())
		s, err = OpenStore(s.dir, 0) // the next process
		must(t, err)
		w, err = s.Begin(t.Context(), d, int64(len(data)))
		must(t, err)
		if w.Offset() != int64(cut) {
			t.Fatalf("continues at %d, want %d", w.Offset(), cut)
		}
		_, err = w.Write(data[cut:])
		must(t, err)
		must(t, w.Commit())
		must(t, w.Close())
		police(t, s)
	}
}

func TestStoreOneWriterPerBlob(t *testing.T) {
	s := newStore(t)
	data := content(5, 10_000)
	d := DigestOf(data)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if err := s.Put(t.Context(), d, data); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	w, err := s.Begin(t.Context(), DigestOf(data[:1]), 1)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = s.Begin(ctx, DigestOf(data[:1]), 1)
	wantErr(t, err, context.DeadlineExceeded)
	must(t, w.Close())
	police(t, s)
}

func TestStoreSweep(t *testing.T) {
	s, ctx := newStore(t), t.Context()
	a, b := content(6, 100), content(7, 200)
	must(t, s.Put(ctx, DigestOf(a), a))
	must(t, s.Put(ctx, DigestOf(b), b))
	w, err := s.Begin(ctx, DigestOf([]byte("gone")), 4)
	must(t, err)
	_, _ = w.Write([]byte("go"))
	must(t, w.Close())
	open, err := s.Begin(ctx, DigestOf([]byte("open")), 4)
	must(t, err)
	_, _ = open.Write([]byte("op"))
	freed, err := s.Sweep(func(d Digest) bool { return d == DigestOf(a) })
	if err != nil || freed != 202 {
		t.Errorf("freed %d bytes (%v), want 202", freed, err)
	}
	_, _ = open.Write([]byte("en"))
	must(t, open.Commit())
	must(t, open.Close())
	if !s.Has(DigestOf(a)) || s.Has(DigestOf(b)) {
		t.Error("swept the wrong ones")
	}
	police(t, s)
}

// TestStoreSurvivesKill kills a writing process at random instants and looks at what it left.
func TestStoreSurvivesKill(t *testing.T) {
	if dir := os.Getenv("IMAGES_TEST_WRITE"); dir != "" {
		s, err := OpenStore(dir, 0)
		if err != nil {
			panic(err)
		}
		fmt.Println("open")
		for i := uint64(0); ; i++ {
			data := content(i%50, 200_000)
			if err := s.Put(context.Background(), DigestOf(data), data); err != nil {
				panic(err)
			}
			if i%50 == 49 {
				_, _ = s.Sweep(func(Digest) bool { return false })
			}
		}
	}
	dir := t.TempDir()
	for round := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStoreSurvivesKill$")
		cmd.Env = append(os.Environ(), "IMAGES_TEST_WRITE="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond) // the instant is the point
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		s, err := OpenStore(dir, 0)
		must(t, err)
		police(t, s)
		// What was cut can be finished: the partial file of any blob is a beginning of it, or is refused.
		must(t, each(s.partial(), func(d Digest, _ int64) {
			for i := range uint64(50) {
				if data := content(i, 200_000); DigestOf(data) == d {
					must(t, s.Put(t.Context(), d, data))
				}
			}
		}))
		police(t, s)
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 {
		t.Errorf("the store's folder holds %v, want blobs and partial", left)
	}
}
