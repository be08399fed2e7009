package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/osimage/artefact"
)

// updateFolder is the next step of who named another.
const updateFolder = "FOLDER is the one that ends in -update beside the disk images of holdfast os build"

func (e *env) osAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add FOLDER...",
		Short: "describe an OS version in the fleet repo",
		Long: `Add writes os/VERSION.yaml: which bytes the version is on each architecture, which
Kubernetes it brings, and which versions it may follow. FOLDER is the update that os build
wrote. Such a file is never edited: another build needs another version, but another
architecture of the same version is added to it.

A ring names the version that its sites run (os: VERSION); a release makes it so.`,
		Example: "  holdfast os add images/holdfast-os-0.2.0-amd64-update",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE:    func(_ *cobra.Command, a []string) error { return e.runOSAdd(a) },
	}
}

func (e *env) osPush() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push FOLDER...",
		Short: "bring an OS version to the hubs, and describe it in the fleet repo",
		Long: `Push brings the update that os build wrote to the store of each hub, for machines to
fetch by digest: the delta from what they run where there is one, else the whole. What a
hub has is not sent again. It writes os/VERSION.yaml, too, as os add does.

It takes an operator's key with the role operate for the whole fleet, or a signer's.`,
		Example: "  holdfast os push images/holdfast-os-0.2.0-amd64-update",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runOSPush(c.Context(), a) },
	}
	cmd.Flags().StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	cmd.Flags().StringVar(&e.key, "key", "", "SSH key of an operator or signer")
	return cmd
}

// osAdded is what os add and os push say of a folder.
type osAdded struct {
	Version      string        `json:"version"`
	Architecture string        `json:"architecture"`
	Digest       string        `json:"digest"`
	Size         int64         `json:"size"` // what a machine fetches without a delta
	Deltas       []osDelta     `json:"deltas"`
	File         string        `json:"file"`    // in the fleet repo
	Written      bool          `json:"written"` // false: it said so already
	Hubs         []osPushedHub `json:"hubs,omitempty"`
	config       artefact.Config
}

// osPushedHub is a hub that has the version.
type osPushedHub struct {
	Hub string `json:"hub"`
	New bool   `json:"new"` // false: it had it
}

func (e *env) runOSAdd(folders []string) error {
	dir, err := e.fleetDir()
	if err != nil {
		return err
	}
	list, err := addOS(dir, folders)
	if err != nil {
		return err
	}
	return e.tellOSAdded(list)
}

func (e *env) runOSPush(ctx context.Context, folders []string) error {
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	images, err := readImages(folders)
	if err != nil {
		return hint(err, updateFolder)
	}
	list, err := addOS(r.dir, folders)
	if err != nil {
		return err
	}
	f, err := load(os.DirFS(r.dir))
	if err != nil {
		return err
	}
	addresses, err := e.hubAddresses(r.GitDir(), f)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if err := e.pushOS(ctx, r, f, address, images, list); err != nil {
			return err
		}
	}
	return e.tellOSAdded(list)
}

func (e *env) pushOS(ctx context.Context, r *repo, f *fleet.Fleet, address string, images map[string]imageFile, list []osAdded) error {
	c, err := e.imagesClient(ctx, r, f, address)
	if err != nil {
		return err
	}
	defer c.Close()
	p := pusher{env: e, hub: "the hub at " + address, transport: c.HTTP.Transport}
	for i := range list {
		a := &list[i]
		ref := artefact.Ref(a.Version, a.Architecture)
		isNew, err := p.push(ctx, ref, images[ref])
		if err != nil {
			return wrap(err, "push "+ref)
		}
		a.Hubs = append(a.Hubs, osPushedHub{Hub: address, New: isNew})
	}
	return nil
}

