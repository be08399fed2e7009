package images

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeRuntime is containerd as staging sees it: names with labels; it pulls only what is whole in the store.
type fakeRuntime struct {
	store   *Store
	records map[string]Record
	pulls   int
	downFor int // so many calls are answered with Unavailable
	fault   error
}

func (f *fakeRuntime) down() error {
	if f.downFor > 0 {
		f.downFor--
		return status.Error(codes.Unavailable, "connection refused")
	}
	return nil
}

func (f *fakeRuntime) Pull(ctx context.Context, name string) (string, error) {
	if err := f.down(); err != nil {
		return "", err
	}
	f.pulls++
	if f.fault != nil {
		err := f.fault
		f.fault = nil
		return "", err
	}
	ref, err := ParseReference(name)
	if err != nil {
		return "", err
	}
	t, err := f.store.Tree(ref.Digest, Platform{"linux", "amd64", ""})
	if err != nil {
		return "", err
	}
	for _, b := range t.Blobs() {
		if err := f.store.Verify(ctx, b.Digest); err != nil {
			return "", fmt.Errorf("unexpected digest: %w", err)
		}
	}
	id := string(t.Config.Digest)
	for _, n := range []string{id, name} {
		r := f.records[n]
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[labelManaged] = "managed"
		f.records[n] = Record{n, Descriptor{Digest: ref.Digest, Size: 1}, r.Labels}
	}
	return id, nil
}

func (f *fakeRuntime) Records(context.Context) (map[string]Record, error) {
	return maps.Clone(f.records), f.down()
}

