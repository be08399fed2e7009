package tpm

import "errors"

// Cut lets a TPM die after its n-th command from now: done says whether that one is still carried out.
func Cut(t *TPM, n int, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bus = &cutBus{bus: t.bus, left: n, done: done}
}

// Commands counts what goes to the TPM from now on.
func Commands(t *TPM) func() int {
	b := &cutBus{bus: t.bus, left: 1 << 30}
	t.bus = b
	return func() int { return 1<<30 - b.left }
}

type cutBus struct {
	bus
	left int
	done bool
}

func (c *cutBus) Send(command []byte) ([]byte, error) {
	if c.left == 0 {
		if c.done {
			c.done = false
			_, _ = c.bus.Send(command)
		}
		return nil, errors.Join(ErrGone, errors.New("cut"))
	}
	c.left--
	return c.bus.Send(command)
}

var (
	ParseBlob   = func(b []byte) error { _, _, _, err := parseBlob(b); return err }
	DecodeNotes = decodeNotes
	EncodeNotes = encodeNotes
	Selection   = selection
)

// Bus is for tests that ask the TPM something that this package does not.
func Bus(t *TPM) bus { return t.bus }

// NotesIndexes are the NV indexes.
var NotesIndexes = notesIndexes
