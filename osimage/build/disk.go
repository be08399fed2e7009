package build

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/fat"
	"github.com/holdfast-edge/holdfast/osimage/gpt"
)

// loaderConf: no menu, no way to edit a command line, and keys enrolled where
// the firmware is in setup mode.
const loaderConf = "timeout 0\neditor no\nauto-firmware no\nauto-entries no\nsecure-boot-enroll force\n"

// FirstUKI is the boot image's name on a raw disk: slot a, without a counter of tries.
const FirstUKI = "EFI/Linux/holdfast-a.efi"

// ESP is what the EFI system partition of a folder of parts holds.
func ESP(parts string, more map[string][]byte) (map[string][]byte, error) {
	m, err := ReadManifest(parts)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"loader/loader.conf": []byte(loaderConf), osimage.PublicFolder + "/README": []byte(publicText)}
	var faults []error
	read := func(name, part string) {
		data, err := os.ReadFile(filepath.Join(parts, part))
		files[name], faults = data, append(faults, err)
	}
	read(osimage.BootLoaders[m.Architecture], PartLoader)
	read(FirstUKI, PartUKI)
	keys, err := os.ReadDir(filepath.Join(parts, PartKeys))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, k := range keys {
		read("loader/keys/auto/"+k.Name(), filepath.Join(PartKeys, k.Name()))
	}
	maps.Copy(files, more)
	return files, errors.Join(faults...)
}

// publicText keeps the folder, and tells who finds it what it is.
const publicText = "What a machine needs to reach its hub. Nothing here is secret, and nothing here rules the machine.\n"

// Disk puts a raw disk together from a folder of parts, with further files on the
// ESP. It is quick, and the file is sparse: there is a partition table, the ESP and
// one root; the first boot makes the others at the size of the real disk.
func Disk(parts, file string, more map[string][]byte, stick bool) (err error) {
	m, err := ReadManifest(parts)
	if err != nil {
		return err
	}
	files, err := ESP(parts, more)
	if err != nil {
		return err
	}
	root, err := os.Open(filepath.Join(parts, PartRoot))
	if err != nil {
		return err
	}
	defer root.Close()
	esp, slot := osimage.PartESP, osimage.PartRootA
	if stick {
		esp, slot = osimage.PartStickESP, osimage.PartStickRoot
	}
	out, err := os.CreateTemp(filepath.Dir(file), ".disk-*")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err == nil {
			err = os.Rename(out.Name(), file)
		}
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	const size = osimage.Alignment + osimage.ESPSize + osimage.RootSize + osimage.Alignment
	if err := errors.Join(out.Chmod(0o644), out.Truncate(size)); err != nil {
		return err
	}
	t := &gpt.Table{ID: gpt.Derive("disk", m.Verity, esp), Size: size}
	if _, err := t.Add(gpt.Partition{Type: gpt.TypeESP, ID: gpt.Derive("esp", m.Verity, esp), Name: esp}, osimage.ESPSize); err != nil {
		return err
	}
	if _, err := t.Add(gpt.Partition{Type: gpt.TypeLinux, ID: gpt.Derive("root", m.Verity, slot), Name: slot}, osimage.RootSize); err != nil {
		return err
	}
	volume := fat.Volume{Size: osimage.ESPSize, Start: t.Partitions[0].Offset(), Label: "HOLDFAST", Files: files}
	volume.Serial = binary.LittleEndian.Uint32(t.ID[:])
	if err := volume.Write(io.NewOffsetWriter(out, t.Partitions[0].Offset())); err != nil {
		return fmt.Errorf("write the ESP: %w", err)
	}
	if err := copySparse(io.NewOffsetWriter(out, t.Partitions[1].Offset()), root); err != nil {
		return fmt.Errorf("write the root partition: %w", err)
	}
	return t.Write(unsynced{out})
}

// unsynced is a file that is made anew after a crash: nothing waits for the disk.
type unsynced struct{ *os.File }

func (unsynced) Sync() error { return nil }

// copySparse leaves out what is zero: the file is new.
func copySparse(w io.WriterAt, r io.Reader) error {
	block := make([]byte, 1<<20)
	zero := make([]byte, len(block))
	for at := int64(0); ; at += int64(len(block)) {
		n, err := io.ReadFull(r, block)
		if n > 0 && !bytes.Equal(block[:n], zero[:n]) {
			if _, err := w.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// ReadManifest reads the manifest of a folder of parts.
func ReadManifest(parts string) (*Manifest, error) {
	data, err := os.ReadFile(filepath.Join(parts, PartManifest))
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(parts, PartManifest), err)
	}
	if osimage.BootLoaders[m.Architecture] == "" {
		return nil, fmt.Errorf("read %s: architecture %q", filepath.Join(parts, PartManifest), m.Architecture)
	}
	return &m, nil
}
