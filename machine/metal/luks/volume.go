package luks

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
)

const (
	// DataOffset is where the data begins in what Format makes.
	DataOffset = 4 << 20
	// SectorSize of the encryption in what Format makes.
	SectorSize = 4096
	// KeySize of the volume key in bytes.
	KeySize = 64
	// MinSecret is the least length of a secret in bytes. Secrets are random.
	MinSecret = 32

	iterations = 1000 // of PBKDF2, the least that cryptsetup takes: a random secret needs no more
	areaSize   = (KeySize*stripes + grain - 1) / grain * grain
)

// Volume is an opened header. Its methods are for one goroutine.
type Volume struct {
	d    Device
	h    header
	mend bool // one copy of the header is older than the other, or damaged
}

// Open reads the header of a volume: ErrNone, ErrDamaged, ErrFormat, or a fault of the disk. It writes nothing.
func Open(d Device) (*Volume, error) {
	h, mend, err := readHeader(d)
	if err != nil {
		return nil, fmt.Errorf("open volume: %w", err)
	}
	return &Volume{d, h, mend}, nil
}

// Present tells whether anything on the device calls itself LUKS, of any version, whole or damaged.
func Present(d io.ReaderAt) (bool, error) {
	b := make([]byte, len(magics[0]))
	for i, size := 0, int64(0); size <= maxHeader; i, size = 1, max(headerSize, 2*size) {
		switch err := readAll(d, b, size); {
		case fault(err):
			return false, err
		case err == nil && string(b) == magics[i]:
			return true, nil
		}
	}
	return false, nil
}

// UUID, Label and Subsystem are what the header says; nothing proves it.
func (v *Volume) UUID() string      { return v.h.uuid }
func (v *Volume) Label() string     { return v.h.label }
func (v *Volume) Subsystem() string { return v.h.subsystem }

// Data is where the data begins and the size of its sectors; it reaches to the end of the device.
func (v *Volume) Data() (offset int64, sectorSize int) {
	s := v.h.meta.Segments["0"]
	return s.Offset, s.SectorSize
}

// Slots are the numbers of the key slots.
func (v *Volume) Slots() []int { return keys(v.h.meta.Keyslots) }

func keys[T any](m map[number]T) (out []int) {
	for n := range m {
		out = append(out, n.int())
	}
	slices.Sort(out)
	return out
}

// Quick tells whether the slot is of the kind that this package writes: opening it takes no time and no memory to speak of.
func (v *Volume) Quick(slot int) bool {
	k, ok := v.h.meta.Keyslots[numbered(slot)]
	if !ok {
		return false
	}
	d, ok := v.h.meta.digestOf(numbered(slot))
	return ok && k.KDF.Type == "pbkdf2" && k.KDF.Iterations <= 10*iterations && d.Iterations <= 10*iterations
}

// Unlock returns the volume key: ErrSlot, ErrSecret.
func (v *Volume) Unlock(slot int, secret []byte) ([]byte, error) {
	n := numbered(slot)
	k, ok := v.h.meta.Keyslots[n]
	if !ok {
		return nil, fmt.Errorf("unlock slot %d: %w", slot, ErrSlot)
	}
	d, ok := v.h.meta.digestOf(n)
	if !ok {
		return nil, fmt.Errorf("unlock slot %d: it holds no key for the data: %w", slot, ErrSlot)
	}
	key, err := readSlot(v.d, k, secret)
	if err != nil {
		return nil, fmt.Errorf("unlock slot %d: %w", slot, err)
	}
	if !d.matches(key) {
		return nil, fmt.Errorf("unlock slot %d: %w", slot, ErrSecret)
	}
	return key, nil
}

// Token is a note in the header that belongs to key slots. Anybody with the disk can read and change it.
type Token struct {
	Type  string
	Slots []int
	Data  map[string]string // whatever else; "type" and "keyslots" are taken
}

// Tokens are those that have only text besides type and slots; others are somebody else's.
func (v *Volume) Tokens() map[int]Token {
	out := map[int]Token{}
next:
	for n, raw := range v.h.meta.Tokens {
		var fields map[string]any
		if json.Unmarshal(raw, &fields) != nil {
			continue
		}
		head, err := parseToken(raw)
		if err != nil {
			continue
		}
		t := Token{Type: head.kind, Data: map[string]string{}}
		for _, s := range head.slots {
			t.Slots = append(t.Slots, s.int())
		}
		delete(fields, "type")
		delete(fields, "keyslots")
		for name, value := range fields {
			text, ok := value.(string)
			if !ok {
				continue next
			}
			t.Data[name] = text
		}
		out[n.int()] = t
	}
	return out
}

