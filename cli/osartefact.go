package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-edge/holdfast/osimage"
	"github.com/holdfast-edge/holdfast/osimage/artefact"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/delta/erofs"
)

// osArtefact is what os build says of the update that it made.
type osArtefact struct {
	Folder string    `json:"folder"`
	Digest string    `json:"digest"`
	Whole  int64     `json:"whole"`
	Deltas []osDelta `json:"deltas"`
}

// osDelta is the way from an older version.
type osDelta struct {
	From string `json:"from"`
	Size int64  `json:"size"`
}

// writeArtefact makes the update of an OS image, with deltas from the folders of
// parts of older ones.
func writeArtefact(ctx context.Context, r *build.Result, from, follows []string, say func(string)) (*osArtefact, error) {
	var open []io.Closer
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	source := func(parts string) (artefact.Source, *build.Manifest, error) {
		s, m, files, err := artefactSource(parts)
		open = append(open, files...)
		return s, m, err
	}
	own, m, err := source(r.Parts)
	if err != nil {
		return nil, err
	}
	if err := olderParts(from, m.Version, m.Architecture); err != nil {
		return nil, err
	}
	var old []artefact.Source
	for _, parts := range from {
		s, _, err := source(parts)
		if err != nil {
			return nil, fmt.Errorf("--delta-from %s: %w", parts, err)
		}
		old = append(old, s)
	}
	doing := "pack the update"
	if len(from) > 0 {
		doing += ", with deltas from " + strings.Join(from, ", ")
	}
	say(doing)
	folder := r.Parts + "-update"
	w, err := artefact.Write(ctx, folder, artefact.Config{
		Version: m.Version, Architecture: m.Architecture, Kubernetes: minor(m.Versions["kube"]), Built: m.Built, Follows: follows,
	}, own, old, erofs.Files)
	if err != nil {
		return nil, fmt.Errorf("write the update: %w", err)
	}
	answer := &osArtefact{Folder: folder, Digest: w.Digest, Whole: w.Size, Deltas: []osDelta{}}
	for _, d := range w.Config.Deltas {
		answer.Deltas = append(answer.Deltas, osDelta{From: d.From, Size: d.Size()})
	}
	return answer, nil
}

// olderParts tells of all folders that are none, or not of another version for the
// same architecture: before a build, which takes a while.
func olderParts(from []string, version, architecture string) error {
	var faults []error
	for _, parts := range from {
		before, err := build.ReadManifest(parts)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("--delta-from %s: %w", parts, err))
		case before.Architecture != architecture || before.Version == version:
			faults = append(faults, fmt.Errorf("--delta-from %s: it is %s for %s, and this is %s for %s", parts, before.Version, before.Architecture, version, architecture))
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return hint(errors.Join(faults...), "name the folder of parts of an older version, such as %s", build.Name("0.1.0", architecture))
}

// artefactSource opens a folder of parts; the files are the caller's to close, whatever the error.
func artefactSource(parts string) (artefact.Source, *build.Manifest, []io.Closer, error) {
	m, err := build.ReadManifest(parts)
	if err != nil {
		return artefact.Source{}, nil, nil, err
	}
	v, err := osimage.ParseVerity(m.Cmdline)
	if err != nil {
		return artefact.Source{}, nil, nil, err
	}
	root, err := os.Open(filepath.Join(parts, build.PartRoot))
	if err != nil {
		return artefact.Source{}, nil, nil, err
	}
	uki, err := os.Open(filepath.Join(parts, build.PartUKI))
	if err != nil {
		return artefact.Source{}, nil, []io.Closer{root}, err
	}
	info, err := uki.Stat()
	if err == nil && info.Size() != m.File(build.PartUKI).Size {
		err = errors.New("its UKI is not the one of its manifest")
	}
	s := artefact.Source{Version: m.Version, Root: root, UKI: uki, UKISize: m.File(build.PartUKI).Size, Verity: v}
	return s, m, []io.Closer{root, uki}, err
}

// minor of a version such as v1.36.3 is 1.36.
func minor(version string) string {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return version
	}
	return parts[0] + "." + parts[1]
}
