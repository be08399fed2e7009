package build

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/debian"
)

// tool runs a program that build/setup installs.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var built = time.Unix(1_795_360_000, 0)

func TestRoot(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "program")
	os.WriteFile(host, bytes.Repeat([]byte("program "), 10_000), 0o4777)
	write := func(name string, change func(*tree)) [32]byte {
		r := newTree()
		r.add(entry{path: "usr/bin/program", host: host, why: "a test", from: "source"})
		r.add(entry{path: "etc/passwd", data: []byte("root\n"), from: ours})
		r.add(entry{path: "sbin", link: "usr/bin", from: ours})
		r.add(entry{path: "proc", dir: true})
		change(r)
		out, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		files, err := r.writeErofs(out, built, dir)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(f RootFile) bool { return f.Path == "usr/bin/program" && f.Program && f.Why == "a test" }) {
			t.Errorf("%s: %+v", name, files)
		}
		data, _ := os.ReadFile(out.Name())
		return sha256.Sum256(data)
	}
	one := write("one", func(*tree) {})
	tool(t, "fsck.erofs", filepath.Join(dir, "one"))
	if two := write("two", func(*tree) {}); one != two {
		t.Error("the same tree gives other bytes")
	}
	if three := write("three", func(r *tree) { r.add(entry{path: "etc/group", data: []byte("x")}) }); one == three {
		t.Error("another tree gives the same bytes")
	}
	f, err := os.Open(filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{".": fs.ModeDir | 0o755, "usr": fs.ModeDir | 0o755, "usr/bin": fs.ModeDir | 0o755, "etc": fs.ModeDir | 0o755, "proc": fs.ModeDir | 0o755,
		"usr/bin/program": 0o755, "etc/passwd": 0o644, "sbin": fs.ModeSymlink | 0o777}
	fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		info, err := d.Info()
		if err != nil || info.Mode().String() != want[name].String() || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 || !info.ModTime().Equal(built) {
			t.Errorf("%s: %v %v, want %v; of %v", name, err, info.Mode(), want[name], info.ModTime().Sub(built))
		}
		delete(want, name)
		return nil
	})
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}

func TestChange(t *testing.T) {
	r := newTree()
	r.add(entry{path: "usr/lib/holdfast/machined", data: []byte("good"), why: "process 1"})
	r.add(entry{path: "etc/group"})
	if err := r.change(map[string][]byte{"usr/lib/holdfast/machined": []byte("bad"), "etc/new": nil}, []string{"etc/group"}); err != nil {
		t.Fatal(err)
	}
	if e := r.entries["usr/lib/holdfast/machined"]; string(e.data) != "bad" || e.mode() != 0o755 {
		t.Errorf("%+v", e)
	}
	if _, ok := r.entries["etc/group"]; ok {
		t.Error("etc/group is there still")
	}
	for name, err := range map[string]error{
		"a folder":        r.change(map[string][]byte{"usr/lib": nil}, nil),
		"a way up":        r.change(map[string][]byte{"../x": nil}, nil),
		"an absolute one": r.change(map[string][]byte{"/etc/x": nil}, nil),
		"nothing there":   r.change(nil, []string{"etc/group"}),
		"remove a folder": r.change(nil, []string{"usr"}),
	} {
		if err == nil {
			t.Errorf("%s was changed", name)
		}
	}
}

