package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/render"
	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/ociimage"
	"github.com/holdfast-edge/holdfast/internal/version"
)

// lockFile is beside the manifests of each app version.
const lockFile = "images.lock"

// registryPatience bounds what one image asks of a registry.
const registryPatience = time.Minute

// lockOptions are the flags of lock.
type lockOptions struct {
	from                 []string
	update, prune, check bool
}

func (e *env) lock() *cobra.Command {
	var o lockOptions
	cmd := &cobra.Command{
		Use:     "lock [APP[/VERSION]...]",
		Short:   "write down which bytes the app images' names stand for",
		GroupID: "fleet",
		Long: `Lock finds the app images that each app version names and writes their digests, sizes
and platforms into apps/APP/VERSION/images.lock. Machines run what the digest says;
nothing resolves a name after this.

A name is looked up in the files of --from (docker save, OCI layouts, folders of them;
default: the folder images beside this program), else in the registry that it names, with
the credentials that docker login keeps. A name that is locked stays as it is, unless
--update asks to look it up again. Lines that no manifest names stay, for images that
operators start, unless --prune is given.`,
		Example: "  holdfast lock\n  holdfast lock pos/4.3.0 --from pos-4.3.0.tar\n  holdfast lock --check",
		Args:    args(cobra.ArbitraryArgs),
		RunE:    func(c *cobra.Command, a []string) error { return e.runLock(c.Context(), a, o) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&o.from, "from", nil, "image file, OCI layout, or folder of image files; more than once for more")
	flags.BoolVar(&o.update, "update", false, "look names up again that are locked already")
	flags.BoolVar(&o.prune, "prune", false, "remove lines that no manifest names")
	flags.BoolVar(&o.check, "check", false, "write nothing; exit with 6 when something would change")
	return cmd
}

// lockAnswer is lock's answer for programs.
type lockAnswer struct {
	Changes []lockChange `json:"changes"`
	Kept    int          `json:"kept"`    // lines that stay
	Written bool         `json:"written"` // false with --check
	Notes   []string     `json:"notes,omitempty"`
}

type lockChange struct {
	File   string `json:"file"`
	Image  string `json:"image"`
	Old    string `json:"old,omitempty"` // digest
	New    string `json:"new,omitempty"`
	Source string `json:"source,omitempty"` // where the new digest is from
	Size   int64  `json:"size,omitempty"`
}

func (e *env) runLock(ctx context.Context, only []string, o lockOptions) error {
	dir, err := e.fleetDir()
	if err != nil {
		return err
	}
	tree := os.DirFS(dir)
	f, err := load(tree)
	if err != nil {
		return err
	}
	wanted, err := referenced(tree, f, only)
	if err != nil {
		return err
	}
	l := locker{options: o, tree: tree, answer: lockAnswer{Changes: []lockChange{}}, files: map[string][]byte{}, asked: map[string]found{}}
	if l.local, err = localImages(o.from); err != nil {
		return err
	}
	var faults []error
	for _, folder := range sortedNames(wanted) {
		faults = append(faults, l.folder(ctx, folder, wanted[folder]))
	}
	if err := joinHinted(faults); err != nil {
		return err // nothing is written before all is known
	}
	if !o.check {
		for _, file := range sortedNames(l.files) {
			if err := durable.WriteFile(filepath.Join(dir, filepath.FromSlash(file)), l.files[file], 0o644); err != nil {
				return err
			}
		}
		l.answer.Written = true
	}
	if err := e.tellLock(&l.answer); err != nil {
		return err
	}
	if o.check && len(l.answer.Changes) > 0 {
		return coded(CodeDiffers, fmt.Errorf("%w: %d lines would change", errTold, len(l.answer.Changes)))
	}
	return nil
}

// joinHinted joins errors, and keeps code and next step of the first that has some.
func joinHinted(list []error) error {
	err := errors.Join(list...)
	for _, one := range list {
		if e, ok := errors.AsType[*Error](one); ok {
			return &Error{Err: err, Hint: e.Hint, Code: e.Code}
		}
	}
	return err
}

// referenced is what the app versions name that were asked for: folder -> name -> digest.
func referenced(tree fs.FS, f *fleet.Fleet, only []string) (map[string]map[string]string, error) {
	all, err := render.References(tree, f)
	var faults fleet.Faults
	if errors.As(err, &faults) {
		return nil, coded(CodeFaults, faults)
	}
	if err != nil {
		return nil, err
	}
	// A version without images has no line to write, but may have some to prune.
	for _, app := range f.Apps() {
		file, _ := f.App(app)
		for _, v := range file.Versions {
			if folder := path.Join("apps", app, v); all[folder] == nil {
				all[folder] = map[string]string{}
			}
		}
	}
	if len(only) == 0 {
		return all, nil
	}
	chosen := map[string]map[string]string{}
	for _, arg := range only {
		prefix := "apps/" + strings.Trim(strings.TrimPrefix(filepath.ToSlash(arg), "apps/"), "/")
		n := len(chosen)
		for folder, names := range all {
			if strings.HasPrefix(folder+"/", prefix+"/") {
				chosen[folder] = names
			}
		}
		if len(chosen) == n {
			return nil, &Error{Err: fmt.Errorf("fleet %s has no app or version %q", f.Name, arg), Hint: "its apps: " + strings.Join(f.Apps(), " "), Code: CodeUsage}
		}
	}
	return chosen, nil
}

// localImages reads the files of --from, or the folder beside this program.
func localImages(from []string) (map[string]imageFile, error) {
	if len(from) == 0 {
		dir, ok := imagesBeside()
		if !ok {
			return nil, nil
		}
		from = []string{dir}
	}
	return readImages(from)
}

// locker works out new images.lock files.
type locker struct {
	options lockOptions
	tree    fs.FS
	local   map[string]imageFile
	asked   map[string]found  // names and digests that were looked up
	files   map[string][]byte // those that change
	answer  lockAnswer
}

// found is what a name stands for.
type found struct {
	image  fleet.LockedImage
	source string
	err    error
}

// folder works out the images.lock of one app version.
func (l *locker) folder(ctx context.Context, folder string, wanted map[string]string) error {
	file := path.Join(folder, lockFile)
	old, err := readLock(l.tree, file)
	if err != nil {
		return err
	}
	var lines []fleet.LockedImage
	before := len(l.answer.Changes)
	for _, line := range old.Images {
		digest, named := wanted[line.Name]
		switch {
		case !named && l.options.prune:
			l.answer.Changes = append(l.answer.Changes, lockChange{File: file, Image: line.Name, Old: line.Digest})
		case !named || !l.options.update && (digest == "" || digest == line.Digest):
			l.keep(file, line, named)
			lines = append(lines, line)
		}
	}
	var faults []error
	for _, image := range sortedNames(wanted) {
		if slices.ContainsFunc(lines, func(i fleet.LockedImage) bool { return i.Name == image }) {
			continue
		}
		line, err := l.look(ctx, file, image, wanted[image], old)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		lines = append(lines, line)
	}
	if len(l.answer.Changes) > before {
		l.files[file] = fleet.EncodeImagesLock(fleet.ImagesLock{Images: lines})
	}
	return joinHinted(faults)
}

func readLock(tree fs.FS, file string) (*fleet.ImagesLock, error) {
	data, err := fs.ReadFile(tree, file)
	if errors.Is(err, fs.ErrNotExist) {
		return &fleet.ImagesLock{}, nil
	}
	if err != nil {
		return nil, err
	}
	l, err := fleet.ParseImagesLock(file, data)
	return l, coded(CodeFaults, err)
}

// keep notes a line that stays, and says when a file at hand has other content.
func (l *locker) keep(file string, line fleet.LockedImage, named bool) {
	l.answer.Kept++
	if local, ok := l.local[line.Name]; ok && local.Digest.String() != line.Digest {
		l.answer.Notes = append(l.answer.Notes, fmt.Sprintf("%s: %s stays %s, though %s has %s; --update takes that", file, line.Name, short(line.Digest), local.file, short(local.Digest.String())))
	}
	if !named {
		l.answer.Notes = append(l.answer.Notes, fmt.Sprintf("%s: no manifest names %s; it stays for what operators start, --prune removes it", file, line.Name))
	}
}

// look finds what a name stands for and notes the change, if it is one.
func (l *locker) look(ctx context.Context, file, image, digest string, old *fleet.ImagesLock) (fleet.LockedImage, error) {
	change := lockChange{File: file, Image: image, New: digest}
	var before fleet.LockedImage
	if i := slices.IndexFunc(old.Images, func(i fleet.LockedImage) bool { return i.Name == image }); i >= 0 {
		before = old.Images[i]
		change.Old = before.Digest
	}
	if l.options.check && !l.options.update { // that it is missing is enough to know
		l.answer.Changes = append(l.answer.Changes, change)
		return before, nil
	}
	f, ok := l.asked[image+"@"+digest]
	if !ok {
		f = l.resolve(ctx, image, digest)
		l.asked[image+"@"+digest] = f
	}
	if f.err != nil {
		if ok {
			return before, nil // it was said once
		}
		return before, f.err
	}
	if same := before.Digest == f.image.Digest && before.Size == f.image.Size && slices.Equal(before.Platforms, f.image.Platforms); same {
		l.answer.Kept++
		return before, nil
	}
	change.New, change.Source, change.Size = f.image.Digest, f.source, f.image.Size
	l.answer.Changes = append(l.answer.Changes, change)
	return f.image, nil
}

func (l *locker) resolve(ctx context.Context, image, digest string) found {
	if local, ok := l.local[image]; ok && (digest == "" || digest == local.Digest.String()) {
		return found{image: local.locked(image), source: local.file}
	}
	line, err := askRegistry(ctx, image, digest)
	if err != nil {
		return found{err: err}
	}
	registry, _, _ := strings.Cut(image, "/")
	return found{image: *line, source: registry}
}

// askRegistry resolves a name, once, as a person's decision that is written down.
func askRegistry(ctx context.Context, image, digest string) (*fleet.LockedImage, error) {
	text := image
	if digest != "" {
		text = image[:strings.LastIndex(image, ":")] + "@" + digest
	}
	ref, err := name.ParseReference(text)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", image, err)
	}
	ctx, cancel := context.WithTimeout(ctx, registryPatience)
	defer cancel()
	line, err := describeRemote(ctx, image, ref)
	if err == nil {
		return line, nil
	}
	err = fmt.Errorf("look up %s: %w", image, err)
	var answer *transport.Error
	switch {
	case !errors.As(err, &answer):
		return nil, hint(coded(CodeUnreachable, err), "see that the registry can be reached; an image that is in a file: holdfast lock --from FILE.tar")
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
		return nil, hint(err, "docker login %s, if it wants a name; an image that is in a file: holdfast lock --from FILE.tar", ref.Context().RegistryStr())
	}
	return nil, hint(err, "see that the name is right, and that it was pushed; an image that is in a file: holdfast lock --from FILE.tar")
}

