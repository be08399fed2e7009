package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func blank(t *testing.T, size int64) (string, *Disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return path, d
}

// TestAgainstAPlainDisk does the same to the disk and to bytes in memory.
func TestAgainstAPlainDisk(t *testing.T) {
	const size = 4 << 20
	path, d := blank(t, size)
	plain, safe := make([]byte, size), make([]byte, size)
	dice := rand.New(rand.NewPCG(1, 2))
	for step := range 3000 {
		off := dice.Int64N(size/sector) * sector
		n := min(size-off, (1+dice.Int64N(40))*sector)
		switch dice.IntN(12) {
		case 0:
			if err := d.Flush(); err != nil {
				t.Fatal(err)
			}
			copy(safe, plain)
		case 1:
			n = min(size-off, dice.Int64N(2<<20)/sector*sector)
			if err := d.clear(off, n, false); err != nil {
				t.Fatal(err)
			}
			clear(plain[off : off+n])
			if n > 1<<20 { // these are done at once, and what was before them too
				copy(safe, plain)
			}
		case 2, 3, 4, 5, 6:
			data := bytes.Repeat([]byte{byte(step)}, int(n))
			if _, err := d.WriteAt(data, off); err != nil {
				t.Fatal(err)
			}
			copy(plain[off:], data)
		default:
			got := make([]byte, n)
			if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, plain[off:off+n]) {
				t.Fatalf("step %d: read of %d bytes at %d differs (%v)", step, n, off, err)
			}
		}
	}
	if _, err := PowerCut(0, d); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, safe) {
		t.Errorf("after the cut the disk is not what it was at the last flush (%v)", err)
	}
}

func TestCutLosesNothingThatWasFlushedAndTearsBySectors(t *testing.T) {
	var lost, kept, torn int
	for seed := range uint64(40) {
		path, d := blank(t, 1<<20)
		flushed := bytes.Repeat([]byte{'F'}, 64<<10)
		d.WriteAt(flushed, 0)
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		d.WriteAt(bytes.Repeat([]byte{'a'}, page), 128<<10)
		d.WriteAt(bytes.Repeat([]byte{'b'}, page), 256<<10)
		if err := d.write(bytes.Repeat([]byte{'d'}, page), 512<<10, true); err != nil {
			t.Fatal(err)
		}
		c, err := PowerCut(seed, d)
		if err != nil {
			t.Fatal(err)
		}
		lost, kept, torn = lost+c.Lost, kept+c.Kept, torn+c.Torn
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:64<<10], flushed) || got[512<<10] != 'd' {
			t.Fatalf("seed %d: something that was safe is lost", seed)
		}
		for at := 128 << 10; at < 128<<10+page; at += sector {
			if s := got[at : at+sector]; !bytes.Equal(s, make([]byte, sector)) && !bytes.Equal(s, bytes.Repeat([]byte{'a'}, sector)) {
				t.Fatalf("seed %d: a sector is torn", seed)
			}
		}
		if seed == 0 && (c.Lost != 2 || c.Kept != 1) {
			t.Errorf("seed 0: %+v, want that all is lost but the write that asked to be safe", c)
		}
		if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrOff) {
			t.Errorf("reading after the cut: %v, want ErrOff", err)
		}
	}
	if lost == 0 || kept == 0 || torn == 0 {
		t.Errorf("of 40 seeds: %d lost, %d kept, %d torn: each must happen", lost, kept, torn)
	}
}

func TestCutAfterLetsNothingMoreIn(t *testing.T) {
	path, d := blank(t, 1<<20)
	called := make(chan bool, 2)
	d.CutAfter(2, func() { called <- true })
	for i := range 4 {
		_, err := d.ReadAt(make([]byte, 1), 0)
		if err != nil {
			t.Fatal(err)
		}
		err = d.write([]byte{1}, int64(i), true)
		if late := i >= 2; errors.Is(err, ErrOff) != late {
			t.Errorf("write %d: %v", i, err)
		}
	}
	select {
	case <-called:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was called")
	}
	if len(called) != 0 {
		t.Error("called twice")
	}
	if _, err := PowerCut(0, d); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got[:4], []byte{1, 1, 0, 0}) {
		t.Errorf("on the disk: %v", got[:4])
	}
}

func TestCutInCountsOnePart(t *testing.T) {
	_, d := blank(t, 1<<20)
	called := make(chan bool, 2)
	d.CutIn(4096, 4096, 1, func() { called <- true })
	for i, c := range []struct {
		off  int64
		size int
		late bool
	}{
		{0, 4096, false},        // ends where the part begins
		{8192, 512, false},      // begins where it ends
		{3584, 1024, false},     // the one that is let in
		{16 << 10, 4096, false}, // elsewhere, for ever
		{8191, 1, true},         // its last byte
		{16 << 10, 4096, true},  // then nothing is let in any more
		{4096, 512, true},       // nor told again
	} {
		if err := d.Flush(); errors.Is(err, ErrOff) != (i > 4) {
			t.Errorf("flush before write %d: %v", i, err)
		}
		if _, err := d.WriteAt(make([]byte, c.size), c.off); errors.Is(err, ErrOff) != c.late {
			t.Errorf("write %d, of %d bytes at %d: %v", i, c.size, c.off, err)
		}
	}
	select {
	case <-called:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was called")
	}
	if len(called) != 0 {
		t.Error("called twice")
	}
}

func TestCloseLosesNothing(t *testing.T) {
	path, d := blank(t, 1<<20)
	d.WriteAt([]byte("here"), 1000)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got[1000:1004]) != "here" {
		t.Errorf("got %q", got[1000:1004])
	}
	if err := d.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestOpenRefusesWhatIsNoDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	os.WriteFile(path, make([]byte, 100), 0o600)
	if _, err := Open(path); err == nil {
		t.Error("a file of 100 bytes is taken for a disk")
	}
}
