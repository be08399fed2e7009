package metal

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
)

// Levels of the kernel's log. Consoles show what is worse than information.
const (
	levelError  = "<3>"
	levelWarn   = "<4>"
	levelNotice = "<5>"
	levelInfo   = "<6>"
	levelDebug  = "<7>"
)

// ring is the kernel's log: bounded, on the consoles, and kept over a panic
// where the hardware can.
type ring struct {
	mu sync.Mutex // guards what follows
	to io.Writer
}

// openRing opens the kernel's log, or stands in for it with standard error.
func openRing() *ring {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return &ring{to: os.Stderr}
	}
	return &ring{to: f}
}

// longestLine is what the kernel takes as one record, with room for its own
// words; a text goes on for so many records at most.
const (
	longestLine = 900
	mostLines   = 6
)

// say writes a text as one line, or as several that go on where it is too long.
func (r *ring) say(level, text string) {
	text = strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", " | ")
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := 0; ; i++ {
		part := text[:min(len(text), longestLine)]
		text = text[len(part):]
		if i == mostLines-1 && text != "" {
			part, text = part+" ...", ""
		}
		r.to.Write([]byte(level + "holdfast: " + part + "\n")) // one write is one record
		if text == "" {
			return
		}
	}
}

// notices is a writer of whose lines the consoles show each.
func (r *ring) notices() io.Writer { return lines{r, levelNotice} }

type lines struct {
	ring  *ring
	level string
}

func (l lines) Write(text []byte) (int, error) {
	for line := range bytes.Lines(text) {
		l.ring.say(l.level, string(bytes.TrimPrefix(line, []byte("holdfast: "))))
	}
	return len(text), nil
}

// logger writes records to the ring.
func (r *ring) logger() *slog.Logger {
	h := &handler{ring: r, mu: &sync.Mutex{}, text: &bytes.Buffer{}}
	h.Handler = slog.NewTextHandler(h.text, &slog.HandlerOptions{
		Level: slog.LevelInfo,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) { // the kernel knows both
				return slog.Attr{}
			}
			return a
		},
	})
	return slog.New(h)
}

// handler lets the standard library make the text and says it at its level.
type handler struct {
	slog.Handler
	ring *ring
	mu   *sync.Mutex
	text *bytes.Buffer // what the library writes to, under mu
}

func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text.Reset()
	if err := h.Handler.Handle(ctx, record); err != nil {
		return err
	}
	h.ring.say(levelOf(record.Level), h.text.String())
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.Handler = h.Handler.WithAttrs(attrs)
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.Handler = h.Handler.WithGroup(name)
	return &c
}

func levelOf(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return levelError
	case l >= slog.LevelWarn:
		return levelWarn
	case l > slog.LevelInfo: // such as update.Notice
		return levelNotice
	case l >= slog.LevelInfo:
		return levelInfo
	}
	return levelDebug
}
