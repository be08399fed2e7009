package vm

import (
	"encoding/json"
	"fmt"
	"strings"
)

// arguments collects QEMU's command line and the descriptors that it inherits.
type arguments struct {
	list  []string
	files files
}

func (a *arguments) add(words ...string) { a.list = append(a.list, words...) }

// node adds a node of QEMU's block layer.
func (a *arguments) node(n map[string]any) {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // of strings and numbers alone
	}
	a.add("-blockdev", string(b))
}

// quoted is a path as a value in an option with commas.
func quoted(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// describe makes the command line of s. The files are those of the command.
func (s Spec) describe(vars, serial string, f wires) *arguments {
	a := &arguments{}
	b := boards[s.Architecture]
	machine, cpu := b.machine+",accel="+string(s.Accel), b.cpu
	if s.Accel == KVM {
		cpu = "host"
	}
	a.add("-name", quoted(s.Name)+",process=holdfast-vm", "-no-user-config", "-nodefaults")
	if s.Kernel == nil {
		machine += ",pflash0=code,pflash1=vars"
		a.node(map[string]any{"driver": "file", "node-name": "code", "filename": b.code, "read-only": true})
		a.node(map[string]any{"driver": "file", "node-name": "vars", "filename": vars})
		a.add(b.secure...)
	} else {
		a.add("-kernel", s.Kernel.File, "-append", s.Kernel.Arguments)
		if s.Kernel.Initrd != "" {
			a.add("-initrd", s.Kernel.Initrd)
		}
	}
	a.add("-machine", machine, "-cpu", cpu, "-smp", fmt.Sprint(s.CPUs), "-m", fmt.Sprintf("%dM", s.Memory>>20))
	a.add("-smbios", fmt.Sprintf("type=1,manufacturer=Holdfast,product=Lab,serial=%s", quoted(s.Serial)))
	a.add("-display", "none")
	a.add(b.screen...)
	a.add("-chardev", "file,id=serial,append=on,path="+quoted(serial), "-serial", "chardev:serial")
	a.add("-chardev", "socket,id=qmp,fd="+a.files.add(f.qmp), "-mon", "chardev=qmp,mode=control")
	a.add("-device", "i6300esb", "-action", "watchdog=reset", "-device", "virtio-rng-pci")
	base := "utc"
	if s.Clock != "" {
		base = s.Clock
	}
	a.add("-rtc", "base="+base)
	if f.tpm != nil {
		a.add("-chardev", "socket,id=tpm,fd="+a.files.add(f.tpm), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", b.tpm+",tpmdev=tpm0")
	}
	s.describeDisks(a, f)
	if s.Tap != nil {
		a.add("-netdev", "tap,id=lan,vhost=off,fd="+a.files.add(s.Tap), "-device", "virtio-net-pci,id=port1,romfile=,netdev=lan,mac="+s.MAC.String())
	}
	return a
}

func (s Spec) describeDisks(a *arguments, f wires) {
	usb := false
	for i, d := range s.Disks {
		node := fmt.Sprintf("d%d", i)
		// Writing through is told to the guest by its device, and to us by a flush after each write.
		a.node(map[string]any{"driver": "nbd", "node-name": node, "server": map[string]any{"type": "fd", "str": a.files.add(f.disks[i])}, "discard": "unmap", "detect-zeroes": "off"})
		device := map[string]any{"drive": node, "id": fmt.Sprintf("disk%d", i), "serial": d.Serial}
		if s.Kernel == nil {
			device["bootindex"] = i
		}
		if d.WriteThrough {
			device["write-cache"] = "off"
		}
		switch d.Bus {
		case Virtio:
			device["driver"] = "virtio-blk-pci"
		case NVMe:
			device["driver"] = "nvme"
			delete(device, "write-cache") // its cache cannot be switched off
		case USB:
			if !usb {
				usb = true
				a.add("-device", "qemu-xhci")
			}
			device["driver"], device["removable"] = "usb-storage", true
		}
		b, err := json.Marshal(device)
		if err != nil {
			panic(err)
		}
		a.add("-device", string(b))
	}
}
