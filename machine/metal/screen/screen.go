// Package screen shows pictures of text to whoever stands before the machine:
// whole on the screen, and on a serial line only what changed, as plain lines.
// It takes no input: the keyboard is switched off where there is one, and what
// comes in by the serial line is thrown away by the kernel, since nobody reads
// it. What the picture says is its writer's business.
package screen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Screen is an io.Writer of which each Write is a whole picture.
type Screen struct {
	mu     sync.Mutex // guards what follows
	glass  io.Writer  // the screen; nil: none
	line   io.Writer  // takes lines; nil: none
	before map[string]bool
	last   []byte
}

// New shows pictures on a terminal and lines on a serial line; either may be nil.
func New(glass, line io.Writer) *Screen { return &Screen{glass: glass, line: line} }

// clear goes home and removes what was there; text that is too wide is cut.
const clear = "\x1b[H\x1b[2J\x1b[3J\x1b[?7l\x1b[?25l"

// Write shows a picture. A screen that fails is no fault of who draws.
func (s *Screen) Write(picture []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(picture, s.last) {
		return len(picture), nil
	}
	s.last = bytes.Clone(picture)
	s.show()
	if s.line != nil {
		s.changes(picture)
	}
	return len(picture), nil
}

// Again shows the last picture anew: the kernel's own words may have gone over it.
func (s *Screen) Again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.show()
}

func (s *Screen) show() {
	if s.glass == nil || s.last == nil {
		return
	}
	lines := fit(strings.Split(strings.TrimRight(string(s.last), "\n"), "\n"), rows(s.glass))
	s.glass.Write([]byte(clear + strings.Join(lines, "\r\n"))) // no new line at the end, which would scroll
}

// rows is how many lines a screen has; a small one where it does not say.
func rows(glass io.Writer) int {
	if f, ok := glass.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Row > 0 {
			return int(size.Row)
		}
	}
	return 25
}

// fit leaves out empty lines, the last ones first, until so many are left, and
// then what stands at the end.
func fit(lines []string, most int) []string {
	for i := len(lines) - 1; i >= 0 && len(lines) > most; i-- {
		if strings.TrimSpace(lines[i]) == "" {
			lines = slices.Delete(lines, i, i+1)
		}
	}
	return lines[:min(len(lines), most)]
}

// changes writes the lines that were not in the picture before. Lines of blocks,
// which draw a QR code, are for screens.
func (s *Screen) changes(picture []byte) {
	now := map[string]bool{}
	var out strings.Builder
	for line := range strings.Lines(string(picture)) {
		line = strings.TrimRight(line, " \r\n")
		if strings.TrimSpace(line) == "" || drawing(line) {
			continue
		}
		now[line] = true
		if !s.before[line] {
			out.WriteString("holdfast: " + strings.TrimSpace(line) + "\n")
		}
	}
	s.before = now
	if out.Len() > 0 {
		io.WriteString(s.line, out.String())
	}
}

// drawing tells lines of blocks from text.
func drawing(line string) bool {
	return strings.ContainsAny(line, "█▀▄▌▐░▒▓")
}

// The kernel's numbers for terminals, which x/sys lacks.
const (
	vtActivate   = 0x5606
	vtLockSwitch = 0x560b
	kdSetKeys    = 0x4b45 // KDSKBMODE
	keysOff      = 4      // K_OFF
	tioclinux    = 0x541c
	redirectLog  = 11 // TIOCL_SETKMSGREDIRECT
)

// OpenGlass takes the second virtual terminal for pictures, leaves the first to
// the kernel's words and switches the keyboard off. It returns nil where there
// is no screen.
func OpenGlass() (io.Writer, error) {
	f, err := os.OpenFile("/dev/tty2", os.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EIO) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the screen: %w", err)
	}
	fd := int(f.Fd())
	request := [2]byte{redirectLog, 1}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"send the kernel's words to the first terminal", func() error { return ioctlBytes(fd, tioclinux, request[:]) }},
		{"bring the second terminal to the front", func() error { return unix.IoctlSetInt(fd, vtActivate, 2) }},
		{"switch the keyboard off", func() error { return unix.IoctlSetInt(fd, kdSetKeys, keysOff) }},
		{"stay on that terminal", func() error { return unix.IoctlSetInt(fd, vtLockSwitch, 0) }},
	} {
		if err := step.do(); err != nil {
			f.Close()
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return f, nil
}

// Refresh shows the picture anew every so often until done is closed.
func (s *Screen) Refresh(done <-chan struct{}, every time.Duration) {
	for {
		select {
		case <-done:
			return
		case <-time.After(every):
			s.Again()
		}
	}
}

func ioctlBytes(fd int, request uintptr, data []byte) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&data[0]))); e != 0 {
		return e
	}
	return nil
}
