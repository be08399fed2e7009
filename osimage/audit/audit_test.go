package audit

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const program = "\x7fELF\x02\x01\x01"

// good is a root as it should be.
func good() fstest.MapFS {
	m := fstest.MapFS{
		"usr/lib/x86_64-linux-gnu/libc.so.6":            {Data: []byte(program), Mode: 0o755},
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": {Data: []byte(program), Mode: 0o755},
		"usr/lib/modules/6.12/kernel/fs/ext4.ko":        {Data: []byte(program), Mode: 0o644},
		"usr/lib/modules/6.12/kernel/fs/vfat.ko.xz":     {Data: []byte("\xfd7zXZ"), Mode: 0o644},
		"usr/sbin/init":                  {Data: []byte("../lib/holdfast/machined"), Mode: fs.ModeSymlink | 0o777},
		"etc/passwd":                     {Data: []byte("root:x:0:0:root:/root:/bin/false\n"), Mode: 0o644},
		"etc/empty":                      {Mode: 0o644},
		"tmp":                            {Mode: fs.ModeDir | 0o755},
		"usr/share/holdfast/python.json": {Data: []byte("{}"), Mode: 0o644},
		"usr/lib/x86_64-linux-gnu/libnftables.so.1.1":    {Data: []byte(program), Mode: 0o755},
		"usr/lib/modules/6.12/kernel/drivers/net/tun.ko": {Data: []byte(program), Mode: 0o644},
	}
	for _, name := range Programs {
		m[name] = &fstest.MapFile{Data: []byte(program), Mode: 0o755}
	}
	return m
}

func TestRoot(t *testing.T) {
	r, err := Root(good())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Faults) > 0 {
		t.Errorf("a root as it should be has faults: %v", r.Faults)
	}
	if diff := cmp.Diff(Programs, r.Programs); diff != "" {
		t.Errorf("programs (-want +got):\n%s", diff)
	}
	if len(r.Libraries) != 3 || r.Files != len(Programs)+10 || r.Bytes == 0 {
		t.Errorf("libraries %v, %d files, %d bytes", r.Libraries, r.Files, r.Bytes)
	}
}

func TestRootNamesEachFault(t *testing.T) {
	file := func(data string, mode fs.FileMode) *fstest.MapFile {
		return &fstest.MapFile{Data: []byte(data), Mode: mode}
	}
	faults := map[string]struct {
		name string
		file *fstest.MapFile
		want string
	}{
		"shell":              {"usr/bin/sh", file(program, 0o755), "usr/bin/sh has the name of an interpreter"},
		"link that is one":   {"usr/bin/bash", file("busybox", fs.ModeSymlink|0o777), "usr/bin/bash has the name of an interpreter"},
		"with a version":     {"usr/bin/python3.13", file("x", 0o644), "usr/bin/python3.13 has the name"},
		"script":             {"usr/bin/hello", file("#!/usr/bin/env x", 0o755), "usr/bin/hello is a script"},
		"script, mode 0644":  {"etc/rc", file("#!", 0o644), "etc/rc is a script"},
		"unknown program":    {"usr/lib/holdfast/extra", file(program, 0o755), "usr/lib/holdfast/extra is a program, and nobody said what for"},
		"hidden program":     {"usr/share/data", file(program, 0o644), "usr/share/data is a program, and nobody said what for"},
		"hidden as library":  {"opt/libx.so", file(program, 0o644), "opt/libx.so is a program, and nobody said what for"},
		"executable text":    {"etc/passwd", file("root", 0o755), "etc/passwd may be executed and is no program"},
		"executable module":  {"usr/lib/modules/6.12/a.ko", file(program, 0o755), "a.ko is a kernel module and may be executed"},
		"setuid":             {"usr/bin/mount", file(program, fs.ModeSetuid|0o755), "usr/bin/mount gives rights"},
		"setgid folder":      {"var", file("", fs.ModeDir|fs.ModeSetgid|0o755), "var gives rights"},
		"for all to write":   {"etc/empty", file("", 0o666), "etc/empty may be written to"},
		"folder for all":     {"tmp", file("", fs.ModeDir|0o777), "tmp may be written to"},
		"device":             {"dev/sda", file("", fs.ModeDevice|0o600), "dev/sda is neither file, folder nor link"},
		"pipe":               {"run/pipe", file("", fs.ModeNamedPipe|0o600), "run/pipe is neither"},
		"program as text":    {"usr/sbin/nft", file("x", 0o644), "usr/sbin/nft is missing, or no program"},
		"program, no bit":    {"usr/sbin/nft", file(program, 0o644), "usr/sbin/nft is a program that may not be executed"},
		"file of one letter": {"usr/bin/x", file("#", 0o755), "usr/bin/x may be executed and is no program"},
	}
	all := good()
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			root := good()
			root[f.name] = f.file
			r, err := Root(root)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(r.Faults, func(s string) bool { return strings.Contains(s, f.want) }) {
				t.Errorf("faults %q, want %q", r.Faults, f.want)
			}
		})
		all[f.name] = f.file
	}
	missing := good()
	maps.DeleteFunc(missing, func(name string, _ *fstest.MapFile) bool { return name == Programs[0] })
	if r, err := Root(missing); err != nil || len(r.Faults) != 1 {
		t.Errorf("without %s: %v, %v", Programs[0], r, err)
	}
	if r, err := Root(all); err != nil || len(r.Faults) < len(faults)-2 { // three are of one file
		t.Errorf("with all faults at once it names %d: %v, %v", len(r.Faults), r.Faults, err)
	}
}
