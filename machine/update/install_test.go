package update

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/machine/images"
	"github.com/holdfast-edge/holdfast/machine/slots"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/artefact"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// site is a machine's disk and a place that OS versions come from.
type site struct {
	*Installer
	dir   string
	mu    sync.Mutex
	asked map[string]int64 // bytes by digest
}

func version(t *testing.T, v string) (artefact.Source, []byte, []byte) {
	root := bytes.Repeat([]byte("unchanged "), 4096)
	for i := range 40_000 {
		root = append(root, byte(i*i>>7))
	}
	root = append(root, v...)
	root = append(root, make([]byte, osimage.VerityBlock-len(root)%osimage.VerityBlock)...)
	tree, tv, err := verity.Make(bytes.NewReader(root), int64(len(root)), [32]byte{9})
	if err != nil {
		t.Fatal(err)
	}
	root = append(root, tree...)
	uki := pe("ID=holdfast\nIMAGE_VERSION="+v+"\n", "quiet "+tv.Argument())
	return artefact.Source{Version: v, Root: bytes.NewReader(root), UKI: bytes.NewReader(uki), UKISize: int64(len(uki)), Verity: tv}, root, uki
}

// pe is a PE file with the two sections that are read of a UKI.
func pe(release, cmdline string) []byte {
	var out bytes.Buffer
	put := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	dos := make([]byte, 64)
	dos[0], dos[1], dos[60] = 'M', 'Z', 64
	out.Write(dos)
	out.WriteString("PE\x00\x00")
	put([]uint16{0x8664, 2})
	put([]uint32{0, 0, 0})
	put([]uint16{0, 0x22})
	for i, name := range []string{".osrel\x00\x00", ".cmdline"} {
		out.WriteString(name)
		text := []string{release, cmdline}[i]
		put([]uint32{uint32(len(text)), uint32(512 + 1024*i), 1024, uint32(512 + 1024*i), 0, 0, 0, 0x40000040})
	}
	data := append(out.Bytes(), make([]byte, 512-out.Len())...)
	for _, text := range []string{release, cmdline} {
		data = append(append(data, text...), make([]byte, 1024-len(text))...)
	}
	return data
}

// newSite is a machine that runs OS 1.0, and an artefact of 1.1 with a delta from it.
func newSite(t *testing.T) (*site, Target) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "efi", slots.Folder), 0o755); err != nil {
		t.Fatal(err)
	}
	old, oldRoot, oldUKI := version(t, "1.0")
	now, _, _ := version(t, "1.1")
	for name, data := range map[string][]byte{"root-a": append(bytes.Clone(oldRoot), make([]byte, 1<<20)...), "root-b": make([]byte, 2<<20),
		filepath.Join("efi", slots.Folder, "holdfast-a.efi"): oldUKI} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w, err := artefact.Write(t.Context(), filepath.Join(dir, "artefact"), artefact.Config{Version: "1.1", Architecture: "amd64", Kubernetes: "1.36", Built: time.Unix(1, 0)},
		now, []artefact.Source{old}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir, asked: map[string]int64{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	both, err := slots.New(slots.Config{ESP: filepath.Join(dir, "efi"), Roots: map[slots.Slot]string{slots.A: filepath.Join(dir, "root-a"), slots.B: filepath.Join(dir, "root-b")}, Slot: slots.A})
	if err != nil {
		t.Fatal(err)
	}
	store, err := images.OpenStore(filepath.Join(dir, "store"), 0)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	s.Installer = &Installer{Slots: both, Store: store, Architecture: "amd64", Log: log,
		Fetcher: &images.Fetcher{Store: store, Client: server.Client(), Base: server.URL + "/v2/os", Backoff: time.Microsecond, Log: log}}
	return s, Target{Version: "1.1", Digest: w.Digest, Size: w.Size, Kubernetes: "1.36"}
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	digest := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	data, err := os.ReadFile(filepath.Join(s.dir, "artefact", "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")))
	if err != nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	s.mu.Lock()
	s.asked[digest] += int64(len(data))
	s.mu.Unlock()
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (s *site) traffic() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, size := range s.asked {
		n += size
	}
	return n
}

func checkInstalled(t *testing.T, s *site, got System, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	now, _, _ := version(t, "1.1")
	if got.Version != "1.1" || got.Slot != slots.B || got.Root != root(now.Verity) {
		t.Fatalf("installed %+v", got)
	}
	if ok, err := s.Slots.HoldsRoot(slots.B, now.Verity); err != nil || !ok {
		t.Errorf("slot b does not hold the root: %v", err)
	}
	if e, ok := s.Slots.Staged(slots.B); !ok || e.Verity != now.Verity {
		t.Errorf("staged is %+v, %v", e, ok)
	}
}

func TestInstallByDelta(t *testing.T) {
	s, target := newSite(t)
	got, err := s.Install(t.Context(), slots.B, target)
	checkInstalled(t, s, got, err)
	if n := s.traffic(); n > 5000 {
		t.Errorf("%d bytes were fetched, want the delta alone", n)
	}
	// Again, as after a power cut: nothing is fetched twice.
	before := s.traffic()
	got, err = s.Install(t.Context(), slots.B, target)
	checkInstalled(t, s, got, err)
	if n := s.traffic(); n != before {
		t.Errorf("%d bytes were fetched again", n-before)
	}
}

