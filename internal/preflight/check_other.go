//go:build !linux

package preflight

import (
	"context"
	"runtime"
)

// Check reports that this is the wrong system.
func Check(ctx context.Context, w Want) *Report {
	w = w.withDefaults()
	r := &Report{}
	r.add(Item{Name: "system", Found: runtime.GOOS, Need: "linux", Fix: "run hosted machines on Linux, or in a Linux virtual machine; verbs that need no machine work here"})
	r.ports(w.Ports)
	return r
}
