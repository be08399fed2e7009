// Package harden holds the kernel settings of the OS image, each with its
// reason: those that the Kernel Self-Protection Project asks for, and those that
// Kubernetes and pods need. The list is data, so that a test can compare it with
// the project's. Apply writes it and reads it back. Arguments of the kernel's
// command line are the builder's, and mount flags those of who mounts.
package harden

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Setting is a kernel setting by its path below /proc/sys.
type Setting struct {
	Name, Value string
	Why         string
	// Optional ones may be missing in a kernel, or be locked at a stricter value.
	Optional bool
}

// Settings are all, in the order in which they are written.
func Settings() []Setting {
	return []Setting{
		// What an attacker with a foothold may learn and touch.
		{"kernel/kptr_restrict", "2", "no kernel addresses for anybody", false},
		{"kernel/dmesg_restrict", "1", "the kernel log is not for pods", false},
		{"kernel/perf_event_paranoid", "3", "no performance counters without rights", false},
		{"kernel/randomize_va_space", "2", "addresses are random, the heap too", false},
		{"kernel/yama/ptrace_scope", "1", "a process looks only into its children, or into whom asked for it: crash handlers of apps work that way", false},
		{"kernel/unprivileged_bpf_disabled", "1", "no BPF programs without rights; cannot be undone", true},
		{"net/core/bpf_jit_harden", "2", "no code of an attacker's choice in compiled filters", false},
		{"kernel/kexec_load_disabled", "1", "no other kernel past the signature; cannot be undone", true},
		{"kernel/sysrq", "0", "no keys and no file that command the kernel", true},
		{"kernel/ctrl-alt-del", "0", "the keys are a signal, which is ignored", false},
		{"kernel/io_uring_disabled", "2", "nothing here needs it, and it had many holes", true},
		{"vm/unprivileged_userfaultfd", "0", "it makes races in the kernel easy to win", true},
		{"vm/mmap_min_addr", "65536", "nothing at the address that null pointers lead to", true},
		{"vm/mmap_rnd_bits", "32", "as random as the machine can", true},
		{"vm/mmap_rnd_compat_bits", "16", "the same for programs of 32 bits", true},
		{"dev/tty/ldisc_autoload", "0", "line disciplines had holes, and no terminal is used", true},
		{"dev/tty/legacy_tiocsti", "0", "no typing into other people's terminals", true},

		// Files.
		{"fs/protected_symlinks", "1", "no traps in folders that all may write to", false},
		{"fs/protected_hardlinks", "1", "the same", false},
		{"fs/protected_fifos", "2", "the same", false},
		{"fs/protected_regular", "2", "the same", false},
		{"fs/suid_dumpable", "0", "no memory images of programs with more rights", false},
		{"kernel/core_pattern", "core", "no program is started when one crashes; the limit of 0 keeps files away", false},

		// The network's bad manners.
		{"net/ipv4/tcp_syncookies", "1", "floods of openings cost no memory", false},
		{"net/ipv4/tcp_rfc1337", "1", "late packets end no connection that waits", false},
		{"net/ipv4/icmp_echo_ignore_broadcasts", "1", "no part in floods", false},
		{"net/ipv4/conf/all/accept_redirects", "0", "nobody on the LAN moves our routes", false},
		{"net/ipv4/conf/default/accept_redirects", "0", "the same", false},
		{"net/ipv4/conf/all/secure_redirects", "0", "the same", false},
		{"net/ipv4/conf/default/secure_redirects", "0", "the same", false},
		{"net/ipv4/conf/all/send_redirects", "0", "and we move nobody's", false},
		{"net/ipv4/conf/default/send_redirects", "0", "the same", false},
		{"net/ipv4/conf/all/accept_source_route", "0", "senders do not choose the way", false},
		{"net/ipv4/conf/default/accept_source_route", "0", "the same", false},
		{"net/ipv6/conf/all/accept_redirects", "0", "nobody on the LAN moves our routes", true},
		{"net/ipv6/conf/default/accept_redirects", "0", "the same", true},

		// What Kubernetes wants. The kubelet would write the first six by itself.
		{"vm/overcommit_memory", "1", "kubelet", false},
		{"vm/panic_on_oom", "0", "kubelet", false},
		{"kernel/panic", "10", "kubelet; a panic reboots", false},
		{"kernel/panic_on_oops", "1", "kubelet; a kernel that erred goes on in no known state", false},
		{"kernel/keys/root_maxkeys", "1000000", "kubelet: each container has a keyring", false},
		{"kernel/keys/root_maxbytes", "25000000", "kubelet", false},
		{"net/ipv4/ip_forward", "1", "pods are reached through the machine", false},
		{"net/ipv6/conf/all/forwarding", "1", "the same", true},
		{"net/ipv6/conf/all/accept_ra", "0", "routes come from the release, not from whoever is on the LAN", true},
		{"net/ipv6/conf/default/accept_ra", "0", "the same", true},
		{"net/bridge/bridge-nf-call-iptables", "1", "Services work between pods of one bridge, should one be there", true},
		{"net/bridge/bridge-nf-call-ip6tables", "1", "the same", true},
		{"fs/inotify/max_user_instances", "8192", "every pod's root user is one user here; the default of 128 runs out", false},
		{"fs/inotify/max_user_watches", "524288", "the same", false},
		{"fs/aio-max-nr", "1048576", "databases in pods", false},
		{"kernel/pid_max", "4194304", "many pods have many processes", true},
		{"vm/max_map_count", "262144", "search engines and databases in pods refuse less", false},
		{"net/core/somaxconn", "4096", "bursts of connections", false},

		// Memory: what is swapped goes to compressed memory, one page at a time.
		{"vm/swappiness", "100", "compressed memory is quicker than reading programs again", false},
		{"vm/page-cluster", "0", "reading ahead in memory gains nothing", false},
	}
}

// Apply writes the settings below root, /proc/sys, and reads each back. All
// are tried; the error names those that are not as they should be.
func Apply(root string, settings []Setting) error {
	var faults []error
	for _, s := range settings {
		if err := apply(filepath.Join(root, s.Name), s); err != nil {
			faults = append(faults, fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(s.Name, "/", "."), s.Value, err))
		}
	}
	return errors.Join(faults...)
}

func apply(path string, s Setting) error {
	err := os.WriteFile(path, []byte(s.Value+"\n"), 0)
	if errors.Is(err, fs.ErrNotExist) && s.Optional {
		return nil
	}
	got, read := os.ReadFile(path)
	if read == nil && strings.TrimSpace(string(got)) == s.Value {
		return nil // as it should be, whoever wrote it
	}
	if s.Optional {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("it is %q", strings.TrimSpace(string(got)))
	}
	return err
}

// limits of process 1, which all inherit.
var limits = map[int]unix.Rlimit{
	unix.RLIMIT_NOFILE:  {Cur: 1 << 20, Max: 1 << 20},
	unix.RLIMIT_CORE:    {},
	unix.RLIMIT_NPROC:   {Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}, // cgroups bound it
	unix.RLIMIT_MEMLOCK: {Cur: 64 << 20, Max: unix.RLIM_INFINITY},
}

// Limits sets the limits of this process and of all that it starts.
func Limits() error {
	for which, l := range limits {
		if err := unix.Prlimit(0, which, &l, nil); err != nil {
			return fmt.Errorf("set resource limit %d: %w", which, err)
		}
	}
	return nil
}
