package applier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The program of these tests is this one: what it does hangs on the name that it is
// called by.
func TestMain(m *testing.M) {
	if act := fakes[filepath.Base(os.Args[0])]; act != nil && len(os.Args) == 2 && os.Args[1] == VerbRender {
		act()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const rendered = `{"version":1,"rendering":{"effect":"e1","apps":[{"name":"hello","version":"1.0.0"}],"images":[],"plan":{"apps":["<&>"]}}}`

var fakes = map[string]func(){
	"well": func() {
		slice, _ := io.ReadAll(os.Stdin)
		fmt.Print(strings.Replace(rendered, "e1", string(slice), 1))
	},
	"refuses": func() { fmt.Print(`{"version":1,"refused":"line 3: what is that"}`) },
	"half":    func() { fmt.Print(rendered[:len(rendered)/2]) },
	"nothing": func() {},
	"twice":   func() { fmt.Print(rendered, rendered) },
	"empty":   func() { fmt.Print(`{"version":1}`) },
	"old":     func() { fmt.Print(`{"version":0,"rendering":{}}`) },
	"words":   func() { fmt.Print("usage: applier") },
	"dies":    func() { fmt.Print(rendered); fmt.Fprintln(os.Stderr, "applier: out of luck"); os.Exit(3) },
	"silent":  func() { time.Sleep(time.Hour) },
	"talkative": func() {
		for chunk := make([]byte, 1<<20); ; {
			if _, err := os.Stdout.Write(chunk); err != nil {
				return
			}
		}
	},
}

// called is a Child whose program does what the name says.
func called(t *testing.T, name string) *Child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	return &Child{Program: program, RenderTime: time.Minute}
}

func TestRender(t *testing.T) {
	r, err := called(t, "well").Render(t.Context(), []byte("slice"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Effect != "slice" || len(r.Apps) != 1 || r.Apps[0].Name != "hello" || string(r.Plan) != `{"apps":["<&>"]}` {
		t.Errorf("got %+v", r)
	}
	t.Run("ErrRefused", func(t *testing.T) {
		_, err := called(t, "refuses").Render(t.Context(), nil)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "line 3: what is that") {
			t.Errorf("got %v", err)
		}
	})
	// What is a fault of the program is no verdict on the release.
	for name, words := range map[string]string{
		"half": "unexpected end of JSON", "nothing": "unexpected end of JSON", "twice": "after top-level value", "empty": "no rendering", "words": "invalid character",
		"old": "0, this machined 1: install machined and the applier of one build", "dies": "out of luck", "talkative": "more than 64 MiB", "missing": "no such file",
	} {
		t.Run(name, func(t *testing.T) {
			c := called(t, name)
			if name == "missing" {
				c.Program += "-not"
			}
			_, err := c.Render(t.Context(), []byte("slice"))
			if err == nil || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), words) {
				t.Errorf("got %v, want %q and no refusal", err, words)
			}
			if (name == "old") != errors.Is(err, ErrVersion) {
				t.Errorf("%v is ErrVersion: %v", err, name != "old")
			}
		})
	}
	t.Run("ErrSilent", func(t *testing.T) {
		c := called(t, "silent")
		c.RenderTime = 200 * time.Millisecond
		if _, err := c.Render(t.Context(), nil); !errors.Is(err, ErrSilent) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the caller goes", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := called(t, "silent").Render(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

// listen is an `applier run` that does as the handler does.
func listen(t *testing.T, handler http.HandlerFunc) *Child {
	t.Helper()
	c := &Child{Socket: filepath.Join(t.TempDir(), "s"), Silence: time.Minute}
	l, err := net.Listen("unix", c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return c
}

func write(w http.ResponseWriter, text string) {
	io.WriteString(w, text)
	http.NewResponseController(w).Flush()
}

// die ends the connection as the end of a process does.
func die() { panic(http.ErrAbortHandler) }

var order = Order{API: API{URL: "https://10.0.0.1:6443"}, Release: 7, Plan: json.RawMessage(`{"apps":["<&>"]}`)}

func TestApply(t *testing.T) {
	c := listen(t, func(w http.ResponseWriter, r *http.Request) {
		var o Order
		d := json.NewDecoder(r.Body)
		if err := errors.Join(d.Decode(&o), d.Decode(&o.Plan)); err != nil || o.Release != 7 || string(o.Plan) != string(order.Plan) || o.API != order.API || r.URL.Path != PathApply {
			t.Errorf("asked %s %+v: %v", r.URL.Path, o, err)
		}
		write(w, "{}\n{}\n")
		write(w, `{"result":{"apps":[{"name":"hello","state":"applied","applied":3}],"writes":4}}`+"\n")
	})
	got, err := c.Apply(t.Context(), order)
	if err != nil || len(got.Apps) != 1 || got.Apps[0].State != Applied || got.Writes != 4 {
		t.Errorf("got %+v, %v", got, err)
	}
	t.Run("a result and a fault", func(t *testing.T) {
		c := listen(t, func(w http.ResponseWriter, r *http.Request) {
			write(w, `{"result":{"apps":[{"name":"hello","state":"waiting"}],"writes":0},"fault":"no API server"}`+"\n")
		})
		got, err := c.Apply(t.Context(), order)
		if err == nil || !strings.Contains(err.Error(), "no API server") || len(got.Apps) != 1 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	for name, test := range map[string]struct {
		words  string
		answer http.HandlerFunc
	}{
		"it dies before it answers":   {"EOF", func(http.ResponseWriter, *http.Request) { die() }},
		"it dies while it applies":    {"EOF", func(w http.ResponseWriter, _ *http.Request) { write(w, "{}\n"); die() }},
		"it dies in a line":           {"EOF", func(w http.ResponseWriter, _ *http.Request) { write(w, "{}\n"+`{"result":{"writes":4`); die() }},
		"it ends in a line":           {"EOF", func(w http.ResponseWriter, _ *http.Request) { write(w, `{"result":{"writes":4}}`) }},
		"it ends without a result":    {"ended its answer early", func(w http.ResponseWriter, _ *http.Request) { write(w, "{}\n") }},
		"it says something else":      {"read its answer", func(w http.ResponseWriter, _ *http.Request) { write(w, "panic: oh\n") }},
		"its line never ends":         {"a line of more than", func(w http.ResponseWriter, _ *http.Request) { write(w, strings.Repeat("x", maxEvent+1)) }},
		"it refuses the request":      {"400", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusBadRequest) }},
		"it is of an older build":     {"another version", http.NotFound},
		"it reads nothing and closes": {"", func(_ http.ResponseWriter, r *http.Request) { r.Body.Close(); die() }},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := listen(t, test.answer).Apply(t.Context(), order)
			if err == nil || len(got.Apps) != 0 || got.Writes != 0 || !strings.Contains(err.Error(), test.words) {
				t.Errorf("got %+v, %v, want %q", got, err, test.words)
			}
			if name == "it is of an older build" && !errors.Is(err, ErrVersion) {
				t.Errorf("%v is not ErrVersion", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		c := &Child{Socket: filepath.Join(t.TempDir(), "s")}
		if _, err := c.Apply(t.Context(), order); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}

func TestWatch(t *testing.T) {
	hold := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	t.Run("until the caller goes", func(t *testing.T) {
		gone := make(chan struct{})
		c := listen(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			write(w, `{"status":{"app":"hello","health":"sick","total":2}}`+"\n{}\n"+`{"status":{"app":"hello","health":"ready","ready":2,"total":2}}`+"\n")
			hold(w, r)
			close(gone)
		})
		ctx, cancel := context.WithCancel(t.Context())
		var heard []Status
		err := c.Watch(ctx, order.API, func(s Status) {
			if heard = append(heard, s); s.Health == Ready {
				cancel()
			}
		})
		if !errors.Is(err, context.Canceled) || len(heard) != 2 || heard[1].Ready != 2 {
			t.Errorf("got %+v, %v", heard, err)
		}
		<-gone // the other side has seen it
	})
	t.Run("ErrSilent", func(t *testing.T) {
		c := listen(t, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			write(w, "{}\n")
			hold(w, r)
		})
		stuck := 0
		c.Silence, c.Stuck = 200*time.Millisecond, func() { stuck++ }
		if err := c.Watch(t.Context(), order.API, func(Status) {}); !errors.Is(err, ErrSilent) || stuck != 1 {
			t.Errorf("got %v, told %d times", err, stuck)
		}
	})
}

// What comes from the program is bounded and whole, whatever it is.
func FuzzEvents(f *testing.F) {
	for _, seed := range []string{"", "{}\n", `{"status":{"app":"a","health":"ready"}}` + "\n", `{"result":{"writes":1}}`, "\n\n", "x\n", strings.Repeat("y", 70)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l := newLines(strings.NewReader(text), 64)
		n := 0
		for {
			line, err := l.next()
			if errors.Is(err, io.EOF) {
				if !strings.HasSuffix(text, "\n") && text != "" {
					t.Errorf("%q ended well", text)
				}
				return
			}
			if err != nil {
				return
			}
			n += len(line) + 1
			if len(line) > 64 || n > len(text)+1 {
				t.Errorf("%q: a line of %d bytes", text, len(line))
			}
		}
	})
}