func (t Token) encode() (json.RawMessage, error) {
	fields := map[string]any{}
	for name, value := range t.Data {
		fields[name] = value
	}
	slots := []number{}
	for _, s := range t.Slots {
		slots = append(slots, numbered(s))
	}
	fields["type"], fields["keyslots"] = t.Type, slots
	return json.Marshal(fields)
}

// Change is what Format and Apply do to slots and tokens, all of it or nothing.
type Change struct {
	Slots  map[int][]byte // number to secret; a slot that is there is replaced; nil removes it
	Tokens map[int]*Token // number to token; nil removes it
}

// Format makes a new volume with the given key and slots, and forgets what was there. size is the device's, in bytes.
func Format(d Device, size int64, label, subsystem string, key []byte, c Change) (*Volume, error) {
	if len(key) != KeySize || size < 2*DataOffset || len(label) > 47 || len(subsystem) > 47 {
		return nil, fmt.Errorf("format volume: key of %d bytes, device of %d, label %q: one of them is not right", len(key), size, label)
	}
	// The old header first: a newer number in an old copy would win over ours.
	zeros := make([]byte, 1<<20)
	for at := int64(0); at <= maxHeader; at += int64(len(zeros)) { // the last place where a copy could be is the beginning of the data
		if _, err := d.WriteAt(zeros[:min(int64(len(zeros)), maxHeader+binarySize-at)], at); err != nil {
			return nil, fmt.Errorf("format volume: wipe: %w", err)
		}
	}
	if err := d.Sync(); err != nil {
		return nil, fmt.Errorf("format volume: %w", err)
	}
	salt := random(32)
	sum, err := pbkdf2.Key(sha256.New, string(key), salt, iterations, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("format volume: %w", err)
	}
	u := random(16)
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	v := &Volume{d: d, h: header{
		size: headerSize, label: label, subsystem: subsystem,
		uuid: fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]),
		meta: metadata{
			Keyslots: map[number]keyslot{},
			Tokens:   map[number]json.RawMessage{},
			Segments: map[number]segment{"0": {Type: "crypt", Offset: DataOffset, IVTweak: "0", Size: "dynamic", Encryption: cipher, SectorSize: SectorSize}},
			Digests:  map[number]digest{"0": {Type: "pbkdf2", Keyslots: []number{}, Segments: []number{"0"}, Salt: salt, Digest: sum, Hash: "sha256", Iterations: iterations}},
			Config:   config{JSONSize: headerSize - binarySize, KeyslotsSize: DataOffset - 2*headerSize},
		},
	}}
	if err := v.Apply(key, c); err != nil {
		return nil, err
	}
	return v, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// Apply makes a change. The volume key is needed where a slot is added; without that it may be nil.
func (v *Volume) Apply(key []byte, c Change) error {
	if err := v.apply(key, c); err != nil {
		return fmt.Errorf("change volume %s: %w", v.h.uuid, err)
	}
	return nil
}

func (v *Volume) apply(key []byte, c Change) error {
	next, areas, err := v.plan(key, c)
	if err != nil {
		return err
	}
	if v.mend {
		// Both copies must say the same before an area is used that only the older one still names.
		if err := v.write(v.h); err != nil {
			return err
		}
		v.mend = false
	}
	for at, b := range areas {
		if _, err := v.d.WriteAt(b, at); err != nil {
			return fmt.Errorf("write a key slot: %w", err)
		}
	}
	if len(areas) > 0 {
		if err := v.d.Sync(); err != nil {
			return fmt.Errorf("write a key slot: %w", err)
		}
	}
	v.mend = true // until both copies are written
	if err := v.write(next); err != nil {
		return err
	}
	old := v.h
	v.h, v.mend = next, false
	return v.wipe(old)
}

