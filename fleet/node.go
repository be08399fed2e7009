package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// Bounds of one document. A person's file comes nowhere near; a hostile one ends here.
const (
	maxDocument = 4 << 20
	maxDepth    = 64
)

// node is one value of a document and where it stands. Nodes are never changed
// once parsed: layering (merge.go) makes new ones and shares the rest, so one
// class is in memory once for all the sites that list it.
type node struct {
	src       *source
	line, col int32
	kind      kind
	deletes   bool // a $delete stands in here or below
	text      string
	keys      []*node // of a mapping, in step with items
	items     []*node
	prev      *node // what this value overrode
}

// source is the document that a node came from, and the layer that it is at a site.
type source struct{ file, layer string }

type kind uint8

const (
	null kind = iota
	boolean
	integer
	float
	text
	list
	mapping
)

func (k kind) String() string {
	return [...]string{"nothing", "true or false", "a whole number", "a number", "text", "a list", "a mapping"}[k]
}

const deleteKey = "$delete"

// get is the value under key, nil if there is none or n is no mapping.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for i, k := range n.keys {
		if k.text == key {
			return n.items[i]
		}
	}
	return nil
}

// path goes down by keys.
func (n *node) path(keys ...string) *node {
	for _, k := range keys {
		n = n.get(k)
	}
	return n
}

// str is the text of a text node, "" otherwise.
func (n *node) str() string {
	if n == nil || n.kind != text {
		return ""
	}
	return n.text
}

// without is the mapping n less some of its keys.
func (n *node) without(keys ...string) *node {
	if n == nil || n.kind != mapping {
		return n
	}
	m := *n
	m.keys, m.items = nil, nil
next:
	for i, k := range n.keys {
		for _, x := range keys {
			if k.text == x {
				continue next
			}
		}
		m.keys, m.items = append(m.keys, k), append(m.items, n.items[i])
	}
	return &m
}

// plain is n as encoding/json would have it, but whole numbers are int64.
func (n *node) plain() any {
	switch n.kind {
	case boolean:
		return n.text == "true"
	case integer:
		i, _ := parseInt(n.text)
		return i
	case float:
		f, _ := strconv.ParseFloat(n.text, 64)
		return f
	case text:
		return n.text
	case list:
		l := make([]any, len(n.items))
		for i, x := range n.items {
			l[i] = x.plain()
		}
		return l
	case mapping:
		m := make(map[string]any, len(n.keys))
		for i, k := range n.keys {
			m[k.text] = n.items[i].plain()
		}
		return m
	}
	return nil
}

func parseInt(s string) (int64, error) {
	s = strings.ReplaceAll(s, "_", "")
	if rest, ok := strings.CutPrefix(s, "+"); ok {
		s = rest
	}
	return strconv.ParseInt(s, 0, 64)
}