func TestProfile(t *testing.T) {
	for name, p := range map[string]Profile{
		"architecture": {Architecture: "riscv64"},
		"flavour":      {Flavour: "spicy"},
		"console":      {Consoles: []string{"ttyS0 init=/bin/sh"}},
		"init":         {Arguments: []string{"init=/bin/sh"}},
		"rdinit":       {Arguments: []string{"rdinit=/x"}},
		"our own":      {Arguments: []string{"holdfast.verity=0"}},
		"two at once":  {Arguments: []string{"a=b lockdown=none"}},
		"lockdown":     {Arguments: []string{"lockdown=none"}},
		"signatures":   {Arguments: []string{"module.sig_enforce=0"}},
		"small":        {StateSize: 1 << 20},
		"odd":          {StateSize: 1<<30 + 1},
		"small data":   {DataSizeMin: 1},
	} {
		p.Default()
		if err := p.validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, p := range []Profile{{}, {Architecture: "arm64", Flavour: Generic}, {Arguments: []string{"pci=nomsi", "nosmt"}, Consoles: []string{"ttyS1,115200n8"}}} {
		p.Default()
		if err := p.validate(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	kiosk := Profile{Disk: fleet.DiskRule{Model: "QEMU*", MinSize: 64 << 30, Wipe: true}}
	if text, err := json.Marshal(kiosk); err != nil || !bytes.Contains(text, []byte(`"disk":{"model":"QEMU*","minSize":68719476736,"wipe":true}`)) { // package metal reads it
		t.Errorf("the profile in the root: %s, %v", text, err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "profile.yaml")
	os.WriteFile(file, []byte("flavour: generic\nfirmware: fw\ndrivers: [mlx4_core]\n"), 0o644)
	p, err := ReadProfile(file)
	if err != nil || p.Flavour != Generic || p.firmware != filepath.Join(dir, "fw") || !slices.Equal(p.Drivers, []string{"mlx4_core"}) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, key := range []string{"flavor", "disk"} { // the disk's rule is the classes', which machines see again in releases
		os.WriteFile(file, []byte(key+": generic\n"), 0o644)
		if _, err := ReadProfile(file); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("unknown key %s: %v", key, err)
		}
	}
}

func TestCmdline(t *testing.T) {
	o := Options{Version: "0.1.0", Profile: Profile{Architecture: "amd64", Arguments: []string{"nosmt"}}}
	o.Profile.Default()
	v := osimage.Verity{RootHash: [32]byte{1}, Salt: [32]byte{2}, DataBlocks: 3}
	line := o.cmdline(v)
	if got, err := osimage.ParseVerity(line); err != nil || got != v {
		t.Errorf("%v, %v", got, err)
	}
	for _, want := range []string{"lockdown=integrity", "module.sig_enforce=1", "panic=1", "console=ttyS0", "nosmt", "vsyscall=none", "gpt"} {
		if !slices.Contains(strings.Fields(line), want) {
			t.Errorf("no %s in %s", want, line)
		}
	}
}

func TestOptions(t *testing.T) {
	if err := (&Options{Version: "1", Seed: []byte("no")}).check(); err == nil {
		t.Error("accepted")
	} else {
		for _, want := range []string{"version", "time", "seed", "key"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("nothing of %s in %v", want, err)
			}
		}
	}
}

// fakeParts is a folder of parts whose content does not matter.
func fakeParts(t *testing.T) string {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, PartKeys), 0o755)
	manifest := `{"version":"0.1.0","architecture":"amd64","verity":"` + strings.Repeat("a", 64) + `"}`
	for name, data := range map[string]string{PartManifest: manifest, PartUKI: "uki", PartLoader: "loader", PartRoot: strings.Repeat("root", 1<<20), PartKeys + "/db.auth": "auth"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// written is what a disk of fakeParts holds besides holes: the beginnings of its partitions and the end.
func written(t *testing.T, file string) []byte {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	const part = 8 << 20
	all := make([]byte, 3*part)
	for i, at := range []int64{0, osimage.Alignment + osimage.ESPSize, info.Size() - part} {
		if _, err := f.ReadAt(all[i*part:(i+1)*part], at); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestDisk(t *testing.T) {
	parts := fakeParts(t)
	dir := t.TempDir()
	disk, again, stick := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "again.raw"), filepath.Join(dir, "stick.raw")
	more := map[string][]byte{"holdfast/network.yaml": []byte("apiVersion: x\n")}
	for file, isStick := range map[string]bool{disk: false, again: false, stick: true} {
		if err := Disk(parts, file, more, isStick); err != nil {
			t.Fatal(err)
		}
		if out := tool(t, "sgdisk", "-v", file); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v: %s", out)
		}
	}
	if !bytes.Equal(written(t, disk), written(t, again)) {
		t.Error("the same parts give other bytes")
	}
	for file, want := range map[string][]string{disk: {osimage.PartESP, osimage.PartRootA}, stick: {osimage.PartStickESP, osimage.PartStickRoot}} {
		out := tool(t, "sgdisk", "-p", file)
		for _, name := range want {
			if !strings.Contains(out, name+"\n") {
				t.Errorf("%s has no %s:\n%s", file, name, out)
			}
		}
	}
	at := disk + "@@" + "1048576"
	for name, want := range map[string]string{"EFI/BOOT/BOOTX64.EFI": "loader", "EFI/Linux/holdfast-a.efi": "uki", "loader/loader.conf": loaderConf, "loader/keys/auto/db.auth": "auth", "holdfast/network.yaml": "apiVersion: x\n"} {
		if got := tool(t, "mtype", "-i", at, "::/"+name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, 4<<20)
	if _, err := f.ReadAt(got, osimage.Alignment+osimage.ESPSize); err != nil || string(got) != strings.Repeat("root", 1<<20) {
		t.Errorf("the root partition is not the root: %v", err)
	}
	os.WriteFile(filepath.Join(parts, PartManifest), []byte(`{"architecture":"../x"}`), 0o644)
	if err := Disk(parts, disk, nil, false); err == nil {
		t.Error("a manifest for nothing was taken")
	}
}

func TestLinker(t *testing.T) {
	pack := &packed{Package: debian.Package{Name: "p", Version: "1"}}
	l := linker{tree: newTree(), files: map[string]found{
		"usr/bin/dangling": {debian.File{Name: "usr/bin/dangling", Link: "gone"}, pack},
		"usr/bin/script":   {debian.File{Name: "usr/bin/script", Data: []byte("#!/bin/sh\n")}, pack},
	}}
	for name, f := range l.files {
		if err := l.add(f, "a test", false); err == nil {
			t.Errorf("%s was added", name)
		}
	}
	if _, err := l.library("libgone.so.1"); err == nil || !strings.Contains(err.Error(), "libgone.so.1") {
		t.Errorf("a missing library: %v", err)
	}
}

func TestProgramsAreChecked(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755)
	if err := checkProgram(script, "amd64"); err == nil {
		t.Error("a script was taken")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkProgram(self, "arm64"); err == nil || !strings.Contains(err.Error(), "arm64") {
		t.Errorf("another processor: %v", err)
	}
	if err := checkProgram("/bin/mount", "amd64"); err == nil || !strings.Contains(err.Error(), "static") {
		t.Errorf("shared libraries: %v", err)
	}
}