// addOS writes the documents of the versions in the folders; all of them, or none
// where one is refused.
func addOS(dir string, folders []string) ([]osAdded, error) {
	var list []osAdded
	documents := map[string]*fleet.OSSpec{}
	tree := os.DirFS(dir)
	f, err := fleet.Load(tree)
	if f == nil {
		return nil, err // what else is wrong in the repo is no matter of this file
	}
	for _, folder := range folders {
		w, err := artefact.ReadLayout(folder)
		if err != nil {
			return nil, hint(err, updateFolder)
		}
		c := w.Config
		a := osAdded{Version: c.Version, Architecture: c.Architecture, Digest: w.Digest, Size: w.Size, Deltas: []osDelta{}, File: path.Join("os", c.Version+".yaml"), config: c}
		for _, d := range c.Deltas {
			a.Deltas = append(a.Deltas, osDelta{From: d.From, Size: d.Size()})
		}
		spec := documents[c.Version]
		if spec == nil {
			spec = &fleet.OSSpec{Kubernetes: c.Kubernetes, Follows: c.Follows, Images: map[string]fleet.OSImage{}}
			if had, ok := f.OSVersion(c.Version); ok {
				*spec = had.OSSpec
			} else if _, err := os.Stat(filepath.Join(dir, "os", c.Version+".yaml")); err == nil {
				return nil, coded(CodeRefused, fmt.Errorf("%s is there and cannot be read: holdfast check says why", a.File))
			}
		}
		if a.Written, err = addArchitecture(spec, a); err != nil {
			return nil, err
		}
		documents[c.Version] = spec
		list = append(list, a)
	}
	if err := durable.MkdirAll(filepath.Join(dir, "os"), 0o755); err != nil {
		return nil, err
	}
	for _, a := range list {
		if !a.Written {
			continue
		}
		if err := durable.WriteFile(filepath.Join(dir, "os", a.Version+".yaml"), osDocument(documents[a.Version]), 0o644); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// addArchitecture says whether the document changes.
func addArchitecture(spec *fleet.OSSpec, a osAdded) (bool, error) {
	refuse := func(format string, v ...any) (bool, error) {
		return false, hint(coded(CodeRefused, fmt.Errorf(a.File+" "+format, v...)), "such a file is never edited, since machines may run what it says: build with another --version")
	}
	if had, ok := spec.Images[a.Architecture]; ok {
		if had.Digest != a.Digest {
			return refuse("names %s for %s, and the folder has %s", short(had.Digest), a.Architecture, short(a.Digest))
		}
		return false, nil
	}
	if spec.Kubernetes != a.config.Kubernetes || !slices.Equal(spec.Follows, a.config.Follows) {
		return refuse("says Kubernetes %s and follows %q, and the folder says %s and %q", spec.Kubernetes, spec.Follows, a.config.Kubernetes, a.config.Follows)
	}
	if spec.Images == nil {
		return false, errors.New(a.File + " has no images")
	}
	spec.Images[a.Architecture] = fleet.OSImage{Digest: a.Digest, Size: a.Size}
	return true, nil
}

// osDocument spells a document; all that it says is text without quotes, by the
// checks of package artefact.
func osDocument(spec *fleet.OSSpec) []byte {
	var out strings.Builder
	fmt.Fprintf(&out, "apiVersion: %s\nkind: OS\nspec:\n  kubernetes: %q\n", fleet.APIVersion, spec.Kubernetes)
	if len(spec.Follows) > 0 {
		quoted := make([]string, len(spec.Follows))
		for i, v := range spec.Follows {
			quoted[i] = fmt.Sprintf("%q", v)
		}
		fmt.Fprintf(&out, "  follows: [%s]\n", strings.Join(quoted, ", "))
	}
	if len(spec.Editions) > 0 {
		fmt.Fprintf(&out, "  editions: %s\n", strings.Join(strings.Fields(fmt.Sprint(spec.Editions)), ", "))
	}
	out.WriteString("  images:\n")
	for _, arch := range sortedNames(spec.Images) {
		fmt.Fprintf(&out, "    %s: {digest: %q, size: %d}\n", arch, spec.Images[arch].Digest, spec.Images[arch].Size)
	}
	return []byte(out.String())
}

func (e *env) tellOSAdded(list []osAdded) error {
	if e.output == "json" {
		return e.printJSON(list)
	}
	for _, a := range list {
		said := "says so already"
		if a.Written {
			said = "says so now"
		}
		e.printf("OS %s for %s: %s, %s\n  %s %s\n", a.Version, a.Architecture, short(a.Digest), size(a.Size), a.File, said)
		for _, d := range a.Deltas {
			e.printf("  from %s: %s\n", d.From, size(d.Size))
		}
		for _, h := range a.Hubs {
			had := "has it already"
			if h.New {
				had = "has it now"
			}
			e.printf("  the hub at %s %s\n", h.Hub, had)
		}
	}
	if len(list) > 0 {
		e.printf("  next: name it in a ring (os: %s), then holdfast release\n", list[len(list)-1].Version)
	}
	return nil
}
