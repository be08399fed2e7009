package fleet

import (
	"sort"
	"strings"
)

// merge lays over on base: maps merge, scalars and lists replace, lists of named
// things merge by name, $delete removes. Neither argument is changed, and what
// they do not share is not copied. The result has no $delete left; it is nil
// when nothing is left. p guides it through the known fields and is nil below them.
func merge(base, over *node, p *plan, f *field) *node {
	switch {
	case over == nil:
		return base
	case over.kind == mapping && over.get(deleteKey) != nil:
		return nil
	case over.kind == null && p != nil && p.form != freeForm:
		return base // "vars:" with nothing below says nothing
	case base == nil || base.kind != over.kind:
		return replaced(base, over, p, f)
	case over.kind == mapping && f != nil && f.plan == p && isReference(p):
		return replaced(base, over, p, f)
	case over.kind == mapping:
		return mergeMaps(base, over, p)
	case over.kind == list:
		if key := listKey(base, over, p, f); key != "" {
			return mergeNamed(base, over, p, key)
		}
	}
	return replaced(base, over, p, f)
}

// isReference holds for structs that are one value in several words, so that
// half of one and half of another is neither.
func isReference(p *plan) bool { return p == planFor[ObjectRef]() }

// replaced is over where it wins as a whole; it remembers what it overrode.
func replaced(base, over *node, p *plan, f *field) *node {
	n := *over
	if over.deletes {
		n = *prune(over, p, f)
	}
	n.prev = base
	return &n
}

// prune is n without the things that it would have deleted, had there been any.
func prune(n *node, p *plan, f *field) *node {
	if !n.deletes {
		return n
	}
	m := *n
	m.deletes, m.keys, m.items = false, nil, nil
	for i, x := range n.items {
		if x.get(deleteKey) != nil {
			continue
		}
		if n.kind == mapping {
			m.keys = append(m.keys, n.keys[i])
			sub, sf := p.below(n.keys[i].text)
			x = prune(x, sub, sf)
		} else {
			x = prune(x, elemOf(p), nil)
		}
		m.items = append(m.items, x)
	}
	return &m
}

func elemOf(p *plan) *plan {
	if p == nil {
		return nil
	}
	return p.elem
}

func mergeMaps(base, over *node, p *plan) *node {
	n := *base
	n.keys = append(make([]*node, 0, len(base.keys)+len(over.keys)), base.keys...)
	n.items = append(make([]*node, 0, len(base.keys)+len(over.keys)), base.items...)
	for i, k := range over.keys {
		sub, sf := p.below(k.text)
		at := indexOf(n.keys, k.text)
		if at < 0 {
			if v := merge(nil, over.items[i], sub, sf); v != nil {
				n.keys, n.items = append(n.keys, k), append(n.items, v)
			}
			continue
		}
		v := merge(n.items[at], over.items[i], sub, sf)
		if v == nil {
			n.keys = append(n.keys[:at:at], n.keys[at+1:]...)
			n.items = append(n.items[:at:at], n.items[at+1:]...)
			continue
		}
		n.keys[at], n.items[at] = k, v
	}
	return &n
}

func indexOf(keys []*node, name string) int {
	for i, k := range keys {
		if k.text == name {
			return i
		}
	}
	return -1
}

// listKey is what names the elements of two lists: by the plan in known fields,
// by "name" elsewhere when every element of both has one. "" if they are just values.
func listKey(base, over *node, p *plan, f *field) string {
	if f != nil && f.key != "" {
		return f.key
	}
	if p != nil && p.form != freeForm || len(over.items) == 0 {
		return ""
	}
	for _, l := range []*node{base, over} {
		for _, x := range l.items {
			if x.get("name").str() == "" {
				return ""
			}
		}
	}
	return "name"
}

func mergeNamed(base, over *node, p *plan, key string) *node {
	n := *base
	n.items = append(make([]*node, 0, len(base.items)+len(over.items)), base.items...)
	for _, x := range over.items {
		id, at := identity(key, x), -1
		for i, b := range n.items {
			if identity(key, b) == id {
				at = i
				break
			}
		}
		if x.get(deleteKey) != nil {
			if at >= 0 {
				n.items = append(n.items[:at:at], n.items[at+1:]...)
			}
			continue
		}
		if at < 0 {
			if v := merge(nil, x, elemOf(p), nil); v != nil {
				n.items = append(n.items, v)
			}
			continue
		}
		n.items[at] = merge(n.items[at], x, elemOf(p), nil)
	}
	return &n
}

// identity is what makes an element of a named list the same thing in two layers.
func identity(key string, n *node) string {
	if key == "*" {
		return canonical(n)
	}
	if v := n.get(key); v != nil {
		return canonical(v)
	}
	return ""
}

// canonical is one text for equal values, whatever the order of keys.
func canonical(n *node) string {
	switch n.kind {
	case mapping:
		parts := make([]string, 0, len(n.keys))
		for i, k := range n.keys {
			if k.text != deleteKey {
				parts = append(parts, k.text+"\x00"+canonical(n.items[i]))
			}
		}
		sort.Strings(parts)
		return "{" + strings.Join(parts, "\x01") + "}"
	case list:
		parts := make([]string, len(n.items))
		for i, x := range n.items {
			parts[i] = canonical(x)
		}
		return "[" + strings.Join(parts, "\x01") + "]"
	}
	return n.text
}

// layered lays documents' layers over one another, the first lowest.
func layered(layers ...*node) *node {
	var n *node
	for _, l := range layers {
		if l == nil || l.kind == null {
			continue
		}
		if m := merge(n, l, planFor[Layer](), nil); m != nil {
			n = m
		}
	}
	return n
}
