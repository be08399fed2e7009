package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, strings.TrimSpace(w.Body.String())
}

func TestHandler(t *testing.T) {
	env := map[string]string{"GREETING": "Grüezi & willkommen", "SITE": "zurich-hb", "CURRENCY": "CHF"}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("thank you"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file, path string
		code             int
		body             string
	}{
		{"answer", "", "/", 200, `{"greeting":"Grüezi & willkommen","site":"zurich-hb","currency":"CHF","version":"dev"}`},
		{"text", text, "/", 200, `{"greeting":"Grüezi & willkommen","site":"zurich-hb","currency":"CHF","version":"dev","text":"thank you"}`},
		{"health", "", "/healthz", 200, "ok"},
		{"ErrPath", "", "/other", 404, "404 page not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, body := get(t, handler(c.file, func(k string) string { return env[k] }), c.path)
			if code != c.code || body != c.body {
				t.Errorf("GET %s = %d %s, want %d %s", c.path, code, body, c.code, c.body)
			}
		})
	}
	t.Run("ErrText", func(t *testing.T) {
		if code, _ := get(t, handler(text+".gone", os.Getenv), "/"); code != 500 {
			t.Errorf("GET / without its file = %d, want 500", code)
		}
	})
}

func TestStopsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx, "127.0.0.1:0", "", os.Getenv) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("run ended with %v, want nil", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("run does not end with its context")
	}
}
