package faults

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// What the table explains, a machine can have: each code is named by code that
// sets it. To clear is not enough, and tests do not count.
func TestEveryCodeIsSet(t *testing.T) {
	names := map[string]Code{}
	for _, decl := range parse(t, "table.go").Decls {
		list, ok := decl.(*ast.GenDecl)
		if !ok || list.Tok != token.CONST {
			continue
		}
		for _, s := range list.Specs {
			v := s.(*ast.ValueSpec)
			if kind, ok := v.Type.(*ast.Ident); ok && kind.Name == "Code" {
				names[v.Names[0].Name] = Code(strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`))
			}
		}
	}
	if len(names) != len(Table()) {
		t.Errorf("%d codes, %d entries", len(names), len(Table()))
	}
	set := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Dir(path) == filepath.Join("..", "faults") || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		ast.Inspect(parse(t, path), func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if f, ok := call.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Clear" {
					return false
				}
			}
			if s, ok := n.(*ast.SelectorExpr); ok {
				if from, ok := s.X.(*ast.Ident); ok && from.Name == "faults" {
					set[s.Sel.Name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, code := range names {
		if !set[name] {
			t.Errorf("%s %s: nothing sets it, and holdfast explain promises it", code, name)
		}
	}
}

// Somebody reads these off a machine of old, on paper or over the telephone.
func TestRetiredCodesStayRetired(t *testing.T) {
	for _, code := range []Code{"E12", "E38", "E55", "E56"} {
		if e, ok := Lookup(code); ok {
			t.Errorf("%s means something else now: %s", code, e.Title)
		}
	}
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
