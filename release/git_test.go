package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/internal/git"
)

func command(t *testing.T, dir, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func mustRun(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	out, err := command(t, dir, name, args...)
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return out
}

// stock makes a repository with a fleet in it whose git believes the key of file keyFile, which ssh-keygen made.
func stock(t *testing.T, format string) (r *git.Repo, keyFile string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	t.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(home, "gitconfig"))
	keyFile = filepath.Join(home, "id")
	mustRun(t, home, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", keyFile)
	pub := must(os.ReadFile(keyFile + ".pub"))(t)
	allowed := filepath.Join(home, "allowed")
	for file, content := range map[string]string{
		allowed:                          "ada@example.com namespaces=\"git\" " + string(pub),
		filepath.Join(home, "gitconfig"): "[user]\nname = Ada\nemail = ada@example.com\n[gpg]\nformat = ssh\n[gpg \"ssh\"]\nallowedSignersFile = " + filepath.ToSlash(allowed) + "\n",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(home, "repo")
	mustRun(t, home, "git", "init", "-q", "-b", "main", "--object-format="+format, dir)
	if err := fleetgen.WriteDir(dir, 3); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "apps/base/1.0.0/run.sh"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "apps/base/1.0.0/run.sh"), 0o755); err != nil { // whatever the umask
		t.Fatal(err)
	}
	mustRun(t, dir, "git", "add", ".")
	mustRun(t, dir, "git", "commit", "-q", "-m", "one")
	return must(git.Open(t.Context(), dir))(t), keyFile
}

// stockPayload is a release of the repository's HEAD, and the trust that its key gives.
func stockPayload(t *testing.T, r *git.Repo, keyFile string) (Payload, *fleet.Trust) {
	t.Helper()
	tree := must(r.Tree(t.Context(), "HEAD", "."))(t)
	defer tree.Close()
	p := Payload{
		Object: must(r.Head(t.Context()))(t), TaggerName: "Ada", TaggerEmail: "ada@example.com", TaggerTime: day0, Message: "First\n\nWith a body.",
		FleetID: fleetID, N: 1, Time: day0, TrustVersion: 1, MinMachined: "0.1.0", Urgency: Normal, Root: ".",
		TreeSHA256: must(Import(tree, nil))(t), TrustDigest: sha256.Sum256(must(tree.ReadFile(trustFile))(t)),
	}
	line := string(must(os.ReadFile(keyFile + ".pub"))(t))
	return p, &fleet.Trust{Version: 1, Signers: []fleet.Signer{{Name: "ada", Key: line, Roles: []string{"release"}}}}
}

// Stock git accepts what we make, in repositories of both kinds; and accepts what we must not.
func TestStockGit(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			r, keyFile := stock(t, format)
			ctx := t.Context()
			p, trust := stockPayload(t, r, keyFile)
			if want := mustRun(t, r.Top(), "git", "rev-parse", "HEAD^{tree}"); format == "sha256" && p.TreeSHA256.String() != want {
				t.Errorf("Import: got %s, git says %s", p.TreeSHA256, want)
			}
			signer := must(LoadSigner(ctx, keyFile, nil))(t)
			raw := must(SignTag(p, signer))(t)
			if err := r.WriteTag(ctx, "release/1", raw); err != nil {
				t.Fatal(err)
			}
			out := mustRun(t, r.Top(), "git", "verify-tag", "release/1")
			if !strings.Contains(out, `Good "git" signature for ada@example.com`) {
				t.Errorf("git verify-tag says %q", out)
			}
			back := must(r.ReadTag(ctx, "release/1"))(t)
			if !bytes.Equal(back, raw) {
				t.Fatal("git gives back other bytes")
			}
			tag := must(ParseTag(back))(t)
			if _, err := tag.VerifySignature(trust, time.Time{}); err != nil {
				t.Error(err)
			}

			// A renamed ref: git is content, and for us the number in the payload is all that counts.
			mustRun(t, r.Top(), "git", "update-ref", "refs/tags/release/9", mustRun(t, r.Top(), "git", "rev-parse", "refs/tags/release/1"))
			mustRun(t, r.Top(), "git", "verify-tag", "release/9")
			if tag := must(ParseTag(must(r.ReadTag(ctx, "release/9"))(t)))(t); tag.Payload.N != 1 {
				t.Errorf("renamed ref: N is %d, want 1", tag.Payload.N)
			}

			// An unsigned tail: git is content with it, we are not.
			tail := append(bytes.Clone(raw), "\nDestroys: everything\n"...)
			if err := r.WriteTag(ctx, "release/2", tail); err != nil {
				t.Fatal(err)
			}
			if out, err := command(t, r.Top(), "git", "verify-tag", "release/2"); err != nil {
				t.Logf("this git refuses an unsigned tail, too: %s", out)
			}
			if _, err := ParseTag(tail); !errors.Is(err, ErrUnsigned) {
				t.Errorf("unsigned tail: got %v, want ErrUnsigned", err)
			}

			// A duplicate trailer, well signed.
			double := bytes.Replace(p.Encode(), []byte("Edition: 0\n"), []byte("Edition: 0\nEdition: 1\n"), 1)
			if err := r.WriteTag(ctx, "release/3", append(double, must(SignPayload(double, signer))(t)...)); err != nil {
				t.Fatal(err)
			}
			mustRun(t, r.Top(), "git", "verify-tag", "release/3")
			if _, err := ParseTag(must(r.ReadTag(ctx, "release/3"))(t)); !errors.Is(err, ErrGrammar) {
				t.Errorf("duplicate trailer: got %v, want ErrGrammar", err)
			}
		})
	}
}

