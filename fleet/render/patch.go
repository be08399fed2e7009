package render

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// merge lays a patch over a value by the rule that layers follow too: maps
// merge, scalars and lists replace, lists of named things merge by name,
// `$delete: true` removes, and so does null. Neither argument is changed.
func merge(base, patch any) any {
	switch patch := patch.(type) {
	case map[string]any:
		b, _ := base.(map[string]any)
		return mergeMaps(b, patch)
	case []any:
		if b, ok := base.([]any); ok && named(b) && named(patch) {
			return mergeNamed(b, patch)
		}
		return mergeNamed(nil, patch)
	}
	return patch
}

func mergeMaps(base, patch map[string]any) map[string]any {
	out := make(map[string]any, len(base)+len(patch))
	for k, v := range base {
		out[k] = v
	}
	for k, v := range patch {
		if v == nil || deleted(v) {
			delete(out, k)
			continue
		}
		if k != "$delete" {
			out[k] = merge(out[k], v)
		}
	}
	return out
}

// mergeNamed keeps the order of the base; what is new comes after it.
func mergeNamed(base, patch []any) []any {
	out := append([]any{}, base...)
	for _, p := range patch {
		i := -1
		if name := stringAt(p, "name"); name != "" && base != nil {
			for j, b := range out {
				if stringAt(b, "name") == name {
					i = j
				}
			}
		}
		switch {
		case deleted(p) && i >= 0:
			out = append(out[:i], out[i+1:]...)
		case deleted(p):
		case i >= 0:
			out[i] = merge(out[i], p)
		default:
			out = append(out, merge(nil, p))
		}
	}
	return out
}

func deleted(v any) bool {
	d, _ := at(v, "$delete").(bool)
	return d
}

// named says whether each element is a map with a name.
func named(list []any) bool {
	for _, e := range list {
		if stringAt(e, "name") == "" {
			return false
		}
	}
	return true
}

// body is what a patch lays over its target.
func body(tree fs.FS, p fleet.Patch) (map[string]any, error) {
	if p.File == "" {
		v, err := normal(p.Inline)
		if err != nil {
			return nil, fmt.Errorf("patch of %s: %w", refString(p.Target), err)
		}
		m, _ := v.(map[string]any)
		return m, nil
	}
	if err := refuseLinks(tree, p.File); err != nil {
		return nil, err
	}
	data, err := fs.ReadFile(tree, p.File)
	if err != nil {
		return nil, fault(p.File, 0, 0, "", "cannot read the patch of "+refString(p.Target)+": "+err.Error(), "add the file, or mend the patch's `file`")
	}
	var found map[string]any
	for _, d := range split(data) {
		v, err := d.decode(p.File)
		if err != nil {
			return nil, err
		}
		m, ok := v.(map[string]any)
		switch {
		case v == nil:
		case !ok || found != nil:
			return nil, fault(p.File, d.line, 0, "", "a patch is one map", "one document with the fields to change")
		default:
			found = m
		}
	}
	if found == nil {
		return nil, fault(p.File, 0, 0, "", "the patch is empty", "write the fields to change, or remove the patch")
	}
	return found, nil
}

// normal brings a Go value into the shape that decodeJSON gives.
func normal(v any) (any, error) {
	b, err := canonical(v)
	if err != nil {
		return nil, err
	}
	return decodeJSON(b)
}

// matches says whether a reference of a layer means an object. What the
// reference leaves out does not count; its namespace, when left out, is the
// app's, or none.
func matches(ref fleet.ObjectRef, o Object, namespace string) bool {
	if ref.APIVersion != "" && ref.APIVersion != o.APIVersion || ref.Kind != o.Kind || ref.Name != o.Name {
		return false
	}
	if ref.Namespace == "" {
		return o.Namespace == "" || o.Namespace == namespace
	}
	return ref.Namespace == o.Namespace
}

func matchesAny(refs []fleet.ObjectRef, o Object, namespace string) bool {
	return slices.ContainsFunc(refs, func(ref fleet.ObjectRef) bool { return matches(ref, o, namespace) })
}

func refString(r fleet.ObjectRef) string {
	s := r.Kind + " " + r.Name
	if r.Namespace != "" {
		s = r.Kind + " " + r.Namespace + "/" + r.Name
	}
	return strings.TrimSpace(s)
}
