package machine

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/link"
)

// console shows, to whoever stands before the machine, who it is and how it
// is. Hosted, it is a file that is replaced whole; it takes no input.
type console struct {
	path string

	mu    sync.Mutex // guards what follows
	id    fleet.MachineID
	lines map[string]string
	last  []byte
}

func newConsole(path string) *console { return &console{path: path, lines: map[string]string{}} }

// consoleOrder is how the lines stand below each other.
var consoleOrder = []string{"site", "release", "hub", "state", "fault"}

func (c *console) identify(id fleet.MachineID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id = id
	c.draw()
}

// show sets a line; an empty text removes it.
func (c *console) show(line, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lines[line] == text {
		return
	}
	c.lines[line] = text
	c.draw()
}

func (c *console) draw() {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Holdfast %s\n\n", version.Version)
	fmt.Fprintf(&b, "  machine   %s\n  code      %s\n", c.id, link.Code(c.id))
	for _, name := range consoleOrder {
		if text := c.lines[name]; text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, text)
		}
	}
	if bytes.Equal(b.Bytes(), c.last) {
		return
	}
	c.last = b.Bytes()
	// A picture for people: worthless after a crash, so it is not flushed.
	tmp := c.path + ".new"
	if os.WriteFile(tmp, b.Bytes(), 0o600) == nil {
		os.Rename(tmp, c.path)
	}
}

func trimSpace(b []byte) []byte { return bytes.TrimSpace(b) }

func short(digest string) string {
	if len(digest) > 12 {
		return digest[:12]
	}
	return digest
}

func ago(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func joined(parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, ", ")
}
