// Hello is the app of the example fleet: it answers over HTTP with what its
// site told it, and so shows whether a release has arrived. It keeps nothing,
// needs nothing, and runs as any user on a read-only root.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is linked in: -ldflags "-X main.version=1.0.0".
var version = "dev"

// answer is what GET / says.
type answer struct {
	Greeting string `json:"greeting,omitempty"`
	Site     string `json:"site,omitempty"`
	Currency string `json:"currency,omitempty"`
	Version  string `json:"version"`
	Text     string `json:"text,omitempty"`
}

func main() {
	listen := flag.String("listen", ":8080", "address to listen on")
	file := flag.String("text", "", "file whose content is added to the answer")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, *file, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets open requests finish.
func run(ctx context.Context, listen, file string, env func(string) string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", listen, err)
	}
	server := &http.Server{Handler: handler(file, env), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	err = server.Shutdown(grace)
	if served := <-done; !errors.Is(served, http.ErrServerClosed) {
		return served
	}
	return err
}

// handler answers / and /healthz. The text file is read at each request: the
// kubelet may change it under a running pod.
func handler(file string, env func(string) string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		a := answer{Greeting: env("GREETING"), Site: env("SITE"), Currency: env("CURRENCY"), Version: cmp.Or(env("VERSION"), version)}
		if file != "" {
			data, err := os.ReadFile(file)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			a.Text = string(data)
		}
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.Encode(a) // a client that went away is no concern of ours
	})
	return mux
}
