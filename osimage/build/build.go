package build

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/cpio"
	"github.com/holdfast-edge/holdfast/osimage/debian"
	"github.com/holdfast-edge/holdfast/osimage/kmod"
	"github.com/holdfast-edge/holdfast/osimage/uki"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// Result is what Build wrote.
type Result struct {
	Manifest *Manifest
	Parts    string // folder of parts
	Disk     string // raw disk
	Stick    string // raw disk for a stick
}

// bootPackage has systemd's boot loader and its stub for UKIs, both unsigned.
const bootPackage = "systemd-boot-efi"

// efiNames are the processors by UEFI's name.
var efiNames = map[string]string{"amd64": "x64", "arm64": "aa64"}

// Files of the folder of parts.
const (
	PartUKI      = "uki.efi"
	PartRoot     = "root.img" // EROFS with its hash tree, as on a root partition
	PartLoader   = "loader.efi"
	PartKeys     = "keys"
	PartManifest = "manifest.json"
	PartSBOM     = "sbom.spdx.json"
)

// Name is the common part of the names of an OS image's files.
func Name(version, architecture string) string {
	return "holdfast-os-" + version + "-" + architecture
}

// Build makes an OS image. The output folder gets a folder of parts and two raw disks.
func Build(ctx context.Context, o Options) (*Result, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := addOwn(newTree(), &o); err != nil { // what is missing is said before anything is fetched
		return nil, err
	}
	lock, err := debian.ReadLock(o.Profile.Architecture)
	if err != nil {
		return nil, err
	}
	cache, err := cacheOrDefault(o.Cache, lock, o.Progress)
	if err != nil {
		return nil, err
	}
	name := Name(o.Version, o.Profile.Architecture)
	b := &builder{o: &o, cache: cache, lock: lock, parts: filepath.Join(o.Output, name)}
	if err := os.MkdirAll(filepath.Join(b.parts, PartKeys), 0o755); err != nil {
		return nil, err
	}
	// The manifest is written last: parts without one are half of something.
	if err := os.Remove(filepath.Join(b.parts, PartManifest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, step := range []func(context.Context) error{b.kernel, b.boot, b.loader, b.root, b.uki, b.describe} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return nil, err
		}
	}
	r := &Result{Manifest: b.manifest, Parts: b.parts, Disk: filepath.Join(o.Output, name+".raw"), Stick: filepath.Join(o.Output, name+"-stick.raw")}
	o.say("write %s and %s", filepath.Base(r.Disk), filepath.Base(r.Stick))
	return r, errors.Join(
		Disk(b.parts, r.Disk, o.ESPFiles, false),
		Disk(b.parts, r.Stick, o.ESPFiles, true),
	)
}

// builder carries what one step makes and a later one needs.
type builder struct {
	o     *Options
	cache *debian.Cache
	lock  *debian.Lock
	parts string

	k *kernel

	stub, systemdBoot []byte // not signed
	signedLoader      []byte

	tree     *tree
	packs    []*packed
	verity   osimage.Verity
	rootData int64 // bytes of the file system
	files    []RootFile
	initrd   *kmod.Index
	manifest *Manifest
}

// kernel reads the kernel and picks modules for the root and the initramfs.
func (b *builder) kernel(ctx context.Context) error {
	p, err := b.lock.Package(b.lock.Kernels[b.o.Profile.Flavour])
	if err != nil {
		return err
	}
	if b.k, err = readKernel(ctx, b.cache, p); err != nil {
		return err
	}
	b.packs = append(b.packs, &packed{Package: p})
	return nil
}

// root writes the root file system with its hash tree.
func (b *builder) root(ctx context.Context) error {
	b.o.say("put the root together")
	t, packs, err := makeRoot(ctx, b.o, b.cache, b.lock)
	if err != nil {
		return err
	}
	b.tree, b.packs = t, append(b.packs, packs...)
	index, err := b.k.set.Pick(b.o.Profile.root())
	if err != nil {
		return err
	}
	if b.initrd, err = b.k.set.Pick(b.o.Profile.initramfs()); err != nil {
		return err
	}
	from := "debian:" + b.packs[0].Name + " " + b.packs[0].Version
	if err := addModules(t, moduleFolder+b.k.release, b.k, index, from); err != nil {
		return err
	}
	sbom, err := b.sbom()
	if err != nil {
		return err
	}
	t.add(entry{path: share + "/" + PartSBOM, data: sbom, from: ours})
	t.add(entry{path: strings.TrimPrefix(osimage.LoaderFile, "/"), data: b.signedLoader, from: ours})
	if err := errors.Join(t.change(b.o.Replace, b.o.Remove), durable.WriteFile(filepath.Join(b.parts, PartSBOM), sbom, 0o644)); err != nil {
		return err
	}
	return b.writeRoot()
}

func (b *builder) writeRoot() (err error) {
	b.o.say("write the root")
	out, err := os.Create(filepath.Join(b.parts, PartRoot))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if b.files, err = b.tree.writeErofs(out, b.o.Built, b.parts); err != nil {
		return err
	}
	if b.rootData, err = out.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	// The salt need not be secret, only be other for another OS image.
	salt := sha256.Sum256([]byte("holdfast root " + b.o.Version + " " + b.o.Profile.Architecture))
	hashes, v, err := verity.Make(out, b.rootData, salt)
	if err != nil {
		return err
	}
	b.verity = v
	end := int64(v.DataBlocks) * osimage.VerityBlock
	if size := end + int64(len(hashes)); size > osimage.RootSize {
		return fmt.Errorf("the root has %d MiB with its hash tree, and a root partition %d MiB", size>>20, osimage.RootSize>>20)
	}
	if err := out.Truncate(end); err != nil {
		return err
	}
	_, err = out.WriteAt(hashes, end)
	return err
}

