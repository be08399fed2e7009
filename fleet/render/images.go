package render

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// podPaths say where each kind keeps its pod.
var podPaths = map[string][]string{
	"Pod":                   {"spec"},
	"ReplicationController": {"spec", "template", "spec"},
	"ReplicaSet":            {"spec", "template", "spec"},
	"Deployment":            {"spec", "template", "spec"},
	"StatefulSet":           {"spec", "template", "spec"},
	"DaemonSet":             {"spec", "template", "spec"},
	"Job":                   {"spec", "template", "spec"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template", "spec"},
}

var containerLists = []string{"initContainers", "containers", "ephemeralContainers"}

// images finds the containers of an object's pod and the volumes that mount an
// image; each holds its reference under the key that comes with it.
func images(object map[string]any) (holders []map[string]any, keys []string) {
	p, ok := podPaths[stringAt(object, "kind")]
	if !ok || !builtIn(stringAt(object, "apiVersion")) {
		return nil, nil
	}
	for _, list := range containerLists {
		each, _ := at(object, append(p[:len(p):len(p)], list)...).([]any)
		for _, c := range each {
			if m, ok := c.(map[string]any); ok {
				holders, keys = append(holders, m), append(keys, "image")
			}
		}
	}
	volumes, _ := at(object, append(p[:len(p):len(p)], "volumes")...).([]any)
	for _, v := range volumes {
		if m, ok := at(v, "image").(map[string]any); ok {
			holders, keys = append(holders, m), append(keys, "reference")
		}
	}
	return holders, keys
}

// lock is an images.lock, by full image name.
type lock struct {
	file    string
	images  map[string]Image
	collect *collector // takes names down instead, for References
}

// pin replaces every image name of an object by name and digest.
func (l lock) pin(object map[string]any, file string, line int) error {
	var errs []error
	holders, keys := images(object)
	for i, holder := range holders {
		ref, _ := holder[keys[i]].(string)
		if ref == "" {
			continue // kept for patches of sites; the API server asks for it
		}
		pinned, err := l.resolve(ref)
		if err != nil {
			errs = append(errs, fault(file, line, 0, fmt.Sprintf("%s %s: %s", stringAt(object, "kind"), stringAt(object, "metadata", "name"), keys[i]), err.Error(),
				"run `holdfast lock`, which writes "+l.file))
			continue
		}
		holder[keys[i]] = pinned
	}
	return join(errs...)
}

func (l lock) resolve(ref string) (string, error) {
	name, digest, _ := strings.Cut(ref, "@")
	if l.collect != nil && strings.Contains(name, unset) {
		return ref, nil
	}
	full, err := fullName(name)
	if err != nil {
		return "", err
	}
	if l.collect != nil {
		l.collect.add(path.Dir(l.file), full, digest)
		return ref, nil
	}
	entry, ok := l.images[full]
	switch {
	case !ok:
		return "", fmt.Errorf("app image %s has no line in %s", full, l.file)
	case digest != "" && digest != entry.Digest:
		return "", fmt.Errorf("app image %s names %s, but %s has %s", full, digest, l.file, entry.Digest)
	}
	return full + "@" + entry.Digest, nil
}

var imageName = regexp.MustCompile(`^([A-Za-z0-9.-]+(?::[0-9]+)?/)?((?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*/)*[a-z0-9]+(?:[._-]+[a-z0-9]+)*)(?::([A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?$`)

// fullName is the one spelling of an image name: registry, repository and tag,
// with the defaults that every container runtime puts in their place.
func fullName(name string) (string, error) {
	m := imageName.FindStringSubmatch(name)
	if m == nil {
		return "", fmt.Errorf("%q is not the name of an app image", name)
	}
	registry, repository, tag := strings.TrimSuffix(m[1], "/"), m[2], m[3]
	if registry != "" && !strings.ContainsAny(registry, ".:") && registry != "localhost" {
		registry, repository = "", registry+"/"+repository
	}
	if registry == "" {
		registry = "docker.io"
	}
	if registry == "docker.io" && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	if tag == "" {
		tag = "latest"
	}
	return registry + "/" + repository + ":" + tag, nil
}

// takeLock reads images.lock and takes it out of the files. An app without
// images needs none.
func takeLock(app *fleet.App, files []file) (lock, []file, error) {
	l := lock{file: path.Join(app.Dir, lockName), images: map[string]Image{}}
	i := slices.IndexFunc(files, func(f file) bool { return f.name == lockName })
	if i < 0 {
		return l, files, nil
	}
	document, err := fleet.ParseImagesLock(l.file, files[i].data)
	if err != nil {
		return l, nil, err
	}
	for _, image := range document.Images {
		l.images[image.Name] = Image{Ref: image.Name, Digest: image.Digest, Size: image.Size}
	}
	return l, slices.Delete(slices.Clone(files), i, i+1), nil
}
