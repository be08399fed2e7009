package clock

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/beevik/ntp"
	"golang.org/x/sys/unix"
)

// linux is the real clock.
type linux struct{}

const (
	device       = "/dev/rtc0"
	queryTimeout = 5 * time.Second
	maxAddresses = 4 // of one name: each is a source
	maxSources   = 8
)

func (linux) now() time.Time { return time.Now() }

func (linux) set(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %v: %w", t.UTC(), err)
	}
	return nil
}

// slew lets the kernel run half a millisecond per second faster or slower until it is done.
func (linux) slew(d time.Duration) error {
	t := unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: d.Microseconds()}
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("slew the clock by %v: %w", d, err)
	}
	return nil
}

func (linux) rtc() (time.Time, error) {
	f, err := os.Open(device)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	t, err := unix.IoctlGetRTCTime(int(f.Fd()))
	if err != nil {
		return time.Time{}, fmt.Errorf("read %s: %w", device, err)
	}
	return time.Date(int(t.Year)+1900, time.Month(t.Mon+1), int(t.Mday), int(t.Hour), int(t.Min), int(t.Sec), 0, time.UTC), nil
}

func (linux) setRTC(t time.Time) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	t = t.UTC()
	err = unix.IoctlSetRTCTime(int(f.Fd()), &unix.RTCTime{Year: int32(t.Year() - 1900), Mon: int32(t.Month() - 1), Mday: int32(t.Day()),
		Hour: int32(t.Hour()), Min: int32(t.Minute()), Sec: int32(t.Second())})
	if err != nil {
		return fmt.Errorf("set %s: %w", device, err)
	}
	return nil
}

func (linux) ask(ctx context.Context, servers []string) []Sample {
	var mu sync.Mutex
	var out []Sample
	var all sync.WaitGroup
	for _, address := range addresses(ctx, servers) {
		all.Go(func() {
			if s, err := query(address); err == nil {
				mu.Lock()
				out = append(out, s)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return out
}

// addresses resolves names; each address counts as a source, once.
func addresses(ctx context.Context, servers []string) []string {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var out []string
	seen := map[string]bool{}
	for _, server := range servers {
		host, port, err := net.SplitHostPort(server)
		if err != nil {
			host, port = strings.Trim(server, "[]"), "123"
		}
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			continue
		}
		for _, a := range found[:min(len(found), maxAddresses)] {
			address := net.JoinHostPort(a.Unmap().String(), port)
			if !seen[address] && len(out) < maxSources {
				seen[address] = true
				out = append(out, address)
			}
		}
	}
	return out
}

// query asks one server; what it must not say (not synchronised itself, a reply to somebody else) is an error.
func query(address string) (Sample, error) {
	r, err := ntp.QueryWithOptions(address, ntp.QueryOptions{Timeout: queryTimeout})
	if err == nil {
		err = r.Validate()
	}
	if err != nil {
		return Sample{}, fmt.Errorf("ask the time server %s: %w", address, err)
	}
	return Sample{Source: address, Offset: r.ClockOffset, Error: r.RTT / 2}, nil
}
