package network

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// lease is what a DHCP server granted.
type lease struct {
	Address     netip.Prefix
	Router      netip.Addr // not valid when there is none, which is normal
	Routes      []route    // RFC 3442; they replace Router
	DNS         []netip.Addr
	NTP         []string
	MTU         int
	From        time.Time
	Length      time.Duration // 0: for ever
	Renew, Bind time.Duration // T1, T2
	raw         any           // the exchange's own
}

type route struct {
	To  netip.Prefix
	Via netip.Addr
}

// times fills in what the server left out or said absurdly.
func (l *lease) times() {
	if l.Length <= 0 {
		return
	}
	l.Length = max(l.Length, 10*time.Second)
	if l.Bind <= 0 || l.Bind >= l.Length {
		l.Bind = l.Length * 7 / 8
	}
	if l.Renew <= 0 || l.Renew >= l.Bind {
		l.Renew = min(l.Length/2, l.Bind*4/7)
	}
}

// exchange talks to DHCP servers on one port.
type exchange interface {
	// request is the whole of it, from the start.
	request(ctx context.Context) (*lease, error)
	// extend asks for the same address again: the server that granted it, or all.
	// errRefused: somebody said no.
	extend(ctx context.Context, l *lease, all bool) (*lease, error)
}

var errRefused = errors.New("the DHCP server refuses the address")

// Times of the client.
const (
	tryFor      = 10 * time.Second // one exchange
	firstPause  = 1 * time.Second
	longPause   = 30 * time.Second
	extendPause = 10 * time.Second // at least, between two tries to extend
)

// keepLease gets a lease and keeps it until ctx ends. Each change is told: a
// lease, or nil for none any more with what went wrong. kick is for a cable that
// was plugged in: the network may be another one.
func keepLease(ctx context.Context, x exchange, kick <-chan struct{}, tell func(*lease, error)) {
	for ctx.Err() == nil {
		l := acquire(ctx, x, kick, tell)
		if l == nil {
			return
		}
		tell(l, nil)
		holdLease(ctx, x, l, kick, tell)
	}
}

// acquire asks until somebody grants.
func acquire(ctx context.Context, x exchange, kick <-chan struct{}, tell func(*lease, error)) *lease {
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		l, err := within(ctx, func(ctx context.Context) (*lease, error) { return x.request(ctx) })
		if err == nil {
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		tell(nil, err)
		kicked, ok := wait(ctx, pause, kick)
		if !ok {
			return nil
		}
		if kicked {
			pause = firstPause / 2
		}
	}
}

func within(ctx context.Context, do func(context.Context) (*lease, error)) (*lease, error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	l, err := do(ctx)
	if err == nil {
		l.times()
	}
	return l, err
}

// wait says whether it was kicked; ok is false when ctx ended.
func wait(ctx context.Context, d time.Duration, kick <-chan struct{}) (kicked, ok bool) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-kick:
		return true, true
	case <-timer.C:
		return false, true
	}
}

// holdLease extends the lease in its times. It returns when it has none any more.
func holdLease(ctx context.Context, x exchange, l *lease, kick <-chan struct{}, tell func(*lease, error)) {
	for {
		at, all := nextTry(l, time.Now())
		pause := time.Until(at)
		if at.IsZero() {
			pause = 1 << 62
		}
		kicked, ok := wait(ctx, pause, kick)
		if !ok {
			return
		}
		all = all || kicked
		if expired(l, time.Now()) {
			tell(nil, errors.New("the lease ended"))
			return
		}
		next, err := within(ctx, func(ctx context.Context) (*lease, error) { return x.extend(ctx, l, all) })
		switch {
		case err == nil:
			l = next
			tell(l, nil)
		case errors.Is(err, errRefused):
			tell(nil, err)
			return
		case expired(l, time.Now()):
			tell(nil, errors.New("the lease ended"))
			return
		}
	}
}

func expired(l *lease, now time.Time) bool { return l.Length > 0 && !now.Before(l.From.Add(l.Length)) }

// nextTry says when to ask again, and whether everybody: zero for a lease that never ends.
func nextTry(l *lease, now time.Time) (at time.Time, all bool) {
	if l.Length <= 0 {
		return time.Time{}, false
	}
	renew, bind, end := l.From.Add(l.Renew), l.From.Add(l.Bind), l.From.Add(l.Length)
	pause := func(until time.Time) time.Time { // half of what is left, as RFC 2131 has it
		left := until.Sub(now)
		return now.Add(max(left/2, min(extendPause, left)))
	}
	switch {
	case now.Before(renew):
		return renew, false
	case now.Before(bind):
		at = pause(bind)
		return at, !at.Before(bind)
	}
	return pause(end), true
}
