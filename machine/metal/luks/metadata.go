package luks

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// metadata is the JSON of a header, as the LUKS2 on-disk format (version 1.1.4) has it.
type metadata struct {
	Keyslots map[number]keyslot         `json:"keyslots"`
	Tokens   map[number]json.RawMessage `json:"tokens"`
	Segments map[number]segment         `json:"segments"`
	Digests  map[number]digest          `json:"digests"`
	Config   config                     `json:"config"`
}

// number is the name of an object: 0 to 31.
type number string

func (n number) int() int {
	i, err := strconv.Atoi(string(n))
	if err != nil || i < 0 || i > 31 || strconv.Itoa(i) != string(n) {
		return -1
	}
	return i
}

func numbered(i int) number { return number(strconv.Itoa(i)) }

type keyslot struct {
	Type     string `json:"type"`
	KeySize  int    `json:"key_size"`
	Area     area   `json:"area"`
	KDF      kdf    `json:"kdf"`
	AF       af     `json:"af"`
	Priority *int   `json:"priority,omitempty"`
}

type area struct {
	Type       string `json:"type"`
	Offset     int64  `json:"offset,string"`
	Size       int64  `json:"size,string"`
	Encryption string `json:"encryption"`
	KeySize    int    `json:"key_size"`
}

type kdf struct {
	Type       string `json:"type"`
	Salt       []byte `json:"salt"`
	Hash       string `json:"hash,omitempty"`
	Iterations int    `json:"iterations,omitempty"`
	Time       int    `json:"time,omitempty"`
	Memory     int    `json:"memory,omitempty"` // KiB
	CPUs       int    `json:"cpus,omitempty"`
}

type af struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