// initramfs is stage 1 with the modules that find the root.
func (b *builder) initramfs() ([]byte, error) {
	if err := checkProgram(b.o.Programs.Init, b.o.Profile.Architecture); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.o.Programs.Init)
	if err != nil {
		return nil, err
	}
	entries := []cpio.Entry{{Name: "init", Mode: cpio.File | 0o755, Data: program}}
	for _, d := range []string{"dev", "proc", "sys", "run", "root"} {
		entries = append(entries, cpio.Entry{Name: d, Mode: cpio.Folder | 0o755})
	}
	entries = append(entries, cpio.Entry{Name: "dev/console", Mode: cpio.Char | 0o600, Major: 5, Minor: 1})
	t := newTree()
	if err := addModules(t, "modules", b.k, b.initrd, ""); err != nil {
		return nil, err
	}
	for _, e := range t.sorted() {
		kind := uint32(cpio.File)
		if e.dir {
			kind = cpio.Folder
		}
		entries = append(entries, cpio.Entry{Name: e.path, Mode: kind | uint32(e.mode()), Data: e.data})
	}
	archive, err := cpio.Archive(entries)
	if err != nil {
		return nil, err
	}
	return cpio.Compress(archive)
}

// boot reads the boot loader and the stub.
func (b *builder) boot(ctx context.Context) error {
	p, err := b.lock.Package(bootPackage)
	if err != nil {
		return err
	}
	a, err := b.cache.Open(ctx, p)
	if err != nil {
		return err
	}
	const dir = "usr/lib/systemd/boot/efi/"
	processor := efiNames[b.o.Profile.Architecture]
	want := map[string]*[]byte{dir + "linux" + processor + ".efi.stub": &b.stub, dir + "systemd-boot" + processor + ".efi": &b.systemdBoot}
	err = a.Each(func(name string) bool { return want[name] != nil }, func(f debian.File) error {
		*want[f.Name] = f.Data
		return nil
	})
	if err == nil && (b.stub == nil || b.systemdBoot == nil) {
		err = fmt.Errorf("the Debian package %s %s lacks systemd-boot or its stub", p.Name, p.Version)
	}
	b.packs = append(b.packs, &packed{Package: p})
	return err
}

// uki makes the signed boot image.
func (b *builder) uki(context.Context) error {
	b.o.say("make and sign the boot image")
	initramfs, err := b.initramfs()
	if err != nil {
		return fmt.Errorf("make the initramfs: %w", err)
	}
	image, err := uki.Build(b.stub, []uki.Section{
		{Name: ".osrel", Data: []byte(b.o.osRelease())},
		{Name: ".cmdline", Data: []byte(b.o.cmdline(b.verity))},
		{Name: ".uname", Data: []byte(b.k.release)},
		{Name: ".initrd", Data: initramfs},
		{Name: ".linux", Data: b.k.image},
	})
	if err == nil {
		image, err = uki.Sign(image, b.o.Keys.Signer, b.o.Keys.Certificate)
	}
	if err != nil {
		return fmt.Errorf("make the boot image: %w", err)
	}
	return durable.WriteFile(filepath.Join(b.parts, PartUKI), image, 0o644)
}

// loader signs systemd-boot, and puts the keys beside it.
func (b *builder) loader(context.Context) error {
	// Without sections to add this only drops the symbol table, which verifiers stumble over.
	loader, err := uki.Build(b.systemdBoot, nil)
	if err == nil {
		loader, err = uki.Sign(loader, b.o.Keys.Signer, b.o.Keys.Certificate)
	}
	if err != nil {
		return fmt.Errorf("sign systemd-boot: %w", err)
	}
	b.signedLoader = loader
	if err := durable.WriteFile(filepath.Join(b.parts, PartLoader), loader, 0o644); err != nil {
		return err
	}
	for name, data := range b.o.Keys.Enrol {
		if err := durable.WriteFile(filepath.Join(b.parts, PartKeys, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// describe writes the manifest.
func (b *builder) describe(context.Context) error {
	m := &Manifest{
		Version: b.o.Version, Architecture: b.o.Profile.Architecture, Flavour: b.o.Profile.Flavour, Built: b.o.Built.UTC(),
		Kernel: b.k.release, Cmdline: b.o.cmdline(b.verity), Verity: strings.TrimPrefix(b.verity.Argument(), "holdfast.verity="),
		RootData: b.rootData, Modules: len(b.k.set.Modules), Root: b.files, Versions: map[string]string{},
	}
	for _, p := range b.packs {
		m.Debian = append(m.Debian, p.Package)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		m.Builder = info.GoVersion
	}
	if err := b.versions(m); err != nil {
		return err
	}
	for _, name := range []string{PartUKI, PartRoot, PartLoader, PartSBOM} {
		f, err := digestOf(b.parts, name)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, f)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	b.manifest = m
	return durable.WriteFile(filepath.Join(b.parts, PartManifest), append(data, '\n'), 0o644)
}
