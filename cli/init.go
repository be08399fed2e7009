package cli

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/example"
	"github.com/holdfast-edge/holdfast/internal/git"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/release"
)

// Names in the folder of keys, and Git's setting that remembers where it is.
const (
	recoveryName    = "recovery.age"
	signerName      = "signer"
	recoverySetting = "holdfast.recovery"
)

// initOptions are the flags of init.
type initOptions struct {
	name, signer, keys, images string
	empty                      bool
	hubs                       []string
}

func (e *env) initVerb() *cobra.Command {
	var o initOptions
	cmd := &cobra.Command{
		Use:     "init DIR",
		Short:   "begin a fleet: its repo, its keys, its first commit",
		GroupID: "fleet",
		Long: `Init writes a fleet repo into DIR, a new or empty folder: the example fleet of twelve
coffee shops, or with --empty one without sites and apps. It makes the fleet's ID, two
hub keys (active and spare), and a recovery key; trust.yaml pins the hub keys, and
their private halves lie in hub/, encrypted to the recovery key.

Releases are signed with your SSH key: the one named by --signer, else git's
user.signingkey, else ~/.ssh/id_ed25519 or id_ecdsa if it needs no passphrase. When
there is none, a new one is made.

What is private goes into the folder of --keys, never into the repo; a README there says
what is what, and what to put on paper.`,
		Example: "  holdfast init shops\n  holdfast init depots --empty --hub https://hub.example.com --signer ~/.ssh/id_ed25519.pub",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return e.runInit(c.Context(), a[0], o) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.name, "name", "", "name of the fleet; default: the folder's")
	flags.BoolVar(&o.empty, "empty", false, "no sites and no apps")
	flags.StringVar(&o.signer, "signer", "", "public SSH key of who signs releases (ed25519, ecdsa-p256, or on a hardware key)")
	flags.StringVar(&o.keys, "keys", "", "folder for the private keys; default: DIR-keys")
	flags.StringArrayVar(&o.hubs, "hub", []string{"https://127.0.0.1:8443"}, "where machines dial, https://HOST:PORT; more than once for more hubs")
	flags.StringVar(&o.images, "images", "", "folder of the example's app images; default: images beside this program")
	return cmd
}

// begun is a fleet in the making. It grows in two temporary folders, beside the
// ones that it will be in, so that a failure leaves nothing.
type begun struct {
	dir, keys         string // at the end
	tmpDir, tmpKeys   string
	fleet             *fleet.Fleet
	params            example.Params
	hubKeys           map[string][]byte // file below the repo -> encrypted private half
	signingKey        string            // for git's user.signingkey
	freshSigner       bool
	commit            string
	signerFingerprint string
}

func (e *env) runInit(ctx context.Context, dir string, o initOptions) (err error) {
	b := &begun{hubKeys: map[string][]byte{}}
	if err := b.places(dir, o); err != nil {
		return err
	}
	if b.params.FleetName, err = fleetName(o.name, b.dir); err != nil {
		return err
	}
	b.params.FleetID, b.params.Hubs = fleet.NewID(), o.hubs
	if !o.empty {
		if err := b.images(o.images); err != nil {
			return err
		}
	}
	defer b.discard()
	if err := b.temporary(); err != nil {
		return err
	}
	repo, err := git.Init(ctx, b.tmpDir)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return b.ident(ctx, repo) },
		func() error { return b.signer(ctx, repo, o.signer) },
		b.recovery,
		func() error { return b.files(o.empty) },
		func() error { return b.settings(ctx, repo) },
		b.readme,
		b.move,
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return e.tellInit(b, o)
}

// places finds out where everything goes, and refuses to write over anything.
func (b *begun) places(dir string, o initOptions) (err error) {
	if b.dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if b.keys = b.dir + "-keys"; o.keys != "" {
		if b.keys, err = filepath.Abs(o.keys); err != nil {
			return err
		}
	}
	if below, err := filepath.Rel(b.dir, b.keys); err == nil && below != ".." && !strings.HasPrefix(below, ".."+string(filepath.Separator)) {
		return &Error{Err: fmt.Errorf("--keys %s is inside of the repo %s", b.keys, b.dir), Hint: "name a folder outside: private keys do not belong into Git", Code: CodeUsage}
	}
	for _, place := range []struct{ dir, next string }{
		{b.dir, "name a new folder: holdfast init DIR"}, {b.keys, "keys are never written over: name another folder with --keys"},
	} {
		entries, err := os.ReadDir(place.dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return hint(err, "%s", place.next)
		case len(entries) > 0:
			return hint(fmt.Errorf("%s is not empty: it has %s", place.dir, entries[0].Name()), "%s", place.next)
		}
	}
	return nil
}

