//go:build system

package build

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/audit"
	"github.com/holdfast-edge/holdfast/osimage/kmod"
	"github.com/holdfast-edge/holdfast/osimage/secureboot"
	"github.com/holdfast-edge/holdfast/osimage/uki"
)

// rootBudget is what a root may have, in bytes.
const rootBudget = 350e6

// TestWhole makes the OS image of this checkout twice and looks at it with other
// people's tools. It needs make build system os, and the Debian packages: fetched once.
func TestWhole(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := secureboot.Generate("test")
	if err != nil {
		t.Fatal(err)
	}
	enrol, err := keys.Enrolment()
	if err != nil {
		t.Fatal(err)
	}
	var results []*Result
	for range 2 {
		o := Options{
			Version: "0.1.0", Built: built, Seed: []byte("{}"), Output: t.TempDir(), Progress: func(line string) { t.Log(line) },
			Programs: Programs{Machined: filepath.Join(bin, "machined"), Init: filepath.Join(bin, "init"), System: filepath.Join(bin, "system")},
			Keys:     Keys{Signer: keys.DB.Key, Certificate: keys.DB.Cert, Enrol: enrol},
		}
		r, err := Build(t.Context(), o)
		if err != nil {
			t.Fatalf("%v (make build system os)", err)
		}
		results = append(results, r)
	}
	one, two := results[0], results[1]
	manifest, _ := os.ReadFile(filepath.Join(one.Parts, PartManifest))
	if again, _ := os.ReadFile(filepath.Join(two.Parts, PartManifest)); !bytes.Equal(manifest, again) {
		t.Error("two builds of the same differ; their manifests say where")
	}
	for _, f := range one.Manifest.Files {
		if now, err := digestOf(two.Parts, f.Name); err != nil || now != f {
			t.Errorf("%s: %v, and in the first build %v: %v", f.Name, now, f, err)
		}
	}
	tool(t, "cmp", one.Disk, two.Disk)
	tool(t, "cmp", one.Stick, two.Stick)

	lookAtParts(t, one, keys)
	f, err := os.Open(filepath.Join(one.Parts, PartRoot))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	lookAtRoot(t, one.Manifest, root)
}

func lookAtParts(t *testing.T, r *Result, keys secureboot.Keys) {
	img := filepath.Join(r.Parts, PartRoot)
	tool(t, "fsck.erofs", img)
	v, err := osimage.ParseVerity(r.Manifest.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	tool(t, "veritysetup", "verify", img, img, fmt.Sprintf("%x", v.RootHash), fmt.Sprintf("--hash-offset=%d", v.DataBlocks*osimage.VerityBlock))
	cert := filepath.Join(t.TempDir(), "db.pem")
	os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: keys.DB.Cert.Raw}), 0o644)
	for _, name := range []string{PartUKI, PartLoader} {
		tool(t, "sbverify", "--cert", cert, filepath.Join(r.Parts, name))
	}
	for _, disk := range []string{r.Disk, r.Stick} {
		if out := tool(t, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk -v %s: %s", disk, out)
		}
		esp := filepath.Join(t.TempDir(), "esp")
		tool(t, "dd", "if="+disk, "of="+esp, "bs=1M", "skip=1", fmt.Sprintf("count=%d", osimage.ESPSize>>20), "conv=sparse", "status=none")
		tool(t, "fsck.vfat", "-n", esp)
	}
	f, err := os.Open(filepath.Join(r.Parts, PartUKI))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image, err := uki.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := image.Cmdline(); err != nil || line != r.Manifest.Cmdline {
		t.Errorf("the UKI's command line is %q, the manifest's %q: %v", line, r.Manifest.Cmdline, err)
	}
	if version, err := image.Release("IMAGE_VERSION"); err != nil || version != "0.1.0" {
		t.Errorf("the UKI is version %q: %v", version, err)
	}
	var sbom spdx
	data, _ := os.ReadFile(filepath.Join(r.Parts, PartSBOM))
	if err := json.Unmarshal(data, &sbom); err != nil || len(sbom.Packages) < 100 {
		t.Errorf("the SBOM has %d packages: %v", len(sbom.Packages), err)
	}
}

// lookAtRoot asks of each program why it is there.
func lookAtRoot(t *testing.T, m *Manifest, root fs.FS) {
	why := map[string]RootFile{}
	for _, f := range m.Root {
		why[f.Path] = f
	}
	r, err := audit.Root(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range r.Faults {
		t.Error(fault)
	}
	for _, name := range r.Programs {
		if why[name].Why == "" {
			t.Errorf("%s is executable, and the manifest does not say why", name)
		}
	}
	var index kmod.Index
	data, err := fs.ReadFile(root, moduleFolder+m.Kernel+"/"+kmod.FileName)
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, module := range index.Modules {
		if _, err := fs.Stat(root, moduleFolder+m.Kernel+"/"+module.File); err != nil {
			t.Errorf("module %s: %v", name, err)
		}
	}
	size := m.File(PartRoot).Size
	t.Logf("root: %.1f MB with its hash tree, %d modules; UKI %.1f MB", float64(size)/1e6, len(index.Modules), float64(m.File(PartUKI).Size)/1e6)
	if size > rootBudget {
		t.Errorf("the root has %d bytes, more than %.0f", size, rootBudget)
	}
}
