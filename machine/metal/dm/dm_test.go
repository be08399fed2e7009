//go:build linux

package dm

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// The kernel's side runs in VM tests; here is what it is given.

func TestTables(t *testing.T) {
	v := VerityTarget{Data: "/dev/vda2", Hash: "/dev/vda2", DataBlocks: 100, HashStart: 101, RootHash: [32]byte{1}, Salt: [32]byte{2}}
	want := "1 /dev/vda2 /dev/vda2 4096 4096 100 101 sha256 01" + strings.Repeat("00", 31) + " 02" + strings.Repeat("00", 31) + " 1 restart_on_corruption"
	if got := string(v.table()); got != want {
		t.Errorf("verity: got %s, want %s", got, want)
	}
	c := CryptTarget{Device: "/dev/vda4", Key: bytes.Repeat([]byte{0xab}, 64), Offset: 16 << 20, Length: 1 << 30, SectorSize: 4096}
	want = "aes-xts-plain64 " + strings.Repeat("ab", 64) + " 0 /dev/vda4 32768 1 sector_size:4096"
	if got := string(c.table()); got != want {
		t.Errorf("crypt: got %s, want %s", got, want)
	}
	if b := c.table(); cap(b) < len(b) || cap(b) > 512 {
		t.Errorf("the table was moved: capacity %d", cap(b))
	}
}

func TestCommand(t *testing.T) {
	body := target(8, "crypt", []byte("table"))
	if len(body)%8 != 0 || body[len(body)-1] != 0 {
		t.Errorf("target of %d bytes ends in %d", len(body), body[len(body)-1])
	}
	b := command("state", flagSecure, 1, body)
	le := binary.LittleEndian
	if le.Uint32(b) != 4 || int(le.Uint32(b[12:])) != len(b) || le.Uint32(b[16:]) != headerSize || le.Uint32(b[20:]) != 1 ||
		le.Uint32(b[28:]) != 1<<15 || string(b[48:54]) != "state\x00" {
		t.Errorf("header % x", b[:64])
	}
	if got := le.Uint64(b[headerSize+8:]); got != 8 {
		t.Errorf("%d sectors, want 8", got)
	}
	if got := int(le.Uint32(b[headerSize+20:])); got != len(body) {
		t.Errorf("next at %d, want %d", got, len(body))
	}
	answer := make([]byte, headerSize)
	le.PutUint64(answer[40:], 254<<8|3)
	if got := path(answer); got != "/dev/dm-3" {
		t.Errorf("path %s", got)
	}
}

func TestRefusals(t *testing.T) {
	good := CryptTarget{Device: "/dev/x", Key: make([]byte, 64), Length: 4096, SectorSize: 4096}
	for name, change := range map[string]func(*CryptTarget){
		"key":    func(c *CryptTarget) { c.Key = c.Key[:63] },
		"sector": func(c *CryptTarget) { c.SectorSize = 1024 },
		"length": func(c *CryptTarget) { c.Length = 4097 },
		"none":   func(c *CryptTarget) { c.Length = 0 },
		"offset": func(c *CryptTarget) { c.Offset = 100 },
	} {
		c := good
		change(&c)
		if _, err := Crypt("x", c); err == nil || !strings.Contains(err.Error(), "make x") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verity(strings.Repeat("n", 128), VerityTarget{}); err == nil {
		t.Error("a name that is too long")
	}
}
