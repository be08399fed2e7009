package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/lab/vm"
	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/build"
)

// NotVirtual is the error of what only virtual machines have.
type NotVirtual struct{ Machine, What string }

func (e *NotVirtual) Error() string {
	return fmt.Sprintf("machine %s is hosted: only virtual machines have %s", e.Machine, e.What)
}

// virtual finds a machine, which must be a virtual one since it is asked for what.
func (l Lab) virtual(name, what string) (*Wanted, *Machine, error) {
	w, err := l.Wanted()
	if err != nil {
		return nil, nil, err
	}
	m, err := w.Find(name)
	if err != nil {
		return nil, nil, err
	}
	if !m.Virtual() {
		return nil, nil, &NotVirtual{m.Key(), what}
	}
	return w, m, nil
}

// Files of a virtual machine. All but the TPM are in MachineDir, and end with the
// lab; the TPM is the box itself, and stays in its folder.
func (l Lab) disk(m Machine, n int) string {
	return filepath.Join(l.MachineDir(m), fmt.Sprintf("disk%d.raw", n))
}
func (l Lab) stick(m Machine) string   { return filepath.Join(l.MachineDir(m), "stick.raw") }
func (l Lab) serial(m Machine) string  { return filepath.Join(l.MachineDir(m), "serial.log") }
func (l Lab) control(m Machine) string { return filepath.Join(l.MachineDir(m), "control") }
func (l Lab) trouble(m Machine) string { return filepath.Join(l.MachineDir(m), "trouble") }
func (m Machine) tpm() string          { return filepath.Join(m.Folder, "swtpm") }

// Trouble is why a virtual machine is not on although it should be; "" when it is,
// or when its box has not tried yet.
func (l Lab) Trouble(m Machine) string {
	text, err := os.ReadFile(l.trouble(m))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// Log is where the process that a machine lives in writes its log.
func (l Lab) Log(m Machine) string { return l.machine(m).log }

// SerialLog is the file with all that a virtual machine said on its console.
func (l Lab) SerialLog(m Machine) string { return l.serial(m) }

// DiskFile is the file of a virtual machine's n-th disk. While the machine runs it
// holds what was flushed.
func (l Lab) DiskFile(m Machine, n int) string { return l.disk(m, n) }

// networkHints is the network.yaml of a lab's machines: where the hub is.
func networkHints() map[string][]byte {
	text := fmt.Sprintf("# Written by holdfast lab up.\napiVersion: %s\nkind: Network\nspec:\n  hubs: [%q]\n", fleet.APIVersion, HubAddress)
	return map[string][]byte{osimage.PublicFolder + "/network.yaml": []byte(text)}
}

// prepareDisks makes the disks that are not there yet: the first with the OS
// image, the others blank.
func (l Lab) prepareDisks(m Machine) error {
	if err := durable.MkdirAll(l.MachineDir(m), 0o700); err != nil {
		return err
	}
	for n, size := range m.Disks {
		file := l.disk(m, n)
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return err
			}
			continue
		}
		if n > 0 {
			if err := vm.Blank(file, size); err != nil {
				return err
			}
			continue
		}
		if err := l.osDisk(m, file, size, false); err != nil {
			return err
		}
	}
	return nil
}

// osDisk makes a disk from the parts of the OS image, at least so big.
func (l Lab) osDisk(m Machine, file string, size int64, stick bool) error {
	tmp := file + ".new"
	if err := build.Disk(m.OS, tmp, networkHints(), stick); err != nil {
		return fmt.Errorf("make a disk of the OS image in %s: %w", m.OS, err)
	}
	info, err := os.Stat(tmp)
	if err == nil && info.Size() < size {
		err = os.Truncate(tmp, size)
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// spec is the machine as package vm builds it.
func (l Lab) spec(m Machine, w *world.World) (vm.Spec, error) {
	tap, err := w.Tap(m.lan())
	if err != nil {
		return vm.Spec{}, err
	}
	s := vm.Spec{Dir: l.MachineDir(m), Name: m.Key(), Serial: l.hostName(m), Memory: m.Memory, TPM: m.tpm(), Tap: tap, MAC: vm.MAC(l.hostName(m)), Clock: m.Clock, Accel: vm.Accel(m.Accel)}
	for n := range m.Disks {
		s.Disks = append(s.Disks, vm.Disk{File: l.disk(m, n)})
	}
	if m.Stick { // on a bus that every flavour of the kernel knows
		s.Disks = append(s.Disks, vm.Disk{File: l.stick(m), Serial: "stick"})
	}
	return s, nil
}

// startBox returns the command of the process that a virtual machine lives in.
func (k *keeper) startBox(w *Wanted, m Machine) (*exec.Cmd, error) {
	return k.inWorld(w, m, w.Holdfast, "lab", "box", m.Key(), "--dir", k.lab.Dir)
}

// serveDHCP answers the virtual machines of m's LAN, once for each LAN. It is not
// tied to the start of a machine: a keeper may come after one that was killed.
func (k *keeper) serveDHCP(ctx context.Context, m Machine) {
	k.mu.Lock()
	known := k.dhcp[m.lan()]
	k.dhcp[m.lan()] = true
	k.mu.Unlock()
	if known {
		return
	}
	k.wg.Go(func() {
		for {
			err := k.world.AddLAN(m.lan(), netip.PrefixFrom(m.Gateway(), 24))
			if err == nil {
				err = k.world.ServeDHCP(ctx, m.lan(), k.log, k.lease)
			}
			if ctx.Err() != nil {
				return
			}
			k.log.Error("serve DHCP", "lan", m.lan(), "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	})
}

// lease is what the virtual machine with a network card gets.
func (k *keeper) lease(mac string) (world.Lease, bool) {
	for _, m := range k.wanted().Machines {
		if m.Virtual() && vm.MAC(k.lab.hostName(m)).String() == mac {
			return world.Lease{Address: netip.PrefixFrom(m.Address(), 24), Router: m.Gateway()}, true
		}
	}
	return world.Lease{}, false
}

// Bounds of how much of a console is looked at from its end. The code is there once for each boot.
const (
	consoleMax = 64 << 10
	codeMax    = 64 << 20
)

// escapes are what a terminal takes as orders.
var escapes = regexp.MustCompile("\x1b\\[[0-9;?=]*[a-zA-Z]|\x1b[()][a-zA-Z0-9]|[\r\x00]")

// tail is the end of a console, as text.
func tail(path string, most int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-most), most))
	return string(bytes.ToValidUTF8(escapes.ReplaceAll(b, nil), []byte("?")))
}

func (l Lab) lastLines(m Machine, n int) string {
	lines := strings.SplitAfter(strings.TrimRight(tail(l.serial(m), consoleMax), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "") + "\n"
}

// codeLine is the line with the machine's code, behind whatever the kernel puts before a line.
var codeLine = regexp.MustCompile(`(?m)^(?:.*\s)?code +([A-Z0-9]{4,}(?:-[A-Z0-9]{4,})+)\s*$`)

// codeIn is the code that a console showed last.
func codeIn(serial string) string {
	all := codeLine.FindAllStringSubmatch(tail(serial, codeMax), -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}
