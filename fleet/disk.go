package fleet

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"
)

// checkDisks checks the disk rules of a site's machines, as all layers together have them.
func checkDisks(s *Site, merged *node, r *Resolved, faults *Faults) {
	machine := merged.get("machine")
	r.Class.Disk.check(machine.get("disk"), s.spec, "spec.machine.disk", faults)
	for _, b := range elements(s.spec.get("machines")) {
		if c, own := r.perBox[b.get("name").str()]; own && b.path("machine", "disk") != nil {
			n := merge(machine, b.get("machine"), planFor[MachineClass](), nil)
			c.Disk.check(n.get("disk"), b, "spec.machines."+b.get("name").str()+".machine.disk", faults)
		}
	}
}

// check checks what only the whole rule shows. n is where it stands.
func (d DiskRule) check(n, elsewhere *node, at string, faults *Faults) {
	if d.MaxSize > 0 && d.MaxSize < d.MinSize {
		faults.at(cmp.Or(n.get("maxSize"), elsewhere), at+".maxSize", fmt.Sprintf("no disk is as large as minSize, %s, and as small as %s", d.MinSize, d.MaxSize), "at least minSize")
	}
}

// String is the rule for people.
func (d DiskRule) String() string {
	var words []string
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+" "+value)
		}
	}
	add("model", d.Model)
	add("serial number", d.Serial)
	add("at", d.Path)
	if d.MinSize > 0 {
		add("at least", d.MinSize.String())
	}
	if d.MaxSize > 0 {
		add("at most", d.MaxSize.String())
	}
	which := cmp.Or(d.BySize, "only")
	text := "the " + which + " one"
	if len(words) > 0 {
		text += " with " + strings.Join(words, ", ")
	}
	if d.Wipe {
		return text + ", erased where it holds something else"
	}
	return text + ", if it is blank"
}

// String writes a quantity as people do.
func (q Quantity) String() string {
	for i, unit := range []string{"Ti", "Gi", "Mi", "Ki"} {
		if size := Quantity(1) << (10 * (4 - i)); q >= size && q%size == 0 {
			return fmt.Sprintf("%d%s", q/size, unit)
		}
	}
	return fmt.Sprint(int64(q))
}

// ParseQuantity reads a number of bytes as people write it: 512Mi, 16Gi, or plainly.
func ParseQuantity(s string) (Quantity, error) {
	q, err := readQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no size: want %s", shorten(s), scalars[reflect.TypeFor[Quantity]()].want)
	}
	return q.(Quantity), nil
}

// Box is what machines are by the built-in layer, the fleet's defaults and these
// classes, the later ones winning: all that is known of a machine before a release
// names it. The error is Faults.
func (f *Fleet) Box(classes ...string) (MachineClass, error) {
	layers := []*node{f.lowest, f.spec.get("defaults")}
	var faults Faults
	for _, name := range classes {
		n := f.classes[name]
		if n == nil {
			faults.file("classes/"+name+".yaml", "there is no such class", "a class of the fleet repo, such as hardware/nuc12")
			continue
		}
		layers = append(layers, n)
	}
	var layer Layer
	d := decoder{merged: true}
	merged := layered(layers...)
	d.decode(&layer, merged, "spec")
	faults = append(faults, d.faults...)
	layer.Machine.Disk.check(merged.path("machine", "disk"), f.spec, "spec.machine.disk", &faults)
	if faults, _ = faults.split(); len(faults) > 0 {
		return MachineClass{}, faults
	}
	return layer.Machine, nil
}
