package hosted

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

// Spec describes one hosted machine.
type Spec struct {
	Name     string // DNS label, unique on the host: names the control group and the interface
	Hostname string // default Name
	Root     string // the machine's folder on the host, absolute; made if need be
	Bin      string // host folder bound to /opt/holdfast; empty: none
	Binds    []Bind // more of the host's folders and files

	Network Network

	StateSize int64 // bytes of the STATE image, sparse; default 1 GiB. An image that exists keeps its size
	DataSize  int64 // bytes of the DATA image, sparse; default 10 GiB
	Memory    int64 // bytes; 0: the host's
	CPUs      int   // 0: the host's

	CgroupParent string // default "holdfast"
	Env          []string

	Output *os.File      // the inner's standard output and error; default this process's standard error
	Grace  time.Duration // from SIGTERM to SIGKILL when Run is to end; default 30 s
	Log    *slog.Logger
	Notify func(Event) // called in order; must not block

	unified bool // for tests: as if the host had cgroups of version 2 alone
}

// Bind shows a file or folder of the host inside the machine, read-only unless Writable.
type Bind struct {
	Host, Inside string
	Writable     bool
}

// Network attaches eth0 to a bridge.
type Network struct {
	Namespace *os.File         // where the bridge is; nil: the host's own network namespace
	Bridge    string           // empty: the machine has no eth0
	Address   netip.Prefix     // of eth0
	Gateway   netip.Addr       // default route; may be unset
	MAC       net.HardwareAddr // default: derived from Name
	MTU       int              // default: the bridge's
	DNS       []netip.Addr     // into /etc/resolv.conf
}

// Stage of a machine's life as Run sees it.
type Stage string

const (
	Started Stage = "started" // the inner process exists
	Ready   Stage = "ready"   // EnterInner succeeded
	Ended   Stage = "ended"   // the inner process is gone
)

// Event tells of a change.
type Event struct {
	Stage Stage
	PID   int           // in the host's view
	Took  time.Duration // Ready: since the process was started; Ended: how long it ran
	Err   error         // Ended: why, unless it was asked to
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (s Spec) withDefaults() Spec {
	s.Hostname = cmp.Or(s.Hostname, s.Name)
	s.StateSize = cmp.Or(s.StateSize, 1<<30)
	s.DataSize = cmp.Or(s.DataSize, 10<<30)
	s.CgroupParent = cmp.Or(s.CgroupParent, "holdfast")
	s.Output = cmp.Or(s.Output, os.Stderr)
	s.Grace = cmp.Or(s.Grace, 30*time.Second)
	s.Log = cmp.Or(s.Log, slog.Default()).With("machine", s.Name)
	if s.Notify == nil {
		s.Notify = func(Event) {}
	}
	return s
}

const smallestImage = 64 << 20 // below it ext4 with a journal makes no sense

func (s *Spec) validate() error {
	fault := func(format string, args ...any) error {
		return fmt.Errorf("hosted machine %q: %w", s.Name, fmt.Errorf(format, args...))
	}
	switch {
	case !dnsLabel.MatchString(s.Name):
		return fault("the name is no DNS label")
	case !dnsLabel.MatchString(s.Hostname):
		return fault("the host name %q is no DNS label", s.Hostname)
	case !filepath.IsAbs(s.Root):
		return fault("the folder %q is not an absolute path", s.Root)
	case s.StateSize < smallestImage || s.DataSize < smallestImage:
		return fault("STATE and DATA need at least %d bytes each", smallestImage)
	case s.Network.Bridge != "" && !s.Network.Address.IsValid():
		return fault("an address is needed on bridge %s", s.Network.Bridge)
	case s.Memory < 0 || s.CPUs < 0:
		return fault("memory and CPUs must not be negative")
	}
	for _, b := range s.Binds {
		if !filepath.IsAbs(b.Host) || !filepath.IsAbs(b.Inside) {
			return fault("bind of %q to %q: absolute paths are needed", b.Host, b.Inside)
		}
	}
	return nil
}
