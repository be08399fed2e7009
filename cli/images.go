package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link/operator"
)

func (e *env) images() *cobra.Command {
	cmd := &cobra.Command{Use: "images", Short: "bring app images to the hub", GroupID: "release", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	cmd.AddCommand(e.imagesPush())
	return cmd
}

func (e *env) imagesPush() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push [FILE|DIR...]",
		Short: "push app images to the hubs, for machines to fetch by digest",
		Long: `Push brings the images of files (docker save, OCI layouts, or folders of them) to the
store of each hub. Without a name it takes the folder images beside this program. What a
hub has is not sent again. An image whose name the fleet has locked to another digest is
refused: no machine would fetch it.

It takes an operator's key with the role operate for the whole fleet, or a signer's.`,
		Example: "  holdfast images push pos-4.3.0.tar\n  holdfast images push bin/images --hub 127.0.0.1:8443",
		Args:    args(cobra.ArbitraryArgs),
		RunE:    func(c *cobra.Command, a []string) error { return e.runImagesPush(c.Context(), a) },
	}
	cmd.Flags().StringVar(&e.hub, "hub", "", "address of the hub, host:port, instead of fleet.yaml's")
	cmd.Flags().StringVar(&e.key, "key", "", "SSH key of an operator or signer")
	return cmd
}

// pushedImage is, image by image, images push's answer for programs.
type pushedImage struct {
	Image  string `json:"image"`
	Digest string `json:"digest"`
	Hub    string `json:"hub"`
	Size   int64  `json:"size"`
	New    bool   `json:"new"` // false: the hub had it
	Locked bool   `json:"locked"`
}

func (e *env) runImagesPush(ctx context.Context, paths []string) error {
	if len(paths) == 0 {
		dir, ok := imagesBeside()
		if !ok {
			return &Error{Err: errors.New("no image is named"), Hint: "holdfast images push FILE.tar, with a file of docker save or an OCI layout", Code: CodeUsage}
		}
		paths = []string{dir}
	}
	images, err := readImages(paths)
	if err != nil {
		return err
	}
	r, err := e.repo(ctx)
	if err != nil {
		return err
	}
	tree := os.DirFS(r.dir)
	f, err := load(tree)
	if err != nil {
		return err
	}
	locks, err := allLocks(tree, f)
	if err != nil {
		return err
	}
	if err := agree(images, locks); err != nil {
		return err
	}
	addresses, err := e.hubAddresses(r.GitDir(), f)
	if err != nil {
		return err
	}
	answer := []pushedImage{}
	for _, address := range addresses {
		list, err := e.pushAll(ctx, r, f, address, images, locks)
		if err != nil {
			return err
		}
		answer = append(answer, list...)
	}
	if e.output == "json" {
		return e.printJSON(answer)
	}
	return nil
}

// allLocks are the digests that each name has in the images.lock files.
func allLocks(tree fs.FS, f *fleet.Fleet) (map[string][]string, error) {
	locks := map[string][]string{}
	for _, app := range f.Apps() {
		file, _ := f.App(app)
		for _, v := range file.Versions {
			l, err := readLock(tree, path.Join("apps", app, v, lockFile))
			if err != nil {
				return nil, err
			}
			for _, i := range l.Images {
				locks[i.Name] = append(locks[i.Name], i.Digest)
			}
		}
	}
	return locks, nil
}

// agree refuses images that no machine would ever fetch under their name.
func agree(images map[string]imageFile, locks map[string][]string) error {
	var faults []error
	for _, image := range sortedNames(images) {
		want, got := locks[image], images[image].Digest.String()
		if len(want) > 0 && !slices.Contains(want, got) {
			faults = append(faults, fmt.Errorf("%s has %s as %s, and images.lock wants %s", images[image].file, image, short(got), short(want[0])))
		}
	}
	return hint(coded(CodeRefused, errors.Join(faults...)), "push the file that was locked, or give new content a new tag (holdfast lock --update takes it under the old one)")
}

// imagesClient opens a session with a hub, as whoever may push.
func (e *env) imagesClient(ctx context.Context, r *repo, f *fleet.Fleet, address string) (*operator.Client, error) {
	signer, _, err := e.findKey(ctx, r, append(operatorsOf(f.Trust), signersOf(f.Trust)...), "operators and signers")
	if err != nil {
		return nil, err
	}
	role := operator.Release
	if slices.ContainsFunc(f.Trust.Operators, func(o fleet.Operator) bool {
		return same(signer.PublicKey(), o.Key) && len(o.Sites) == 0 && slices.Contains(o.Roles, operator.Operate)
	}) {
		role = operator.Operate
	}
	return e.dialHub(ctx, f, address, signer, role)
}

