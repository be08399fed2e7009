package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"rsc.io/qr"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/version"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// console shows, to whoever stands before the machine, who it is and how it
// is. Hosted, it is a file that is replaced whole; a machine that owns its
// screen also hands each picture to that. It takes no input.
type console struct {
	path   string    // "": no file
	screen io.Writer // nil: none
	drawn  chan struct{}

	mu     sync.Mutex // guards what follows
	id     fleet.MachineID
	lines  map[string]string
	faults []faults.Fault
	last   []byte
	camera []string // the code as a picture
}

func newConsole(path string, screen io.Writer) *console {
	return &console{path: path, screen: screen, drawn: make(chan struct{}, 1), lines: map[string]string{}}
}

// consoleOrder is how the lines stand below each other; faults come last.
var consoleOrder = []string{"address", "os", "site", "release", "hub", "state"}

func (c *console) identify(id fleet.MachineID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.id = id
	c.camera = codePicture(link.Code(id))
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

// tell sets what is wrong.
func (c *console) tell(list []faults.Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults = list
	c.draw()
}

// draw is called with mu held.
func (c *console) draw() {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Holdfast %s\n\n", version.Version)
	fmt.Fprintf(&b, "  machine   %s\n  code      %s\n", c.id, link.Code(c.id))
	for _, name := range consoleOrder {
		if text := c.lines[name]; text != "" {
			fmt.Fprintf(&b, "  %-9s %s\n", name, text)
		}
	}
	for _, f := range c.faults {
		fmt.Fprintf(&b, "  fault     %s\n", f)
	}
	if bytes.Equal(b.Bytes(), c.last) {
		return
	}
	c.last = b.Bytes()
	select {
	case c.drawn <- struct{}{}:
	default:
	}
	if c.path == "" {
		return
	}
	// A picture for people: worthless after a crash, so it is not flushed.
	tmp := c.path + ".new"
	if os.WriteFile(tmp, b.Bytes(), 0o600) == nil {
		os.Rename(tmp, c.path)
	}
}

// screenRest is how long a picture stands at least: a serial line is slow, and
// progress in megabytes is told often.
const screenRest = time.Second

// paint hands the newest picture to the screen, until ctx ends.
func (c *console) paint(ctx context.Context) {
	if c.screen == nil {
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.drawn:
		}
		c.mu.Lock()
		picture := string(c.last) + "\n" + strings.Join(c.camera, "\n") + "\n"
		c.mu.Unlock()
		io.WriteString(c.screen, picture) // nobody to tell if it does not take it
		if !pause(ctx, screenRest) {
			return
		}
	}
}

// codePicture is a code for a camera, in half blocks: two rows of it per line.
// Light is drawn and dark is left, for a screen whose letters are light; the
// white margin of four that the standard asks for is part of it.
func codePicture(text string) []string {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return nil // too long: a code never is
	}
	const margin = 4
	light := func(x, y int) bool { return !code.Black(x, y) } // outside of it too
	var lines []string
	for y := -margin; y < code.Size+margin; y += 2 {
		var b strings.Builder
		for x := -margin; x < code.Size+margin; x++ {
			upper, lower := light(x, y), light(x, y+1) && y+1 < code.Size+margin
			switch {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteRune(' ')
			}
		}
		lines = append(lines, b.String())
	}
	return lines
}

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
