package supervise

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	keptLines = 20   // of a child's last words
	keptWidth = 1024 // bytes of each
)

// output reads what one process and its heirs write, until the last of them is gone. It never stops reading: a full disk or log must not block a child.
type output struct {
	read *os.File
	done chan struct{} // nothing more will come

	mu    sync.Mutex
	lines []string
	part  []byte
}

func newOutput(log *logFile) (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a pipe for output: %w", err)
	}
	o := &output{read: r, done: make(chan struct{})}
	// Nobody waits for this goroutine on purpose: shims keep the pipe open through restarts of containerd, and would die of a closed one.
	go func() {
		defer close(o.done)
		defer r.Close()
		buf := make([]byte, 16<<10)
		for {
			n, err := r.Read(buf)
			o.keep(buf[:n])
			if log != nil && n > 0 {
				log.write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return o, w, nil
}

func (o *output) keep(b []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(b) > 0 {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		o.part = append(o.part, line[:min(len(line), keptWidth-min(keptWidth, len(o.part)))]...)
		if b = rest; whole {
			o.push(string(o.part))
			o.part = o.part[:0]
		}
	}
}

func (o *output) push(line string) {
	if len(o.lines) == keptLines {
		o.lines = slices.Delete(o.lines, 0, 1)
	}
	o.lines = append(o.lines, line)
}

// last returns the last lines. What the process wrote before it ended may still be in the pipe: it is given a moment.
func (o *output) last(moment time.Duration) []string {
	select {
	case <-o.done:
	case <-time.After(moment):
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := slices.Clone(o.lines)
	if len(o.part) > 0 {
		lines = append(lines, string(o.part))
	}
	return lines
}

func (o *output) close() { o.read.Close() }

// logFile is a file that is set aside when it has grown to size: path, path.1 (younger), path.2 (older). Errors lose lines and nothing else.
type logFile struct {
	path string
	size int64
	keep int

	mu   sync.Mutex
	file *os.File
	have int64
}

func (l *logFile) write(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		os.MkdirAll(filepath.Dir(l.path), 0o755) // a failure shows at once
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return // tried again at the next write
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return
		}
		l.file, l.have = f, info.Size()
	}
	if l.have > 0 && l.have+int64(len(b)) > l.size {
		l.file.Close()
		l.file = nil
		l.rotate()
		f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return
		}
		l.file, l.have = f, 0
	}
	n, _ := l.file.Write(b)
	l.have += int64(n)
}

// rotate moves each file one up; the oldest falls off. A crash in between leaves a gap in the numbers, which the next rotation closes.
func (l *logFile) rotate() {
	for i := l.keep; i > 1; i-- {
		os.Rename(l.path+"."+strconv.Itoa(i-1), l.path+"."+strconv.Itoa(i))
	}
	if l.keep > 0 {
		os.Rename(l.path, l.path+".1")
	}
}