// describeRemote reads the manifests of an image at its registry, and no layer.
func describeRemote(ctx context.Context, image string, ref name.Reference) (*fleet.LockedImage, error) {
	top, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("holdfast/"+version.Version))
	if err != nil {
		return nil, err
	}
	line := &fleet.LockedImage{Name: image, Digest: top.Digest.String()}
	if !top.MediaType.IsIndex() {
		img, err := top.Image()
		if err != nil {
			return nil, err
		}
		return line, addPlatform(line, img)
	}
	index, err := top.ImageIndex()
	if err != nil {
		return nil, err
	}
	list, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range list.Manifests {
		if d.Platform != nil && d.Platform.OS != "linux" || !d.MediaType.IsImage() {
			continue
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return nil, err
		}
		if err := addPlatform(line, img); err != nil {
			return nil, err
		}
	}
	if len(line.Platforms) == 0 {
		return nil, errors.New("the image has no platform with linux")
	}
	return line, nil
}

// addPlatform counts one platform of an image in. The size of a line is that of
// the largest: it is what one machine fetches at most.
func addPlatform(line *fleet.LockedImage, img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	n, err := img.Size()
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	line.Size = max(line.Size, ociimage.Bytes(m, n))
	if p := config.Platform(); p != nil && p.OS != "" {
		line.Platforms = append(line.Platforms, ociimage.PlatformName(*p))
		slices.Sort(line.Platforms)
		line.Platforms = slices.Compact(line.Platforms)
	}
	return nil
}

func (e *env) tellLock(a *lockAnswer) error {
	if e.output == "json" {
		return e.printJSON(a)
	}
	for _, c := range a.Changes {
		switch {
		case c.New == "" && c.Source == "" && c.Old == "":
			e.printf("%s: %s has no line\n", c.File, c.Image)
		case c.New == "":
			e.printf("%s: %s %s is removed\n", c.File, c.Image, short(c.Old))
		case c.Old == "":
			e.printf("%s: %s is %s (%s, from %s)\n", c.File, c.Image, short(c.New), size(c.Size), c.Source)
		default:
			e.printf("%s: %s %s -> %s (%s, from %s)\n", c.File, c.Image, short(c.Old), short(c.New), size(c.Size), c.Source)
		}
	}
	for _, note := range a.Notes {
		e.printf("%s\n", note)
	}
	verb := "changed"
	if !a.Written {
		verb = "would change"
	}
	e.printf("%d lines %s, %d stay\n", len(a.Changes), verb, a.Kept)
	return nil
}