// plan is the header after the change, and the areas that it will name.
func (v *Volume) plan(key []byte, c Change) (header, map[int64][]byte, error) {
	next := v.h
	next.seq++
	m := &next.meta
	m.Keyslots, m.Tokens, m.Digests = maps.Clone(m.Keyslots), maps.Clone(m.Tokens), maps.Clone(m.Digests)
	if m.Tokens == nil {
		m.Tokens = map[number]json.RawMessage{}
	}
	areas := map[int64][]byte{}
	for _, slot := range slices.Sorted(maps.Keys(c.Slots)) {
		secret := c.Slots[slot]
		n := numbered(slot)
		if n.int() < 0 {
			return next, nil, fmt.Errorf("slot %d: %w", slot, ErrSlot)
		}
		delete(m.Keyslots, n)
		m.forget(n)
		if secret == nil {
			continue
		}
		if len(secret) < MinSecret {
			return next, nil, fmt.Errorf("slot %d: a secret of %d bytes, want %d or more", slot, len(secret), MinSecret)
		}
		at, err := v.free(m)
		if err != nil {
			return next, nil, err
		}
		k := newSlot(at)
		b, err := v.fill(m, n, k, key, secret)
		if err != nil {
			return next, nil, fmt.Errorf("slot %d: %w", slot, err)
		}
		m.Keyslots[n], areas[at] = k, b
	}
	for i, t := range c.Tokens {
		if numbered(i).int() < 0 {
			return next, nil, fmt.Errorf("token %d: want 0 to 31", i)
		}
		if t == nil {
			delete(m.Tokens, numbered(i))
			continue
		}
		raw, err := t.encode()
		if err != nil {
			return next, nil, fmt.Errorf("token %d: %w", i, err)
		}
		m.Tokens[numbered(i)] = raw
	}
	if err := m.validate(next.size); err != nil {
		return next, nil, err
	}
	if _, err := next.encode(0); err != nil { // it fits, before anything is written
		return next, nil, err
	}
	return next, areas, nil
}

func newSlot(at int64) keyslot {
	return keyslot{Type: "luks2", KeySize: KeySize,
		Area: area{Type: "raw", Offset: at, Size: areaSize, Encryption: cipher, KeySize: KeySize},
		KDF:  kdf{Type: "pbkdf2", Salt: random(32), Hash: "sha256", Iterations: iterations},
		AF:   af{Type: "luks1", Stripes: stripes, Hash: "sha256"}}
}

// fill makes the area of slot n and names the slot in the digest of the key.
func (v *Volume) fill(m *metadata, n number, k keyslot, key, secret []byte) ([]byte, error) {
	for i := range 32 {
		d, ok := m.Digests[numbered(i)]
		if !ok || !slices.Contains(d.Segments, "0") || len(key) != KeySize || !d.matches(key) {
			continue
		}
		d.Keyslots = append(slices.Clone(d.Keyslots), n)
		m.Digests[numbered(i)] = d
		return sealSlot(k, key, secret)
	}
	return nil, fmt.Errorf("this is not the volume's key: %w", ErrSecret)
}

// forget takes slot n out of digests and tokens; a token without a slot goes.
func (m *metadata) forget(n number) {
	is := func(s number) bool { return s == n }
	for i, d := range m.Digests {
		d.Keyslots = slices.DeleteFunc(slices.Clone(d.Keyslots), is)
		m.Digests[i] = d
	}
	for i, raw := range m.Tokens {
		if t, err := parseToken(raw); err == nil && slices.Contains(t.slots, n) {
			delete(m.Tokens, i)
		}
	}
}

// free finds an area that neither the present header nor the next one names.
func (v *Volume) free(next *metadata) (int64, error) {
	begin, end := 2*v.h.size, 2*v.h.size+v.h.meta.Config.KeyslotsSize
	for at := begin; at+areaSize <= end; at += areaSize {
		taken := false
		for _, m := range []*metadata{&v.h.meta, next} {
			for _, k := range m.Keyslots {
				taken = taken || at < k.Area.Offset+k.Area.Size && k.Area.Offset < at+areaSize
			}
		}
		if !taken {
			return at, nil
		}
	}
	return 0, fmt.Errorf("no room for another key slot")
}

// write puts both copies on the disk, one after the other.
func (v *Volume) write(h header) error {
	for i := range magics {
		b, err := h.encode(i)
		if err != nil {
			return err
		}
		if _, err := v.d.WriteAt(b, int64(i)*h.size); err != nil {
			return fmt.Errorf("write copy %d of the header: %w", i+1, err)
		}
		if err := v.d.Sync(); err != nil {
			return fmt.Errorf("write copy %d of the header: %w", i+1, err)
		}
	}
	return nil
}

// wipe zeroes the areas that old named and the present header does not. A power
// cut before it leaves what the removed secret still opens: who must be sure of
// a secret's end removes its slot again, or formats.
func (v *Volume) wipe(old header) error {
	wiped := false
	for _, k := range old.meta.Keyslots {
		if slices.ContainsFunc(slices.Collect(maps.Values(v.h.meta.Keyslots)), func(now keyslot) bool { return now.Area.Offset == k.Area.Offset }) {
			continue
		}
		if _, err := v.d.WriteAt(bytes.Repeat([]byte{0}, int(k.Area.Size)), k.Area.Offset); err != nil {
			return fmt.Errorf("wipe a key slot: %w", err)
		}
		wiped = true
	}
	if wiped {
		return v.d.Sync()
	}
	return nil
}