type segment struct {
	Type       string   `json:"type"`
	Offset     int64    `json:"offset,string"`
	IVTweak    string   `json:"iv_tweak"`
	Size       string   `json:"size"`
	Encryption string   `json:"encryption"`
	SectorSize int      `json:"sector_size"`
	Flags      []string `json:"flags,omitempty"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []number `json:"keyslots"`
	Segments   []number `json:"segments"`
	Salt       []byte   `json:"salt"`
	Digest     []byte   `json:"digest"`
	Hash       string   `json:"hash"`
	Iterations int      `json:"iterations"`
}

type config struct {
	JSONSize     int64           `json:"json_size,string"`
	KeyslotsSize int64           `json:"keyslots_size,string"`
	Flags        []string        `json:"flags,omitempty"`
	Requirements json.RawMessage `json:"requirements,omitempty"`
}

// Bounds of what a header may ask of who opens it: what cryptsetup's own benchmarks choose, and not much more.
const (
	stripes       = 4000
	grain         = 4096
	maxIterations = 20_000_000
	maxMemory     = 1 << 20 // KiB
	maxTime       = 100
	maxCPUs       = 4
	maxSalt       = 64
	maxArea       = 128 << 20
	cipher        = "aes-xts-plain64"
)

// parseMetadata decodes strictly: what is not known is not preserved either, so it is refused.
func parseMetadata(b []byte, size int64) (metadata, error) {
	var m metadata
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return metadata{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return metadata{}, fmt.Errorf("%w: something follows the JSON value", ErrFormat)
	}
	if err := m.validate(size); err != nil {
		return metadata{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return m, nil
}

func (m metadata) validate(size int64) error {
	if m.Config.JSONSize != size-binarySize || m.Config.KeyslotsSize < 0 || m.Config.KeyslotsSize > maxArea || m.Config.KeyslotsSize%grain != 0 {
		return fmt.Errorf("config: sizes %d and %d", m.Config.JSONSize, m.Config.KeyslotsSize)
	}
	if r := m.Config.Requirements; len(r) > 0 && string(r) != "null" && string(r) != "{}" {
		return fmt.Errorf("config: it requires %.80s", r)
	}
	if err := m.validateSegment(size); err != nil {
		return err
	}
	for n, k := range m.Keyslots {
		if n.int() < 0 {
			return fmt.Errorf("a key slot called %.20q", n)
		}
		if err := k.validate(size, m.Config.KeyslotsSize); err != nil {
			return fmt.Errorf("key slot %s: %w", n, err)
		}
		for other, o := range m.Keyslots {
			if n != other && k.Area.Offset < o.Area.Offset+o.Area.Size && o.Area.Offset < k.Area.Offset+k.Area.Size {
				return fmt.Errorf("key slots %s and %s overlap", n, other)
			}
		}
	}
	for n, d := range m.Digests {
		if n.int() < 0 {
			return fmt.Errorf("a digest called %.20q", n)
		}
		if err := d.validate(m); err != nil {
			return fmt.Errorf("digest %s: %w", n, err)
		}
	}
	for n, raw := range m.Tokens {
		if n.int() < 0 {
			return fmt.Errorf("a token called %.20q", n)
		}
		t, err := parseToken(raw)
		if err != nil {
			return fmt.Errorf("token %s: %w", n, err)
		}
		for _, s := range t.slots {
			if _, ok := m.Keyslots[s]; !ok {
				return fmt.Errorf("token %s is for key slot %.20q, which is not there", n, s)
			}
		}
	}
	return nil
}

func (m metadata) validateSegment(size int64) error {
	s, ok := m.Segments["0"]
	if !ok || len(m.Segments) != 1 {
		return fmt.Errorf("%d segments, want number 0 only", len(m.Segments))
	}
	if s.Type != "crypt" || s.Encryption != cipher || s.IVTweak != "0" || s.Size != "dynamic" || s.SectorSize != 512 && s.SectorSize != 4096 || len(s.Flags) > 0 {
		return fmt.Errorf("segment: %.20s %.40s, tweak %.20s, size %.20s, sectors of %d", s.Type, s.Encryption, s.IVTweak, s.Size, s.SectorSize)
	}
	if s.Offset < 2*size+m.Config.KeyslotsSize || s.Offset%int64(s.SectorSize) != 0 || s.Offset > 1<<40 {
		return fmt.Errorf("segment: begins at byte %d", s.Offset)
	}
	return nil
}

func (k keyslot) validate(size, slots int64) error {
	a := k.Area
	switch {
	case k.Type != "luks2" || k.KeySize != 32 && k.KeySize != 64:
		return fmt.Errorf("type %.20q with a key of %d bytes", k.Type, k.KeySize)
	case k.AF.Type != "luks1" || k.AF.Stripes != stripes || k.AF.Hash != "sha256":
		return fmt.Errorf("split by %.20s, %d, %.20s", k.AF.Type, k.AF.Stripes, k.AF.Hash)
	case a.Type != "raw" || a.Encryption != cipher || a.KeySize != 32 && a.KeySize != 64:
		return fmt.Errorf("area %.20s, %.40s, key of %d bytes", a.Type, a.Encryption, a.KeySize)
	case a.Offset < 2*size || a.Offset%grain != 0 || a.Size < int64(k.KeySize)*stripes || a.Size > slots || a.Offset > 2*size+slots-a.Size:
		return fmt.Errorf("area of %d bytes at %d", a.Size, a.Offset)
	}
	return k.KDF.validate()
}

func (k kdf) validate() error {
	ok := false
	switch k.Type {
	case "pbkdf2":
		ok = hashes[k.Hash] != nil && k.Iterations >= 1000 && k.Iterations <= maxIterations
	case "argon2i", "argon2id":
		ok = k.Time >= 1 && k.Time <= maxTime && k.Memory >= 8*k.CPUs && k.Memory <= maxMemory && k.CPUs >= 1 && k.CPUs <= maxCPUs
	}
	if !ok || len(k.Salt) == 0 || len(k.Salt) > maxSalt {
		return fmt.Errorf("derivation %.20q, %d iterations, time %d, memory %d, %d threads, salt of %d bytes", k.Type, k.Iterations, k.Time, k.Memory, k.CPUs, len(k.Salt))
	}
	return nil
}

func (d digest) validate(m metadata) error {
	if d.Type != "pbkdf2" || hashes[d.Hash] == nil || d.Iterations < 1000 || d.Iterations > maxIterations ||
		len(d.Salt) == 0 || len(d.Salt) > maxSalt || len(d.Digest) < 20 || len(d.Digest) > 64 {
		return fmt.Errorf("%.20q with %.20q, %d iterations, %d bytes", d.Type, d.Hash, d.Iterations, len(d.Digest))
	}
	for _, n := range d.Keyslots {
		if _, ok := m.Keyslots[n]; !ok {
			return fmt.Errorf("is for key slot %.20q, which is not there", n)
		}
	}
	for _, n := range d.Segments {
		if _, ok := m.Segments[n]; !ok {
			return fmt.Errorf("is for segment %.20q, which is not there", n)
		}
	}
	return nil
}

// digestOf finds the digest of the key that the slot holds, for the data.
func (m metadata) digestOf(slot number) (digest, bool) {
	for i := range 32 {
		if d, ok := m.Digests[numbered(i)]; ok && slices.Contains(d.Keyslots, slot) && slices.Contains(d.Segments, "0") {
			return d, true
		}
	}
	return digest{}, false
}

type token struct {
	kind  string
	slots []number
}

// parseToken reads what every token has. The rest is its type's.
func parseToken(raw json.RawMessage) (token, error) {
	var t struct {
		Type     string   `json:"type"`
		Keyslots []number `json:"keyslots"`
	}
	if err := json.Unmarshal(raw, &t); err != nil {
		return token{}, err
	}
	if t.Type == "" || len(t.Type) > 64 {
		return token{}, fmt.Errorf("type %.70q", t.Type)
	}
	return token{t.Type, t.Keyslots}, nil
}
