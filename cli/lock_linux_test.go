package cli

import (
	"testing"

	"github.com/holdfast-edge/holdfast/fleet/example"
	"github.com/holdfast-edge/holdfast/machine/images"
)

// What is locked here is what a machine computes that imports the file.
func TestLockAgreesWithMachines(t *testing.T) {
	dir := t.TempDir()
	writeImages(t, dir, "")
	have, err := readImages([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	store, err := images.OpenStore(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, i := range have {
		imported, err := images.Import(t.Context(), store, i.file)
		if err != nil {
			t.Fatal(err)
		}
		if len(imported) != 1 || imported[0].Ref != name || string(imported[0].Digest) != i.Digest.String() {
			t.Errorf("locked as %s %s, machines see %v", name, i.Digest, imported)
		}
	}
	if len(have) != len(example.Images()) {
		t.Errorf("read %d images, want %d", len(have), len(example.Images()))
	}
}