// parse reads the one YAML document of a file. CRLF and a byte-order mark are
// fine; anchors, aliases, merge keys, tags and second documents are not part of
// a fleet repo, so that a value stands where it is read and nothing expands.
// The node is nil when there was nothing to read.
func parse(src *source, data []byte) (*node, Faults) {
	var faults Faults
	fault := func(line, col int, problem, fix string) (*node, Faults) {
		return nil, append(faults, Fault{File: src.file, Line: line, Column: col, Problem: problem, Fix: fix})
	}
	if len(data) > maxDocument {
		return fault(1, 1, fmt.Sprintf("is %d bytes long", len(data)), fmt.Sprintf("at most %d", maxDocument))
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if line, col, what := badByte(data); what != "" {
		return fault(line, col, what, "save the file as UTF-8 text")
	}
	var y yaml.Node
	if err := yaml.Load(data, &y); err != nil {
		var e *yaml.LoadError
		switch {
		case errors.As(err, &e) && e.Mark.Line > 0:
			return fault(e.Mark.Line, max(1, e.Mark.Column), "is no YAML: "+e.Message, "mind indentation, colons and quotes just above, too")
		case strings.Contains(err.Error(), "multiple"):
			line := 1 + bytes.Count(data[:max(0, bytes.LastIndex(data, []byte("\n---")))], []byte("\n"))
			return fault(line+1, 1, "is a second document", "one document in each file")
		case strings.Contains(err.Error(), "no documents"):
			return fault(1, 1, "is empty", "a document that begins with apiVersion: "+APIVersion)
		}
		return fault(1, 1, "is no YAML: "+oneLine(err.Error()), "")
	}
	if y.Kind == yaml.DocumentNode && len(y.Content) == 1 {
		y = *y.Content[0]
	}
	c := converter{src: src}
	n := c.convert(&y, "", 0)
	return n, append(faults, c.faults...)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// badByte finds the first byte that no text file has.
func badByte(data []byte) (line, col int, what string) {
	line, col = 1, 1
	for i := 0; i < len(data); {
		c := data[i]
		if c < utf8.RuneSelf {
			i++
			if c == '\n' {
				line, col = line+1, 1
				continue
			}
			if crlf := c == '\r' && i < len(data) && data[i] == '\n'; c < ' ' && c != '\t' && !crlf || c == 0x7f {
				return line, col, fmt.Sprintf("has the control character 0x%02x", c)
			}
			col++
			continue
		}
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return line, col, "is not UTF-8"
		}
		// YAML takes these for line ends and editors do not: lines would be miscounted.
		if r == '\u0085' || r == '\u2028' || r == '\u2029' {
			return line, col, fmt.Sprintf("has the line separator %U", r)
		}
		i, col = i+size, col+1
	}
	return 0, 0, ""
}

type converter struct {
	src    *source
	faults Faults
}

func (c *converter) convert(y *yaml.Node, field string, depth int) *node {
	n := &node{src: c.src, line: int32(max(1, y.Line)), col: int32(max(1, y.Column))}
	if depth > maxDepth {
		c.faults.at(n, "", "is nested too deeply", fmt.Sprintf("at most %d levels", maxDepth))
		return n
	}
	if y.Anchor != "" || y.Kind == yaml.AliasNode {
		c.faults.at(n, field, "anchors and aliases are not understood here", "write the value out, or put it into a layer")
		if y.Kind == yaml.AliasNode {
			return n
		}
	}
	switch y.Kind {
	case yaml.MappingNode:
		c.mapping(n, y, field, depth)
	case yaml.SequenceNode:
		n.kind = list
		n.items = make([]*node, len(y.Content))
		for i, x := range y.Content {
			n.items[i] = c.convert(x, index(field, i), depth+1)
			n.deletes = n.deletes || n.items[i].deletes
		}
	case yaml.ScalarNode:
		c.scalar(n, y, field)
	}
	return n
}

func (c *converter) mapping(n *node, y *yaml.Node, field string, depth int) {
	n.kind = mapping
	seen := map[string]int32{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		k := &node{src: c.src, line: int32(max(1, y.Content[i].Line)), col: int32(max(1, y.Content[i].Column)), kind: text, text: y.Content[i].Value}
		if y.Content[i].Kind != yaml.ScalarNode {
			c.faults.at(k, field, "a key is not a word", "keys are text")
			continue
		}
		if y.Content[i].ShortTag() == "!!merge" {
			c.faults.at(k, field, "merge keys (<<) are not understood here", "put what is shared into a layer")
			continue
		}
		if first, twice := seen[k.text]; twice {
			c.faults.at(k, join(field, k.text), "stands here twice", fmt.Sprintf("it is on line %d already: keep one", first))
			continue
		}
		seen[k.text] = k.line
		v := c.convert(y.Content[i+1], join(field, k.text), depth+1)
		n.keys, n.items = append(n.keys, k), append(n.items, v)
		n.deletes = n.deletes || v.deletes
		if k.text == deleteKey {
			n.deletes = true
			if v.kind != boolean || v.text != "true" {
				c.faults.at(v, join(field, k.text), "is not true", "$delete: true removes, leaving the line out keeps")
			}
		}
	}
}

func (c *converter) scalar(n *node, y *yaml.Node, field string) {
	n.text = y.Value
	switch tag := y.ShortTag(); tag {
	case "!!str", "!!timestamp":
		n.kind = text
	case "!!null":
		n.kind, n.text = null, ""
	case "!!bool":
		n.kind, n.text = boolean, strings.ToLower(y.Value)
	case "!!int":
		n.kind = integer
		if _, err := parseInt(y.Value); err != nil {
			c.faults.at(n, field, fmt.Sprintf("%s does not fit into 64 bits", y.Value), "put it in quotes if it is no count")
		}
	case "!!float":
		n.kind = float
		if f, err := strconv.ParseFloat(strings.ReplaceAll(y.Value, "_", ""), 64); err != nil || f != f || f-f != 0 {
			c.faults.at(n, field, fmt.Sprintf("%s is no number that JSON knows", y.Value), "put it in quotes if it is text")
			n.text = "0"
		}
	default:
		n.kind = text
		c.faults.at(n, field, fmt.Sprintf("the tag %s is not understood here", tag), "write the value without a tag")
	}
}

// join and index name a field inside a document as people would: spec.apps[0].name.
func join(field, key string) string {
	if strings.ContainsAny(key, ". []") {
		key = strconv.Quote(key)
	}
	if field == "" {
		return key
	}
	return field + "." + key
}

func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
