// Package serve is the inside of cmd/applier: it renders slices with fleet/render
// and brings renderings into the site's Kubernetes with machine/apps, and speaks of
// both in the words of package applier.
//
// Local does the work in this process; Main puts it behind the program's verbs. It
// promises that a call ends when the caller is gone, and that the caller hears
// something every few seconds as long as the program lives. It leaves out
// judgement of signatures: whoever hands in a slice has verified it.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/release"
)

const usage = `applier is machined's helper: it renders releases and applies them.

  applier render               a slice on standard input, its rendering on standard output
  applier run --socket FILE    applies and watches for who may open the socket
`

// Main runs the program.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	verb := ""
	if len(args) > 0 {
		verb = args[0]
	}
	switch verb {
	case applier.VerbRender:
		return answer(stdin, stdout)
	case applier.VerbRun:
		flags := flag.NewFlagSet("applier run", flag.ContinueOnError)
		flags.SetOutput(stderr)
		socket := flags.String("socket", "", "socket to listen on (required)")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if *socket == "" {
			return errors.New("--socket is required")
		}
		return run(ctx, *socket, &Local{Log: slog.New(slog.NewTextHandler(stderr, nil))})
	}
	fmt.Fprint(stderr, usage)
	return fmt.Errorf("unknown verb %q", verb)
}

// answer renders one slice.
func answer(stdin io.Reader, stdout io.Writer) error {
	most := release.DefaultLimits().Slice
	slice, err := io.ReadAll(io.LimitReader(stdin, int64(most)+1))
	if err != nil {
		return fmt.Errorf("read the slice: %w", err)
	}
	out := applier.Answer{Version: applier.Version}
	out.Rendering, err = Render(slice)
	if err == nil && len(out.Rendering.Plan) > applier.MaxAnswer/2 {
		err = fmt.Errorf("it makes %d MiB of objects, at most %d are taken", len(out.Rendering.Plan)>>20, applier.MaxAnswer/2>>20)
	}
	if err != nil {
		out.Refused, out.Rendering = err.Error(), nil
	}
	return encoder(stdout).Encode(out)
}

// encoder writes what is in a string as it is: objects go through unchanged.
func encoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}

// run serves the socket until ctx ends.
func run(ctx context.Context, socket string, l *Local) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make room for the socket: %w", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil { // its folder lets nobody else in, from the first instant
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: l.Handler(), ReadHeaderTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

// Handler serves `applier run`.
func (l *Local) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+applier.PathApply, func(w http.ResponseWriter, r *http.Request) {
		var o applier.Order
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, applier.MaxAnswer))
		if err := errors.Join(d.Decode(&o), d.Decode(&o.Plan)); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.Copy(io.Discard, r.Body) // the server sees the caller go only behind the end
		t := begin(w)
		defer t.end()
		result, err := l.Apply(r.Context(), o)
		t.tell(applier.Event{Result: &result, Fault: words(err)})
	})
	mux.HandleFunc("POST "+applier.PathWatch, func(w http.ResponseWriter, r *http.Request) {
		var api applier.API
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&api); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.Copy(io.Discard, r.Body)
		t := begin(w)
		defer t.end()
		err := l.Watch(r.Context(), api, func(s applier.Status) { t.tell(applier.Event{Status: &s}) })
		t.tell(applier.Event{Fault: words(err)})
	})
	return mux
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// beat is how often a caller hears that the program lives.
const beat = 5 * time.Second

// teller writes the lines of an answer.
type teller struct {
	stop chan struct{}
	gone sync.WaitGroup

	mu sync.Mutex // guards what follows
	w  http.ResponseWriter
}

func begin(w http.ResponseWriter) *teller {
	t := &teller{w: w, stop: make(chan struct{})}
	t.tell(applier.Event{})
	t.gone.Go(func() {
		for {
			select {
			case <-t.stop:
				return
			case <-time.After(beat):
				t.tell(applier.Event{})
			}
		}
	})
	return t
}

// tell writes a line. Where the caller is gone its request's context ends.
func (t *teller) tell(e applier.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	encoder(t.w).Encode(e)
	http.NewResponseController(t.w).Flush()
}

func (t *teller) end() {
	close(t.stop)
	t.gone.Wait()
}
