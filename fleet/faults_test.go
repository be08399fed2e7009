package fleet_test

import (
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/holdfast-edge/holdfast/fleet"
)

var update = flag.Bool("update", false, "rewrite what the golden files expect (the run then fails, so that nobody records by accident)")

// readCase reads a txtar: the files of testdata/base.txtar with those of the
// case laid over them. A file that says only REMOVE is taken away, SYMLINK and
// SUBMODULE stand for what a text cannot hold; the last section is what is wanted.
func readCase(t *testing.T, name string) (*txtar.Archive, fstest.MapFS) {
	t.Helper()
	tree := fstest.MapFS{}
	var last *txtar.Archive
	for _, path := range []string{"testdata/base.txtar", name} {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			switch text := strings.TrimSpace(string(f.Data)); {
			case f.Name == "want" || f.Name == "site":
			case text == "REMOVE":
				delete(tree, f.Name)
			case text == "SYMLINK":
				tree[f.Name] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777}
			case text == "SUBMODULE":
				tree[f.Name] = &fstest.MapFile{Mode: fs.ModeIrregular}
			default:
				data := strings.NewReplacer(`<CR>`, "\r", `<BOM>`, "\ufeff", `<FF>`, "\xff", `<BEL>`, "\a").Replace(string(f.Data))
				tree[f.Name] = &fstest.MapFile{Data: []byte(data), Mode: 0o644}
			}
		}
		last = a
	}
	return last, tree
}

func section(a *txtar.Archive, name string) string {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// golden compares with the section want of a case, or records it.
func golden(t *testing.T, path string, a *txtar.Archive, got string) {
	t.Helper()
	want := section(a, "want")
	if *update && got != want {
		for i := range a.Files {
			if a.Files[i].Name == "want" {
				a.Files = a.Files[:i]
				break
			}
		}
		a.Files = append(a.Files, txtar.File{Name: "want", Data: []byte(got)})
		if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s: recorded; look at it, then run again without -update", path)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: -want +got:\n%s", path, d)
	}
}

// allFaults is what check would print.
func allFaults(f *fleet.Fleet, err error) string {
	var all fleet.Faults
	errors.As(err, &all)
	var b strings.Builder
	for _, x := range append(all, f.Warnings()...) {
		b.WriteString(x.String() + "\n")
	}
	return b.String()
}

func TestFaults(t *testing.T) {
	paths, err := filepath.Glob("testdata/faults/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, tree := readCase(t, path)
			if dir := strings.TrimSpace(section(a, "site")); dir != "" {
				f, err := fleet.LoadSite(tree, dir)
				golden(t, path, a, allFaults(f, err))
				return
			}
			f, err := fleet.Load(tree)
			golden(t, path, a, allFaults(f, err))
		})
	}
}
