package preflight

import (
	"cmp"
	"fmt"
	"net"
	"strings"
)

// Want is what is to run here.
type Want struct {
	Machines int      // how many; default 1
	Dir      string   // where machines will live; default the working directory
	Ports    []string // host:port that must be free for the hub
	Virtual  bool     // virtual machines, not hosted ones
	Memory   int64    // bytes per machine; default 640 MiB
	Disk     int64    // bytes that a machine really fills; default 2 GiB
}

// What a machine takes: control plane, node, runtime, DNS and one app, measured or counted, with some air.
const (
	inotifyPerMachine = 16  // the control plane alone has 10
	pidsPerMachine    = 600 // threads count
	defaultMemory     = 640 << 20
	defaultDisk       = 2 << 30
)

func (w Want) withDefaults() Want {
	w.Machines = cmp.Or(w.Machines, 1)
	w.Dir = cmp.Or(w.Dir, ".")
	w.Memory = cmp.Or(w.Memory, defaultMemory)
	w.Disk = cmp.Or(w.Disk, defaultDisk)
	return w
}

// Item is one thing that was looked at.
type Item struct {
	Name  string `json:"name"`
	OK    bool   `json:"ok"`
	Found string `json:"found"`
	Need  string `json:"need"`
	Fix   string `json:"fix,omitempty"` // the next step, where not OK
}

// Report is the outcome. Machines can be run when every item is OK.
type Report struct {
	Items []Item `json:"items"`
	Fits  int    `json:"fits"` // how many machines, by what can be counted
}

// OK tells whether everything wanted can run.
func (r *Report) OK() bool { return len(r.Failed()) == 0 }

// Failed lists what is lacking.
func (r *Report) Failed() []Item {
	var failed []Item
	for _, i := range r.Items {
		if !i.OK {
			failed = append(failed, i)
		}
	}
	return failed
}

// String is the report for a person: a line for each item, and the next step under each that is lacking.
func (r *Report) String() string {
	var b strings.Builder
	for _, i := range r.Items {
		mark := "ok  "
		if !i.OK {
			mark = "LACK"
		}
		fmt.Fprintf(&b, "%s  %-22s %s", mark, i.Name, i.Found)
		if !i.OK {
			fmt.Fprintf(&b, " (needed: %s)\n      next: %s", i.Need, i.Fix)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "room for %s\n", machines(r.Fits))
	return b.String()
}

func (r *Report) add(i Item) { r.Items = append(r.Items, i) }

// room adds an item for something that can be counted: what is free, what one machine takes, what all take.
func (r *Report) room(name string, free, each int64, wanted int, show func(int64) string, fix string) {
	fits := max(0, int(free/each))
	r.Fits = min(r.Fits, fits)
	r.add(Item{Name: name, OK: fits >= wanted, Found: fmt.Sprintf("%s free: room for %s", show(free), machines(fits)),
		Need: fmt.Sprintf("%s (%s for each of %d)", show(each*int64(wanted)), show(each), wanted), Fix: fix})
}

func machines(n int) string {
	if n == 1 {
		return "1 machine"
	}
	return fmt.Sprint(n, " machines")
}

func count(n int64) string { return fmt.Sprint(n) }

func size(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// ports tries each address for a moment.
func (r *Report) ports(addrs []string) {
	for _, addr := range addrs {
		item := Item{Name: "port " + addr, OK: true, Found: "free", Need: "free", Fix: "stop what listens there, or choose another port"}
		if l, err := net.Listen("tcp", addr); err != nil {
			item.OK, item.Found = false, err.Error()
		} else {
			l.Close()
		}
		r.add(item)
	}
}
