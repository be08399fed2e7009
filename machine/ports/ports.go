// Package ports says on which ports a machine listens, and which program does. It
// reads what the kernel lists when it is asked and keeps nothing. It promises to
// name each socket of TCP and UDP that others could reach: what is bound to
// loopback addresses alone is left out. Whether a packet gets so far is the packet
// filter's word, not told here.
package ports

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-edge/holdfast/link/wire"
)

// States of a socket in /proc/net (include/net/tcp_states.h of the kernel).
const (
	listening   = "0A" // TCP
	unconnected = "07" // UDP, with no peer: whoever sends is heard
)

// tables are the kernel's lists, and the state in which a socket of each hears strangers.
var tables = []struct{ file, protocol, state string }{
	{"tcp", "tcp", listening}, {"tcp6", "tcp", listening},
	{"udp", "udp", unconnected}, {"udp6", "udp", unconnected},
}

// Read lists the sockets of the network namespace that proc is of, by port. name
// tells what a process runs, by its folder in proc; what it does not know stays
// without a name, as do sockets of the kernel's own.
func Read(proc string, name func(dir string) (string, error)) ([]wire.Listener, error) {
	list := []wire.Listener{}
	inodes := map[string][]int{} // places in list, by socket
	for _, t := range tables {
		err := each(filepath.Join(proc, "net", t.file), func(f []string) error {
			if f[3] != t.state {
				return nil
			}
			at, err := parse(f[1])
			if err != nil || at.Addr().IsLoopback() {
				return err
			}
			inodes[f[9]] = append(inodes[f[9]], len(list))
			list = append(list, wire.Listener{Protocol: t.protocol, Address: at.Addr().String(), Port: at.Port()})
			return nil
		})
		if err != nil && !(errors.Is(err, os.ErrNotExist) && strings.HasSuffix(t.file, "6")) { // a kernel without IPv6
			return nil, err
		}
	}
	if err := owners(proc, name, func(inode, program string) {
		for _, i := range inodes[inode] {
			list[i].Program = program
		}
	}); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b wire.Listener) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Address, b.Address))
	})
	return slices.Compact(list), nil
}

// each gives the fields of each line but the first, which is the heading.
func each(file string, do func(fields []string) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan()
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 {
			return fmt.Errorf("%s: a line with %d fields, want at least 10: %q", file, len(fields), lines.Text())
		}
		if err := do(fields); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return lines.Err()
}

// parse reads an address as /proc/net has it: 32-bit words in hexadecimal, each in
// the order of the processor, here the little end first; then the port.
func parse(text string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(address)
	n, fault := strconv.ParseUint(port, 16, 16)
	if err = errors.Join(err, fault); err != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address with a port", text)
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is no address with a port", text)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// owners tells of each socket that a process has open. Processes that end meanwhile are left out.
func owners(proc string, name func(dir string) (string, error), tell func(inode, program string)) error {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 31); err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name())
		program, err := name(dir)
		if err != nil || program == "" {
			continue
		}
		open, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range open {
			to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
			if inode, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
				tell(strings.TrimSuffix(inode, "]"), program)
			}
		}
	}
	return nil
}
