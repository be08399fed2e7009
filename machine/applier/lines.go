package applier

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// lines reads bounded lines. One that does not end is no line.
type lines struct {
	r    *bufio.Scanner
	most int
}

func newLines(r io.Reader, most int) *lines {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4<<10), most)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		advance, line, err := bufio.ScanLines(data, false)
		if advance == 0 && atEOF && len(data) > 0 {
			return 0, nil, io.ErrUnexpectedEOF
		}
		return advance, line, err
	})
	return &lines{s, most}
}

// next is io.EOF at the end, and io.ErrUnexpectedEOF in the midst of a line.
func (l *lines) next() ([]byte, error) {
	if l.r.Scan() {
		return l.r.Bytes(), nil
	}
	err := l.r.Err()
	switch {
	case err == nil:
		return nil, io.EOF
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("a line of more than %d bytes", l.most)
	}
	return nil, err
}
