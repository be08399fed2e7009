package render

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// document is one YAML document of a file and the line on which it begins.
type document struct {
	line int
	text []byte
}

// split cuts a file at its document markers. It does not look inside: a line
// that begins with three dashes is a marker wherever YAML lets it stand.
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	docs := []document{{line: 1}}
	for i, line := range bytes.SplitAfter(data, []byte("\n")) {
		if rest, ok := marker(line); ok {
			// The marker's own line stays, as blanks: a document may begin on it.
			docs = append(docs, document{line: i + 1, text: append([]byte("   "), rest...)})
			continue
		}
		last := &docs[len(docs)-1]
		last.text = append(last.text, line...)
	}
	return docs
}

func marker(line []byte) (rest []byte, ok bool) {
	if !bytes.HasPrefix(line, []byte("---")) && !bytes.HasPrefix(line, []byte("...")) {
		return nil, false
	}
	rest = line[3:]
	return rest, len(rest) == 0 || strings.ContainsRune(" \t\r\n", rune(rest[0]))
}

// decode reads a document as kubectl would (YAML 1.1, duplicate keys refused).
// The value of an empty document is nil.
func (d document) decode(file string) (any, error) {
	j, err := yaml.YAMLToJSONStrict(d.text)
	if err != nil {
		return nil, d.fault(file, err)
	}
	v, err := decodeJSON(j)
	if err != nil {
		return nil, d.fault(file, err)
	}
	return v, nil
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

// fault turns the YAML package's words into a place in the file.
func (d document) fault(file string, err error) error {
	line, problem := d.line, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(problem); m != nil {
		n, _ := strconv.Atoi(m[1])
		line, problem = d.line+n-1, m[2]
	}
	return fault(file, line, 0, "", "is not YAML: "+readable(problem), "mend the syntax; an editor with YAML support shows the place")
}

// manifest is an object as it was found, before anything was done to it.
type manifest struct {
	object map[string]any
	file   string
	line   int
}

// manifests reads all objects of a file; lists are flattened.
func manifests(file string, docs []document) ([]manifest, error) {
	var out []manifest
	var errs []error
	for _, d := range docs {
		v, err := d.decode(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found, err := flatten(v, file, d.line+blankLines(d.text))
		errs = append(errs, err)
		out = append(out, found...)
	}
	return out, join(errs...)
}

// blankLines counts the lines before the first one that says something.
func blankLines(text []byte) int {
	for i, line := range bytes.Split(text, []byte("\n")) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' {
			return i
		}
	}
	return 0
}

func flatten(v any, file string, line int) ([]manifest, error) {
	if v == nil {
		return nil, nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fault(file, line, 0, "", "is not a Kubernetes object", "an object has apiVersion, kind and metadata.name")
	}
	items, isList := m["items"].([]any)
	if !isList || !strings.HasSuffix(stringAt(m, "kind"), "List") {
		return []manifest{{m, file, line}}, check(m, file, line)
	}
	var out []manifest
	var errs []error
	for _, item := range items {
		found, err := flatten(item, file, line)
		out, errs = append(out, found...), append(errs, err)
	}
	return out, join(errs...)
}

// check demands the little that every object must have. The API server knows
// the rest, and its word differs from version to version.
func check(m map[string]any, file string, line int) error {
	var errs []error
	demand := func(field, fix string, keys ...string) {
		if s := stringAt(m, keys...); s == "" {
			errs = append(errs, fault(file, line, 0, field, "is missing or is not text", fix))
		}
	}
	demand("apiVersion", "for example apps/v1", "apiVersion")
	demand("kind", "for example Deployment", "kind")
	if stringAt(m, "metadata", "generateName") != "" {
		errs = append(errs, fault(file, line, 0, "metadata.generateName", "makes a new object at each apply", "give the object a fixed metadata.name"))
	} else {
		demand("metadata.name", "every object has a name", "metadata", "name")
	}
	if ns, ok := at(m, "metadata", "namespace").(string); !ok && at(m, "metadata", "namespace") != nil {
		errs = append(errs, fault(file, line, 0, "metadata.namespace", fmt.Sprintf("is not text: %v", ns), "the name of a namespace"))
	}
	for _, field := range []string{"labels", "annotations"} {
		switch at(m, "metadata", field).(type) {
		case nil, map[string]any:
		default:
			errs = append(errs, fault(file, line, 0, "metadata."+field, "is not a map", "key: value"))
		}
	}
	return join(errs...)
}
