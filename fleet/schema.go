package fleet

import (
	_ "embed"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"strings"
)

// kinds are the documents of a fleet repo.
var kinds = map[string]reflect.Type{
	"Fleet":      reflect.TypeFor[FleetSpec](),
	"Trust":      reflect.TypeFor[TrustSpec](),
	"Class":      reflect.TypeFor[ClassSpec](),
	"Ring":       reflect.TypeFor[RingSpec](),
	"OS":         reflect.TypeFor[OSSpec](),
	"App":        reflect.TypeFor[AppSpec](),
	"ImagesLock": reflect.TypeFor[ImagesLockSpec](),
	"Site":       reflect.TypeFor[SiteSpec](),
	"Machines":   reflect.TypeFor[MachinesSpec](),
	"Network":    reflect.TypeFor[NetworkSpec](),
}

func specNames(kind string) []string { return planOf(kinds[kind]).names }

//go:embed documents.go
var documentsSource []byte

// Schemas are the JSON Schemas (draft 2020-12) of all documents, by file name:
// fleet.schema.json, site.schema.json and so on. They come from the same tags as
// the decoder, and from the comments in documents.go, so that editors help. They
// say less than Load, which sees all documents together, and never more.
func Schemas() map[string][]byte {
	docs := comments(documentsSource)
	out := map[string][]byte{}
	for kind, t := range kinds {
		s := schemas{docs: docs, defs: map[string]any{}}
		header := s.structure(planFor[Header](), nil, false)
		properties := header["properties"].(map[string]any)
		properties["apiVersion"].(map[string]any)["const"] = APIVersion
		properties["kind"].(map[string]any)["const"] = kind
		properties["spec"] = s.of(planOf(t), nil, false)
		header["required"] = []string{"apiVersion", "kind", "spec"}
		if kind == "Fleet" {
			header["required"] = []string{"apiVersion", "kind", "metadata", "spec"}
		}
		header["$schema"] = "https://json-schema.org/draft/2020-12/schema"
		header["title"] = "Holdfast " + kind
		header["description"] = docs[t.Name()]
		header["$defs"] = s.defs
		b, err := json.MarshalIndent(header, "", "  ")
		if err != nil {
			panic("fleet: schema of " + kind + ": " + err.Error()) // maps and text only
		}
		out[strings.ToLower(kind)+".schema.json"] = append(b, '\n')
	}
	return out
}

type schemas struct {
	docs map[string]string
	defs map[string]any
}

// of is the schema of a value; structs become $defs. layer holds where values
// may be $delete instead.
func (s *schemas) of(p *plan, f *field, layer bool) map[string]any {
	var m map[string]any
	switch p.form {
	case structForm:
		name := p.typ.Name()
		if _, ok := s.defs[name]; !ok {
			s.defs[name] = true // ends a recursion, should there ever be one
			s.defs[name] = s.structure(p, f, layer)
		}
		m = map[string]any{"$ref": "#/$defs/" + name}
	case listForm:
		m = map[string]any{"type": []string{"array", "null"}, "items": s.of(p.elem, f, layer && f != nil && f.key != "")}
		if f != nil && f.required {
			m["type"] = "array"
		}
	case dictForm:
		m = map[string]any{"type": []string{"object", "null"}, "additionalProperties": s.of(p.elem, f, layer)}
		if f != nil && f.keyCheck != "" {
			m["propertyNames"] = map[string]any{"pattern": checks[f.keyCheck].pattern}
			if layer {
				m["propertyNames"] = map[string]any{"anyOf": []any{m["propertyNames"], map[string]any{"const": deleteKey}}}
			}
		}
		if f != nil && len(f.keyEnum) > 0 {
			m["propertyNames"] = map[string]any{"enum": f.keyEnum}
		}
	case pointerForm:
		return s.of(p.elem, f, layer)
	case stringForm:
		m = map[string]any{"type": "string"}
		if f != nil && len(f.enum) > 0 {
			m["enum"] = f.enum
		}
		if f != nil && checks[f.check].pattern != "" {
			m["pattern"] = checks[f.check].pattern
		}
	case boolForm:
		m = map[string]any{"type": "boolean"}
	case intForm:
		m = map[string]any{"type": "integer"}
		if f != nil && f.min != nil {
			m["minimum"] = *f.min
		}
		if f != nil && f.max != nil {
			m["maximum"] = *f.max
		}
	case scalarForm:
		m = map[string]any{}
		for k, v := range p.scalar.schema {
			m[k] = v
		}
	case freeForm:
		return map[string]any{}
	}
	if layer && (f == nil || !f.required || p.form == structForm) {
		s.defs["delete"] = deletion
		m = map[string]any{"anyOf": []any{m, map[string]any{"$ref": "#/$defs/delete"}}}
	}
	return m
}

var deletion = map[string]any{
	"type": "object", "required": []string{deleteKey}, "properties": map[string]any{deleteKey: map[string]any{"const": true}},
	"description": "Removes what a lower layer says.",
}

func (s *schemas) structure(p *plan, f *field, layer bool) map[string]any {
	properties, required := map[string]any{}, []string{}
	for i := range p.fields {
		x := &p.fields[i]
		m := s.of(x.plan, x, layer || x.layer)
		if doc := s.docs[x.owner+"."+x.goName]; doc != "" {
			m["description"] = doc
		}
		properties[x.name] = m
		named := layer && f != nil && f.key != "" && f.key != "*" && f.key != x.name
		if x.required && !named {
			required = append(required, x.name)
		}
	}
	m := map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	if len(required) > 0 {
		m["required"] = required
	} else {
		m["type"] = []string{"object", "null"}
	}
	if doc := s.docs[p.typ.Name()]; doc != "" {
		m["description"] = doc
	}
	return m
}

// comments are the doc comments of the structs in a Go file and of their fields,
// by Type and Type.Field.
func comments(source []byte) map[string]string {
	file, err := parser.ParseFile(token.NewFileSet(), "documents.go", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		panic("fleet: " + err.Error()) // it compiled
	}
	docs := map[string]string{}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		t := g.Specs[0].(*ast.TypeSpec)
		docs[t.Name.Name] = oneLine(g.Doc.Text())
		fields, ok := t.Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, f := range fields.Fields.List {
			for _, name := range f.Names {
				docs[t.Name.Name+"."+name.Name] = oneLine(f.Doc.Text())
			}
		}
	}
	return docs
}
