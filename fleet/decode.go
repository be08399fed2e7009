package fleet

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// decoder puts nodes into structs, strictly: what the plan does not know is a
// fault, and so is what is missing. It goes on after a fault, to find all.
type decoder struct {
	faults Faults
	// layer holds inside of what is one layer among others, where values may be
	// $delete and what is required may stand in another layer.
	layer bool
	// merged: the value is what came of all layers, where neither is so any more.
	// missing are then the faults that no single layer could show.
	merged  bool
	missing Faults
}

// decode puts n, which stands at field of its document, into the struct at v.
func (d *decoder) decode(v any, n *node, field string) {
	rv := reflect.ValueOf(v).Elem()
	d.value(rv, planOf(rv.Type()), n, field, nil)
}

func (d *decoder) value(v reflect.Value, p *plan, n *node, at string, f *field) {
	if d.layer && n.kind == mapping && n.get(deleteKey) != nil {
		d.deletion(n, at, nil)
		return
	}
	switch p.form {
	case structForm:
		d.structure(v, p, n, at, f)
	case listForm:
		d.list(v, p, n, at, f)
	case dictForm:
		d.dict(v, p, n, at, f)
	case pointerForm:
		x := reflect.New(p.elem.typ)
		before := len(d.faults)
		d.value(x.Elem(), p.elem, n, at, f)
		if len(d.faults) == before {
			v.Set(x)
		}
	case freeForm:
		if n.kind != null {
			v.Set(reflect.ValueOf(n.plain()))
		}
	default:
		d.scalar(v, p, n, at, f)
	}
}

// deletion checks a node that has $delete: nothing else may stand beside it but
// what names the element of a list.
func (d *decoder) deletion(n *node, at string, allowed []string) {
	for _, k := range n.keys {
		if k.text != deleteKey && !slices.Contains(allowed, k.text) {
			d.faults.at(k, join(at, k.text), "stands beside $delete", "either a value or $delete: true")
		}
	}
}

func (d *decoder) wrongType(n *node, at, want string) {
	got := n.kind.String()
	switch n.kind {
	case boolean, integer, float:
		got += " (" + n.text + ")"
	case text:
		got = strconv.Quote(shorten(n.text))
	case null:
		got = "empty"
	}
	d.faults.at(n, at, "is "+got, want)
}

func shorten(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:57], "") + "…"
	}
	return s
}

func (d *decoder) structure(v reflect.Value, p *plan, n *node, at string, f *field) {
	if n.kind == null && (f == nil || !f.required) {
		return // "vars:" with nothing below is a habit, not a mistake
	}
	if n.kind != mapping {
		d.wrongType(n, at, "should be a mapping with "+strings.Join(p.names, ", "))
		return
	}
	for i, k := range n.keys {
		x := p.field(k.text)
		if x == nil {
			d.faults.at(k, join(at, k.text), "is not a field here", oneOf(k.text, p.names))
			continue
		}
		outside := d.layer
		d.layer = !d.merged && (outside || x.layer)
		if d.layer && x.required && n.items[i].get(deleteKey) != nil {
			d.faults.at(n.items[i], join(at, x.name), "cannot be removed", want(x))
		} else {
			d.value(v.FieldByIndex(x.index), x.plan, n.items[i], join(at, x.name), x)
		}
		d.layer = outside
	}
	// In a layer, elements of a named list say their name; the rest may come from another layer.
	for i := range p.fields {
		x := &p.fields[i]
		if !x.required || n.get(x.name) != nil {
			continue
		}
		switch elsewhere := f != nil && f.key != "" && f.key != "*" && f.key != x.name; {
		case elsewhere && d.merged:
			d.missing.at(n, join(at, x.name), "is missing", want(x))
		case !elsewhere || !d.layer:
			d.faults.at(n, join(at, x.name), "is missing", want(x))
		}
	}
}

// want says what a field should be, in words.
func want(f *field) string {
	p := f.plan
	if len(f.enum) > 0 {
		s := "one of " + strings.Join(f.enum, ", ")
		if p.form == listForm {
			s = "a list of " + strings.Join(f.enum, ", ")
		}
		return s
	}
	if f.check != "" && f.check != "text" {
		if p.form == listForm {
			return "a list; each " + checks[f.check].fix
		}
		return checks[f.check].fix
	}
	if p.form == stringForm {
		return "a line " + f.name + ": …"
	}
	return wantForm(p, f)
}