var label = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// fleetName is the name that was given, or one made of the folder's.
func fleetName(given, dir string) (string, error) {
	if given != "" {
		if !label.MatchString(given) {
			return "", &Error{Err: fmt.Errorf("%q cannot be a fleet's name", given), Hint: "a lower-case letter, then letters, digits and hyphens, at most 63", Code: CodeUsage}
		}
		return given, nil
	}
	name := regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(filepath.Base(dir)), "-")
	name = strings.Trim(name, "-")
	if !label.MatchString(name) {
		return "", &Error{Err: fmt.Errorf("the folder's name %q makes no fleet's name", filepath.Base(dir)), Hint: "give one with --name", Code: CodeUsage}
	}
	return name, nil
}

// images looks for the example's app images. Only a folder that was named must
// have them.
func (b *begun) images(named string) error {
	from := named
	if from == "" {
		var ok bool
		if from, ok = imagesBeside(); !ok {
			return nil
		}
	}
	have, err := readImages([]string{from})
	if err != nil && named != "" {
		return err
	}
	found := map[string]fleet.LockedImage{}
	for _, name := range example.Images() {
		if image, ok := have[name]; ok {
			found[name] = image.locked(name)
			continue
		}
		if named != "" {
			return hint(fmt.Errorf("%s has no file with the app image %s", named, name), "make images builds it; without --images, holdfast lock can be run later")
		}
		return nil
	}
	b.params.Images = found
	return nil
}

// temporary makes the folders to work in.
func (b *begun) temporary() (err error) {
	for _, p := range []struct {
		tmp  *string
		dir  string
		mode fs.FileMode
	}{{&b.tmpDir, b.dir, 0o755}, {&b.tmpKeys, b.keys, 0o700}} {
		parent := filepath.Dir(p.dir)
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
		if *p.tmp, err = os.MkdirTemp(parent, "."+filepath.Base(p.dir)+".new-"); err != nil {
			return err
		}
		if err := os.Chmod(*p.tmp, p.mode); err != nil {
			return err
		}
	}
	return nil
}

// discard removes what is left of an attempt that failed.
func (b *begun) discard() {
	for _, dir := range []string{b.tmpDir, b.tmpKeys} {
		if dir != "" {
			os.RemoveAll(dir)
		}
	}
}

// ident sees to it that Git knows who is at work, in this repo at least.
func (b *begun) ident(ctx context.Context, repo *git.Repo) error {
	name, _, err := repo.Ident(ctx)
	if err == nil {
		b.params.Person = name
		return nil
	}
	if !errors.Is(err, git.ErrNoIdent) {
		return err
	}
	b.params.Person = "owner"
	if u, err := user.Current(); err == nil && u.Username != "" {
		b.params.Person = u.Username[strings.LastIndexAny(u.Username, `\/`)+1:]
	}
	if err := repo.SetConfig(ctx, "user.name", b.params.Person); err != nil {
		return err
	}
	return repo.SetConfig(ctx, "user.email", b.params.Person+"@localhost")
}

// signer chooses the key that signs releases, or makes one.
func (b *begun) signer(ctx context.Context, repo *git.Repo, named string) error {
	if named != "" {
		line, private, err := namedSigner(expand(named))
		if err != nil {
			return err
		}
		return b.use(line, private)
	}
	configured, err := repo.Config(ctx, "user.signingkey")
	if err != nil {
		return err
	}
	places := []string{expand(configured)}
	if home, err := os.UserHomeDir(); err == nil {
		places = append(places, filepath.Join(home, ".ssh", "id_ed25519"), filepath.Join(home, ".ssh", "id_ecdsa"))
	}
	for _, place := range places {
		if place == "" {
			continue
		}
		if s, err := release.LoadSigner(ctx, place, nil); err == nil {
			return b.use(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey()))), place)
		}
	}
	return b.newSigner()
}

// use takes a key as signer; where is what Git is told.
func (b *begun) use(line, where string) (err error) {
	b.params.SignerKey, b.signingKey = line, where
	b.signerFingerprint, err = fleet.Fingerprint(line)
	return err
}