// What ssh-keygen signs has the armor that we call canonical.
func TestSignedBySSHKeygen(t *testing.T) {
	r, keyFile := stock(t, "sha1")
	p, trust := stockPayload(t, r, keyFile)
	payload := p.Encode()
	file := filepath.Join(t.TempDir(), "payload")
	if err := os.WriteFile(file, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	mustRun(t, r.Top(), "ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", keyFile, file)
	tag := must(ParseTag(append(payload, must(os.ReadFile(file+".sig"))(t)...)))(t)
	if _, err := tag.VerifySignature(trust, time.Time{}); err != nil {
		t.Error(err)
	}
}

// A folder of a monorepo has the same id wherever it lies, and CRLF settings do not touch it.
func TestImportSubfolder(t *testing.T) {
	r, _ := stock(t, "sha256")
	want := mustRun(t, r.Top(), "git", "rev-parse", "HEAD:apps")
	mustRun(t, r.Top(), "git", "config", "core.autocrlf", "true")
	tree := must(r.Tree(t.Context(), "HEAD", "apps"))(t)
	defer tree.Close()
	if got := must(Import(tree, nil))(t); got.String() != want {
		t.Errorf("got %s, git says %s", got, want)
	}
	// The work tree gives the same, as long as nobody edits it.
	if got := must(Import(os.DirFS(filepath.Join(r.Top(), "apps")), nil))(t); got.String() != want {
		t.Errorf("from the disk: got %s, want %s", got, want)
	}
}

func TestImportRefusesFromGit(t *testing.T) {
	r, _ := stock(t, "sha1")
	head := mustRun(t, r.Top(), "git", "rev-parse", "HEAD")
	for name, mode := range map[string]string{"symlink": "120000", "submodule": "160000"} {
		id := head
		if mode == "120000" {
			id = mustRun(t, r.Top(), "git", "rev-parse", "HEAD:fleet.yaml")
		}
		mustRun(t, r.Top(), "git", "update-index", "--add", "--cacheinfo", mode+","+id+",sites/evil")
		mustRun(t, r.Top(), "git", "commit", "-q", "-m", name)
		tree := must(r.Tree(t.Context(), "HEAD", "."))(t)
		if _, err := Import(tree, nil); !errors.Is(err, ErrMode) || !strings.Contains(err.Error(), "sites/evil") {
			t.Errorf("%s: got %v, want ErrMode with the path", name, err)
		}
		tree.Close()
		mustRun(t, r.Top(), "git", "reset", "-q", "--hard", head)
	}
}

func TestLoadSigner(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("SSH_AUTH_SOCK", "")
	ctx := t.Context()
	make := func(name, kind, pass string, more ...string) string {
		file := filepath.Join(dir, name)
		mustRun(t, dir, "ssh-keygen", append([]string{"-q", "-t", kind, "-N", pass, "-f", file}, more...)...)
		return file
	}
	plain, locked, ec, rsa := make("plain", "ed25519", ""), make("locked", "ed25519", "secret"), make("ec", "ecdsa", "", "-b", "256"), make("rsa", "rsa", "")
	for _, file := range []string{plain, ec} {
		s, err := LoadSigner(ctx, file, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := SignPayload([]byte("x"), s); err != nil {
			t.Error(err)
		}
	}
	if _, err := LoadSigner(ctx, locked, func() ([]byte, error) { return []byte("secret"), nil }); err != nil {
		t.Errorf("passphrase: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "junk"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, says string }{
		"ErrNone":           {filepath.Join(dir, "none"), "ssh-keygen"},
		"ErrJunk":           {filepath.Join(dir, "junk"), "neither"},
		"ErrRSA":            {rsa, "ed25519"},
		"ErrLocked":         {locked, "ssh-add"},
		"ErrPublicNoAgent":  {plain + ".pub", "SSH_AUTH_SOCK"},
		"ErrLiteralNoAgent": {"key::" + keyLine(key("ci")), "SSH_AUTH_SOCK"},
		"ErrLiteralNotAKey": {"key::hello", "neither"},
		"ErrFolder":         {dir, "load signing key"},
	} {
		if _, err := LoadSigner(ctx, c.path, nil); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, c.says)
		}
	}
	if _, err := LoadSigner(ctx, locked, func() ([]byte, error) { return []byte("wrong"), nil }); err == nil {
		t.Error("wrong passphrase: got nil")
	}
}

// An agent in this process holds the key of a file that is locked.
func TestLoadSignerFromAgent(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent") // short: the name of a socket has little room
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	locked := filepath.Join(dir, "locked")
	mustRun(t, dir, "ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked)
	pub := must(os.ReadFile(locked + ".pub"))(t)
	sock := filepath.Join(dir, "s")
	l := must(net.Listen("unix", sock))(t)
	ring := agent.NewKeyring()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	t.Setenv("SSH_AUTH_SOCK", sock)
	if _, err := LoadSigner(t.Context(), locked+".pub", nil); err == nil || !strings.Contains(err.Error(), "ssh-add") {
		t.Errorf("empty agent: got %v, want the next step", err)
	}
	private := must(ssh.ParseRawPrivateKeyWithPassphrase(must(os.ReadFile(locked))(t), []byte("secret")))(t)
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{locked, locked + ".pub", "key::" + string(pub)} {
		s, err := LoadSigner(t.Context(), path, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if _, err := SignPayload([]byte("x"), s); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := os.Remove(locked); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadSigner(t.Context(), locked, nil); err != nil {
		t.Errorf("only the public half on disk: %v", err)
	}
}
