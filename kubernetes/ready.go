package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/kubernetes/config"
)

// readiness tells the caller, once, that the part serves.
type readiness struct {
	file string
	fd   *os.File
	once sync.Once
}

// newReadiness removes what an earlier run left: a file that stands from before
// a crash would be a lie.
func newReadiness(file string, fd int) (*readiness, error) {
	r := &readiness{file: file}
	r.clear()
	if fd >= 0 {
		if r.fd = os.NewFile(uintptr(fd), "ready"); r.fd == nil {
			return nil, fmt.Errorf("--ready-fd: no descriptor %d", fd)
		}
	}
	return r, nil
}

func (r *readiness) clear() {
	if r.file != "" {
		os.Remove(r.file)
	}
}

func (r *readiness) set() (err error) {
	r.once.Do(func() {
		if r.file != "" {
			err = os.WriteFile(r.file, []byte("ready\n"), 0o644)
		}
		if r.fd != nil {
			if _, werr := r.fd.WriteString("ready\n"); err == nil {
				err = werr
			}
			r.fd.Close()
		}
	})
	if err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	return nil
}

// waitReady asks an API server's /readyz until it says ok or ctx ends. It needs
// no credentials: readiness is one of the three paths open to anybody.
func waitReady(ctx context.Context, p config.Probe) error {
	ca, err := os.ReadFile(p.CA)
	if err != nil {
		return fmt.Errorf("read CA of the API server: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("no certificate in %s", p.CA)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool, ServerName: p.ServerName, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	return waitOK(ctx, &http.Client{Transport: transport, Timeout: 2 * time.Second}, "https://"+p.Address+"/readyz")
}

func waitOK(ctx context.Context, c *http.Client, url string) error {
	for {
		if ok(ctx, c, url) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", url, context.Cause(ctx))
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func ok(ctx context.Context, c *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := c.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// startMemory and settle carry out config.Memory. once, if given, is called when
// the part settles.
func startMemory(m config.Memory) { setGC(m.StartGCPercent) }

func settle(ctx context.Context, m config.Memory, once func()) {
	go func() {
		pause := time.Duration(m.SettleSeconds) * time.Second
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			first := once != nil
			if first {
				once()
				once = nil
			}
			setGC(m.GCPercent)
			debug.FreeOSMemory()
			if first {
				said("settled")
			}
			if m.FreeSeconds <= 0 {
				return
			}
			pause = time.Duration(m.FreeSeconds) * time.Second
		}
	}()
}

func setGC(percent int) {
	if percent > 0 && os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// said prints how far a start has come, for whoever wonders where the time went.
func said(what string) {
	fmt.Fprintf(os.Stderr, "kube: %s after %.2f s\n", what, time.Since(began).Seconds())
}

var began = time.Now()