func wantForm(p *plan, f *field) string {
	switch p.form {
	case structForm:
		return "a mapping with " + strings.Join(p.names, ", ")
	case listForm:
		return "a list"
	case dictForm:
		return "a mapping"
	case boolForm:
		return "true or false"
	case intForm:
		if f != nil && f.min != nil && f.max != nil && *f.min != *f.max {
			return fmt.Sprintf("a whole number from %d to %d", *f.min, *f.max)
		}
		return "a whole number"
	case scalarForm:
		return p.scalar.want
	case pointerForm:
		return wantForm(p.elem, f)
	}
	return "text"
}

func (d *decoder) list(v reflect.Value, p *plan, n *node, at string, f *field) {
	if n.kind == null {
		return
	}
	if n.kind != list {
		d.wrongType(n, at, "should be "+wantForm(p, f)+", one \"- …\" line each")
		return
	}
	s := reflect.MakeSlice(p.typ, 0, len(n.items))
	seen := map[string]int32{}
	for i, x := range n.items {
		here := index(at, i)
		if f != nil && f.key != "" {
			id := identity(f.key, x)
			if first, twice := seen[id]; twice && id != "" {
				d.faults.at(x, here, fmt.Sprintf("%s stands here twice", named(f.key, x)), fmt.Sprintf("it is on line %d already: make one of them", first))
				continue
			}
			seen[id] = x.line
			if d.layer && x.get(deleteKey) != nil {
				allowed := []string{f.key}
				if f.key == "*" {
					allowed = p.elem.names
				}
				d.deletion(x, here, allowed)
				if id == "" {
					d.faults.at(x, here, "does not say what $delete removes", "its "+f.key)
				}
				continue
			}
		}
		e := reflect.New(p.elem.typ).Elem()
		d.value(e, p.elem, x, here, f)
		s = reflect.Append(s, e)
	}
	v.Set(s)
}

// named is how a person would call an element of a named list.
func named(key string, n *node) string {
	if key == "*" {
		key = "name"
	}
	if x := n.get(key); x != nil && x.kind == mapping {
		return strings.TrimSpace(x.get("kind").str() + " " + x.get("name").str())
	}
	return strconv.Quote(n.get(key).str())
}

func (d *decoder) dict(v reflect.Value, p *plan, n *node, at string, f *field) {
	if n.kind == null {
		return
	}
	if n.kind != mapping {
		d.wrongType(n, at, "should be "+wantForm(p, f))
		return
	}
	m := reflect.MakeMapWithSize(p.typ, len(n.keys))
	for i, k := range n.keys {
		here := join(at, k.text)
		if f != nil && f.keyCheck != "" && !checks[f.keyCheck].ok(k.text) {
			d.faults.at(k, here, fmt.Sprintf("%q %s", shorten(k.text), checks[f.keyCheck].problem), checks[f.keyCheck].fix)
		}
		if f != nil && len(f.keyEnum) > 0 && !slices.Contains(f.keyEnum, k.text) {
			d.faults.at(k, here, fmt.Sprintf("%q is not known", shorten(k.text)), oneOf(k.text, f.keyEnum))
		}
		if d.layer && n.items[i].get(deleteKey) != nil {
			d.deletion(n.items[i], here, nil)
			continue
		}
		e := reflect.New(p.elem.typ).Elem()
		d.value(e, p.elem, n.items[i], here, f)
		m.SetMapIndex(reflect.ValueOf(k.text), e)
	}
	v.Set(m)
}

func (d *decoder) scalar(v reflect.Value, p *plan, n *node, at string, f *field) {
	switch {
	case p.form == boolForm && n.kind == boolean:
		v.SetBool(n.text == "true")
	case p.form == intForm && n.kind == integer:
		i, err := parseInt(n.text)
		if err == nil && d.inBounds(n, i, at, f) {
			if v.CanUint() {
				if i < 0 {
					d.wrongType(n, at, "should be 0 or more")
					return
				}
				v.SetUint(uint64(i))
			} else {
				v.SetInt(i)
			}
		}
	case p.form == stringForm && n.kind == text:
		if d.text(n, at, f) {
			v.SetString(n.text)
		}
	case p.form == scalarForm && (n.kind == text || n.kind == integer && p.typ == quantityType):
		x, err := p.scalar.read(n.text)
		if err != nil {
			d.wrongType(n, at, "should be "+p.scalar.want)
			return
		}
		if q, ok := x.(Quantity); ok && !d.inBounds(n, int64(q), at, f) {
			return
		}
		v.Set(reflect.ValueOf(x))
	case p.form == stringForm && (n.kind == integer || n.kind == float || n.kind == boolean):
		d.wrongType(n, at, fmt.Sprintf("should be text: put it in quotes, %q", n.text))
	case p.form == boolForm && n.kind == text && slices.Contains([]string{"yes", "no", "on", "off", "y", "n"}, strings.ToLower(n.text)):
		right := map[bool]string{true: "true", false: "false"}[slices.Contains([]string{"yes", "on", "y"}, strings.ToLower(n.text))]
		d.wrongType(n, at, "did you mean "+right+"?")
	default:
		w := wantForm(p, f)
		if f != nil && p.form == stringForm {
			w = "text"
			if f.plan.form == stringForm && f.check != "" && f.check != "text" {
				w = checks[f.check].fix
			}
		}
		d.wrongType(n, at, "should be "+w)
	}
}