// namedSigner reads the public half that a person named, and finds the private one.
func namedSigner(file string) (line, private string, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", "", hint(fmt.Errorf("read --signer: %w", err), "name the public half of an SSH key, such as ~/.ssh/id_ed25519.pub; make one with ssh-keygen -t ed25519")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	if err != nil {
		return "", "", hint(fmt.Errorf("--signer %s is no public SSH key: %w", file, err), "name the file that ends in .pub")
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256:
	default:
		return "", "", hint(coded(CodeRefused, fmt.Errorf("--signer %s is a key of the type %s, which machines refuse", file, key.Type())), "make one with ssh-keygen -t ed25519")
	}
	if file, err = filepath.Abs(file); err != nil {
		return "", "", err
	}
	private = file
	if p, ok := strings.CutSuffix(file, ".pub"); ok {
		if _, err := os.Stat(p); err == nil {
			private = p
		}
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), private, nil
}

// newSigner makes an SSH key for signing.
func (b *begun) newSigner() error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	comment := "signs releases of " + b.params.FleetName
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	if err := os.WriteFile(filepath.Join(b.tmpKeys, signerName), pem.EncodeToMemory(block), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.tmpKeys, signerName+".pub"), []byte(line+" "+comment+"\n"), 0o644); err != nil {
		return err
	}
	b.freshSigner = true
	return b.use(line, filepath.Join(b.keys, signerName))
}

// recovery makes the recovery key, and two hub keys that only it opens.
func (b *begun) recovery() error {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("# Recovery key of the fleet %s (%s).\n# public key: %s\n%s\n", b.params.FleetName, b.params.FleetID, identity.Recipient(), identity)
	if err := os.WriteFile(filepath.Join(b.tmpKeys, recoveryName), []byte(text), 0o600); err != nil {
		return err
	}
	b.params.RecoveryRecipients = []string{identity.Recipient().String()}
	for _, which := range []string{"active", "spare"} {
		pin, private, err := newHubKey(b.tmpKeys)
		if err != nil {
			return fmt.Errorf("make the %s hub key: %w", which, err)
		}
		b.params.HubPins = append(b.params.HubPins, pin.String())
		if b.hubKeys[hubKeyFile(which)], err = encrypt(private, identity.Recipient()); err != nil {
			return fmt.Errorf("encrypt the %s hub key: %w", which, err)
		}
	}
	return nil
}

// newHubKey makes a hub key; its file is in dir for a moment only.
func newHubKey(dir string) (link.Pin, []byte, error) {
	file := filepath.Join(dir, "hub.key")
	defer os.Remove(file)
	key, err := link.LoadOrCreateKey(file)
	if err != nil {
		return link.Pin{}, nil, err
	}
	identity, err := link.NewIdentity(key)
	if err != nil {
		return link.Pin{}, nil, err
	}
	private, err := os.ReadFile(file)
	return identity.Pin(), private, err
}

// encrypt is age with its armor, so that a diff shows text.
func encrypt(data []byte, to age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, to)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// files writes the repo's files, and reads them back as everybody will.
func (b *begun) files(empty bool) error {
	write := example.Write
	if empty {
		write = example.WriteEmpty
	}
	if err := write(b.tmpDir, b.params); err != nil {
		return err
	}
	for name, data := range b.hubKeys {
		file := filepath.Join(b.tmpDir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return err
		}
	}
	var err error
	b.fleet, err = load(workTree(b.tmpDir))
	return err
}

