package holdfast

import (
	"bytes"
	"flag"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/holdfast-edge/holdfast/"

var update = flag.Bool("update", false, "rewrite the committed dependency lists (the run then fails, so that nobody records by accident)")

// forbidden lists, per folder, the folders of this module that it must not
// import. A rule covers the folder and everything below it.
var forbidden = map[string][]string{
	"fleet":        {"release", "link", "hub", "machine", "kube", "lab", "cli"},
	"release":      {"link", "hub", "machine", "kube", "lab", "cli"},
	"link":         {"release", "hub", "machine", "kube", "lab", "cli"},
	"kube":         {"release", "link", "hub", "machine", "lab", "cli"},
	"osimage":      {"link", "hub", "machine", "kube", "lab", "cli"},
	"hub":          {"machine", "kube", "lab", "cli", "fleet/render", "osimage"},
	"machine":      {"hub", "lab", "cli", "internal/git", "osimage/build", "osimage/debian"},
	"internal":     {"hub", "machine", "kube", "lab", "cli", "release"},
	"lab":          {"cli"},
	"cmd/machined": {"hub", "lab", "cli"},
	"cmd/applier":  {"hub", "lab", "cli"},
	"cmd/init":     {"fleet", "release", "link", "hub", "kube", "lab", "cli", "osimage/build", "osimage/debian"},
}

// sources returns every Go file of the root module that is not a test, by folder.
func sources(t *testing.T) map[string][]*ast.File {
	t.Helper()
	files := map[string][]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != "." {
				if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
					return fs.SkipDir
				}
			}
			if name := d.Name(); name == "testdata" || name == "bin" || (strings.HasPrefix(name, ".") && path != ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		files[dir] = append(files[dir], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d packages: the walk is broken", len(files))
	}
	return files
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for dir, files := range sources(t) {
		var doc string
		for _, f := range files {
			if f.Doc != nil {
				doc += f.Doc.Text()
			}
		}
		if words := len(strings.Fields(doc)); words < 8 {
			t.Errorf("%s: the package comment has %d words: say what the package is, what it promises, what it leaves out", dir, words)
		}
	}
}

func TestImportsRunDownward(t *testing.T) {
	for dir, files := range sources(t) {
		for folder, banned := range forbidden {
			if dir != folder && !strings.HasPrefix(dir, folder+"/") {
				continue
			}
			for _, f := range files {
				for _, spec := range f.Imports {
					path, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
					if !ours {
						continue
					}
					for _, b := range banned {
						if path == b || strings.HasPrefix(path, b+"/") {
							t.Errorf("%s imports %s: forbidden for %s", dir, path, folder)
						}
					}
				}
			}
		}
	}
}

// binaries are the programs whose dependencies are decisions, with the systems they are built for.
var binaries = map[string][]string{
	"cmd/holdfast": {"linux", "darwin", "windows"},
	"cmd/machined": {"linux"},
	"cmd/applier":  {"linux"},
	"cmd/init":     {"linux"},
}

// elsewhere are modules that a program must not link, since another one is there
// for what they do: what process 1 links is read, verified and initialised before
// its first line.
var elsewhere = map[string][]string{
	"cmd/machined": {"k8s.io/client-go", "k8s.io/api", "k8s.io/apimachinery", "sigs.k8s.io/kustomize/api", "sigs.k8s.io/kustomize/kyaml"},
}

func TestDependenciesAreDecisions(t *testing.T) {
	for dir, systems := range binaries {
		var got []string
		for _, goos := range systems {
			got = append(got, modulesOf(t, dir, goos)...)
		}
		slices.Sort(got)
		for _, m := range elsewhere[dir] {
			if slices.Contains(got, m) {
				t.Errorf("%s links %s: that is for cmd/applier", dir, m)
			}
		}
		text := "# Modules linked into " + dir + ". Made by: go test . -run Dependencies -update\n" + strings.Join(slices.Compact(got), "\n") + "\n"
		file := filepath.Join(filepath.FromSlash(dir), "dependencies.txt")
		if *update {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Errorf("%s recorded; run again without -update", file)
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		if text != string(want) {
			t.Errorf("%s differs from what is linked in; a new dependency is a decision: run go test . -run Dependencies -update and give the reason in the commit\ngot:\n%s", file, text)
		}
	}
}

func modulesOf(t *testing.T, dir, goos string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./"+dir)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list for %s on %s: %v\n%s", dir, goos, err, stderr.String())
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	return slices.Compact(lines)
}

func TestEveryFileIsFormatted(t *testing.T) {
	seen := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (d.Name() == "bin" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		seen++
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		formatted, err := format.Source(source)
		if err != nil {
			return err
		}
		if !bytes.Equal(source, formatted) {
			t.Errorf("%s: run gofmt -w on it", path)
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("looked at %d files: %v", seen, err)
	}
}
