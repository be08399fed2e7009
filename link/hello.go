package link

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Bounds on reading a ClientHello from a stranger. A hello with post-quantum
// key share is about 1.7 kB.
const (
	helloMaxBytes = 16 << 10
	helloTimeout  = 10 * time.Second
)

// ErrHello wraps every refusal of ClientHello.
var ErrHello = errors.New("no usable ClientHello")

// errPeeked ends crypto/tls's handshake once it has parsed the hello.
var errPeeked = errors.New("peeked")

// ClientHello reads the name and protocols that a client asks for (SNI, ALPN),
// and terminates nothing: the connection it returns yields every byte again. It
// takes at most 16 KiB and 10 seconds, however slowly they drip; on error conn
// is closed.
func ClientHello(conn net.Conn) (*tls.ClientHelloInfo, net.Conn, error) {
	conn.SetReadDeadline(time.Now().Add(helloTimeout))
	hello, read, err := parseHello(conn)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("%w from %s: %w", ErrHello, conn.RemoteAddr(), err)
	}
	conn.SetReadDeadline(time.Time{})
	return hello, &replayed{Conn: conn, first: read}, nil
}

// parseHello lets crypto/tls parse, so that we and the server behind us read the
// same name out of the same bytes.
func parseHello(r io.Reader) (hello *tls.ClientHelloInfo, read []byte, err error) {
	var seen bytes.Buffer
	source := peekConn{io.TeeReader(io.LimitReader(r, helloMaxBytes), &seen)}
	config := &tls.Config{
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = &tls.ClientHelloInfo{
				ServerName:        info.ServerName,
				SupportedProtos:   info.SupportedProtos,
				SupportedVersions: info.SupportedVersions,
				CipherSuites:      info.CipherSuites,
			}
			return nil, errPeeked
		},
	}
	if err := tls.Server(source, config).Handshake(); !errors.Is(err, errPeeked) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		if seen.Len() >= helloMaxBytes {
			err = fmt.Errorf("longer than %d bytes", helloMaxBytes)
		}
		return nil, nil, err
	}
	return hello, seen.Bytes(), nil
}

// peekConn reads and does nothing else; the alert that ends the peek goes nowhere.
type peekConn struct{ io.Reader }

func (peekConn) Write(b []byte) (int, error)      { return len(b), nil }
func (peekConn) Close() error                     { return nil }
func (peekConn) LocalAddr() net.Addr              { return nil }
func (peekConn) RemoteAddr() net.Addr             { return nil }
func (peekConn) SetDeadline(time.Time) error      { return nil }
func (peekConn) SetReadDeadline(time.Time) error  { return nil }
func (peekConn) SetWriteDeadline(time.Time) error { return nil }

// replayed yields bytes that were read ahead, then the connection's own.
type replayed struct {
	net.Conn
	first []byte // owned by the reader
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(b, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// NetConn gives the connection beneath, for socket options.
func (r *replayed) NetConn() net.Conn { return r.Conn }

// CloseWrite ends the sending half where the connection beneath can.
func (r *replayed) CloseWrite() error { return closeWrite(r.Conn) }
