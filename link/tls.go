package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Class is a kind of traffic and the ALPN that names it. Each is a TCP
// connection of its own.
type Class string

const (
	Control Class = "holdfast-control/1" // calls, slices, reports: small and prompt
	Bulk    Class = "holdfast-bulk/1"    // blobs and large slices: background
	Relay   Class = "holdfast-relay/1"   // operators' connections, passed on unread
	API     Class = "holdfast-api/1"     // operators' calls: HTTP/1.1, no streams; see HTTPConn
)

// HTTP is the ALPN of strangers' tools: browsers, git, curl, registries' clients.
const HTTP = "http/1.1"

// machines tells whether the class carries streams between machine and hub, and
// so needs the key of whoever dials.
func (c Class) machines() bool { return c == Control || c == Bulk || c == Relay }

// Refusals of a handshake. Callers branch on them to say who is wrong: the
// peer, or we who no longer know its key.
var (
	ErrPin       = errors.New("peer's key is not pinned")
	ErrNoKey     = errors.New("peer showed no key")
	ErrPeerKey   = errors.New("peer's key is unusable")
	ErrALPN      = errors.New("peer does not speak the class asked for")
	ErrVersion   = errors.New("peer does not speak TLS 1.3")
	ErrResumed   = errors.New("session was resumed")
	ErrHandshake = errors.New("handshake failed")
)

// HandshakeTimeout bounds a handshake, both ends.
const HandshakeTimeout = 20 * time.Second

// ServerTLS is the configuration of whoever listens, as id, for the ALPNs given.
// A key is demanded of those who ask for a machine's class, asked of those who
// ask for API, and not mentioned to others (a browser would ask its person for
// a certificate).
func ServerTLS(id *Identity, alpn ...string) *tls.Config {
	base := func(auth tls.ClientAuthType) *tls.Config {
		return &tls.Config{
			Certificates:           []tls.Certificate{id.cert},
			MinVersion:             tls.VersionTLS13,
			NextProtos:             slices.Clone(alpn),
			ClientAuth:             auth,
			SessionTicketsDisabled: true,
			VerifyConnection:       func(cs tls.ConnectionState) error { return verifyClient(cs, alpn) },
		}
	}
	open, asked, demanded := base(tls.NoClientCert), base(tls.RequestClientCert), base(tls.RequireAnyClientCert)
	config := base(tls.NoClientCert)
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		// The server's order decides which protocol is chosen; follow it.
		for _, proto := range alpn {
			if !slices.Contains(hello.SupportedProtos, proto) {
				continue
			}
			switch class := Class(proto); {
			case class.machines():
				return demanded, nil
			case class == API:
				return asked, nil
			}
			break
		}
		return open, nil
	}
	return config
}

func verifyClient(cs tls.ConnectionState, alpn []string) error {
	switch {
	case cs.Version != tls.VersionTLS13:
		return ErrVersion
	case cs.DidResume:
		return ErrResumed
	}
	proto := cs.NegotiatedProtocol
	if proto == "" { // a client without ALPN is welcome only where plain HTTP is
		if slices.Contains(alpn, HTTP) {
			return nil
		}
		return ErrALPN
	}
	if !slices.Contains(alpn, proto) {
		return ErrALPN
	}
	if !Class(proto).machines() && len(cs.PeerCertificates) == 0 {
		return nil
	}
	_, err := identityOf(cs.PeerCertificates, false)
	return err
}

// clientTLS is the configuration of whoever dials. Id may be nil for classes
// that demand no key.
func clientTLS(id *Identity, class Class, serverName string, pins []Pin) *tls.Config {
	config := &tls.Config{
		ServerName:             serverName,
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{string(class)},
		SessionTicketsDisabled: true,
		// Not a name and a chain but the key itself is verified, below.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return verifyServer(cs, class, pins) },
	}
	if id != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.cert, nil }
	}
	return config
}

func verifyServer(cs tls.ConnectionState, class Class, pins []Pin) error {
	switch {
	case cs.Version != tls.VersionTLS13:
		return ErrVersion
	case cs.DidResume:
		return ErrResumed
	case cs.NegotiatedProtocol != string(class):
		return fmt.Errorf("%w: got %q, want %q", ErrALPN, cs.NegotiatedProtocol, class)
	}
	spki, err := identityOf(cs.PeerCertificates, true)
	if err != nil {
		return err
	}
	if pin := PinOf(spki); !slices.Contains(pins, pin) {
		return fmt.Errorf("%w: it shows %s", ErrPin, pin)
	}
	return nil
}

// Handshake makes conn a server's TLS connection, within HandshakeTimeout or
// ctx. What passes below TLS is counted for Session.Bytes. It closes conn on
// error.
func Handshake(ctx context.Context, conn net.Conn, config *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	c := tls.Server(counted(conn), config)
	if err := c.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w with %s: %w", ErrHandshake, conn.RemoteAddr(), err)
	}
	return c, nil
}

// PeerSPKI is the identity key that the peer of a handshaken connection showed;
// ErrNoKey if it showed none. Boot keys are resolved to the identity behind
// them, which only clients ever see.
func PeerSPKI(cs tls.ConnectionState) ([]byte, error) {
	return identityOf(cs.PeerCertificates, true)
}

// PeerPin is the pin of PeerSPKI.
func PeerPin(cs tls.ConnectionState) (Pin, error) {
	spki, err := PeerSPKI(cs)
	if err != nil {
		return Pin{}, err
	}
	return PinOf(spki), nil
}

// PeerMachine is the machine ID of PeerSPKI.
func PeerMachine(cs tls.ConnectionState) (fleet.MachineID, error) {
	spki, err := PeerSPKI(cs)
	if err != nil {
		return "", err
	}
	return fleet.MachineIDOf(spki), nil
}
