package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Target is what a relayed connection is for.
type Target string

const (
	MachineTarget Target = "machine" // a machine's API
	KubeTarget    Target = "kube"    // a site's kube-apiserver
)

// RelayName is an SNI name by which the hub passes a connection on unread.
type RelayName struct {
	Target Target
	Label  string // machine ID, or the name of a site
	Fleet  fleet.ID
}

// MachineName is `<machine-id>.machine.<fleet>`.
func MachineName(machine fleet.MachineID, f fleet.ID) RelayName {
	return RelayName{MachineTarget, string(machine), f}
}

// KubeName is `<site>.kube.<fleet>`.
func KubeName(site string, f fleet.ID) RelayName { return RelayName{KubeTarget, site, f} }

func (n RelayName) String() string {
	return n.Label + "." + string(n.Target) + "." + string(n.Fleet)
}

// ParseRelayName reads a name that a stranger sent; false for every other name.
func ParseRelayName(sni string) (RelayName, bool) {
	parts := strings.Split(strings.ToLower(sni), ".")
	if len(sni) > 253 || len(parts) != 3 || !isLabel(parts[0]) {
		return RelayName{}, false
	}
	id, err := fleet.ParseID(parts[2])
	if err != nil {
		return RelayName{}, false
	}
	name := RelayName{Target(parts[1]), parts[0], id}
	switch name.Target {
	case MachineTarget:
		if _, err := fleet.ParseMachineID(name.Label); err != nil {
			return RelayName{}, false
		}
	case KubeTarget:
	default:
		return RelayName{}, false
	}
	return name, true
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// OpenRelay opens a stream to a machine's relay session and says what it is
// for; what follows is the operator's bytes.
func OpenRelay(ctx context.Context, s Session, target Target) (net.Conn, error) {
	stream, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(stream, string(target)+"\n"); err != nil {
		stream.Close()
		return nil, fmt.Errorf("open relay to %s: %w", target, err)
	}
	return stream, nil
}

const (
	targetMaxBytes = 16
	targetTimeout  = 10 * time.Second
)

// AcceptRelay reads what a stream that the hub opened is for. It reads no byte
// of what follows.
func AcceptRelay(stream net.Conn) (Target, error) {
	stream.SetReadDeadline(time.Now().Add(targetTimeout))
	defer stream.SetReadDeadline(time.Time{})
	var line []byte
	for b := make([]byte, 1); len(line) < targetMaxBytes; {
		if _, err := io.ReadFull(stream, b); err != nil {
			return "", fmt.Errorf("read relay target: %w", err)
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if t := Target(line); t == MachineTarget || t == KubeTarget {
			return t, nil
		}
		break
	}
	return "", fmt.Errorf("read relay target: %.32q is none", line)
}

// drainTime is how long one direction of a splice may outlive the other.
const drainTime = 30 * time.Second

// Splice passes bytes both ways until both ends are done, or one is broken, or
// ctx ends; then both are closed. It returns how many bytes went each way.
func Splice(ctx context.Context, a, b net.Conn) (aToB, bToA int64, err error) {
	defer a.Close()
	defer b.Close()
	stop := context.AfterFunc(ctx, func() { a.Close(); b.Close() })
	defer stop()
	var (
		wg   sync.WaitGroup
		errs [2]error
	)
	pass := func(dst, src net.Conn, n *int64, err *error) {
		*n, *err = io.Copy(dst, src)
		if *err != nil {
			a.Close()
			b.Close()
			return
		}
		if closeWrite(dst) != nil {
			dst.Close()
		}
		src.SetReadDeadline(time.Now().Add(drainTime))
		dst.SetReadDeadline(time.Now().Add(drainTime))
	}
	wg.Go(func() { pass(b, a, &aToB, &errs[0]) })
	wg.Go(func() { pass(a, b, &bToA, &errs[1]) })
	wg.Wait()
	if ctx.Err() != nil {
		return aToB, bToA, context.Cause(ctx)
	}
	for _, e := range errs {
		if e != nil && !errors.Is(e, net.ErrClosed) {
			return aToB, bToA, fmt.Errorf("splice: %w", e)
		}
	}
	return aToB, bToA, nil
}

func closeWrite(conn net.Conn) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
