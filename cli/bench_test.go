package cli

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/release"
)

// many is the size of fleet that the budgets are for: check and diff of one line
// under 20 s, the slice of one site under 50 ms.
const many = 10_000

// sites is many, or what HOLDFAST_BENCH_SITES says, for profiles.
func sites() int {
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_BENCH_SITES")); err == nil {
		return n
	}
	return many
}

// generated is a released fleet repo with so many sites.
func generated(b *testing.B, sites int) string {
	b.Helper()
	dir := b.TempDir()
	b.Setenv("HOLDFAST_CONFIG", b.TempDir())
	if err := fleetgen.WriteDir(dir, sites); err != nil {
		b.Fatal(err)
	}
	for _, args := range [][]string{
		{"init", "--quiet", "--initial-branch=main"}, {"config", "user.name", "bench"}, {"config", "user.email", "bench@example.com"},
		{"add", "."}, {"-c", "gc.auto=0", "commit", "--quiet", "-m", "first"}, {"tag", "-a", "-m", "first", "release/1"},
	} {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	return dir
}

func run(b *testing.B, dir string, args ...string) string {
	b.Helper()
	var out, stderr bytes.Buffer
	if err := Run(b.Context(), nil, &out, &stderr, append(args, "-C", dir)); err != nil {
		Print(&stderr, err)
		b.Fatalf("holdfast %v: %v\n%s%s", args, err, tail(out.Bytes()), tail(stderr.Bytes()))
	}
	return out.String()
}

func tail(b []byte) []byte { return b[max(0, len(b)-1000):] }

func BenchmarkCheck(b *testing.B) {
	dir := generated(b, sites())
	for b.Loop() {
		run(b, dir, "check")
	}
}

func BenchmarkDiffOneLine(b *testing.B) {
	dir := generated(b, sites())
	file := filepath.Join(dir, filepath.FromSlash(fleetgen.SiteDir(sites()/2)), "site.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	changed := bytes.Replace(data, []byte("\nspec:\n"), []byte("\nspec:\n  kubernetes: {maxPods: 99}\n"), 1)
	if bytes.Equal(data, changed) {
		b.Fatalf("%s has no spec:\n%s", file, data)
	}
	if err := os.WriteFile(file, changed, 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if out := run(b, dir, "diff"); !bytes.Contains([]byte(out), []byte(fmt.Sprintf("1 site changes, %d do nothing", sites()-1))) {
			b.Fatalf("diff says: %s", tail([]byte(out)))
		}
	}
}

func BenchmarkSlice(b *testing.B) {
	dir := generated(b, sites())
	repo, err := git.Open(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	tree, err := repo.Tree(b.Context(), "HEAD", ".")
	if err != nil {
		b.Fatal(err)
	}
	defer tree.Close()
	if err := tree.Preload(); err != nil {
		b.Fatal(err)
	}
	objects := release.Objects{}
	root, err := release.Import(tree, objects.Add)
	if err != nil {
		b.Fatal(err)
	}
	var size int
	for i := 0; b.Loop(); i++ {
		site := fleetgen.SiteDir(i * 7919 % sites())
		found, err := release.Closure(objects, root, site)
		if err != nil {
			b.Fatal(err)
		}
		s := release.Slice{SiteDir: site, Tag: placeholder("new"), Objects: found}
		size = len(release.Compress(s.Encode(), nil))
	}
	b.ReportMetric(float64(size), "B/slice")
}

// A fleet repo of any size is listed by name for the shell without rendering.
func BenchmarkComplete(b *testing.B) {
	dir := generated(b, sites())
	for b.Loop() {
		if err := Run(b.Context(), nil, io.Discard, io.Discard, []string{"__complete", "-C", dir, "diff", "x"}); err != nil {
			b.Fatal(err)
		}
	}
}
