package link

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// ErrProxy wraps every refusal of a CONNECT proxy: the uplink is there, the
// proxy does not let us through.
var ErrProxy = errors.New("proxy refuses")

const proxyMaxHeader = 16 << 10

// dialProxy reaches address through an HTTP CONNECT proxy.
func dialProxy(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), proxy, address string) (net.Conn, error) {
	u, err := url.Parse(proxy)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return nil, errors.New("proxy: want http://[user:password@]host:port") // never echo a password
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "80")
	}
	conn, err := dial(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", host, err)
	}
	// The proxy's words come before any that are authenticated: bounded in time
	// and bytes, and every end of ctx reaches them.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	rest, err := connect(conn, u.User, address)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("proxy %s: %w", host, err)
	}
	return rest, nil
}

func connect(conn net.Conn, user *url.Userinfo, address string) (net.Conn, error) {
	request := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: conn, N: proxyMaxHeader}
	reader := bufio.NewReader(limited)
	response, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("%w: its answer is no HTTP: %v", ErrProxy, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %.100q", ErrProxy, response.Status)
	}
	if n := reader.Buffered(); n > 0 { // TLS servers do not speak first
		return nil, fmt.Errorf("%w: %d bytes after its answer", ErrProxy, n)
	}
	return conn, nil
}
