package apps

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// inventory is what the engine remembers of one app. It is a cache of what the labels and annotations on the objects say.
type inventory struct {
	Version int     `json:"version"`
	App     string  `json:"app"`
	Release uint64  `json:"release"` // the release that last changed anything
	Objects []entry `json:"objects"`
}

// entry is one object that the app has brought and that is not yet gone.
type entry struct {
	Ref
	Pending bool `json:"pending,omitempty"` // about to be applied: says nothing about whose it is
}

// once remembers what must not happen twice and cannot be read from objects, since those may be gone.
type once struct {
	Version int               `json:"version"`
	Jobs    map[string]string `json:"jobs,omitempty"`    // namespace/name to the digest that ran
	Deletes []Ref             `json:"deletes,omitempty"` // entries of the plan that were carried out
}

const (
	inventoryLabel = "holdfast.dev/inventory" // on the ConfigMaps; the value is the app
	onceLabel      = "holdfast.dev/once"
	booksKey       = "books.json"
)

func inventoryName(app string) string { return "inventory-" + app }

func onceName(app string) string {
	if app == "" {
		return "once"
	}
	return "once-" + app
}

func decodeInventory(data string) (*inventory, error) {
	var inv inventory
	if err := json.Unmarshal([]byte(data), &inv); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	if inv.Version != 1 {
		return nil, fmt.Errorf("inventory: version %d, this program knows 1", inv.Version)
	}
	return &inv, nil
}

// encode has one spelling, so that an inventory that did not change is not written.
func (inv *inventory) encode() string {
	inv.Version = 1
	inv.Objects = slices.Clone(inv.Objects)
	slices.SortFunc(inv.Objects, func(a, b entry) int { return compareRefs(a.Ref, b.Ref) })
	inv.Objects = slices.CompactFunc(inv.Objects, func(a, b entry) bool { return a.identity() == b.identity() })
	data, err := json.Marshal(inv)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(data)
}

func decodeOnce(data string) (*once, error) {
	o := once{}
	if err := json.Unmarshal([]byte(data), &o); err != nil {
		return nil, fmt.Errorf("books of what happens once: %w", err)
	}
	if o.Version != 1 {
		return nil, fmt.Errorf("books of what happens once: version %d, this program knows 1", o.Version)
	}
	return &o, nil
}

func (o *once) encode() string {
	o.Version = 1
	slices.SortFunc(o.Deletes, compareRefs)
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func compareRefs(a, b Ref) int {
	for _, c := range []int{
		strings.Compare(a.group(), b.group()), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name),
		strings.Compare(a.APIVersion, b.APIVersion),
	} {
		if c != 0 {
			return c
		}
	}
	return 0
}

func (inv *inventory) has(id identity) bool {
	return slices.ContainsFunc(inv.Objects, func(e entry) bool { return e.identity() == id })
}
