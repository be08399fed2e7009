package box

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"filippo.io/age"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/link"
)

// Refusals of every Box.
var (
	// ErrFull: the notes together would have more than MaxNotes bytes.
	ErrFull = errors.New("the box has no room for this note")
	// ErrName: a note is called by lower-case letters, digits and dashes, with .json at the end.
	ErrName = errors.New("this is no name of a note")
)

// Names of the keys in a folder.
const (
	identityFile  = "identity.key"
	recipientFile = "recipient.key"
)

// folder is a Box of plain files. What a power cut leaves is package durable's
// promise: a note is the old one or the new one, whole.
type folder struct {
	dir       string
	signer    crypto.Signer
	recipient *age.X25519Identity
	disk      rim

	mu sync.Mutex // one writer at a time, so that the notes are counted right
}

// rim is how a folder writes; tests put one in between that fails.
type rim struct {
	write  func(path string, data []byte, perm fs.FileMode) error
	remove func(path string) error
}

var onDisk = rim{durable.WriteFile, durable.Remove}

// OpenFolder opens the box in a folder, and makes its keys the first time. A key
// that is there and cannot be read is an error and never replaced: it may be
// the machine's only name. The keys are written one after the other; a crash
// between them leaves one, and the next call makes the other.
func OpenFolder(dir string) (Box, error) { return openFolder(dir, onDisk) }

func openFolder(dir string, disk rim) (Box, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := durable.Clean(dir); err != nil {
		return nil, err
	}
	f := &folder{dir: dir, disk: disk}
	var err error
	if f.signer, err = link.LoadOrCreateKey(filepath.Join(dir, identityFile)); err != nil {
		return nil, err
	}
	if f.recipient, err = f.loadRecipient(); err != nil {
		return nil, err
	}
	return f, nil
}

// OpenFolderFrom is OpenFolder for a box whose place was not there before, and for
// which the one in standIn stood in: the machine may have been adopted by its key.
// A box that is in dir already stays what it is. Without a standIn it is OpenFolder.
func OpenFolderFrom(standIn, dir string) (Box, error) { return openFolderFrom(standIn, dir, onDisk) }

// The identity comes last: until it is there, nothing in dir is a box.
func openFolderFrom(standIn, dir string, disk rim) (Box, error) {
	if _, err := os.Lstat(filepath.Join(dir, identityFile)); !errors.Is(err, fs.ErrNotExist) {
		return openFolder(dir, disk)
	}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	notes, err := filepath.Glob(filepath.Join(standIn, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range append(notes, filepath.Join(standIn, recipientFile), filepath.Join(standIn, identityFile)) {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = disk.write(filepath.Join(dir, filepath.Base(path)), data, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("keep the box that stood in: %w", err)
		}
	}
	return openFolder(dir, disk)
}

func (f *folder) loadRecipient() (*age.X25519Identity, error) {
	path := filepath.Join(f.dir, recipientFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id, err := age.GenerateX25519Identity()
		if err != nil {
			return nil, fmt.Errorf("make the recipient key: %w", err)
		}
		return id, f.disk.write(path, []byte(id.String()+"\n"), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read the recipient key: %w", err)
	}
	id, err := age.ParseX25519Identity(string(bytes.TrimSpace(text)))
	if err != nil {
		return nil, fmt.Errorf("read the recipient key %s: %w", path, err)
	}
	return id, nil
}

func (f *folder) Signer() crypto.Signer              { return f.signer }
func (f *folder) Recipient() *age.X25519Identity     { return f.recipient }
func (f *folder) Protection() string                 { return ProtectionNone }
func (f *folder) path(name string) string            { return filepath.Join(f.dir, name) }
func (f *folder) notes() ([]string, error)           { return filepath.Glob(f.path("*.json")) }
func (f *folder) fault(name string, err error) error { return fmt.Errorf("note %s: %w", name, err) }

// ReadNote implements Box. The folder may be somebody else's disk by now, so no
// more is read than a note may have.
func (f *folder) ReadNote(name string) ([]byte, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	info, err := os.Lstat(f.path(name))
	if err != nil {
		return nil, f.fault(name, err)
	}
	if !info.Mode().IsRegular() || info.Size() > MaxNotes {
		return nil, f.fault(name, fmt.Errorf("%s of %d bytes: not what was written here", info.Mode(), info.Size()))
	}
	data, err := os.ReadFile(f.path(name))
	if err != nil {
		return nil, f.fault(name, err)
	}
	return data, nil
}

// WriteNote implements Box.
func (f *folder) WriteNote(name string, data []byte) error {
	if err := CheckName(name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	others, err := f.notes()
	if err != nil {
		return f.fault(name, err)
	}
	size := len(name) + len(data)
	for _, o := range others {
		if info, err := os.Lstat(o); err == nil && filepath.Base(o) != name {
			size += len(filepath.Base(o)) + int(info.Size())
		}
	}
	if size > MaxNotes {
		return f.fault(name, fmt.Errorf("%w: all of them would have %d bytes, %d are allowed", ErrFull, size, MaxNotes))
	}
	if err := f.disk.write(f.path(name), data, 0o600); err != nil {
		return f.fault(name, err)
	}
	return nil
}

// RemoveNote implements Box.
func (f *folder) RemoveNote(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.disk.remove(f.path(name)); err != nil {
		return f.fault(name, err)
	}
	return nil
}

// CheckName refuses what no Box takes as the name of a note.
func CheckName(name string) error {
	stem, ok := strings.CutSuffix(name, ".json")
	if !ok || stem == "" || len(name) > 32 || strings.Trim(stem, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("%w: %.40q", ErrName, name)
	}
	return nil
}
