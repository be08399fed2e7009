package operator

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// ClientConfig says whom an operator calls, and as whom.
type ClientConfig struct {
	Fleet fleet.ID
	// Dial names the target, its pins, and in Identity the client key. Class is
	// set to link.API. For a machine behind a hub Address is the hub's and
	// ServerName the machine's relay name: TLS ends at the machine.
	Dial link.DialConfig
	// Signer is the operator's key. Nil opens no session: only what the target
	// shows to everybody can be called.
	Signer ssh.Signer
	Roles  []string // wanted; default read
}

// Client calls a target. URLs for HTTP are made by URL.
type Client struct {
	HTTP    *http.Client
	Session Info // as opened; zero without Signer

	config ClientConfig
	mu     sync.Mutex
	first  net.Conn // the connection that the session was opened on; guarded by mu
}

// Open dials a target and opens a session on it, unless the target still honours
// the client key for the roles wanted: a hardware key is touched once per target
// and hour. A refusal is a *wire.Refusal.
func Open(ctx context.Context, config ClientConfig) (*Client, error) {
	c := newClient(config)
	if config.Signer == nil {
		return c, nil
	}
	if config.Dial.Identity == nil {
		return nil, errors.New("open session: no client key")
	}
	if len(c.config.Roles) == 0 {
		c.config.Roles = []string{Read}
	}
	roles, err := canonical(c.config.Roles)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	conn, err := link.DialTLS(ctx, c.config.Dial)
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err = c.open(conn, roles)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open session: %w", err)
	}
	c.first = conn
	return c, nil
}

func newClient(config ClientConfig) *Client {
	config.Dial.Class = link.API
	c := &Client{config: config}
	c.HTTP = &http.Client{
		Transport: &http.Transport{
			DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
			MaxIdleConnsPerHost: 4,
			IdleConnTimeout:     time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// URL is that of a path at the target.
func (c *Client) URL(path string) string { return "https://" + link.Host + path }

// Call makes one call with messages of package wire, in and out of which may be nil.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	return wire.Call(ctx, c.HTTP, method, c.URL(path), in, out)
}

// Close ends the connections, not the session: the next call within the hour
// needs no signature.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first != nil {
		c.first.Close()
		c.first = nil
	}
	c.HTTP.CloseIdleConnections()
}

// dial gives the session's first connection once, then new ones: the target
// honours the client key on any.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	first := c.first
	c.first = nil
	c.mu.Unlock()
	if first != nil {
		return first, nil
	}
	return link.DialTLS(ctx, c.config.Dial)
}

func (c *Client) open(conn *tls.Conn, roles []string) error {
	reader := bufio.NewReader(conn)
	var held Info
	if err := exchange(conn, reader, http.MethodGet, nil, &held); err == nil &&
		!slices.ContainsFunc(roles, func(r string) bool { return !slices.Contains(held.Roles, r) }) {
		c.Session = held
		return silent(reader)
	}
	signed, err := c.sign(conn, roles)
	if err != nil {
		return err
	}
	if err := exchange(conn, reader, http.MethodPost, signed, &c.Session); err != nil {
		return err
	}
	return silent(reader)
}

// silent makes sure that nothing was read that http.Client would miss.
func silent(reader *bufio.Reader) error {
	if reader.Buffered() > 0 {
		return errors.New("target speaks unasked")
	}
	return nil
}

func (c *Client) sign(conn *tls.Conn, roles []string) (*request, error) {
	cs := conn.ConnectionState()
	target, err := link.PeerPin(cs)
	if err != nil {
		return nil, err
	}
	secret, err := exporter(cs)
	if err != nil {
		return nil, err
	}
	said := statement{c.config.Fleet, target, c.config.Dial.Identity.Pin(), roles, secret}
	signature, err := said.sign(c.config.Signer)
	if err != nil {
		return nil, err
	}
	return &request{Roles: roles, Signature: signature}, nil
}

// exchange makes one call on the very connection that is signed over.
func exchange(conn net.Conn, reader *bufio.Reader, method string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = wire.Encode(in); err != nil {
			return err
		}
	}
	r, err := http.NewRequest(method, "https://"+link.Host+Path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if err := r.Write(conn); err != nil {
		return err
	}
	response, err := http.ReadResponse(reader, r)
	if err != nil {
		return err
	}
	return wire.Answer(response, out)
}
