package cli

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/artefact"
	"github.com/holdfast-edge/holdfast/osimage/verity"
)

// writeOSUpdates writes what os build writes beside its disks, for OS versions
// with next to nothing in them.
func writeOSUpdates(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	source := func(version string) artefact.Source {
		root := append(bytes.Repeat([]byte{1}, osimage.VerityBlock-len(version)), version...)
		_, v, err := verity.Make(bytes.NewReader(root), int64(len(root)), [32]byte{})
		if err != nil {
			t.Fatal(err)
		}
		return artefact.Source{Version: version, Root: bytes.NewReader(root), UKI: bytes.NewReader([]byte(version)), UKISize: int64(len(version)), Verity: v}
	}
	for folder, architecture := range map[string]string{"1.1.0-amd64": "amd64", "1.1.0-arm64": "arm64", "rebuilt": "amd64"} {
		c := artefact.Config{Version: "1.1.0", Architecture: architecture, Kubernetes: "1.36", Built: time.Unix(1, 0), Follows: []string{"1.0.0"}}
		if _, err := artefact.Write(t.Context(), filepath.Join(dir, folder), c, source(folder), []artefact.Source{source("1.0.0")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
