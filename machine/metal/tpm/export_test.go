package tpm

import (
	"encoding/binary"
	"errors"

	"github.com/google/go-tpm/tpm2"
)

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

// Before calls do before each command with that code; do may use the TPM.
func Before(t *TPM, code tpm2.TPMCC, do func(Bus)) {
	t.bus = &beforeBus{bus: t.bus, code: code, do: do}
}

type beforeBus struct {
	bus
	code tpm2.TPMCC
	do   func(Bus)
}

func (b *beforeBus) Send(command []byte) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == b.code {
		b.do(b.bus)
	}
	return b.bus.Send(command)
}

var (
	ParseBlob   = func(b []byte) error { _, _, _, err := parseBlob(b); return err }
	DecodeNotes = decodeNotes
	EncodeNotes = encodeNotes
	Selection   = selection
)

// Bus is for tests that ask the TPM something that this package does not.
type Bus = bus

// BusOf is the way to the TPM.
func BusOf(t *TPM) Bus { return t.bus }

// NotesIndexes are the NV indexes.
var NotesIndexes = notesIndexes
