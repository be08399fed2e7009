package applier

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/spawn"
)

// Child is machined's side of the program.
type Child struct {
	Program string // its file
	Socket  string // that `applier run` listens on

	RenderTime time.Duration // for one rendering; 0: 5 min
	Silence    time.Duration // after which an answer is given up; 0: 1 min
	Stuck      func()        // called when `applier run` was silent for so long; nil: nobody is told
}

// Program's arguments.
const (
	VerbRender = "render"
	VerbRun    = "run"
)

// Memory of the two, as environment: the one is short-lived, the other one rests
// nearly always.
var (
	renderEnv = []string{"GOMEMLIMIT=160MiB"}
	RunEnv    = []string{"GOGC=50", "GOMEMLIMIT=96MiB"}
)

// RunArgs are the arguments of `applier run`.
func (c *Child) RunArgs() []string { return []string{VerbRun, "--socket", c.Socket} }

// Render renders an encoded slice whose signatures were verified.
func (c *Child) Render(ctx context.Context, slice []byte) (*Rendering, error) {
	limit := cmp.Or(c.RenderTime, 5*time.Minute)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w: it was to render within %v", ErrSilent, limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Program, VerbRender)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}, renderEnv...)
	cmd.WaitDelay = time.Second // what it may have started does not hold the pipes
	out, words := &bounded{most: MaxAnswer, passed: cancel}, &bounded{most: 4 << 10}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(slice), out, words
	err := spawn.Start(cmd, nil)
	if err == nil {
		err = spawn.Wait(cmd)
	}
	switch {
	case out.full:
		return nil, fmt.Errorf("render a release: the applier wrote more than %d MiB", MaxAnswer>>20)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("render a release: %w", context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("render a release: %s: %w: %s", c.Program, err, strings.TrimSpace(words.held.String()))
	}
	var answer Answer
	if err := json.Unmarshal(out.held.Bytes(), &answer); err != nil {
		return nil, fmt.Errorf("render a release: read what the applier wrote: %w", err)
	}
	switch {
	case answer.Version != Version:
		return nil, fmt.Errorf("render a release: %w: %d, this machined %d: install machined and the applier of one build", ErrVersion, answer.Version, Version)
	case answer.Refused != "":
		return nil, fmt.Errorf("%w: %s", ErrRefused, answer.Refused)
	case answer.Rendering == nil:
		return nil, errors.New("render a release: the applier wrote no rendering")
	}
	return answer.Rendering, nil
}

// bounded takes so many bytes and drops the rest. It is no bytes.Buffer itself,
// whose ReadFrom would take all there is.
type bounded struct {
	held   bytes.Buffer
	most   int
	passed func() // called when there is a rest; may be nil
	full   bool
}

func (b *bounded) Write(p []byte) (int, error) {
	take := p[:min(len(p), b.most-b.held.Len())]
	b.held.Write(take)
	if len(take) < len(p) {
		b.full = true
		if b.passed != nil {
			b.passed()
		}
	}
	return len(p), nil
}

// Apply makes an order true, as far as that goes.
func (c *Child) Apply(ctx context.Context, o Order) (Result, error) {
	head, err := json.Marshal(o)
	if err != nil {
		return Result{}, fmt.Errorf("apply: %w", err)
	}
	var result *Result
	err = c.call(ctx, PathApply, io.MultiReader(bytes.NewReader(head), bytes.NewReader(o.Plan)), func(e Event) {
		if e.Result != nil {
			result = e.Result
		}
	})
	if result == nil {
		result = &Result{}
		if err == nil {
			err = fmt.Errorf("apply: the applier ended its answer early: %w", io.ErrUnexpectedEOF)
		}
	}
	return *result, err
}

// Watch calls report with the status of every app, at once and then at each
// change, until ctx ends or the program does.
func (c *Child) Watch(ctx context.Context, api API, report func(Status)) error {
	head, err := json.Marshal(api)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	err = c.call(ctx, PathWatch, bytes.NewReader(head), func(e Event) {
		if e.Status != nil {
			report(*e.Status)
		}
	})
	if err == nil {
		err = fmt.Errorf("watch: the applier ended its answer early: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// maxEvent bounds a line of an answer.
const maxEvent = 4 << 20

// call asks the program that runs and hands out the lines of its answer.
func (c *Child) call(ctx context.Context, path string, body io.Reader, each func(Event)) error {
	silence := cmp.Or(c.Silence, time.Minute)
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", c.Socket)
			if err != nil {
				return nil, err
			}
			return &impatient{conn, silence}, nil
		},
	}
	defer transport.CloseIdleConnections()
	err := c.exchange(ctx, &http.Client{Transport: transport}, path, body, each)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		if c.Stuck != nil {
			c.Stuck()
		}
		return fmt.Errorf("%w for %v", ErrSilent, silence)
	}
	return fmt.Errorf("ask the applier: %w", err)
}

func (c *Child) exchange(ctx context.Context, client *http.Client, path string, body io.Reader, each func(Event)) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://applier"+path, body)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return fmt.Errorf("%w: it does not know %s: install machined and the applier of one build", ErrVersion, path)
	default:
		return fmt.Errorf("it says %s", response.Status)
	}
	lines := newLines(response.Body, maxEvent)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("read its answer: %w", err)
		}
		each(e)
		if e.Fault != "" {
			return errors.New(e.Fault)
		}
	}
}

// impatient is a connection on which the other side has to say something.
type impatient struct {
	net.Conn
	silence time.Duration
}

func (c *impatient) Read(p []byte) (int, error) {
	if err := c.Conn.SetReadDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *impatient) Write(p []byte) (int, error) {
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.silence)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
