// Package watchdog keeps the machine's hardware watchdog from biting as long as
// the machine really works: one goroutine feeds it, and only while every pulse
// that it was told to feel has beaten lately. A machine that hangs, in the
// kernel or in its own process 1, is reset, and the boot counter decides where
// it wakes up. It chooses no driver, and where there is no watchdog it does
// nothing.
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Pulse is the sign of life of a part of the machine. The zero value is one
// that has not begun to beat, which counts as alive: boot has its own bounds.
type Pulse struct {
	mu   sync.Mutex
	last time.Time
}

// Beat says that the part is alive.
func (p *Pulse) Beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
}

// Rest says that the part has ended as it should, and no beat is to be expected.
func (p *Pulse) Rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Time{}
}

// alive tells whether the last beat is no older than within.
func (p *Pulse) alive(within time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.IsZero() || time.Since(p.last) <= within
}

// device is /dev/watchdog; tests have another.
type device interface {
	Timeout(time.Duration) error
	Feed() error
	Close(stop bool) error
}

// Dog is an armed watchdog. A nil Dog is a machine without: all that it does is nothing.
type Dog struct {
	device device

	mu      sync.Mutex // guards what follows
	timeout time.Duration
	changed chan struct{}
}

// Open arms the watchdog at path. It returns nil when there is none.
func Open(path string, timeout time.Duration) (*Dog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the watchdog: %w", err)
	}
	d := &Dog{device: kernel{f}, changed: make(chan struct{}, 1)}
	if err := d.SetTimeout(timeout); err != nil {
		return nil, err
	}
	return d, nil
}

// SetTimeout sets how long after the last feeding it bites, and feeds it.
func (d *Dog) SetTimeout(timeout time.Duration) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.device.Timeout(timeout); err != nil {
		return fmt.Errorf("set the watchdog to %v: %w", timeout, err)
	}
	d.timeout = timeout
	select {
	case d.changed <- struct{}{}:
	default:
	}
	return d.device.Feed()
}

// Keep feeds it until ctx ends, while all pulses beat at least once within
// patience. It says by tell when a pulse fails, and feeds on should that come
// back in time.
func (d *Dog) Keep(ctx context.Context, patience time.Duration, pulses map[string]*Pulse, tell func(part string)) error {
	if d == nil {
		<-ctx.Done()
		return nil
	}
	told := map[string]bool{}
	for {
		ok := true
		for name, p := range pulses {
			alive := p.alive(patience)
			ok = ok && alive
			if !alive && !told[name] {
				tell(name)
			}
			told[name] = !alive
		}
		d.mu.Lock()
		every := d.timeout / 4
		var err error
		if ok {
			err = d.device.Feed()
		}
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("feed the watchdog: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-d.changed:
		case <-time.After(every):
		}
	}
}

// Disarm stops the watchdog: before the machine is switched off on purpose.
func (d *Dog) Disarm() error { return d.close(true) }

// Leave closes the watchdog and lets it run: what hangs on the way into the next
// boot is reset.
func (d *Dog) Leave() error { return d.close(false) }

func (d *Dog) close(stop bool) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.device.Close(stop)
}

// kernel is the kernel's watchdog device.
type kernel struct{ *os.File }

func (k kernel) Timeout(t time.Duration) error {
	return unix.IoctlSetPointerInt(int(k.Fd()), unix.WDIOC_SETTIMEOUT, int(t/time.Second))
}

func (k kernel) Feed() error {
	_, err := k.Write([]byte{0})
	return err
}

func (k kernel) Close(stop bool) error {
	if stop { // the magic letter: else the driver takes closing for a crash
		if _, err := k.WriteString("V"); err != nil {
			return err
		}
	}
	return k.File.Close()
}
