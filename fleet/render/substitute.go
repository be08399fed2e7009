package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v4"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Substitution in three steps, so that a value can never change the shape of a
// document, whatever stands in it:
//
//  1. Before parsing, each ${vars.x} or ${values.x} becomes a mark: a number between two
//     characters of Unicode's private use area. A mark is a harmless word in
//     YAML and JSON alike.
//  2. The document is parsed, once per app version.
//  3. For each site, marks in the parsed strings become values. An unquoted
//     scalar that is nothing but one mark takes the variable's type; anywhere
//     else the value is inserted as text.
const (
	markOpen  = "\ue000"
	markTyped = "=" // after markOpen: the scalar is nothing but this mark
	markClose = "\ue001"
)

// reference is one ${vars.x} or ${values.x} in a file.
type reference struct {
	file         string
	line, column int
	name         string // vars.x, values.x.y
}

var (
	reserved = regexp.MustCompile("[\ue000\ue001]")
	opening  = regexp.MustCompile(`\$\$\{|\$\{(?:vars|values)\.`)
	variable = regexp.MustCompile(`^(?:vars\.[A-Za-z][A-Za-z0-9_]*|values(?:\.[A-Za-z0-9_-]+)+)\}`)
	marks    = regexp.MustCompile("\ue000(=?)([0-9]+)\ue001")
)

// mark replaces the references of a file by marks and appends them to refs.
func mark(f file, refs *[]reference) ([]byte, error) {
	if at := reserved.FindIndex(f.data); at != nil {
		line, column := place(f.data, at[0])
		return nil, fault(f.path, line, column, "", "holds a character of Unicode's private use area (U+E000 or U+E001)", "remove it; rendering needs these two for itself")
	}
	var out bytes.Buffer
	rest, done := f.data, 0
	for {
		at := opening.FindIndex(rest)
		if at == nil {
			out.Write(rest)
			return out.Bytes(), nil
		}
		out.Write(rest[:at[0]])
		line, column := place(f.data, done+at[0])
		end := at[1]
		if rest[at[0]+1] == '$' { // $${ is how a file says ${
			out.WriteString("${")
		} else {
			name := variable.Find(rest[at[0]+len("${"):])
			if name == nil {
				return nil, fault(f.path, line, column, "", "a reference to a variable does not end, or its name is odd", "write ${vars.name}, or $${ for a literal ${")
			}
			end = at[0] + len("${") + len(name)
			fmt.Fprintf(&out, "%s%d%s", markOpen, len(*refs), markClose)
			*refs = append(*refs, reference{f.path, line, column, string(name[:len(name)-1])})
		}
		rest, done = rest[end:], done+end
	}
}

// place is the line and column of an offset, both from 1.
func place(data []byte, offset int) (line, column int) {
	before := data[:offset]
	start := bytes.LastIndexByte(before, '\n') + 1
	return bytes.Count(before, []byte("\n")) + 1, len([]rune(string(before[start:]))) + 1
}

// typed finds the unquoted scalars of a YAML document that are nothing but one
// mark, and writes that into the marks themselves: the parser that reads the
// document next does not tell quoted from plain.
func typed(file string, d document) (document, error) {
	if !bytes.Contains(d.text, []byte(markOpen)) {
		return d, nil
	}
	var root yaml.Node
	if err := yaml.Unmarshal(d.text, &root); err != nil {
		return d, d.fault(file, err)
	}
	text := d.text
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if m := marks.FindString(n.Value); n.Kind == yaml.ScalarNode && m != "" && m == n.Value && n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			text = bytes.Replace(text, []byte(m), []byte(markOpen+markTyped+m[len(markOpen):]), 1)
		}
		for _, c := range n.Content {
			walk(c)
		}
	}
	walk(&root)
	return document{line: d.line, text: text}, nil
}

// references names the variables whose marks stand in a value.
func references(v any, refs []reference, found map[string]bool) {
	switch v := v.(type) {
	case string:
		referencesIn(v, refs, found)
	case []any:
		for _, e := range v {
			references(e, refs, found)
		}
	case map[string]any:
		for k, e := range v {
			referencesIn(k, refs, found)
			references(e, refs, found)
		}
	}
}

