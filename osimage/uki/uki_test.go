package uki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// stub is a small PE32+ file of the same shape as systemd's: a code section, a
// section .sbat, and behind them a symbol table that must go.
func stub() []byte {
	b := make([]byte, 0x400)
	copy(b, "MZ")
	const pe, opt, table = 0x80, 0x98, 0x98 + 240
	le.PutUint32(b[0x3c:], pe)
	copy(b[pe:], "PE\x00\x00")
	le.PutUint16(b[pe+4:], 0x8664)
	le.PutUint16(b[pe+6:], 2)
	le.PutUint32(b[pe+12:], 0x800) // symbol table
	le.PutUint32(b[pe+16:], 3)
	le.PutUint16(b[pe+20:], 240)
	le.PutUint16(b[pe+22:], 0x22)
	le.PutUint16(b[opt:], 0x20b)
	le.PutUint32(b[opt+16:], 0x1000) // entry
	le.PutUint32(b[opt+optSectAlign:], 0x1000)
	le.PutUint32(b[opt+optFileAlign:], 0x200)
	le.PutUint32(b[opt+optImageSize:], 0x3000)
	le.PutUint32(b[opt+optHeaderSize:], 0x400)
	le.PutUint16(b[opt+68:], 10)  // EFI application
	le.PutUint32(b[opt+108:], 16) // directories
	for i, r := range []row{
		{Name: [8]byte([]byte(".text\x00\x00\x00")), VirtualSize: 0x10, VirtualAddress: 0x1000, RawSize: 0x200, RawAt: 0x400, Flags: 0x60000020},
		{Name: [8]byte([]byte(".sbat\x00\x00\x00")), VirtualSize: 0x20, VirtualAddress: 0x2000, RawSize: 0x200, RawAt: 0x600, Flags: 0x40000040},
	} {
		if _, err := binary.Encode(b[table+i*rowSize:], le, r); err != nil {
			panic(err)
		}
	}
	b = append(b, bytes.Repeat([]byte{0xc3}, 0x200)...)
	b = append(b, pad([]byte("sbat,1,SBAT Version,sbat,1"), 0x200)...)
	return append(b, "three symbols of eighteen bytes each, and a table of strings"...)
}

const osRelease = "ID=holdfast\nVERSION_ID=\"1.2.3\"\nIMAGE_VERSION=1.2.3\n"

func sections() []Section {
	return []Section{
		{".osrel", []byte(osRelease)}, {".cmdline", []byte("console=ttyS0 panic=1")}, {".uname", []byte("6.12")},
		{".initrd", bytes.Repeat([]byte("initrd"), 1000)}, {".linux", bytes.Repeat([]byte("linux"), 3000)},
	}
}

func build(t testing.TB) []byte {
	t.Helper()
	image, err := Build(stub(), sections())
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func pair(t testing.TB) (crypto.Signer, *x509.Certificate) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(200), Subject: pkix.Name{CommonName: "db"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<32, 0)}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

func TestBuildAndOpen(t *testing.T) {
	image := build(t)
	if !bytes.Equal(image, build(t)) {
		t.Error("two builds differ")
	}
	if bytes.Contains(image, []byte("symbols")) || le.Uint32(image[0x80+12:]) != 0 {
		t.Error("the stub's symbol table is still there")
	}
	got, err := Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if names := strings.Join(got.Names(), " "); names != ".text .sbat .osrel .cmdline .uname .initrd .linux" {
		t.Errorf("sections %s", names)
	}
	if c, err := got.Cmdline(); c != "console=ttyS0 panic=1" || err != nil {
		t.Errorf("command line %q, %v", c, err)
	}
	for field, want := range map[string]string{"VERSION_ID": "1.2.3", "IMAGE_VERSION": "1.2.3", "ID": "holdfast", "VERSION": ""} {
		if v, err := got.Release(field); v != want || err != nil {
			t.Errorf("%s is %q, %v, want %q", field, v, err, want)
		}
	}
	if _, _, err := got.Section(".splash"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a section that is not there: %v", err)
	}
}

