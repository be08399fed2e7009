package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/internal/ociimage"
)

// imageFile is an app image in a file at hand.
type imageFile struct {
	ociimage.Image
	file string
}

// locked is the image's line in an images.lock.
func (i imageFile) locked(name string) fleet.LockedImage {
	return fleet.LockedImage{Name: name, Digest: i.Digest.String(), Size: i.Size, Platforms: i.Platforms}
}

// imagesBeside is the folder images beside this program, where make images puts
// the example's app images.
func imagesBeside() (string, bool) {
	self, err := program()
	if err != nil {
		return "", false
	}
	dir := filepath.Join(filepath.Dir(self), "images")
	found, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	return dir, err == nil && len(found) > 0
}

// imagePaths are the files and OCI layouts that paths name: a folder that is no
// layout itself stands for the tar files in it.
func imagePaths(paths []string) ([]string, error) {
	var list []string
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join(p, "index.json")); !info.IsDir() || err == nil {
			list = append(list, p)
			continue
		}
		found, err := filepath.Glob(filepath.Join(p, "*.tar"))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, hint(fmt.Errorf("%s has no image files", p), "put files of docker save there (*.tar), or name an OCI layout")
		}
		list = append(list, found...)
	}
	return list, nil
}

// readImages reads image files, by full name. Two files that give one name
// different content are an error: a person must choose.
func readImages(paths []string) (map[string]imageFile, error) {
	files, err := imagePaths(paths)
	if err != nil {
		return nil, err
	}
	all := map[string]imageFile{}
	var faults []error
	for _, file := range files {
		images, err := ociimage.Read(file)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, image := range images {
			name, err := render.ImageName(image.Ref)
			if err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", file, err))
				continue
			}
			if other, twice := all[name]; twice && other.Digest != image.Digest {
				faults = append(faults, fmt.Errorf("%s and %s both have %s, and they differ", other.file, file, name))
				continue
			}
			all[name] = imageFile{image, file}
		}
	}
	return all, errors.Join(faults...)
}

func sortedNames[T any](m map[string]T) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// short is a digest for people.
func short(digest string) string {
	algorithm, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 12 {
		return digest
	}
	return algorithm + ":" + hex[:12]
}
