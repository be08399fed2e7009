package kmod

import (
	"errors"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var example = &Index{
	Load: []string{"erofs", "dm_verity"},
	Modules: map[string]Module{
		"erofs":          {File: "kernel/fs/erofs/erofs.ko.xz", Deps: []string{"crc32c_generic", "libcrc32c"}},
		"libcrc32c":      {File: "kernel/lib/libcrc32c.ko.xz", Deps: []string{"crc32c_generic"}},
		"crc32c_generic": {File: "kernel/crypto/crc32c_generic.ko.xz", Aliases: []string{"crypto-crc32c"}},
		"dm_verity":      {File: "kernel/drivers/md/dm-verity.ko.xz", Deps: []string{"dm_mod", "dm_bufio"}},
		"dm_mod":         {File: "kernel/drivers/md/dm-mod.ko.xz"},
		"dm_bufio":       {File: "kernel/drivers/md/dm-bufio.ko.xz", Deps: []string{"dm_mod"}},
		"e1000":          {File: "e1000.ko", Aliases: []string{"pci:v00008086d0000100Esv*sd*bc*sc*i*"}},
		"e1000_other":    {File: "e1000-other.ko", Deps: []string{"dm_mod"}, Aliases: []string{"pci:v00008086d0000100[A-F]sv*"}},
	},
	BuiltIn: []string{"ext4", "nvme_core", "virtio_pci"},
}

func TestResolve(t *testing.T) {
	for name, want := range map[string][]string{
		"dm-verity":     {"dm_mod", "dm_bufio", "dm_verity"},
		"dm_mod":        {"dm_mod"},
		"crypto-crc32c": {"crc32c_generic"},
		"erofs":         {"crc32c_generic", "libcrc32c", "erofs"},
		"ext4":          nil,
		"nvme-core":     nil,
		"pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00": {"e1000", "dm_mod", "e1000_other"},
	} {
		got, err := example.Resolve(name)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
	if _, err := example.Resolve("floppy"); !errors.Is(err, ErrUnknown) {
		t.Errorf("floppy: %v", err)
	}
	want := []string{"crc32c_generic", "libcrc32c", "erofs", "dm_mod", "dm_bufio", "dm_verity"}
	if got := example.Order(); !cmp.Equal(got, want) {
		t.Errorf("order: %v, want %v", got, want)
	}
}

func TestName(t *testing.T) {
	for file, want := range map[string]string{"kernel/x/dm-mod.ko.xz": "dm_mod", "nft_ct.ko": "nft_ct", "tpm-tis": "tpm_tis"} {
		if got := Name(file); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, row := range []struct {
		pattern, name string
		want          bool
	}{
		{"fs-vfat", "fs-vfat", true},
		{"fs_vfat", "fs-vfat", true},
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"virtio:d00000001v*", "virtio:d00000002v00001AF4", false},
		{"acpi*:PNP0A03:*", "acpi:ACPI0008:PNP0A03:", true},
		{"acpi*:PNP0A03:*", "acpi:ACPI0008:", false},
		{"usb:v0BDAp8153d30[0-9]*dc*", "usb:v0BDAp8153d3015dc00", true},
		{"usb:v0BDAp8153d30[0-9]*dc*", "usb:v0BDAp8153d30A5dc00", false},
		{"a?c", "abc", true},
		{"a[!b]c", "abc", false},
		{"*", "", true},
		{"", "", true},
		{"", "a", false},
		{"a[", "a[", true},
		{"of:N*T*Carm,pl011C*", "of:NserialT(null)Carm,pl011Carm/primecell", true},
	} {
		if got := Match(row.pattern, row.name); got != row.want {
			t.Errorf("Match(%q, %q) is %v", row.pattern, row.name, got)
		}
	}
}

// FuzzMatch holds Match against path.Match, where the two mean the same.
func FuzzMatch(f *testing.F) {
	f.Add("pci:v*d[0-9A]sv*", "pci:v1d2sv3")
	f.Add("a*b*c", "axxbyyc")
	f.Add("[", "[")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		got := Match(pattern, name)
		if strings.ContainsAny(pattern+name, "/\\-_[]^!") || !ascii(pattern+name) {
			return
		}
		if want, err := path.Match(pattern, name); err == nil && got != want {
			t.Errorf("Match(%q, %q) is %v, path.Match says %v", pattern, name, got, want)
		}
	})
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
