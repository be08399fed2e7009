package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/osimage/debian"
)

// foreign are the programs of Debian in the root, with the reason for each.
var foreign = []struct{ pack, path, why string }{
	{"nftables", "usr/sbin/nft", "kube-proxy and machined set the packet filter with it"},
	{"e2fsprogs", "usr/sbin/mke2fs", "machined makes the file systems of STATE and DATA with it"},
	{"e2fsprogs", "usr/sbin/e2fsck", "machined repairs them with it after a power cut"},
	{"mount", "usr/bin/mount", "the kubelet mounts volumes with it"},
	{"mount", "usr/bin/umount", "the kubelet unmounts volumes with it"},
}

// own are the programs from source below usr/lib/holdfast, with the reason for
// each. The folder of programs has them under the same names.
var own = []struct{ name, why string }{
	{"kube", "Kubernetes: API server, etcd, scheduler, controllers, kubelet, kube-proxy, by its first argument"},
	{"applier", "machined renders releases and applies them with it"},
	{"containerd", "runs containers"},
	{"containerd-shim-runc-v2", "containerd starts one for each pod"},
	{"runc", "the shim starts containers with it"},
	{"coredns", "name service of the site"},
	{"cni/ptp", "containerd connects pods with it"},
	{"cni/loopback", "containerd brings up a pod's loopback with it"},
	{"cni/host-local", "ptp takes a pod's address with it"},
	{"cni/portmap", "containerd opens host ports with it"},
}

const (
	folder  = "usr/lib/holdfast"
	share   = "usr/share/holdfast"
	libC    = "libc6"
	release = "usr/lib/os-release"
)

// static are the files of /etc that are the same on all machines. What differs
// is a link to a file that machined writes at boot.
var static = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\n",
	// nft asks for protocols by name.
	"etc/protocols": "ip 0 IP\nicmp 1 ICMP\nigmp 2 IGMP\ntcp 6 TCP\nudp 17 UDP\ndccp 33 DCCP\ngre 47 GRE\nesp 50 IPSEC-ESP\nah 51 IPSEC-AH\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\nudplite 136 UDPLite\n",
}

var links = map[string]string{
	"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
	"usr/sbin/init":     "../lib/holdfast/machined",
	"usr/sbin/modprobe": "../lib/holdfast/machined",
	"etc/os-release":    "../usr/lib/os-release",
	"etc/mtab":          "../proc/self/mounts",
	"etc/resolv.conf":   "/run/holdfast/resolv.conf",
	"etc/hosts":         "/run/holdfast/hosts",
	"etc/hostname":      "/run/holdfast/hostname",
	"etc/machine-id":    "/run/holdfast/machine-id",
	"etc/localtime":     "/run/holdfast/localtime",
	"var/run":           "/run",
}

var folders = []string{"proc", "sys", "dev", "run", "tmp", "var", "state", "data", "efi", "root", "mnt", "opt", "etc/cni/net.d", "usr/lib64", "usr/lib/firmware"}

// packed is a Debian package that something was taken from.
type packed struct {
	debian.Package
	files []string
}

// makeRoot puts the root together, but for the files that describe it.
func makeRoot(ctx context.Context, o *Options, cache *debian.Cache, lock *debian.Lock) (*tree, []*packed, error) {
	t := newTree()
	for _, d := range folders {
		t.add(entry{path: d, dir: true, from: ours})
	}
	for name, text := range static {
		t.add(entry{path: name, data: []byte(text), from: ours})
	}
	packs, err := addForeign(ctx, t, cache, lock)
	if err != nil {
		return nil, nil, err
	}
	for name, target := range links {
		t.add(entry{path: name, link: target, from: ours})
	}
	if err := addOwn(t, o); err != nil {
		return nil, nil, err
	}
	if err := addFirmware(t, o.Profile.firmware); err != nil {
		return nil, nil, err
	}
	profile, err := json.MarshalIndent(o.Profile, "", "  ")
	if err != nil {
		return nil, nil, err
	}
	t.add(entry{path: share + "/profile.json", data: append(profile, '\n'), from: ours})
	t.add(entry{path: share + "/seed.json", data: o.Seed, from: "the fleet"})
	t.add(entry{path: release, data: []byte(o.osRelease()), from: ours})
	return t, packs, nil
}

// addOwn adds the programs that were built from source.
func addOwn(t *tree, o *Options) error {
	var faults []error
	add := func(name, host, why string) {
		info, err := os.Stat(host)
		switch {
		case err != nil:
			faults = append(faults, err)
		case !info.Mode().IsRegular():
			faults = append(faults, fmt.Errorf("%s is no file", host))
		case why != "":
			faults = append(faults, checkProgram(host, o.Profile.Architecture))
		}
		t.add(entry{path: folder + "/" + name, host: host, why: why, from: "source"})
	}
	add("machined", o.Programs.Machined, "process 1; also the kernel's helper for modules")
	for _, p := range own {
		add(p.name, filepath.Join(o.Programs.System, filepath.FromSlash(p.name)), p.why)
	}
	add("pause.tar", filepath.Join(o.Programs.System, "pause.tar"), "")
	return errors.Join(faults...)
}

