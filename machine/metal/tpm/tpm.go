package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// DefaultPath is the TPM behind the kernel's resource manager.
const DefaultPath = "/dev/tpmrm0"

// What can be wrong with a TPM, apart from faults of this program.
var (
	// ErrGone: there is no TPM, or it does not answer any more.
	ErrGone = errors.New("the TPM does not answer")
	// ErrOtherTPM: the blob was sealed by another TPM, or by this one before it was cleared.
	ErrOtherTPM = errors.New("sealed by another TPM, or by this one before it was cleared")
	// ErrMeasurements: this TPM sealed it, to other measurements than those of this boot.
	ErrMeasurements = errors.New("sealed to other measurements than those of this boot")
	// ErrLockout: the TPM refuses passwords for a while. None of our objects is subject to that.
	ErrLockout = errors.New("the TPM is in lockout")
	// ErrBlob: these bytes were never a sealed secret.
	ErrBlob = errors.New("not a sealed secret")
	// ErrDamagedNotes: both copies of the notes are there and neither is whole.
	ErrDamagedNotes = errors.New("the notes in the TPM are damaged")
	// ErrForeignDigest: the identity key signs messages only.
	ErrForeignDigest = errors.New("a restricted TPM key signs no digest that it did not make: use crypto.SignMessage")
)

// TPM is an open TPM. It is safe for concurrent use; what is asked is done one thing after another.
type TPM struct {
	mu   sync.Mutex // one conversation at a time
	bus  bus
	note *notes // nil until they are first needed
}

// bus carries commands to a TPM and closes with it.
type bus interface {
	transport.TPM
	io.Closer
}

// Open opens a TPM: a device such as DefaultPath, or the unix socket of swtpm (started with --flags not-need-init,startup-clear). No TPM is ErrGone.
func Open(path string) (*TPM, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open TPM: %w: %w", ErrGone, err)
	}
	var raw conn
	if st.Mode()&os.ModeSocket != 0 {
		raw, err = net.Dial("unix", path)
	} else {
		raw, err = openDevice(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open TPM %s: %w: %w", path, ErrGone, err)
	}
	return &TPM{bus: &wire{conn: raw}}, nil
}

// Close closes the way to the TPM.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bus.Close()
}

func (t *TPM) flush(handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(t.bus) // what stays loaded is the resource manager's
}

// classify gives an answer of the TPM one of this package's names.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, tpm2.TPMRCIntegrity):
		return fmt.Errorf("%w: %w", ErrOtherTPM, err)
	case errors.Is(err, tpm2.TPMRCPolicyFail), errors.Is(err, tpm2.TPMRCPCRChanged): // the latter: changed each time that it was tried
		return fmt.Errorf("%w: %w", ErrMeasurements, err)
	case errors.Is(err, tpm2.TPMRCLockout):
		return fmt.Errorf("%w: %w", ErrLockout, err)
	case errors.Is(err, tpm2.TPMRCFailure), errors.Is(err, tpm2.TPMRCInitialize):
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return err
}

type conn interface {
	io.Reader
	io.Writer
	io.Closer
}

// device is /dev/tpmrm0 with plain blocking calls: through os.File it would be non-blocking, and the kernel then answers a read that comes too early with nothing.
type device int

func openDevice(path string) (conn, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	return device(fd), err
}

func (d device) Read(b []byte) (int, error)  { return unix.Read(int(d), b) }
func (d device) Write(b []byte) (int, error) { return unix.Write(int(d), b) }
func (d device) Close() error                { return unix.Close(int(d)) }

// wire frames commands and answers and repeats what a TPM asks to be repeated.
type wire struct{ conn conn }

const (
	headerSize = 10
	maxAnswer  = 4096
	retries    = 40
)

func (w *wire) Send(command []byte) ([]byte, error) {
	wait := 5 * time.Millisecond
	for try := 0; ; try++ {
		answer, err := w.send(command)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrGone, err)
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(answer[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
			if try < retries {
				time.Sleep(wait)
				wait = min(2*wait, time.Second)
				continue
			}
		}
		return answer, nil
	}
}

func (w *wire) send(command []byte) ([]byte, error) {
	if _, err := w.conn.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, maxAnswer)
	got := 0
	for {
		n, err := w.conn.Read(answer[got:])
		got += n
		if got >= headerSize {
			size := binary.BigEndian.Uint32(answer[2:])
			if size < headerSize || size > maxAnswer {
				return nil, fmt.Errorf("an answer that says it has %d bytes", size)
			}
			if got >= int(size) {
				return answer[:size], nil
			}
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
}

func (w *wire) Close() error { return w.conn.Close() }

// storage loads the storage root key, under which secrets are sealed and which encrypts what crosses the bus.
func (t *TPM) storage() (*loadedKey, error) {
	key, err := t.primary(tpm2.ECCSRKTemplate)
	if err != nil {
		return nil, fmt.Errorf("make the storage key: %w", err)
	}
	return key, nil
}

type loadedKey struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

func (k *loadedKey) auth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: s}
}

func (t *TPM) primary(template tpm2.TPMTPublic) (*loadedKey, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(t.bus)
	if err != nil {
		return nil, classify(err)
	}
	public, err := made.OutPublic.Contents()
	if err != nil {
		t.flush(made.ObjectHandle)
		return nil, fmt.Errorf("read the public half: %w", err)
	}
	return &loadedKey{made.ObjectHandle, made.Name, *public}, nil
}
