package tpm

import (
	"crypto"
	"fmt"

	"filippo.io/age"

	"github.com/holdfast-edge/holdfast/machine/box"
)

// Box is the TPM as the machine's box. Its notes are in NV memory.
type Box struct {
	tpm       *TPM
	signer    *Signer
	recipient *age.X25519Identity
}

var _ box.Box = (*Box)(nil)

// Box computes the keys, which takes a TPM a second or so, and reads the notes: ErrDamagedNotes and ErrGone are the faults that a caller tells apart.
func (t *TPM) Box() (*Box, error) {
	signer, err := t.signer()
	if err != nil {
		return nil, err
	}
	recipient, err := t.recipient()
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.loadNotes(); err != nil {
		return nil, err
	}
	return &Box{t, signer, recipient}, nil
}

// Signer implements box.Box. It is a crypto.MessageSigner and signs no digests.
func (b *Box) Signer() crypto.Signer { return b.signer }

// Recipient implements box.Box.
func (b *Box) Recipient() *age.X25519Identity { return b.recipient }

// Protection implements box.Box.
func (b *Box) Protection() string { return box.ProtectionTPM }

// ReadNote implements box.Box. It asks the TPM nothing.
func (b *Box) ReadNote(name string) ([]byte, error) { return b.tpm.readNote(name) }

// WriteNote implements box.Box. box.ErrFull when there is no room. After another error the note is the old one or the new.
func (b *Box) WriteNote(name string, data []byte) error {
	if data == nil {
		data = []byte{}
	}
	if err := b.tpm.changeNote(name, data); err != nil {
		return fmt.Errorf("write note %s: %w", name, err)
	}
	return nil
}

// RemoveNote implements box.Box.
func (b *Box) RemoveNote(name string) error {
	if err := b.tpm.changeNote(name, nil); err != nil {
		return fmt.Errorf("remove note %s: %w", name, err)
	}
	return nil
}
