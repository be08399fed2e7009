package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/holdfast-edge/holdfast/machine/box"
)

// The notes lie in two ordinary NV indexes, which are written in turn:
//
//	0  magic "HFN1"
//	4  sequence number, 8 bytes
//	12 length of the body, 2 bytes
//	14 SHA-256 of bytes 0 to 13 and the body
//	46 body: for each note, sorted by name, length of name (1), name, length (2), data
//
// The one with the higher number of those that are whole counts. A write goes to the other. An index is made as large as is needed (TPMs have little room),
// and made anew, larger, when it is its turn and it is too small: never while it is the one that counts.
const (
	notesMagic = "HFN1"
	notesHead  = 46
	notesGrain = 256
	maxNotes   = 32 // and box.MaxNotes bytes
)

var notesIndexes = [2]tpm2.TPMHandle{0x01804846, 0x01804847} // in the owner's range, "HF"

// notesAttributes: read and written with an empty password, which is no secret and no protection: whoever may talk to the TPM may. The owner's own
// commands do not write it by accident.
var notesAttributes = tpm2.TPMANV{AuthRead: true, AuthWrite: true, OwnerRead: true, NoDA: true}

// notes is what the TPM holds.
type notes struct {
	values map[string][]byte
	seq    uint64
	last   int               // the index that counts; -1 when none was ever written
	size   [2]int            // 0: not defined
	name   [2]tpm2.TPM2BName // changes with the first write
	chunk  int               // bytes per command
}

func (t *TPM) readNote(name string) ([]byte, error) {
	if err := box.CheckName(name); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.loadNotes(); err != nil {
		return nil, fmt.Errorf("read note %s: %w", name, err)
	}
	data, ok := t.note.values[name]
	if !ok {
		return nil, fmt.Errorf("read note %s: %w", name, fs.ErrNotExist)
	}
	return bytes.Clone(data), nil
}

// changeNote writes a note; nil data removes it.
func (t *TPM) changeNote(name string, data []byte) error {
	if err := box.CheckName(name); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.loadNotes(); err != nil {
		return err
	}
	old, had := t.note.values[name]
	if had == (data != nil) && bytes.Equal(old, data) {
		return nil
	}
	values := maps.Clone(t.note.values)
	if data == nil {
		delete(values, name)
	} else {
		values[name] = bytes.Clone(data)
	}
	body, err := encodeNotes(values)
	if err != nil {
		return err
	}
	if err := t.storeNotes(body); err != nil {
		t.note = nil // what is there now is read before anything else is written
		return classify(err)
	}
	t.note.values = values
	return nil
}

func encodeNotes(values map[string][]byte) ([]byte, error) {
	var body []byte
	sum := 0
	for _, name := range slices.Sorted(maps.Keys(values)) {
		data := values[name]
		sum += len(name) + len(data)
		if sum > box.MaxNotes || len(values) > maxNotes {
			return nil, fmt.Errorf("%w: %d notes with %d bytes, at most %d with %d", box.ErrFull, len(values), sum, maxNotes, box.MaxNotes)
		}
		body = append(append(body, byte(len(name))), name...)
		body = append(binary.BigEndian.AppendUint16(body, uint16(len(data))), data...)
	}
	return body, nil
}

func decodeNotes(body []byte) (map[string][]byte, error) {
	values := map[string][]byte{}
	for len(body) > 0 {
		n := int(body[0])
		if len(body) < 1+n+2 {
			return nil, ErrDamagedNotes
		}
		name, size := string(body[1:1+n]), int(binary.BigEndian.Uint16(body[1+n:]))
		if body = body[1+n+2:]; size > len(body) {
			return nil, ErrDamagedNotes
		}
		values[name], body = bytes.Clone(body[:size]), body[size:]
	}
	return values, nil
}

func notesSum(head, body []byte) [32]byte {
	return sha256.Sum256(append(bytes.Clone(head[:14]), body...))
}

func (t *TPM) loadNotes() error {
	if t.note != nil {
		return nil
	}
	n := &notes{values: map[string][]byte{}, last: -1}
	var err error
	if n.chunk, err = t.nvBuffer(); err != nil {
		return classify(err)
	}
	defined := 0
	for i := range notesIndexes {
		values, seq, err := t.readCopy(n, i)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case errors.Is(err, ErrDamagedNotes):
			defined++
			continue
		case err != nil:
			return fmt.Errorf("read the notes in the TPM: %w", classify(err))
		}
		defined++
		if n.last < 0 || seq > n.seq {
			n.values, n.seq, n.last = values, seq, i
		}
	}
	if n.last < 0 && defined == len(notesIndexes) {
		return ErrDamagedNotes // one that is not whole was the first write, cut off; two are not
	}
	t.note = n
	return nil
}

