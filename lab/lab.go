// Package lab runs virtual sites of a fleet on one computer: a hub and machines,
// hosted ones in namespaces of their own or virtual ones with the OS image, on a
// network that exists nowhere else.
// It promises that a lab ends by no kill but one of all its processes at the
// same moment, since they keep each other; that it comes back after a restart of
// anything; and that Down leaves nothing on the host. It leaves out adoption and
// releases: those are done on the fleet repo with the same verbs as for real sites.
//
//	holdfast lab keeper ──keeps──> holdfast hub serve
//	        ▲        └────keeps──> machined hosted, or holdfast lab box (one for each machine)
//	        └────────────────keep──── all of them
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/flock"
)

// HubAddress is where machines of a lab dial the hub, inside the lab's network.
const HubAddress = "198.18.0.1:8443"

// Lab is a folder that holds a lab: what is wanted (lab.json), locks, logs, disks.
type Lab struct{ Dir string }

// Wanted is lab.json: what the keeper makes true.
type Wanted struct {
	Version  int    `json:"version"` // of this format: 1
	Fleet    string `json:"fleet"`   // folder of the fleet repo
	FleetID  string `json:"fleetID"`
	Holdfast string `json:"holdfast"` // programs, absolute paths
	Machined string `json:"machined"`
	System   string `json:"system"` // folder with kube, containerd and the rest

	Stop     bool      `json:"stop,omitempty"` // the whole lab is to end
	Hub      Hub       `json:"hub"`
	Machines []Machine `json:"machines"`
}

// Hub is the lab's hub.
type Hub struct {
	Run     bool   `json:"run"`
	Address string `json:"address"` // on the host's loopback, for people
}

// Runtime is how a machine is run.
type Runtime string

// The runtimes. A lab of an older program says nothing: it is hosted.
const (
	Hosted  Runtime = "hosted" // processes of this computer, in namespaces
	Virtual Runtime = "vm"     // the OS image in a virtual machine
)

// Machine is one machine.
type Machine struct {
	Site   string `json:"site"`
	Name   string `json:"name"`
	Run    bool   `json:"run"`
	LAN    int    `json:"lan"`             // number of the site's LAN, 0 to 199
	Host   int    `json:"host"`            // last byte of its LAN address
	Memory int64  `json:"memory"`          // bytes that the machine believes it has
	State  int64  `json:"state,omitempty"` // bytes of its STATE disk, and of DATA; 0: machined's own choice
	Data   int64  `json:"data,omitempty"`
	// Folder is what the machine sees as /machine: its key, seed and console. It
	// is the box itself, and so outlives the lab, which is only its disks.
	Folder string `json:"folder"`

	Runtime Runtime `json:"runtime,omitempty"`
	// What follows is for virtual machines.
	OS        string  `json:"os,omitempty"`    // folder of parts of its OS image
	Disks     []int64 `json:"disks,omitempty"` // their sizes in bytes
	Stick     bool    `json:"stick,omitempty"` // the OS image on a stick is plugged in
	Unplugged bool    `json:"unplugged,omitempty"`
	Accel     string  `json:"accel,omitempty"` // what package vm calls it
	Clock     string  `json:"clock,omitempty"` // what its clock shows at each start; "": the time
}

// Virtual tells whether the machine is a virtual one.
func (m Machine) Virtual() bool { return m.Runtime == Virtual }

// Address is the machine's address on its site's LAN.
func (m Machine) Address() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 90, byte(m.LAN), byte(m.Host)})
}

// Gateway is the router of the machine's LAN.
func (m Machine) Gateway() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 90, byte(m.LAN), 1})
}

// lan is the name of the machine's LAN within the lab.
func (m Machine) lan() string { return "lan" + strconv.Itoa(m.LAN) }

// Key names the machine within the lab.
func (m Machine) Key() string { return m.Site + "." + m.Name }

func (l Lab) path(parts ...string) string { return filepath.Join(append([]string{l.Dir}, parts...)...) }

// MachineDir is the folder of a machine's disks.
func (l Lab) MachineDir(m Machine) string { return l.path("machines", m.Key()) }

// HubDir is the hub's folder.
func (l Lab) HubDir() string { return l.path("hub") }

// ErrNone is a lab that is not there; it is fs.ErrNotExist, too.
var ErrNone error = noLab{}

type noLab struct{}

func (noLab) Error() string { return "no lab is there" }
func (noLab) Unwrap() error { return fs.ErrNotExist }

