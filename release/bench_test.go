package release

import (
	"testing"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// bigFleet is a fleet of 10 000 sites with its first release.
func bigFleet(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	w.files = fleetgen.Files(10_000)
	w.files[trustFile] = trustYAML(1, 1, signerLine("ci"), signerLine("spare"))
	w.release("ci")
	return w
}

// The slice of one site of 10 000, as a hub makes it for each site that a release concerns. Budget: 50 ms.
func BenchmarkCut(b *testing.B) {
	w := bigFleet(b)
	var n int
	for b.Loop() {
		s, err := Cut(w.objects, w.last.Raw, fleetgen.SiteDir(4711), w.steps...)
		if err != nil {
			b.Fatal(err)
		}
		n = len(s.Encode())
	}
	b.ReportMetric(float64(n), "slice-bytes")
}

func BenchmarkAccept(b *testing.B) {
	w := bigFleet(b)
	encoded := w.slice(4711).Encode()
	m := w.machine(4711)
	b.ResetTimer()
	for b.Loop() {
		if _, err := m.judge(encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// One line of one site changes; the machine has the slice before.
func BenchmarkOneLine(b *testing.B) {
	w := bigFleet(b)
	old := w.slice(4711).Encode()
	w.set(fleetgen.SiteDir(4711)+"/site.yaml", "City 4711", "Cologne")
	w.release("ci")
	fresh := w.slice(4711).Encode()
	var packed []byte
	for b.Loop() {
		packed = Compress(fresh, old)
	}
	b.ReportMetric(float64(len(packed)), "bytes")
	b.ReportMetric(float64(len(Compress(fresh, nil))), "bytes-without")
}

func BenchmarkDecompress(b *testing.B) {
	w := bigFleet(b)
	old := w.slice(4711).Encode()
	w.set(fleetgen.SiteDir(4711)+"/site.yaml", "City 4711", "Cologne")
	w.release("ci")
	packed := Compress(w.slice(4711).Encode(), old)
	for b.Loop() {
		if _, err := Decompress(packed, old, DefaultLimits().Slice); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkImport(b *testing.B) {
	tree := fleetgen.FS(fleetgen.Files(10_000))
	for b.Loop() {
		if _, err := Import(tree, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// Budgets that matter are tests; with room for a slow, shared machine.
func TestOneLineBudget(t *testing.T) {
	w := bigFleet(t)
	old := w.slice(4711).Encode()
	m := w.machine(4711)
	if _, err := m.take(old); err != nil {
		t.Fatal(err)
	}
	w.set(fleetgen.SiteDir(4711)+"/site.yaml", "City 4711", "Cologne")
	w.release("ci")
	fresh := w.slice(4711).Encode()
	packed := Compress(fresh, old)
	if len(packed) > 700 {
		t.Errorf("a one-line change takes %d bytes, want at most 700", len(packed))
	}
	got, err := Decompress(packed, old, DefaultLimits().Slice)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.take(got); err != nil {
		t.Error(err)
	}
}
