package flock

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Sibling is a process that this one keeps, and that in turn keeps this one.
type Sibling struct {
	Lock    string   // lock file; the log is beside it, NAME.log
	Command []string // program and arguments
	// Inherit is handed on, and its number given as the last argument, after Flag. Nil: nothing is.
	Inherit *os.File
	Flag    string
}

// ParseCommand reads what CommandLine wrote.
func ParseCommand(line string) []string { return strings.Split(line, "\n") }

// CommandLine makes one argument of a command, whatever blanks it holds.
func CommandLine(command ...string) string { return strings.Join(command, "\n") }

// Keep keeps the sibling alive until ctx ends.
func (s Sibling) Keep(ctx context.Context) error {
	return Keep(ctx, s.Lock, func() (*exec.Cmd, error) {
		log, err := os.OpenFile(strings.TrimSuffix(s.Lock, ".lock")+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the log of %s: %w", s.Command[0], err)
		}
		cmd := exec.Command(s.Command[0], s.Command[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if s.Inherit == nil {
			return cmd, nil
		}
		copied, err := duplicate(s.Inherit)
		if err != nil {
			log.Close()
			return nil, err
		}
		cmd.ExtraFiles = []*os.File{copied}
		cmd.Args = append(cmd.Args, s.Flag, strconv.Itoa(3))
		return cmd, nil
	})
}

// duplicate is a descriptor of the same, to be closed after the start.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor of %s: %w", f.Name(), err)
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), f.Name()), nil
}