// settings commits, then tells Git, for this repo, how releases are signed and
// verified. In this order a person's own settings rule the commit.
func (b *begun) settings(ctx context.Context, repo *git.Repo) error {
	entries, err := os.ReadDir(b.tmpDir)
	if err != nil {
		return err
	}
	var paths []string
	for _, entry := range entries {
		if entry.Name() != ".git" {
			paths = append(paths, entry.Name())
		}
	}
	if b.commit, err = repo.Commit(ctx, "begin the fleet "+b.params.FleetName+"\n", paths...); err != nil {
		return err
	}
	allowed := filepath.Join(".git", "holdfast", "allowed_signers")
	if err := os.MkdirAll(filepath.Join(b.tmpDir, filepath.Dir(allowed)), 0o755); err != nil {
		return err
	}
	line := fmt.Sprintf("%s namespaces=\"git\" %s\n", "first", b.params.SignerKey)
	if err := os.WriteFile(filepath.Join(b.tmpDir, allowed), []byte(line), 0o644); err != nil {
		return err
	}
	for _, s := range [][2]string{
		{"gpg.format", "ssh"}, {"user.signingkey", b.signingKey},
		{"gpg.ssh.allowedSignersFile", filepath.ToSlash(filepath.Join(b.dir, allowed))},
		{recoverySetting, filepath.ToSlash(filepath.Join(b.keys, recoveryName))},
	} {
		if err := repo.SetConfig(ctx, s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// readme says in the folder of keys what each is.
func (b *begun) readme() error {
	var w strings.Builder
	fmt.Fprintf(&w, "Private keys of the fleet %s (%s), made by holdfast init.\n", b.params.FleetName, b.params.FleetID)
	fmt.Fprintf(&w, "Nothing here is in the fleet repo, and nothing here can be made again.\n\n%s\n", recoveryName)
	fmt.Fprint(&w, `    The recovery key. It opens the hub keys in the repo (hub/*.key.age), and later
    backups and escrow. Print it, or put it on two sticks, keep them in two safes, and
    then delete it here. A hub on an empty disk needs it once:
        holdfast hub key --recovery recovery.age -O hub.key
    Lost: machines go on, but no hub can be made that they believe, until a release
    names new hub keys and a new recovery recipient in trust.yaml.

`)
	if b.freshSigner {
		fmt.Fprintf(&w, "%s, %s.pub\n", signerName, signerName)
		fmt.Fprint(&w, `    The SSH key that signs releases: whoever has it decides what every machine runs.
    It has no passphrase; give it one with ssh-keygen -p -f signer. Keep it on the
    computer that releases are made on, and a copy offline. For a fleet that matters,
    sign with a hardware key instead: ssh-keygen -t ed25519-sk, name it in trust.yaml,
    raise its version, release.
    Lost: another signer, or the spare, takes over; name two in trust.yaml early.
`)
	} else {
		fmt.Fprintf(&w, "Releases are signed with a key of yours, %s,\nwhich is not here: %s\n", b.signerFingerprint, b.signingKey)
	}
	return os.WriteFile(filepath.Join(b.tmpKeys, "README"), []byte(w.String()), 0o600)
}

// move puts both folders where they belong, the keys first: a repo whose keys are
// nowhere would be worth nothing.
func (b *begun) move() error {
	if err := moveInto(b.tmpKeys, b.keys); err != nil {
		return err
	}
	if err := moveInto(b.tmpDir, b.dir); err != nil {
		os.RemoveAll(b.keys) // made a moment ago, and empty before
		return err
	}
	return nil
}

// moveInto renames from to to; an empty folder that is there stays the same
// folder, since somebody may stand in it.
func moveInto(from, to string) error {
	if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		return os.Rename(from, to)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.Chmod(to, info.Mode().Perm()); err != nil {
		return err
	}
	for i, entry := range entries {
		if err := os.Rename(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			for _, done := range entries[:i] {
				os.RemoveAll(filepath.Join(to, done.Name()))
			}
			return err
		}
	}
	return os.Remove(from)
}

// initiated is init's answer for programs.
type initiated struct {
	Fleet  string   `json:"fleet"`
	ID     fleet.ID `json:"id"`
	Dir    string   `json:"dir"`
	Keys   string   `json:"keys"`
	Signer string   `json:"signer"` // fingerprint
	Sites  int      `json:"sites"`
	Commit string   `json:"commit"`
	Locked bool     `json:"locked"` // images.lock files are written
}

func (e *env) tellInit(b *begun, o initOptions) error {
	sites := b.fleet.Sites()
	if e.output == "json" {
		return e.printJSON(initiated{b.params.FleetName, b.params.FleetID, b.dir, b.keys, b.signerFingerprint, len(sites), b.commit, b.params.Images != nil})
	}
	e.printf("fleet %s (%s) in %s: %d sites, first commit %.12s\n", b.params.FleetName, b.params.FleetID, b.dir, len(sites), b.commit)
	if b.freshSigner {
		e.printf("keys in %s: the recovery key, and a new key that signs releases (%s)\n", b.keys, b.signerFingerprint)
	} else {
		e.printf("keys in %s: the recovery key; releases are signed with %s (%s)\n", b.keys, b.signingKey, b.signerFingerprint)
	}
	e.printf("read %s: it says what to put on paper\n", filepath.Join(b.keys, "README"))
	e.printf("one signature makes a release: threshold in trust.yaml. Machines judge higher ones, but no verb\nadds a second signature yet, so leave it at 1 for now\n\nnext:\n  cd %s\n", b.dir)
	if !o.empty && b.params.Images == nil {
		e.printf("  holdfast lock --from FILE.tar   # the digests of the app images; make images builds them\n")
	}
	e.printf("  holdfast check\n")
	if len(sites) > 0 {
		e.printf("  sudo holdfast lab up %s   # try it on this computer: a hub, a machine, a release\n", sites[0].Name)
	}
	e.printf("  holdfast release                # once a hub runs: holdfast hub serve --help\n")
	return nil
}