func TestInstallWholeWhereTheDeltaDoesNotFit(t *testing.T) {
	t.Run("DamagedRoot", func(t *testing.T) {
		s, target := newSite(t)
		f, err := os.OpenFile(filepath.Join(s.dir, "root-a"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("rot"), 10_000); err != nil {
			t.Fatal(err)
		}
		got, err := s.Install(t.Context(), slots.B, target)
		checkInstalled(t, s, got, err)
	})
	t.Run("AnotherVersion", func(t *testing.T) {
		s, target := newSite(t)
		src, _, _ := version(t, "0.9")
		uki := make([]byte, src.UKISize)
		if _, err := src.UKI.ReadAt(uki, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(s.Slots.Path("holdfast-a.efi"), uki, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := s.Install(t.Context(), slots.B, target)
		checkInstalled(t, s, got, err)
	})
}

func TestInstallRefuses(t *testing.T) {
	for name, change := range map[string]func(*Target){
		"Version":    func(t *Target) { t.Version = "1.2" },
		"Kubernetes": func(t *Target) { t.Kubernetes = "1.37" },
		"Digest":     func(t *Target) { t.Digest = "sha256:" + strings.Repeat("0", 64) },
	} {
		t.Run(name, func(t *testing.T) {
			s, target := newSite(t)
			change(&target)
			if _, err := s.Install(t.Context(), slots.B, target); err == nil {
				t.Fatal("installed")
			}
			if _, ok := s.Slots.Staged(slots.B); ok {
				t.Error("a UKI is staged")
			}
		})
	}
	t.Run("Cancelled", func(t *testing.T) {
		s, target := newSite(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Install(ctx, slots.B, target); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

// The whole way on real files: begin, reboot, judge twice, bless.
func TestUpdateOnFiles(t *testing.T) {
	s, target := newSite(t)
	old, _, _ := version(t, "1.0")
	now, _, _ := version(t, "1.1")
	notes := folderNotes(t.TempDir())
	uptime := time.Duration(0)
	var adopted, sealed []string
	boot := func() *Updater {
		entries, err := s.Slots.Entries()
		if err != nil {
			t.Fatal(err)
		}
		e := entries[0] // and now the loader counts
		if e.Count.Counted {
			next := strings.NewReplacer("+3.", "+2-1.", "+2-1.", "+1-2.").Replace(e.File)
			if err := os.Rename(s.Slots.Path(e.File), s.Slots.Path(next)); err != nil {
				t.Fatal(err)
			}
		}
		both, err := slots.New(slots.Config{ESP: filepath.Join(s.dir, "efi"), Roots: s.Slots.Roots, Slot: e.Slot})
		if err != nil {
			t.Fatal(err)
		}
		s.Slots = both
		u, err := Open(filepath.Join(s.dir, "state"), Platform{
			Running: System{Version: e.Version, Kubernetes: "1.36", Slot: e.Slot, Root: root(e.Verity)},
			Slots:   both, Notes: notes, Install: s.Install,
			Seal: func(_ context.Context, slot slots.Slot, uki string) error {
				sealed = append(sealed, string(slot)+" "+filepath.Base(uki))
				return nil
			},
			Reboot: func(context.Context, string) error { return nil },
			Adopt:  func(slice string) error { adopted = append(adopted, slice); return nil },
			Uptime: func() time.Duration { return uptime }, Log: s.Log,
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return u
	}
	until := func(u *Updater) (err error) {
		for range 100 {
			uptime += 5 * time.Second
			if err = u.Observe(t.Context(), nil); err != nil || !u.OnTrial() {
				return err
			}
		}
		return errors.New("nothing happened")
	}
	u := boot()
	if u.Running.Root != root(old.Verity) {
		t.Fatal("the old OS does not run at first")
	}
	if err := u.Begin(t.Context(), Plan{Target: target, Slice: "sha256:new", Encoded: []byte("slice"), Effect: "e"}); !errors.Is(err, ErrRebooting) {
		t.Fatal(err)
	}
	for range 2 {
		u = boot()
		if u.Running.Root != root(now.Verity) {
			t.Fatalf("OS %s runs on trial", u.Running.Version)
		}
		if trial, ok := u.Trial(); !ok || trial.Slice != "sha256:new" || string(trial.Encoded) != "slice" {
			t.Fatalf("trial %+v, %v", trial, ok)
		}
		if len(adopted) > 0 {
			t.Fatal("adopted before it was blessed")
		}
		if err := until(u); err != nil && !errors.Is(err, ErrRebooting) {
			t.Fatal(err)
		}
	}
	u = boot()
	if _, ok := u.Trial(); ok || u.OnTrial() || u.Running.Version != "1.1" || u.Status().Floor != "1.0" {
		t.Errorf("at the end: %+v, status %+v", u.Running, u.Status())
	}
	if e, ok, err := s.Slots.Entry(slots.B); err != nil || !ok || e.Count.Counted {
		t.Errorf("entry %+v, %v, %v", e, ok, err)
	}
	if len(adopted) != 1 || adopted[0] != "sha256:new" {
		t.Errorf("adopted %q", adopted)
	}
	if want := "b holdfast-b.new"; len(sealed) == 0 || sealed[0] != want {
		t.Errorf("sealed to %q, first want %q", sealed, want)
	}
	var low *FloorError
	if err := CheckFloor(notes, "0.9"); !errors.Is(err, ErrFloor) || !errors.As(err, &low) || *low != (FloorError{"0.9", "1.0"}) {
		t.Errorf("an OS below the floor: %v", err)
	}
}

type folderNotes string

func (n folderNotes) ReadNote(name string) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(n), name))
}
func (n folderNotes) WriteNote(name string, data []byte) error {
	return os.WriteFile(filepath.Join(string(n), name), data, 0o600)
}
