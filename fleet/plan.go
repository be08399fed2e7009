package fleet

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// plan is what the struct tags of a document type say, worked out once. The
// tags are
//
//	yaml:"name"      the field's name; ",inline" takes the fields of an embedded struct
//	is:"required x"  the field must be there; its text, or that of its elements, passes the check x (checks.go)
//	enum:"a b"       its text, or that of its elements, is one of these
//	keys, keyEnum    the same for the keys of a map
//	min, max         bounds of a number
//	key:"name"       a list of named things: elements of two layers with the same name merge
//	                 (key:"*": the whole element is its name)
//	layer            the value is one layer among others, like all fields of Layer
type plan struct {
	form   form
	typ    reflect.Type
	fields []field // of a struct
	names  []string
	elem   *plan // of a list or dict
	scalar scalar
}

type form uint8

const (
	freeForm form = iota // any: whatever the author wrote
	structForm
	listForm
	dictForm
	stringForm
	boolForm
	intForm
	scalarForm // text with a Go type of its own
	pointerForm
)

type field struct {
	name     string
	index    []int
	owner    string // Go type and field, where the doc comment stands
	goName   string
	plan     *plan
	required bool
	check    string
	enum     []string
	keyCheck string
	keyEnum  []string
	min, max *int64
	key      string
	layer    bool // it and all below it may be $delete, since other layers speak of it, too
}

func (p *plan) field(name string) *field {
	if p == nil || p.form != structForm {
		return nil
	}
	for i := range p.fields {
		if p.fields[i].name == name {
			return &p.fields[i]
		}
	}
	return nil
}

// below is the plan of the value under key, and the field if it is a struct's.
func (p *plan) below(key string) (*plan, *field) {
	if f := p.field(key); f != nil {
		return f.plan, f
	}
	if p != nil && p.form == dictForm {
		return p.elem, nil
	}
	return nil, nil
}

// scalar reads text into a Go type.
type scalar struct {
	read   func(string) (any, error)
	want   string
	schema map[string]any
}

// Quantity is a number of bytes, written like Kubernetes does: 512Mi, 8Gi.
type Quantity int64

var scalars = map[reflect.Type]scalar{
	reflect.TypeFor[netip.Addr]():    {readAddr, "an address such as 10.213.0.11", map[string]any{"type": "string", "format": "ipv4"}},
	reflect.TypeFor[netip.Prefix]():  {readPrefix, "a range such as 10.213.0.0/24", map[string]any{"type": "string", "pattern": `^[0-9.]+/[0-9]+$`}},
	reflect.TypeFor[time.Duration](): {readDuration, "a duration such as 90s, 10m, 24h or 7d", map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$`}},
	reflect.TypeFor[time.Time]():     {readTime, "a date such as 2026-11-20 or a time such as 2026-11-20T22:00:00Z", map[string]any{"type": "string", "pattern": `^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ].*)?$`}},
	reflect.TypeFor[Quantity]():      {readQuantity, "a size such as 512Mi or 16Gi", map[string]any{"type": []any{"string", "integer"}, "pattern": `^[0-9]+(Ki|Mi|Gi|Ti)?$`}},
}

func readAddr(s string) (any, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && !a.Is4() {
		err = fmt.Errorf("is no IPv4 address")
	}
	return a, err
}

func readPrefix(s string) (any, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil && (!p.Addr().Is4() || p.Masked() != p) {
		err = fmt.Errorf("is no IPv4 range, or has bits set after its length")
	}
	return p, err
}

func readDuration(s string) (any, error) {
	rest, days := s, time.Duration(0)
	if n, r, ok := strings.Cut(s, "d"); ok {
		d, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return nil, err
		}
		if days, rest = time.Duration(d)*24*time.Hour, r; rest == "" {
			return days, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err == nil && d < 0 {
		err = fmt.Errorf("is negative")
	}
	return days + d, err
}

func readTime(s string) (any, error) {
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t.UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	return t.UTC(), err
}

func readQuantity(s string) (any, error) {
	shift := 0
	for i, unit := range []string{"Ki", "Mi", "Gi", "Ti"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			s, shift = n, 10*(i+1)
			break
		}
	}
	n, err := strconv.ParseUint(s, 10, 62-shift)
	return Quantity(int64(n) << shift), err
}

var plans sync.Map // reflect.Type -> *plan

func planFor[T any]() *plan { return planOf(reflect.TypeFor[T]()) }

func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p := makePlan(t)
	plans.Store(t, p)
	return p
}

func makePlan(t reflect.Type) *plan {
	p := &plan{typ: t}
	if s, ok := scalars[t]; ok {
		p.form, p.scalar = scalarForm, s
		return p
	}
	switch t.Kind() {
	case reflect.Interface:
		p.form = freeForm
	case reflect.Struct:
		p.form = structForm
		p.addFields(t, nil)
		for _, f := range p.fields {
			p.names = append(p.names, f.name)
		}
	case reflect.Slice:
		p.form, p.elem = listForm, planOf(t.Elem())
	case reflect.Map:
		p.form, p.elem = dictForm, planOf(t.Elem())
	case reflect.String:
		p.form = stringForm
	case reflect.Bool:
		p.form = boolForm
	case reflect.Int, reflect.Int64, reflect.Uint64:
		p.form = intForm
	case reflect.Pointer:
		p.form, p.elem = pointerForm, planOf(t.Elem())
	default:
		panic("fleet: no plan for " + t.String())
	}
	return p
}

func (p *plan) addFields(t reflect.Type, at []int) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		index := append(append([]int(nil), at...), i)
		if opts == "inline" {
			p.addFields(f.Type, index)
			continue
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		if name == "" {
			panic("fleet: no yaml tag on " + t.Name() + "." + f.Name)
		}
		x := field{name: name, index: index, owner: t.Name(), goName: f.Name, plan: planOf(f.Type),
			enum: strings.Fields(f.Tag.Get("enum")), keyCheck: f.Tag.Get("keys"), keyEnum: strings.Fields(f.Tag.Get("keyEnum")), key: f.Tag.Get("key"),
			layer: t == reflect.TypeFor[Layer]() || f.Tag.Get("layer") != ""}
		for _, word := range strings.Fields(f.Tag.Get("is")) {
			if word == "required" {
				x.required = true
			} else if _, ok := checks[word]; ok {
				x.check = word
			} else {
				panic("fleet: no check " + word + " for " + t.Name() + "." + f.Name)
			}
		}
		x.min, x.max = bound(f.Tag.Get("min")), bound(f.Tag.Get("max"))
		p.fields = append(p.fields, x)
	}
}

func bound(s string) *int64 {
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic("fleet: bad bound " + s)
	}
	return &n
}
