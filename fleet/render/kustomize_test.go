package render

import (
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"
)

// A field that a newer Kustomize brings must be looked at before anyone can
// use it: it may name a file, a place on the network or a program.
func TestEveryFieldIsJudged(t *testing.T) {
	judged := map[string]bool{}
	for _, r := range refused {
		judged[r.field] = true
	}
	for _, field := range []string{
		// paths: see inspector.paths
		"resources", "components", "crds", "configurations", "patches", "replacements", "configMapGenerator", "secretGenerator",
		// name no files
		"apiVersion", "kind", "metadata", "namePrefix", "nameSuffix", "namespace", "labels", "commonAnnotations", "images", "replicas", "sortOptions", "generatorOptions",
	} {
		judged[field] = true
	}
	k := reflect.TypeFor[types.Kustomization]()
	for i := range k.NumField() {
		name, _, _ := strings.Cut(k.Field(i).Tag.Get("json"), ",")
		if name != "" && !judged[name] {
			t.Errorf("field %s of a kustomization is neither refused nor inspected", name)
		}
	}
}

func TestRemote(t *testing.T) {
	for _, p := range []string{
		"https://x/y", "HTTP://x", "git::x", "github.com/x/y", "GitHub.com:x/y", "git@x:y", "x@y/z", "ssh://x", "file:///x", "x.git", "x.git/y", "a//b", "x?ref=1", "dev/_git/x", "host:path", "C:/x",
	} {
		if !remote(p) {
			t.Errorf("%q passes for a path", p)
		}
	}
	for _, p := range []string{"base", "./base", "../base", "a/b.yaml", "a/b c", "github.com", "my.github.com/x", "a/x@2.png", ".gitignore"} {
		if remote(p) {
			t.Errorf("%q is refused as remote", p)
		}
	}
}