func (e *env) pushAll(ctx context.Context, r *repo, f *fleet.Fleet, address string, images map[string]imageFile, locks map[string][]string) ([]pushedImage, error) {
	c, err := e.imagesClient(ctx, r, f, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var list []pushedImage
	p := pusher{env: e, hub: "the hub at " + address, transport: c.HTTP.Transport}
	for _, image := range sortedNames(images) {
		isNew, err := p.push(ctx, image, images[image])
		if err != nil {
			return nil, wrap(err, "push "+image)
		}
		i := images[image]
		done := pushedImage{Image: image, Digest: i.Digest.String(), Hub: address, Size: i.Size, New: isNew, Locked: len(locks[image]) > 0}
		list = append(list, done)
		if e.output != "json" {
			e.printf("%s", done.text())
		}
	}
	return list, nil
}

// pushImages pushes over a session that is open, for the lab; it says how many
// images the hub has then.
func (e *env) pushImages(ctx context.Context, c *operator.Client, paths []string) (int, error) {
	images, err := readImages(paths)
	if err != nil {
		return 0, err
	}
	p := pusher{env: e, hub: "the hub", transport: c.HTTP.Transport}
	for _, image := range sortedNames(images) {
		if _, err := p.push(ctx, image, images[image]); err != nil {
			return 0, wrap(err, "push "+image)
		}
	}
	return len(images), nil
}

func (p pushedImage) text() string {
	text := "has it already"
	if p.New {
		text = "has it now, " + size(p.Size)
	}
	line := fmt.Sprintf("%s\n  %s: the hub at %s %s\n", p.Image, p.Digest, p.Hub, text)
	if !p.Locked {
		line += "  no images.lock names it yet: holdfast lock --from its file\n"
	}
	return line
}

// pusher brings images to one hub.
type pusher struct {
	env       *env
	hub       string
	transport http.RoundTripper
}

// hubHost stands for the hub in URLs: the transport dials the hub whatever they say.
const hubHost = "hub.holdfast.invalid"

// push sends an image and says whether anything was missing.
func (p pusher) push(ctx context.Context, image string, i imageFile) (isNew bool, err error) {
	full, err := name.ParseReference(image)
	if err != nil {
		return false, err
	}
	repository, err := name.NewRepository(hubHost + "/" + full.Context().RepositoryStr())
	if err != nil {
		return false, err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithTransport(p.transport)}
	for _, img := range i.Images {
		if isNew, err = p.one(repository, image, img, isNew, options); err != nil {
			return false, p.explain(err)
		}
	}
	if i.Index == nil {
		return isNew, nil
	}
	ref := repository.Digest(i.Digest.String())
	if _, err := remote.Head(ref, options...); err == nil {
		return isNew, nil
	}
	return true, p.explain(remote.Put(ref, raw{i.Index, i.Media}, options...))
}

// one sends one platform of an image, unless it is there.
func (p pusher) one(repository name.Repository, image string, img v1.Image, before bool, options []remote.Option) (bool, error) {
	digest, err := img.Digest()
	if err != nil {
		return before, err
	}
	ref := repository.Digest(digest.String())
	if _, err := remote.Head(ref, options...); err == nil {
		return before, nil
	}
	if interactive(p.env.err) {
		updates := make(chan v1.Update, 64)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for u := range updates {
				fmt.Fprintf(p.env.err, "\r\x1b[K%s: %s of %s", image, size(u.Complete), size(u.Total))
			}
			fmt.Fprint(p.env.err, "\r\x1b[K")
		}()
		defer func() { <-done }()
		options = append(options[:len(options):len(options)], remote.WithProgress(updates))
	}
	return true, remote.Write(ref, img, options...)
}

// explain gives the next step for what a hub answers.
func (p pusher) explain(err error) error {
	if err == nil {
		return nil
	}
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return unreachable(err, p.hub)
	}
	err = fmt.Errorf("%s: %w", p.hub, err)
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return hint(coded(CodeRefused, err), "trust.yaml says who may: operators with the role operate for all sites, and signers with the role release")
	case http.StatusInsufficientStorage:
		return hint(err, "make room in the hub's data folder, and run it again: what was sent is not sent twice")
	}
	return err
}

// raw is a manifest as it is.
type raw struct {
	data  []byte
	media types.MediaType
}

func (r raw) RawManifest() ([]byte, error)        { return r.data, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.media, nil }