// readCopy reads the copy at index i: fs.ErrNotExist, ErrDamagedNotes, or a fault of the TPM.
func (t *TPM) readCopy(n *notes, i int) (map[string][]byte, uint64, error) {
	public, err := tpm2.NVReadPublic{NVIndex: notesIndexes[i]}.Execute(t.bus)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, 0, fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, err
	}
	contents, err := public.NVPublic.Contents()
	if err != nil {
		return nil, 0, err
	}
	n.size[i], n.name[i] = int(contents.DataSize), public.NVName
	if n.size[i] < notesHead {
		return nil, 0, ErrDamagedNotes
	}
	head, err := t.nvRead(n, i, 0, notesHead)
	if errors.Is(err, tpm2.TPMRCNVUninitialized) {
		return nil, 0, ErrDamagedNotes
	}
	if err != nil {
		return nil, 0, err
	}
	length := int(binary.BigEndian.Uint16(head[12:]))
	if string(head[:4]) != notesMagic || notesHead+length > n.size[i] {
		return nil, 0, ErrDamagedNotes
	}
	body, err := t.nvRead(n, i, notesHead, length)
	if err != nil {
		return nil, 0, err
	}
	if notesSum(head, body) != [32]byte(head[14:notesHead]) {
		return nil, 0, ErrDamagedNotes
	}
	values, err := decodeNotes(body)
	return values, binary.BigEndian.Uint64(head[4:]), err
}

// storeNotes writes the body to the copy that does not count, which then does.
func (t *TPM) storeNotes(body []byte) error {
	n := t.note
	i := 0
	if n.last == 0 {
		i = 1
	}
	data := append([]byte(notesMagic), binary.BigEndian.AppendUint64(nil, n.seq+1)...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(body)))
	sum := notesSum(data, body)
	data = append(append(data, sum[:]...), body...)
	if err := t.nvMake(n, i, len(data)); err != nil {
		return err
	}
	for at := 0; at < len(data); at += n.chunk {
		part := data[at:min(at+n.chunk, len(data))]
		if _, err := (tpm2.NVWrite{AuthHandle: n.auth(i), NVIndex: tpm2.NamedHandle{Handle: notesIndexes[i], Name: n.name[i]},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: part}, Offset: uint16(at)}).Execute(t.bus); err != nil {
			return fmt.Errorf("write NV index %#x: %w", notesIndexes[i], err)
		}
		if at == 0 { // the first write sets an attribute, which is in the name
			if err := t.nvName(n, i); err != nil {
				return err
			}
		}
	}
	n.seq, n.last = n.seq+1, i
	return nil
}

// nvMake makes sure that index i has room for size bytes.
func (t *TPM) nvMake(n *notes, i, size int) error {
	if n.size[i] >= size {
		return nil
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if n.size[i] > 0 {
		if _, err := (tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: notesIndexes[i], Name: n.name[i]}}).Execute(t.bus); err != nil {
			return fmt.Errorf("make NV index %#x larger: %w", notesIndexes[i], err)
		}
		n.size[i] = 0
	}
	size = (size + notesGrain - 1) / notesGrain * notesGrain
	public := tpm2.TPMSNVPublic{NVIndex: notesIndexes[i], NameAlg: tpm2.TPMAlgSHA256, Attributes: notesAttributes, DataSize: uint16(size)}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(public)}).Execute(t.bus); err != nil {
		return fmt.Errorf("define NV index %#x with %d bytes: %w", notesIndexes[i], size, err)
	}
	n.size[i] = size
	return t.nvName(n, i)
}

func (t *TPM) nvName(n *notes, i int) error {
	public, err := tpm2.NVReadPublic{NVIndex: notesIndexes[i]}.Execute(t.bus)
	if err != nil {
		return fmt.Errorf("read the name of NV index %#x: %w", notesIndexes[i], err)
	}
	n.name[i] = public.NVName
	return nil
}

func (n *notes) auth(i int) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: notesIndexes[i], Name: n.name[i], Auth: tpm2.PasswordAuth(nil)}
}

func (t *TPM) nvRead(n *notes, i, from, size int) ([]byte, error) {
	var data []byte
	for len(data) < size {
		part, err := tpm2.NVRead{AuthHandle: n.auth(i), NVIndex: tpm2.NamedHandle{Handle: notesIndexes[i], Name: n.name[i]},
			Size: uint16(min(n.chunk, size-len(data))), Offset: uint16(from + len(data))}.Execute(t.bus)
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) == 0 {
			return nil, ErrDamagedNotes
		}
		data = append(data, part.Data.Buffer...)
	}
	return data, nil
}

// nvBuffer is how much of an index one command reads or writes.
func (t *TPM) nvBuffer() (int, error) {
	const least, property = 256, uint32(tpm2.TPMPTNVBufferMax)
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: property, PropertyCount: 1}.Execute(t.bus)
	if err != nil {
		return 0, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	for _, p := range list.TPMProperty {
		if uint32(p.Property) == property {
			return max(1, min(int(p.Value), maxBuffer)), nil
		}
	}
	return least, nil
}