func referencesIn(s string, refs []reference, found map[string]bool) {
	if !strings.Contains(s, markOpen) {
		return
	}
	for _, m := range marks.FindAllStringSubmatch(s, -1) {
		found[refs[number(m[2])].name] = true
	}
}

func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		panic("render: a mark of our own is no number: " + digits)
	}
	return n
}

// lookup finds what the references of an app version stand for at a site:
// variables of the site, and values that layers give to this app.
func lookup(name string, app *fleet.App, vars map[string]any) (any, bool) {
	if rest, ok := strings.CutPrefix(name, "vars."); ok {
		v, ok := vars[rest]
		return v, ok
	}
	v := at(app.Values, strings.Split(strings.TrimPrefix(name, "values."), ".")...)
	return v, v != nil
}

// unknown gives a fault for each reference without a value. References in
// comments are none: found holds only what was parsed.
func unknown(refs []reference, found map[string]bool, values map[string]any, app *fleet.App, vars map[string]any) error {
	var errs []error
	for _, r := range refs {
		if _, ok := values[r.name]; ok || !found[r.name] {
			continue
		}
		fix := "declare it under spec.vars in fleet.yaml and set it in a layer; known are: " + strings.Join(names(vars), ", ")
		if strings.HasPrefix(r.name, "values.") {
			fix = "set it in a layer, under values of the app " + app.Name
		}
		errs = append(errs, fault(r.file, r.line, r.column, "${"+r.name+"}", "has no value at this site", fix))
	}
	return join(errs...)
}

// insert puts values in the place of marks. It returns v itself when it holds
// no mark, so that values can be shared.
func insert(v any, refs []reference, values map[string]any) any {
	switch v := v.(type) {
	case string:
		if !strings.Contains(v, markOpen) {
			return v
		}
		if m := marks.FindStringSubmatch(v); m != nil && m[0] == v && m[1] == markTyped {
			return jsonValue(values[refs[number(m[2])].name])
		}
		return insertText(v, refs, values)
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = insert(e, refs, values)
		}
		return c
	case map[string]any:
		c := make(map[string]any, len(v))
		for k, e := range v {
			c[insertText(k, refs, values)] = insert(e, refs, values)
		}
		return c
	}
	return v
}

func insertText(s string, refs []reference, values map[string]any) string {
	if !strings.Contains(s, markOpen) {
		return s
	}
	return marks.ReplaceAllStringFunc(s, func(m string) string {
		return text(values[refs[number(marks.FindStringSubmatch(m)[2])].name])
	})
}

// jsonValue is a variable's value as a document holds it.
func jsonValue(v any) any {
	switch v := v.(type) {
	case int64:
		return json.Number(strconv.FormatInt(v, 10))
	case int:
		return json.Number(strconv.Itoa(v))
	case []string:
		list := make([]any, len(v))
		for i, s := range v {
			list[i] = s
		}
		return list
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = jsonValue(e)
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = jsonValue(e)
		}
		return m
	}
	return v
}

// text is a variable's value inside other text: strings as they are, all else
// as JSON.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return string(mustCanonical(jsonValue(v)))
}

func names(vars map[string]any) []string {
	list := make([]string, 0, len(vars))
	for name := range vars {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}

var plain = regexp.MustCompile(`\$\{(?:vars|values)\.`)

// unlisted refuses a reference in a file that app.yaml does not list: it would
// reach the cluster as it stands. Comments may say what they like.
func unlisted(f file, app string) error {
	for i, line := range strings.Split(string(f.data), "\n") {
		at := plain.FindStringIndex(line)
		if at == nil || strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		return fault(f.path, i+1, len([]rune(line[:at[0]]))+1, line[at[0]:at[1]], "the file is not listed for substitution",
			fmt.Sprintf("add %q to spec.substitute in apps/%s/app.yaml", f.name, app))
	}
	return nil
}

// readable shows marks as a person wrote them, more or less.
func readable(s string) string {
	return marks.ReplaceAllString(s, "$${…}")
}
