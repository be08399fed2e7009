package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/release"
)

// named is a key in trust.yaml.
type named struct{ name, key string }

func signersOf(t *fleet.Trust) (list []named) {
	for _, s := range t.Signers {
		list = append(list, named{s.Name, s.Key})
	}
	return list
}

func operatorsOf(t *fleet.Trust) (list []named) {
	for _, o := range t.Operators {
		list = append(list, named{o.Name, o.Key})
	}
	return list
}

// signer finds a key that trust.yaml names as a signer.
func (e *env) signer(ctx context.Context, r *repo, t *fleet.Trust) (ssh.Signer, string, error) {
	return e.findKey(ctx, r, signersOf(t), "signers")
}

// operator finds a key that trust.yaml names as an operator.
func (e *env) operator(ctx context.Context, r *repo, t *fleet.Trust) (ssh.Signer, error) {
	s, _, err := e.findKey(ctx, r, operatorsOf(t), "operators")
	return s, err
}

// findKey tries --key, git's user.signingkey, the agent and ~/.ssh for one of
// the keys that are allowed, and says which name it has.
func (e *env) findKey(ctx context.Context, r *repo, allowed []named, list string) (ssh.Signer, string, error) {
	places, err := e.keyPlaces(ctx, r, allowed)
	if err != nil {
		return nil, "", err
	}
	var tried []string
	for _, p := range places {
		s, err := release.LoadSigner(ctx, p.path, e.passphrase(p.path))
		if err != nil {
			if p.told {
				return nil, "", hint(err, "--key takes a private key file, or a public one whose private half the ssh-agent holds")
			}
			continue
		}
		for _, a := range allowed {
			if same(s.PublicKey(), a.key) {
				return s, a.name, nil
			}
		}
		tried = append(tried, fmt.Sprintf("%s (%s)", p.path, ssh.FingerprintSHA256(s.PublicKey())))
	}
	if len(tried) > 0 {
		return nil, "", hint(coded(CodeRefused, fmt.Errorf("trust.yaml names none of your keys among its %s: %s", list, strings.Join(tried, ", "))),
			"use a key that it names with --key, or have one of its signers add yours to trust.yaml")
	}
	return nil, "", hint(fmt.Errorf("no SSH key found that trust.yaml names among its %s", list),
		"name it with --key FILE, or set git config user.signingkey, or add it to your ssh-agent")
}

// place is where a key may be; told when a person named it.
type place struct {
	path string
	told bool
}

func (e *env) keyPlaces(ctx context.Context, r *repo, allowed []named) ([]place, error) {
	if e.key != "" {
		return []place{{e.key, true}}, nil
	}
	var places []place
	configured, err := r.Config(ctx, "user.signingkey")
	if err != nil {
		return nil, err
	}
	if configured != "" {
		places = append(places, place{expand(configured), false})
	}
	if os.Getenv("SSH_AUTH_SOCK") != "" {
		for _, a := range allowed {
			places = append(places, place{"key::" + a.key, false})
		}
	}
	if home, err := os.UserHomeDir(); err == nil {
		for _, name := range []string{"id_ed25519", "id_ecdsa", "id_ed25519_sk", "id_ecdsa_sk"} {
			path := filepath.Join(home, ".ssh", name)
			if _, err := os.Stat(path); err == nil {
				places = append(places, place{path, false})
			}
		}
	}
	return places, nil
}

// expand resolves ~/ as git does.
func expand(path string) string {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return filepath.Join(home, rest)
}

func same(key ssh.PublicKey, line string) bool {
	other, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	return err == nil && string(key.Marshal()) == string(other.Marshal())
}

// passphrase asks a person at a terminal, and nobody else.
func (e *env) passphrase(path string) func() ([]byte, error) {
	return func() ([]byte, error) {
		f, ok := e.in.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) {
			return nil, fmt.Errorf("%s has a passphrase and there is no terminal to ask at: add it to your ssh-agent", path)
		}
		fmt.Fprintf(e.err, "passphrase of %s: ", path)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(e.err)
		return b, err
	}
}

// program is the path of this very program, for children.
func program() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return filepath.EvalSymlinks(path)
}

// beside finds another program of the project: beside this one, or on the PATH.
func beside(name string) (string, error) {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	self, err := program()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	path, err = exec.LookPath(name)
	if err != nil {
		return "", hint(fmt.Errorf("%s is neither beside %s nor on the PATH", name, self), "make build")
	}
	return path, nil
}