var quantityType = reflect.TypeFor[Quantity]()

func (d *decoder) inBounds(n *node, i int64, at string, f *field) bool {
	if f == nil {
		return true
	}
	switch {
	case f.min != nil && f.max != nil && *f.min == *f.max && i != *f.min:
		d.faults.at(n, at, fmt.Sprintf("%s is not known", n.text), fmt.Sprintf("the only one is %d", *f.min))
	case f.min != nil && i < *f.min:
		d.faults.at(n, at, n.text+" is too small", "at least "+quantity(f, *f.min))
	case f.max != nil && i > *f.max:
		d.faults.at(n, at, n.text+" is too large", "at most "+quantity(f, *f.max))
	default:
		return true
	}
	return false
}

func quantity(f *field, i int64) string {
	if f.plan.typ == quantityType && i>>20<<20 == i {
		return fmt.Sprintf("%dMi", i>>20)
	}
	return strconv.FormatInt(i, 10)
}

func (d *decoder) text(n *node, at string, f *field) bool {
	if f == nil {
		return true
	}
	if len(f.enum) > 0 && !slices.Contains(f.enum, n.text) {
		d.faults.at(n, at, fmt.Sprintf("%q is not known", shorten(n.text)), oneOf(n.text, f.enum))
		return false
	}
	if c, ok := checks[f.check]; ok && !c.ok(n.text) {
		problem := c.problem
		if f.check != "text" {
			problem = fmt.Sprintf("%q %s", shorten(n.text), c.problem)
		}
		d.faults.at(n, at, problem, c.fix)
		return false
	}
	return true
}

// header checks what stands on top of a document and gives its spec, nil when
// there is none to look into.
func (d *decoder) header(n *node, kind, name string) (Header, *node) {
	var h Header
	if n == nil {
		return h, nil
	}
	if n.kind != mapping {
		d.wrongType(n, "", "should be a document with apiVersion, kind, metadata, spec")
		return h, nil
	}
	if v := n.get("apiVersion"); v != nil && v.str() != APIVersion {
		d.faults.at(v, "apiVersion", fmt.Sprintf("%q is not known", shorten(v.text)), fmt.Sprintf("the only one is %q", APIVersion))
	}
	if k := n.get("kind"); k != nil && k.str() != kind {
		d.faults.at(k, "kind", fmt.Sprintf("%q does not belong into this file", shorten(k.text)), kind)
		return h, nil
	}
	spec := n.get("spec")
	for _, k := range n.keys {
		if planFor[Header]().field(k.text) == nil && k.text != "spec" {
			fix := oneOf(k.text, append([]string{"spec"}, planFor[Header]().names...))
			if spec == nil || spec.get(k.text) == nil {
				for _, s := range specNames(kind) {
					if s == k.text {
						fix = "move it below spec"
					}
				}
			}
			d.faults.at(k, join("", k.text), "is not a field here", fix)
		}
	}
	known := *n
	known.keys, known.items = nil, nil
	for i, k := range n.keys {
		if planFor[Header]().field(k.text) != nil {
			known.keys, known.items = append(known.keys, k), append(known.items, n.items[i])
		}
	}
	plain := decoder{}
	plain.decode(&h, &known, "")
	d.faults = append(d.faults, plain.faults...)
	if x := n.path("metadata", "name"); x != nil && x.kind == text && name != "" && x.text != name {
		d.faults.at(x, "metadata.name", fmt.Sprintf("%q is not what the path says", shorten(x.text)), fmt.Sprintf("%q, or leave it out", name))
	}
	if spec == nil {
		d.faults.at(n, "spec", "is missing", "a mapping with "+strings.Join(specNames(kind), ", "))
		return h, nil
	}
	return h, spec
}
