// Package uki builds, reads and signs unified kernel images: a PE file of
// systemd's stub with kernel, initramfs and command line as sections.
//
// Building and signing are deterministic. Reading takes a file that anybody may
// have written, loads no more than is asked for, and refuses what is out of
// bounds. Verifying signatures is the firmware's work and left out.
package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Section is a named part of an image.
type Section struct {
	Name string // at most 8 bytes, such as .cmdline
	Data []byte
}

const (
	maxSections = 64
	maxText     = 64 << 10 // of .cmdline and .osrel
	maxSize     = 256 << 20
	rowSize     = 40
)

// Offsets in the optional header, which are the same for PE32+ only.
const (
	optInitialized = 8
	optSectAlign   = 32
	optFileAlign   = 36
	optImageSize   = 56
	optHeaderSize  = 60
	optChecksum    = 64
	optDirectories = 112
	optCertificate = optDirectories + 4*8
)

var le = binary.LittleEndian

// layout is where the headers of a PE file stand.
type layout struct {
	pe, opt, table       int64 // offsets of the signature, the optional header, the section table
	headers              int64 // SizeOfHeaders
	sectAlign, fileAlign int64
	certAt, certSize     int64 // of the certificate table
	rows                 []row
}

// row is a section header.
type row struct {
	Name                        [8]byte
	VirtualSize, VirtualAddress uint32
	RawSize, RawAt              uint32
	_                           [12]byte
	Flags                       uint32
}

func (r row) name() string { return string(bytes.TrimRight(r.Name[:], "\x00")) }

// parse reads the headers of a PE file and refuses what the other functions would trip over.
func parse(r io.ReaderAt) (layout, error) {
	var l layout
	head := make([]byte, 4096)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return l, fmt.Errorf("read PE headers: %w", err)
	}
	head = head[:n]
	bad := func(format string, args ...any) (layout, error) {
		return l, fmt.Errorf("no image: "+format, args...)
	}
	if n < 64 || string(head[:2]) != "MZ" {
		return bad("it does not begin with MZ")
	}
	l.pe = int64(le.Uint32(head[0x3c:]))
	l.opt = l.pe + 24
	if l.opt+optCertificate+8 > int64(n) || string(head[l.pe:l.pe+4]) != "PE\x00\x00" {
		return bad("no PE header in the first 4096 bytes")
	}
	opt := head[l.opt:]
	l.table = l.opt + int64(le.Uint16(head[l.pe+20:]))
	count := int64(le.Uint16(head[l.pe+6:]))
	l.sectAlign, l.fileAlign, l.headers = int64(le.Uint32(opt[optSectAlign:])), int64(le.Uint32(opt[optFileAlign:])), int64(le.Uint32(opt[optHeaderSize:]))
	l.certAt, l.certSize = int64(le.Uint32(opt[optCertificate:])), int64(le.Uint32(opt[optCertificate+4:]))
	switch {
	case le.Uint16(opt) != 0x20b:
		return bad("not PE32+")
	case le.Uint32(opt[optDirectories-4:]) < 5:
		return bad("no room for a certificate table in its headers")
	case l.table < l.opt+optCertificate+8:
		return bad("its section table overlaps its headers")
	case l.sectAlign == 0 || l.fileAlign == 0 || l.sectAlign > 1<<20 || l.fileAlign > 1<<20:
		return bad("alignments %d and %d", l.sectAlign, l.fileAlign)
	case count == 0 || count > maxSections:
		return bad("%d sections", count)
	case l.table+count*rowSize > min(l.headers, int64(n)):
		return bad("its section table is larger than its headers")
	}
	l.rows = make([]row, count)
	if _, err := binary.Decode(head[l.table:], le, l.rows); err != nil {
		return bad("%v", err)
	}
	names := map[string]bool{}
	for _, row := range l.rows {
		if row.RawSize > 0 && int64(row.RawAt) < l.headers {
			return bad("section %q begins inside the headers", row.name())
		}
		if row.VirtualSize > maxSize {
			return bad("section %q of %d bytes: too large", row.name(), row.VirtualSize)
		}
		if names[row.name()] {
			return bad("two sections %q", row.name())
		}
		names[row.name()] = true
	}
	return l, nil
}