// machines are the processors by Debian's name.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkProgram refuses a program of another processor, or one that wants shared libraries: there are those of Debian's programs only.
func checkProgram(host, architecture string) error {
	f, err := elf.Open(host)
	if err != nil {
		return fmt.Errorf("%s is no program: %w", host, err)
	}
	defer f.Close()
	if f.Machine != machines[architecture] {
		return fmt.Errorf("%s is a program for %s, not for %s", host, f.Machine, architecture)
	}
	if libs, err := f.ImportedLibraries(); err == nil && len(libs) > 0 {
		return fmt.Errorf("%s wants shared libraries (%s): build it static", host, strings.Join(libs, ", "))
	}
	return nil
}

func addFirmware(t *tree, dir string) error {
	if dir == "" {
		return nil
	}
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		t.add(entry{path: "usr/lib/firmware/" + filepath.ToSlash(rel), host: name, from: "the profile"})
		return nil
	})
}

// addForeign adds Debian's programs and the shared libraries that they load, and no others.
func addForeign(ctx context.Context, t *tree, cache *debian.Cache, lock *debian.Lock) ([]*packed, error) {
	var packs []*packed
	byName := map[string]*packed{}
	files := map[string]found{} // what a program or library may be, by path
	for _, p := range lock.Packages {
		if strings.HasPrefix(p.Name, "linux-image-") || p.Name == bootPackage {
			continue
		}
		a, err := cache.Open(ctx, p)
		if err != nil {
			return nil, err
		}
		byName[p.Name] = &packed{Package: p}
		packs = append(packs, byName[p.Name])
		err = a.Each(wanted, func(f debian.File) error {
			files[f.Name] = found{f, byName[p.Name]}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	l := linker{tree: t, files: files}
	for _, p := range foreign {
		f, ok := files[p.path]
		if !ok || f.from.Name != p.pack {
			return nil, fmt.Errorf("the Debian package %s has no %s", p.pack, p.path)
		}
		if err := l.add(f, p.why, false); err != nil {
			return nil, err
		}
	}
	if f, ok := files["etc/mke2fs.conf"]; ok {
		l.take(f, "", false)
	}
	return slices.DeleteFunc(packs, func(p *packed) bool { return len(p.files) == 0 }), nil
}

// wanted are the files of packages that are looked at.
func wanted(name string) bool {
	if name == "etc/mke2fs.conf" || slices.ContainsFunc(foreign, func(p struct{ pack, path, why string }) bool { return p.path == name }) {
		return true
	}
	return strings.HasPrefix(name, "usr/lib") && strings.Contains(path.Base(name), ".so")
}

// found is a file of a package.
type found struct {
	debian.File
	from *packed
}

// linker follows the names of shared libraries, as the dynamic loader does.
type linker struct {
	tree  *tree
	files map[string]found
}

func (l *linker) take(f found, why string, lib bool) {
	l.tree.add(entry{path: f.Name, data: f.Data, link: f.Link, why: why, lib: lib && f.Link == "", from: "debian:" + f.from.Name + " " + f.from.Version})
	f.from.files = append(f.from.files, f.Name)
}

// add takes a program or library with what it loads.
func (l *linker) add(f found, why string, lib bool) error {
	if _, ok := l.tree.entries[f.Name]; ok {
		return nil
	}
	l.take(f, why, lib)
	if f.Link != "" {
		target := path.Join(path.Dir(f.Name), f.Link)
		if path.IsAbs(f.Link) {
			target = strings.TrimPrefix(f.Link, "/")
		}
		next, ok := l.files[target]
		if !ok {
			return fmt.Errorf("%s is a link to %s, which no pinned package has", f.Name, target)
		}
		return l.add(next, why, lib)
	}
	e, err := elf.NewFile(bytes.NewReader(f.Data))
	if err != nil {
		return fmt.Errorf("%s of %s: %w", f.Name, f.from.Name, err)
	}
	defer e.Close()
	needs, err := e.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s of %s: %w", f.Name, f.from.Name, err)
	}
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			return fmt.Errorf("%s of %s: %w", f.Name, f.from.Name, err)
		}
		needs = append(needs, strings.TrimRight(string(data), "\x00"))
	}
	for _, need := range needs {
		lib, err := l.library(need)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", f.Name, f.from.Name, err)
		}
		if err := l.add(lib, "", true); err != nil {
			return err
		}
	}
	return nil
}

// library finds a shared library by its name, or the dynamic loader by its path.
func (l *linker) library(name string) (found, error) {
	if path.IsAbs(name) {
		if f, ok := l.files["usr"+name]; ok {
			return f, nil
		}
		return found{}, fmt.Errorf("it needs %s, which no pinned package has", name)
	}
	for p, f := range l.files {
		// Debian has a library once, below the folder of its architecture.
		if dir, base := path.Split(p); base == name && strings.HasSuffix(dir, "-linux-gnu/") {
			return f, nil
		}
	}
	return found{}, fmt.Errorf("it needs the library %s, which no pinned package has: add its package to osimage/debian/update", name)
}
