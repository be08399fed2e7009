// Package dialect decides what a control plane writes: its own minor's, or, while
// its program is on trial, that of the minor before, so that the older program can
// take the data over at any instant. It promises that nothing is held which is not
// known to be readable there, and leaves doing it to etcd's rim (package store)
// and the components' flags.
package dialect

import (
	"fmt"
	"regexp"
	"strconv"
)

// etcdOf is the minor of etcd that our builds of a minor of Kubernetes carry.
var etcdOf = map[string]string{"1.35": "3.6", "1.36": "3.6", "1.37": "3.7"}

// A Dialect is what is written.
type Dialect struct {
	Own     string // minor of this program, such as "1.37"
	Emulate string // the minor before, while held; else ""
	Etcd    string // minor of etcd to speak while held; "" is its own
}

var program = regexp.MustCompile(`^v1\.([0-9]{1,3})\.[0-9]+`)

// Of is what a configuration's hold asks of a program of the given version, with
// an etcd of the given minor. "" and the program's own minor hold nothing.
func Of(hold, version, etcd string) (d Dialect, err error) {
	m := program.FindStringSubmatch(version)
	if m == nil {
		if hold == "" {
			return Dialect{Own: version}, nil
		}
		return d, fmt.Errorf("hold: this program was built without its version (it has %q), so nobody knows what it can be held at", version)
	}
	minor, err := strconv.Atoi(m[1])
	if err != nil {
		return d, fmt.Errorf("version of this program: %w", err)
	}
	d.Own = fmt.Sprintf("1.%d", minor)
	if hold == "" || hold == d.Own {
		return d, nil
	}
	if before := fmt.Sprintf("1.%d", minor-1); hold != before {
		return Dialect{}, fmt.Errorf("hold: Kubernetes %s can be held at %s, not at %s: minors are taken one at a time", d.Own, before, hold)
	}
	was, ok := etcdOf[hold]
	if !ok {
		return Dialect{}, fmt.Errorf("hold: this program does not know which etcd Kubernetes %s had", hold)
	}
	d.Emulate = hold
	if was != etcd {
		d.Etcd = was
	}
	return d, nil
}

// Speaks is the minor of Kubernetes that is written.
func (d Dialect) Speaks() string {
	if d.Emulate != "" {
		return d.Emulate
	}
	return d.Own
}

// Arguments are args of the API server or the controller manager in this dialect.
// The oldest program that must be able to read what is stored is upstream's
// default, the minor before the emulated one.
func (d Dialect) Arguments(args []string) []string {
	if d.Emulate == "" {
		return args
	}
	return append([]string{"--emulated-version=" + d.Emulate}, args...)
}