// Wanted reads lab.json; ErrNone when there is no lab.
func (l Lab) Wanted() (*Wanted, error) {
	var w Wanted
	err := durable.ReadJSON(l.path("lab.json"), &w)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", l.Dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	if w.Version != 1 {
		return nil, fmt.Errorf("%s has version %d, this program knows 1: end that lab with the program that made it", l.path("lab.json"), w.Version)
	}
	return &w, nil
}

// Want writes lab.json; the keeper sees it within a fifth of a second.
func (l Lab) Want(w *Wanted) error {
	w.Version = 1
	return durable.WriteJSON(l.path("lab.json"), w, 0o600)
}

// unit is something that the keeper keeps.
type unit struct{ name, lock, log string }

func (l Lab) keeper() unit {
	return unit{"keeper", l.path("keeper.lock"), l.path("keeper.log")}
}

func (l Lab) hub() unit { return unit{"hub", l.path("hub.lock"), l.path("hub.log")} }

func (l Lab) machine(m Machine) unit {
	return unit{m.Key(), l.path("machines", m.Key()+".lock"), l.path("machines", m.Key()+".log")}
}

func (l Lab) machines(w *Wanted) []unit {
	var units []unit
	for _, m := range w.Machines {
		units = append(units, l.machine(m))
	}
	return units
}

// Unit is a process of the lab as it is now.
type Unit struct {
	Name  string `json:"name"`
	PID   int    `json:"pid,omitempty"`
	Alive bool   `json:"alive"`
	Log   string `json:"log"`
}

// Units tells which processes of the lab are alive.
func (l Lab) Units() ([]Unit, error) {
	w, err := l.Wanted()
	if err != nil {
		return nil, err
	}
	units := append([]unit{l.keeper(), l.hub()}, l.machines(w)...)
	var all []Unit
	for _, u := range units {
		pid, held, err := flock.Owner(u.lock)
		if err != nil {
			return nil, err
		}
		all = append(all, Unit{Name: u.name, PID: pid, Alive: held, Log: u.log})
	}
	return all, nil
}

// Find returns the machine called key, "site.name", or the only machine of the site called key.
func (w *Wanted) Find(key string) (*Machine, error) {
	var found []*Machine
	var names []string
	for i := range w.Machines {
		m := &w.Machines[i]
		names = append(names, m.Key())
		if m.Key() == key {
			return m, nil
		}
		if m.Site == key {
			found = append(found, m)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return nil, fmt.Errorf("no machine %q in this lab; it has %s", key, strings.Join(names, ", "))
}

// Add wants one more machine at site and returns it; an existing one is returned
// as it is. Boxes is where the folders of machines are.
func (w *Wanted) Add(site, name string, memory int64, boxes string) *Machine {
	used := map[string]int{}
	next, host := 0, 11
	for i := range w.Machines {
		m := &w.Machines[i]
		if m.Site == site && m.Name == name {
			return m
		}
		used[m.Site] = m.LAN
		next = max(next, m.LAN+1)
		if m.Site == site {
			host = max(host, m.Host+1)
		}
	}
	lan, ok := used[site]
	if !ok {
		lan = next
	}
	m := Machine{Site: site, Name: name, Run: true, LAN: lan, Host: host, Memory: memory}
	m.Folder = filepath.Join(boxes, m.Key())
	w.Machines = append(w.Machines, m)
	return &w.Machines[len(w.Machines)-1]
}

// Down ends the lab, waits until every process is gone, and removes the folder
// unless keep says otherwise. A lab that is not there is no error.
func (l Lab) Down(ctx context.Context, keep bool) error {
	w, err := l.Wanted()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	w.Stop = true
	if err := l.Want(w); err != nil {
		return err
	}
	units := append(l.machines(w), l.hub(), l.keeper())
	// With the keeper alive this only waits; without it, this ends what is left.
	if _, held, err := flock.Owner(l.keeper().lock); err == nil && !held {
		for _, u := range units {
			if err := terminate(u); err != nil {
				return err
			}
		}
	}
	for _, u := range units {
		if err := gone(ctx, u); err != nil {
			return err
		}
	}
	if err := l.clean(w); err != nil {
		return err
	}
	if keep {
		return nil
	}
	return os.RemoveAll(l.Dir)
}

// gone waits until nobody holds the lock of u.
func gone(ctx context.Context, u unit) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	lock, err := flock.Wait(ctx, u.lock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s does not end (its log: %s): %w", u.name, u.log, err)
	}
	return lock.Close()
}

// Sites lists the sites that have a machine, sorted.
func (w *Wanted) Sites() []string {
	var sites []string
	for _, m := range w.Machines {
		sites = append(sites, m.Site)
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}