func (f *fakeRuntime) Put(_ context.Context, r Record) error {
	if err := f.down(); err != nil {
		return err
	}
	labels := maps.Clone(f.records[r.Name].Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for k, v := range r.Labels {
		labels[k] = v
		if v == "" {
			delete(labels, k)
		}
	}
	f.records[r.Name] = Record{r.Name, r.Target, labels}
	return nil
}

func (f *fakeRuntime) Present(_ context.Context, name string) (bool, bool, error) {
	r, ok := f.records[name]
	return ok, r.Labels[labelPinned] == "pinned", f.down()
}

func (f *fakeRuntime) pinned() []string {
	var names []string
	for n, r := range f.records {
		if r.Labels[labelPinned] == "pinned" {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

func newStager(t *testing.T) (*Stager, *fakeRuntime, *remote) {
	r, s := newRemote(t), newStore(t)
	run := &fakeRuntime{store: s, records: map[string]Record{}}
	dir := t.TempDir()
	return &Stager{Store: s, Fetcher: fetcher(t, s, r), Runtime: run, Marker: filepath.Join(dir, "staged.json"), Root: dir,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, run, r
}

func TestStageTwiceIsOnce(t *testing.T) {
	st, run, r := newStager(t)
	a, b := r.image(content(1, 5000)), r.image(content(2, 100))
	imgs := []Image{{"r.example/a:1", a.Digest}, {"r.example/b:1", b.Digest}, {"r.example/a:1", a.Digest}}
	if st.Staged(imgs) {
		t.Error("staged before anything")
	}
	var done, total atomic.Int64
	must(t, st.Stage(t.Context(), imgs, func(d, n int64) { done.Store(d); total.Store(n) }))
	if done.Load() != total.Load() || done.Load() < 5100 {
		t.Errorf("progress ended at %d of %d", done.Load(), total.Load())
	}
	want := []string{"r.example/a:1", "r.example/a@" + string(a.Digest), "r.example/b:1", "r.example/b@" + string(b.Digest)}
	got := slices.DeleteFunc(run.pinned(), func(n string) bool { _, err := ParseDigest(n); return err == nil })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pinned names (-want +got):\n%s", diff)
	}
	if !st.Staged(imgs) || run.pulls != 2 {
		t.Errorf("staged %v after %d pulls", st.Staged(imgs), run.pulls)
	}
	asked := r.asked()
	must(t, st.Stage(t.Context(), imgs, nil))
	if run.pulls != 2 || r.asked() != asked {
		t.Errorf("second staging: %d pulls, %d requests", run.pulls-2, r.asked()-asked)
	}
	// containerd's root is lost, the marker is not: the marker alone is not believed.
	clear(run.records)
	must(t, st.Stage(t.Context(), imgs, nil))
	if run.pulls != 4 || r.asked() != asked {
		t.Errorf("after loss of containerd's root: %d pulls, %d requests", run.pulls-2, r.asked()-asked)
	}
}

func TestStageRefusesToCallHalfStaged(t *testing.T) {
	st, run, r := newStager(t)
	a := r.image(content(1, 5000))
	imgs := []Image{{"r.example/a:1", a.Digest}}
	st.Root = filepath.Join(st.Root, "missing") // the flush fails
	if err := st.Stage(t.Context(), imgs, nil); err == nil {
		t.Fatal("staged without a flush")
	}
	if st.Staged(imgs) {
		t.Fatal("marker without a flush")
	}
	st.Root = filepath.Dir(st.Marker)
	must(t, st.Stage(t.Context(), imgs, nil))
	if run.pulls != 2 {
		t.Errorf("%d pulls: what was not noted must be pulled again", run.pulls)
	}
	must(t, os.WriteFile(st.Marker, []byte("{torn"), 0o600))
	if st.Staged(imgs) {
		t.Error("a torn marker is believed")
	}
	must(t, st.Stage(t.Context(), imgs, nil))
	if !st.Staged(imgs) {
		t.Error("a torn marker is not mended")
	}
}

func TestStageWaitsForContainerd(t *testing.T) {
	st, run, r := newStager(t)
	a := r.image(content(1, 10))
	imgs := []Image{{"r.example/a:1", a.Digest}}
	for down := range 8 { // away at each step in turn
		clear(run.records)
		_ = os.Remove(st.Marker)
		run.downFor = down
		must(t, st.Stage(t.Context(), imgs, nil))
		if !st.Staged(imgs) {
			t.Errorf("not staged after %d failures", down)
		}
	}
	run.downFor = 1 << 30
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantErr(t, st.Stage(ctx, []Image{{"r.example/b:1", a.Digest}}, nil), context.DeadlineExceeded)
}

func TestStageHealsRottenBlob(t *testing.T) {
	st, _, r := newStager(t)
	layer := content(1, 5000)
	a := r.image(layer)
	_, err := st.Fetcher.Image(t.Context(), Image{Digest: a.Digest}, nil)
	must(t, err)
	must(t, os.WriteFile(st.Store.blobPath(DigestOf(layer)), content(2, 5000), 0o600))
	must(t, st.Stage(t.Context(), []Image{{"r.example/a:1", a.Digest}}, nil))
	police(t, st.Store)
}

func TestStageRefuses(t *testing.T) {
	st, _, r := newStager(t)
	a := r.image(content(1, 10))
	for name, img := range map[string]Image{
		"ErrName":        {"not a name", a.Digest},
		"ErrDigest":      {"r.example/a:1", "sha256:1"},
		"ErrOtherDigest": {"r.example/a:1@" + string(DigestOf(nil)), a.Digest},
		"ErrNowhere":     {"r.example/a:1", DigestOf(nil)},
	} {
		if err := st.Stage(t.Context(), []Image{img}, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestReleaseLetsGo(t *testing.T) {
	st, run, r := newStager(t)
	shared := content(1, 1000)
	old, now := r.image(shared, content(2, 500)), r.image(shared, content(3, 300))
	a1, a2 := Image{"r.example/a:1", old.Digest}, Image{"r.example/a:2", now.Digest}
	run.records["foreign:1"] = Record{"foreign:1", Descriptor{}, map[string]string{labelPinned: "pinned"}}
	must(t, st.Stage(t.Context(), []Image{a1, a2}, nil))
	out, err := st.Release(t.Context(), []Image{a1, a2})
	if err != nil || out != (Released{}) {
		t.Fatalf("released %+v (%v) though all is kept", out, err)
	}
	out, err = st.Release(t.Context(), []Image{a2})
	must(t, err)
	if out.Names != 2 || out.Bytes < 500 { // the ID is shared: both configs are the same
		t.Errorf("released %+v", out)
	}
	if st.Staged([]Image{a1}) || !st.Staged([]Image{a2}) || !st.Store.Complete(now.Digest, Platform{"linux", "amd64", ""}) {
		t.Error("let go of the wrong one")
	}
	if _, ok := run.records["foreign:1"].Labels[labelPinned]; !ok {
		t.Error("unpinned what somebody else pinned")
	}
	out, err = st.Release(t.Context(), []Image{a2})
	if err != nil || out != (Released{}) {
		t.Errorf("second release did %+v (%v)", out, err)
	}
	must(t, st.Stage(t.Context(), []Image{a1}, nil)) // and back: an undo
	if !st.Staged([]Image{a1}) {
		t.Error("cannot stage again what was released")
	}
	police(t, st.Store)
}