func TestObjcopyReadsTheSections(t *testing.T) {
	dir := t.TempDir()
	file, cmdline := filepath.Join(dir, "uki.efi"), filepath.Join(dir, "linux")
	write(t, file, build(t))
	if out, err := exec.Command("objcopy", "-O", "binary", "--dump-section", ".linux="+cmdline, file, "/dev/null").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(cmdline)
	if err != nil || !bytes.HasPrefix(got, sections()[4].Data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestPCR11 goes through the extends one by one, as the stub's source has them.
func TestPCR11(t *testing.T) {
	image, err := Open(bytes.NewReader(build(t)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := image.PCR11()
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]byte{".sbat": pad([]byte("sbat,1,SBAT Version,sbat,1"), 0x20)}
	for _, s := range sections() {
		content[s.Name] = s.Data
	}
	var want [32]byte
	for _, name := range []string{".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat"} {
		for _, event := range [][]byte{append([]byte(name), 0), content[name]} {
			digest := sha256.Sum256(event)
			want = sha256.Sum256(append(want[:], digest[:]...))
		}
	}
	if got != want {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestSbverifyAcceptsOurSignature(t *testing.T) {
	key, cert := pair(t)
	dir := t.TempDir()
	file, pemFile := filepath.Join(dir, "uki.efi"), filepath.Join(dir, "db.pem")
	write(t, pemFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	odd := append(build(t), 1, 2, 3) // not a multiple of 8: padded before it is hashed
	for name, image := range map[string][]byte{"aligned": build(t), "odd": odd} {
		signed, err := Sign(image, key, cert)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Sign(image, key, cert)
		if err != nil || !bytes.Equal(signed, again) {
			t.Errorf("%s: two signatures differ, %v", name, err)
		}
		before, err1 := Digest(image)
		after, err2 := Digest(signed)
		if err1 != nil || err2 != nil || before != after {
			t.Errorf("%s: digest %x before and %x after signing, %v, %v", name, before, after, err1, err2)
		}
		write(t, file, signed)
		verify := func() (string, error) {
			out, err := exec.Command("sbverify", "--cert", pemFile, file).CombinedOutput()
			return string(out), err
		}
		if out, err := verify(); err != nil || name == "aligned" && strings.Contains(out, "warning") {
			t.Errorf("%s: sbverify: %v\n%s", name, err, out)
		}
		if !Intact(signed) || !Intact(image) {
			t.Errorf("%s: not intact as it was made", name)
		}
		signed[bytes.Index(signed, []byte("panic=1"))] ^= 1
		if Intact(signed) || Intact(signed[:100]) || Intact(nil) {
			t.Errorf("%s: a changed command line, or a cut file, is intact", name)
		}
		write(t, file, signed)
		if out, err := verify(); err == nil {
			t.Errorf("%s: sbverify took a changed command line\n%s", name, out)
		}
		if _, err := Sign(signed, key, cert); err == nil {
			t.Errorf("%s: signed twice", name)
		}
	}
}

func TestSignRefusesOtherKeys(t *testing.T) {
	key, cert := pair(t)
	other, _ := pair(t)
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]crypto.Signer{"another key": other, "a curve": curve} {
		if _, err := Sign(build(t), k, cert); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := Sign([]byte("#!/bin/sh"), key, cert); err == nil {
		t.Error("a script: no error")
	}
}

func TestBuildRefuses(t *testing.T) {
	many := make([]Section, 20)
	for i := range many {
		many[i] = Section{".s" + string(rune('a'+i)), []byte{1}}
	}
	for name, s := range map[string][]Section{
		"long name": {{".morethan8", []byte{1}}}, "no name": {{"", []byte{1}}}, "no data": {{".linux", nil}},
		"twice": {{".linux", []byte{1}}, {".linux", []byte{1}}}, "one of the stub's": {{".sbat", []byte{1}}}, "too many": many,
	} {
		if _, err := Build(stub(), s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, n := range []int{0, 63, 0x98, 0x200, 0x500} {
		if _, err := Build(stub()[:n], sections()); err == nil {
			t.Errorf("a stub of %d bytes: no error", n)
		}
	}
}

func TestCutImageIsAnError(t *testing.T) {
	image := build(t)
	cut, err := Open(bytes.NewReader(image[:len(image)-5000]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cut.PCR11(); err == nil {
		t.Error("PCR 11 of a cut image: no error")
	}
	if _, err := Digest(image[:len(image)-5000]); err == nil {
		t.Error("digest of a cut image: no error")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(stub(), uint32(0), byte(0))
	f.Add(build(f)[:0x1200], uint32(0), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint32, value byte) {
		if len(b) > 0 {
			b[int(at)%len(b)] = value
		}
		if i, err := Open(bytes.NewReader(b)); err == nil {
			_, _ = i.Cmdline()
			_, _ = i.Release("VERSION_ID")
			_, _ = i.PCR11()
		}
		_, _ = Digest(b)
		_, _ = Build(b, sections())
	})
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
