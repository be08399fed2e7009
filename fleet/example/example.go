// Package example writes the fleet repos that `holdfast init` begins with: a
// chain of coffee shops that shows everything once, or an empty fleet.
//
// The files are plain files, below files/ and empty/, with a few @NAME@
// placeholders; what they say is what a person finds in the new repo. The
// package promises that fleet.Load finds no fault in them. It makes no keys
// and knows no Git.
package example

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

//go:embed all:files all:empty
var embedded embed.FS

// Params is what differs between two fleets that begin the same.
type Params struct {
	FleetName          string   // a DNS label
	FleetID            fleet.ID // fleet.NewID
	Hubs               []string // https://name:port each; none is https://hub.example.com
	HubPins            []string // sha256:… of the hub keys: the active one, then spares
	Person             string   // whose keys the next two are; none is "owner"
	SignerKey          string   // line of an OpenSSH .pub file
	OperatorKey        string   // the same; none is the signer's
	RecoveryRecipients []string // age recipients

	// The app images, by the name that the manifests use (see Images). When it
	// is nil no images.lock is written, and `holdfast lock` has to be run.
	Images map[string]fleet.LockedImage
}

// Images are the names of the app images that the example's manifests use. Both
// are built from the program in lab/hello, with its version linked in.
func Images() []string {
	return []string{"holdfast.local/hello:1.0.0", "holdfast.local/hello:1.1.0"}
}

// locks says which of them each app version has in its images.lock.
var locks = map[string][]string{
	"apps/hello/1.0.0": Images()[:1],
	"apps/hello/1.1.0": Images()[1:],
	"apps/pos/2.0.0":   Images()[:1],
}

// Write writes the example fleet into dir. Files that are there already are
// never replaced: the error says which, and nothing is written.
func Write(dir string, p Params) error {
	files, err := Files(p)
	if err != nil {
		return err
	}
	return write(dir, files)
}

// WriteEmpty writes a fleet without sites and apps: fleet.yaml, trust.yaml, one
// ring and one class.
func WriteEmpty(dir string, p Params) error {
	files, err := EmptyFiles(p)
	if err != nil {
		return err
	}
	return write(dir, files)
}

// Files is what Write writes, by path.
func Files(p Params) (map[string][]byte, error) {
	files, err := fill("files", p)
	if err != nil || p.Images == nil {
		return files, err
	}
	for dir, names := range locks {
		var lock fleet.ImagesLock
		for _, name := range names {
			image, ok := p.Images[name]
			if !ok {
				return nil, fmt.Errorf("write the example fleet: the app image %s is not among those given", name)
			}
			image.Name = name
			lock.Images = append(lock.Images, image)
		}
		files[path.Join(dir, "images.lock")] = fleet.EncodeImagesLock(lock)
	}
	return files, nil
}

// EmptyFiles is what WriteEmpty writes, by path.
func EmptyFiles(p Params) (map[string][]byte, error) { return fill("empty", p) }

// fill reads the embedded files below root and puts values in the place of
// placeholders.
func fill(root string, p Params) (map[string][]byte, error) {
	values := p.values()
	files := map[string][]byte{}
	err := fs.WalkDir(embedded, root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := embedded.ReadFile(name)
		if err != nil {
			return err
		}
		files[strings.TrimPrefix(name, root+"/")] = replace(string(data), values)
		return nil
	})
	return files, err
}

// values are the lines for each placeholder. One that stands alone in its line
// becomes as many lines as it has, and none when it has none; then the key
// above it stays without a value, which a fleet repo allows.
func (p Params) values() map[string][]string {
	if len(p.Hubs) == 0 {
		p.Hubs = []string{"https://hub.example.com"}
	}
	if p.Person == "" {
		p.Person = "owner"
	}
	if p.OperatorKey == "" {
		p.OperatorKey = p.SignerKey
	}
	v := map[string][]string{
		"@FLEET_NAME@": {p.FleetName}, "@FLEET_ID@": {string(p.FleetID)}, "@PERSON@": {quoted(p.Person)},
		"@SIGNER_KEY@": {strings.TrimSpace(p.SignerKey)}, "@OPERATOR_KEY@": {strings.TrimSpace(p.OperatorKey)},
		"@HUBS@": nil, "@HUB_KEYS@": nil, "@RECOVERY@": nil,
	}
	for _, url := range p.Hubs {
		v["@HUBS@"] = append(v["@HUBS@"], "- url: "+url)
	}
	for i, pin := range p.HubPins {
		role := "spare"
		if i == 0 {
			role = "active"
		}
		v["@HUB_KEYS@"] = append(v["@HUB_KEYS@"], fmt.Sprintf("- {name: hub-%d, pin: %q, role: %s}", i+1, pin, role))
	}
	for _, r := range p.RecoveryRecipients {
		v["@RECOVERY@"] = append(v["@RECOVERY@"], "- "+r)
	}
	return v
}

// quoted is text as a YAML scalar.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", " ").Replace(s) + `"`
}

func replace(text string, values map[string][]string) []byte {
	var out strings.Builder
	for _, line := range strings.SplitAfter(text, "\n") {
		if lines, alone := values[strings.TrimSpace(line)]; alone {
			indent := line[:strings.Index(line, "@")]
			for _, l := range lines {
				out.WriteString(indent + l + "\n")
			}
			continue
		}
		for name, lines := range values {
			if len(lines) == 1 {
				line = strings.ReplaceAll(line, name, lines[0])
			}
		}
		out.WriteString(line)
	}
	return []byte(out.String())
}

func write(dir string, files map[string][]byte) error {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name))); err == nil {
			return fmt.Errorf("write a fleet repo into %s: %s is there already", dir, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write a fleet repo into %s: %w", dir, err)
		}
	}
	for _, name := range names {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return fmt.Errorf("write a fleet repo into %s: %w", dir, err)
		}
		if err := os.WriteFile(full, files[name], 0o644); err != nil {
			return fmt.Errorf("write a fleet repo into %s: %w", dir, err)
		}
	}
	return nil
}