// Build appends sections to the stub, in that order. The stub is cut at the end
// of its last section and loses its symbol table: with it, verifiers do not
// agree on what is hashed.
func Build(stub []byte, sections []Section) ([]byte, error) {
	l, err := parse(bytes.NewReader(stub))
	if err != nil {
		return nil, fmt.Errorf("stub: %w", err)
	}
	if l.certSize != 0 {
		return nil, errors.New("stub: it is signed; an unsigned one is needed")
	}
	var end, virtual int64
	for _, row := range l.rows {
		end = max(end, int64(row.RawAt)+int64(row.RawSize))
		virtual = max(virtual, int64(row.VirtualAddress)+int64(row.VirtualSize))
	}
	if end > int64(len(stub)) || end < l.headers {
		return nil, fmt.Errorf("stub: its sections end at byte %d of %d", end, len(stub))
	}
	count := len(l.rows) + len(sections)
	if l.table+int64(count)*rowSize > l.headers || count > maxSections {
		return nil, fmt.Errorf("stub: no room for %d more section headers", len(sections))
	}
	out := slices.Clone(stub[:end])
	initialized := le.Uint32(out[l.opt+optInitialized:])
	names := map[string]bool{}
	for _, row := range l.rows {
		names[row.name()] = true
	}
	for i, s := range sections {
		if s.Name == "" || len(s.Name) > 8 || len(s.Data) == 0 || names[s.Name] {
			return nil, fmt.Errorf("section %q of %d bytes: want a new name of at most 8 bytes, and data", s.Name, len(s.Data))
		}
		if len(s.Data) > maxSize {
			return nil, fmt.Errorf("section %q of %d bytes: %d is the most", s.Name, len(s.Data), maxSize)
		}
		names[s.Name] = true
		out = pad(out, l.fileAlign)
		virtual = alignUp(virtual, l.sectAlign)
		r := row{VirtualSize: uint32(len(s.Data)), VirtualAddress: uint32(virtual), RawAt: uint32(len(out)), Flags: 0x40000040} // initialized data, readable
		copy(r.Name[:], s.Name)
		virtual += int64(len(s.Data))
		out = pad(append(out, s.Data...), l.fileAlign)
		r.RawSize = uint32(len(out)) - r.RawAt
		initialized += r.RawSize
		if _, err := binary.Encode(out[l.table+int64(len(l.rows)+i)*rowSize:], le, r); err != nil {
			panic(err) // of a fixed size
		}
	}
	le.PutUint16(out[l.pe+6:], uint16(count))
	clear(out[l.pe+12 : l.pe+20]) // symbol table
	le.PutUint32(out[l.opt+optInitialized:], initialized)
	le.PutUint32(out[l.opt+optImageSize:], uint32(alignUp(virtual, l.sectAlign)))
	le.PutUint32(out[l.opt+optChecksum:], 0)
	return out, nil
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }

func pad(b []byte, to int64) []byte {
	return append(b, make([]byte, alignUp(int64(len(b)), to)-int64(len(b)))...)
}

// Image is an image that is read piece by piece.
type Image struct {
	r      io.ReaderAt
	layout layout
}

// Open reads the headers of an image.
func Open(r io.ReaderAt) (*Image, error) {
	l, err := parse(r)
	if err != nil {
		return nil, err
	}
	return &Image{r, l}, nil
}

// Names returns the names of the sections in the order of the file.
func (i *Image) Names() []string {
	var out []string
	for _, row := range i.layout.rows {
		out = append(out, row.name())
	}
	return out
}

// Section returns a reader of the section as it stands in memory, and its size.
// The error is fs.ErrNotExist for one that is not there.
func (i *Image) Section(name string) (io.Reader, int64, error) {
	for _, row := range i.layout.rows {
		if row.name() == name {
			size, raw := int64(row.VirtualSize), int64(min(row.VirtualSize, row.RawSize))
			return io.MultiReader(&exact{r: i.r, at: int64(row.RawAt), left: raw}, io.LimitReader(zeros{}, size-raw)), size, nil
		}
	}
	return nil, 0, fmt.Errorf("section %s: %w", name, fs.ErrNotExist)
}

// exact reads left bytes, and calls an earlier end unexpected.
type exact struct {
	r        io.ReaderAt
	at, left int64
}

func (e *exact) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.r.ReadAt(b[:min(int64(len(b)), e.left)], e.at)
	e.at, e.left = e.at+int64(n), e.left-int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func (i *Image) text(name string) (string, error) {
	r, size, err := i.Section(name)
	if err != nil {
		return "", err
	}
	if size > maxText {
		return "", fmt.Errorf("section %s: %d bytes: %d is the most", name, size, maxText)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("section %s: %w", name, err)
	}
	return strings.TrimRight(string(b), "\x00"), nil
}

// Cmdline returns the kernel's command line.
func (i *Image) Cmdline() (string, error) { return i.text(".cmdline") }

// Release returns a field of the os-release file inside, such as VERSION_ID; ""
// when it is not there.
func (i *Image) Release(field string) (string, error) {
	text, err := i.text(".osrel")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+"="); ok {
			return strings.Trim(value, `"'`), nil
		}
	}
	return "", nil
}

// measured are the sections that systemd's stub measures into PCR 11, in its
// order. The signature section .pcrsig is not measured.
var measured = []string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey", ".profile", ".dtbauto", ".hwids"}

// PCR11 predicts the SHA-256 value of PCR 11 after the stub has started this
// image: each section's name and content extended in turn. What is extended
// later (by systemd in an initramfs; nothing in ours) is not in it.
func (i *Image) PCR11() ([32]byte, error) {
	var pcr [32]byte
	extend := func(digest []byte) { pcr = sha256.Sum256(append(pcr[:], digest...)) }
	for _, name := range measured {
		r, _, err := i.Section(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return pcr, fmt.Errorf("predict PCR 11: section %s: %w", name, err)
		}
		label := sha256.Sum256([]byte(name + "\x00"))
		extend(label[:])
		extend(h.Sum(nil))
	}
	return pcr, nil
}
