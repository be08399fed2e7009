package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// limits of one session. Yamux lets a peer that does not read its credit have
// 256 KiB per stream in our memory, so streams are what must be few.
type limits struct {
	streams int    // open at once, each way, and again as many waiting to be accepted
	window  uint32 // bytes in flight per stream
	burst   int64  // bytes that may come at once; 0 = no bound
	rate    int64  // bytes per second that come back to burst
	// closing is how long a stream closed here waits for the peer to close it too.
	closing time.Duration
}

func classLimits(c Class) limits {
	switch c {
	case Bulk:
		return limits{streams: 16, window: 1 << 20, closing: time.Minute}
	case Relay:
		return limits{streams: 128, window: 512 << 10, closing: 5 * time.Minute}
	}
	return limits{streams: 32, window: 256 << 10, closing: time.Minute}
}

// quarantineLimits hold for a peer whose key nobody has named yet: enough to
// introduce itself and stay in touch.
func quarantineLimits() limits {
	return limits{streams: 2, window: 256 << 10, burst: 64 << 10, rate: 256, closing: 10 * time.Second}
}

// sendPatience replaces yamux's write timeout, which would kill a session on a
// link that is merely slow. A dead link is found by silence (session.go).
const sendPatience = 24 * time.Hour

func muxConfig(l limits) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          l.streams,
		EnableKeepAlive:        false, // ours is cheaper: see session.keepalive
		KeepAliveInterval:      time.Hour,
		ConnectionWriteTimeout: sendPatience,
		MaxStreamWindowSize:    l.window,
		StreamOpenTimeout:      0,
		StreamCloseTimeout:     l.closing,
		Logger:                 silent{},
	}
}

// silent drops what yamux would print: every error it prints, it also returns.
type silent struct{}

func (silent) Print(...any)          {}
func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

// Yamux's frame: version, type, flags(2), stream(4), length(4), then the data
// of a data frame.
const (
	frameHeader = 12
	frameData   = 0
	framePing   = 2
	flagSYN     = 1
)

// pings a peer may send: yamux starts a goroutine for each. An honest peer
// sends one per minute at most, and some when its network changes.
const (
	pingBurst = 32
	pingEvery = 2 * time.Second
)

// ErrFlood is returned by Session methods once the peer has sent more than its
// limits allow, and the session was cut.
var ErrFlood = errors.New("peer exceeds its limits")

// frames stands between yamux and TLS. Outward it puts a frame's header and
// body, which yamux writes apart, into one TLS record: 22 bytes and often a
// packet less per frame. Inward it counts what yamux does not bound.
type frames struct {
	net.Conn
	pings, bytes *bucket

	held []byte // header waiting for its body; owned by yamux's one sender

	header [frameHeader]byte // of the frame being read; owned by yamux's one reader
	filled int
	body   uint32 // bytes of its data still to come
}

func newFrames(conn net.Conn, l limits) *frames {
	f := &frames{Conn: conn, pings: newBucket(pingBurst, float64(time.Second)/float64(pingEvery))}
	if l.burst > 0 {
		f.bytes = newBucket(float64(l.burst), float64(l.rate))
	}
	return f
}

func (f *frames) Write(b []byte) (int, error) {
	if f.held == nil && len(b) == frameHeader && b[1] == frameData && binary.BigEndian.Uint32(b[8:]) > 0 {
		f.held = append(make([]byte, 0, frameHeader+binary.BigEndian.Uint32(b[8:])), b...)
		return len(b), nil
	}
	if f.held == nil {
		return f.Conn.Write(b)
	}
	joined := append(f.held, b...)
	f.held = nil
	n, err := f.Conn.Write(joined)
	return max(0, n-frameHeader), err
}

func (f *frames) Read(b []byte) (int, error) {
	n, err := f.Conn.Read(b)
	if n > 0 && f.bytes != nil && !f.bytes.take(float64(n)) {
		return 0, fmt.Errorf("%w: too many bytes for one in quarantine", ErrFlood)
	}
	if cut := f.inspect(b[:n]); cut != nil {
		return 0, cut
	}
	return n, err
}

// inspect follows the frames in b and counts pings.
func (f *frames) inspect(b []byte) error {
	for len(b) > 0 {
		if f.body > 0 {
			skip := min(uint32(len(b)), f.body)
			f.body -= skip
			b = b[skip:]
			continue
		}
		n := copy(f.header[f.filled:], b)
		f.filled += n
		b = b[n:]
		if f.filled < frameHeader {
			return nil
		}
		f.filled = 0
		flags := binary.BigEndian.Uint16(f.header[2:])
		switch f.header[1] {
		case frameData:
			f.body = binary.BigEndian.Uint32(f.header[8:])
		case framePing:
			if flags&flagSYN != 0 && !f.pings.take(1) {
				return fmt.Errorf("%w: too many pings", ErrFlood)
			}
		}
	}
	return nil
}

// bucket is a token bucket for one goroutine.
type bucket struct {
	size, level, perSecond float64
	last                   time.Time
}

func newBucket(size, perSecond float64) *bucket {
	return &bucket{size: size, level: size, perSecond: perSecond, last: time.Now()}
}

func (b *bucket) take(n float64) bool {
	now := time.Now()
	b.level = min(b.size, b.level+b.perSecond*now.Sub(b.last).Seconds())
	b.last = now
	if b.level < n {
		return false
	}
	b.level -= n
	return true
}
