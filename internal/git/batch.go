package git

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
)

// batch is one `git cat-file --batch`: ids in, objects out, in order.
type batch struct {
	cmd    *exec.Cmd
	ctx    context.Context // of the process; only asked why it ended
	in     io.WriteCloser
	out    *bufio.Reader
	stderr tail

	mu     sync.Mutex // one question at a time
	broken error      // guarded by mu: after a fault, answers no longer belong to questions
}

func (r *Repo) newBatch(ctx context.Context) (*batch, error) {
	b := &batch{cmd: r.command(ctx, "cat-file", "--batch"), ctx: ctx}
	b.cmd.Stderr = &b.stderr
	var err error
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	b.out = bufio.NewReaderSize(out, 128<<10)
	if err := b.cmd.Start(); err != nil {
		return nil, commandError(b.cmd.Args[1:], err, &b.stderr)
	}
	return b, nil
}

// read asks for one object.
func (b *batch) read(id string, limit int64) (kind string, data []byte, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken != nil {
		return "", nil, b.broken
	}
	if _, err := io.WriteString(b.in, id+"\n"); err != nil {
		return "", nil, b.fail(err)
	}
	return b.answer(id, limit)
}

// answer reads the next answer, which must be the one for id. The caller holds mu.
func (b *batch) answer(id string, limit int64) (kind string, data []byte, err error) {
	line, err := b.out.ReadString('\n')
	if err != nil {
		return "", nil, b.fail(err)
	}
	f := strings.Fields(line)
	if len(f) == 2 && f[1] == "missing" {
		return "", nil, fmt.Errorf("object %s is missing: the clone is damaged or partial; see `git fsck`", id)
	}
	if len(f) != 3 || f[0] != id {
		return "", nil, b.fail(fmt.Errorf("unexpected answer %q", line))
	}
	size, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 {
		return "", nil, b.fail(fmt.Errorf("unexpected answer %q", line))
	}
	if size > limit {
		if _, err := io.CopyN(io.Discard, b.out, size+1); err != nil {
			return "", nil, b.fail(err)
		}
		return "", nil, fmt.Errorf("object %s has %d bytes, more than the %d that are allowed", id, size, limit)
	}
	data = make([]byte, size+1)
	if _, err := io.ReadFull(b.out, data); err != nil {
		return "", nil, b.fail(err)
	}
	return f[1], data[:size], nil
}

func (b *batch) fail(err error) error {
	if b.ctx.Err() != nil {
		err = context.Cause(b.ctx)
	} else if said := strings.TrimSpace(b.stderr.String()); said != "" && errors.Is(err, io.EOF) {
		err = errors.New(said)
	}
	b.broken = fmt.Errorf("git cat-file: %w", err)
	return b.broken
}

func (b *batch) close() {
	_ = b.in.Close()
	_ = b.cmd.Wait()
}
