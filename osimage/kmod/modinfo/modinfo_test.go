package modinfo

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/holdfast-edge/holdfast/osimage/kmod"
)

// module makes the smallest ELF file with a .modinfo.
func module(entries ...string) []byte {
	info := []byte(strings.Join(entries, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const head = 64
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: head, Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: uint64(head + len(info) + len(names))}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	for _, v := range []any{h, info, names, elf.Section64{},
		elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: head, Size: uint64(len(info))},
		elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(head + len(info)), Size: uint64(len(names))}} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

func xzip(data []byte) []byte {
	var b bytes.Buffer
	w, _ := xz.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func TestParse(t *testing.T) {
	data := module("license=GPL", "alias=fs-erofs", "softdep=pre: crc32c post: lz4-x", "depends=libcrc32c,net-fs", "alias=fs-erofs", "firmware=a/b.bin")
	e, _ := zstd.NewWriter(nil)
	for name, data := range map[string][]byte{"a/e-rofs.ko": data, "a/e-rofs.ko.xz": xzip(data), "a/e-rofs.ko.zst": e.EncodeAll(data, nil)} {
		got, err := Parse(name, data)
		want := Info{File: name, Depends: []string{"libcrc32c", "net_fs"}, Pre: []string{"crc32c"}, Post: []string{"lz4-x"}, Aliases: []string{"fs-erofs"}, Firmware: []string{"a/b.bin"}}
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v %s", name, err, cmp.Diff(want, got))
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, data := range map[string][]byte{"x.ko": []byte("no ELF"), "x.ko.xz": []byte("no xz"), "y.ko.xz": xzip([]byte("no ELF")), "x.ko.zst": []byte("no zstd"), "": nil} {
		if _, err := Parse(name, data); err == nil {
			t.Errorf("%s %q was read", name, data)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(module("depends=a", "softdep=pre: b"))
	f.Fuzz(func(t *testing.T, data []byte) { Parse("x.ko", data) })
}

func TestPick(t *testing.T) {
	s := &Set{Kernel: "6", BuiltIn: []string{"ext4"}, Modules: map[string]Info{
		"erofs":          {File: "erofs.ko.xz", Depends: []string{"libcrc32c", "ext4"}},
		"libcrc32c":      {File: "libcrc32c.ko.xz", Pre: []string{"crc32c"}},
		"crc32c_generic": {File: "crc32c_generic.ko.xz", Aliases: []string{"crypto-crc32c", "crc32c"}},
		"crc32c_intel":   {File: "crc32c-intel.ko.xz", Aliases: []string{"crc32c"}},
		"a":              {File: "a.ko", Pre: []string{"b"}, Post: []string{"c"}},
		"b":              {File: "b.ko", Pre: []string{"a"}},
		"c":              {File: "c.ko"},
		"unpicked":       {File: "unpicked.ko"},
	}}
	got, err := s.Pick([]string{"erofs", "ext4", "sha2-ce?"}, []string{"a"})
	want := &kmod.Index{Kernel: "6", BuiltIn: []string{"ext4"}, Load: []string{"erofs"}, Modules: map[string]kmod.Module{
		"erofs":          {File: "erofs.ko.xz", Deps: []string{"crc32c_generic", "libcrc32c"}},
		"libcrc32c":      {File: "libcrc32c.ko.xz", Deps: []string{"crc32c_generic"}},
		"crc32c_generic": {File: "crc32c_generic.ko.xz", Aliases: []string{"crypto-crc32c", "crc32c"}},
		"a":              {File: "a.ko", Deps: []string{"b"}},
		"b":              {File: "b.ko", Deps: []string{"a"}},
		"c":              {File: "c.ko"},
	}}
	want.Modules["b"] = kmod.Module{File: "b.ko", Deps: []string{"a"}}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v %s", err, cmp.Diff(want, got))
	}
	if _, err := s.Pick([]string{"floppy"}, nil); err == nil || !strings.Contains(err.Error(), "floppy") {
		t.Errorf("floppy: %v", err)
	}
}

func TestBuiltIn(t *testing.T) {
	got := BuiltIn([]byte("kernel/fs/ext4/ext4.ko\nkernel/crypto/crc32c-generic.ko\n\n"))
	if want := []string{"crc32c_generic", "ext4"}; !cmp.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
