package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// LoadSigner makes a signer of what a person names as a key: an OpenSSH private key file; a public key file, or "key::" and a public
// key line as in Git's user.signingKey, whose private half the ssh-agent holds. For a private key file with a passphrase, the agent is asked first, then
// passphrase (which may be nil). The signer may ask the agent until ctx ends.
func LoadSigner(ctx context.Context, path string, passphrase func() ([]byte, error)) (ssh.Signer, error) {
	if line, ok := strings.CutPrefix(path, "key::"); ok {
		return agentSigner(ctx, path, []byte(line))
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if pub, e := os.ReadFile(path + ".pub"); e == nil {
			return agentSigner(ctx, path, pub)
		}
		return nil, fmt.Errorf("load signing key %s: there is no such file; make one with: ssh-keygen -t ed25519 -f %s", path, path)
	}
	if err != nil {
		return nil, fmt.Errorf("load signing key: %w", err)
	}
	if !bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		return agentSigner(ctx, path, data)
	}
	s, err := privateKey(ctx, path, data, passphrase)
	if err != nil {
		return nil, fmt.Errorf("load signing key %s: %w", path, err)
	}
	if err := checkKey(s.PublicKey()); err != nil {
		return nil, fmt.Errorf("load signing key %s: %w", path, err)
	}
	return s, nil
}

func privateKey(ctx context.Context, path string, data []byte, passphrase func() ([]byte, error)) (ssh.Signer, error) {
	s, err := ssh.ParsePrivateKey(data)
	if err == nil {
		return s, nil
	}
	// What the file cannot give, the agent may: a key with a passphrase that was given to it, or the handle of a hardware key.
	if pub, e := os.ReadFile(path + ".pub"); e == nil {
		if s, e := agentSigner(ctx, path, pub); e == nil {
			return s, nil
		}
	}
	var locked *ssh.PassphraseMissingError
	if !errors.As(err, &locked) {
		return nil, fmt.Errorf("%w (a hardware key signs through the agent: ssh-add %s)", err, path)
	}
	if locked.PublicKey != nil {
		if s, e := newAgentSigner(ctx, locked.PublicKey); e == nil {
			return s, nil
		}
	}
	if passphrase == nil {
		return nil, fmt.Errorf("it has a passphrase; give the key to the agent with: ssh-add %s", path)
	}
	secret, err := passphrase()
	if err != nil {
		return nil, fmt.Errorf("ask for the passphrase: %w", err)
	}
	return ssh.ParsePrivateKeyWithPassphrase(data, secret)
}

// agentSigner finds a signer in the agent for a public key line.
func agentSigner(ctx context.Context, what string, line []byte) (ssh.Signer, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return nil, fmt.Errorf("load signing key %s: neither an OpenSSH private key nor a public one: %w", what, err)
	}
	s, err := newAgentSigner(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("load signing key %s: %w", what, err)
	}
	return s, nil
}

// agentKey signs through the agent; it dials for each signature, so that nothing is to be closed.
type agentKey struct {
	ctx context.Context // ssh.Signer has none of its own, and a touch may be waited for
	key ssh.PublicKey
}

func newAgentSigner(ctx context.Context, key ssh.PublicKey) (ssh.Signer, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	s := agentKey{ctx, key}
	err := s.do(func(a agent.ExtendedAgent) error {
		held, err := a.List()
		if err != nil {
			return fmt.Errorf("ask the agent: %w", err)
		}
		for _, k := range held {
			if bytes.Equal(k.Blob, key.Marshal()) {
				return nil
			}
		}
		return fmt.Errorf("the agent does not hold the key %s; give it with ssh-add", ssh.FingerprintSHA256(key))
	})
	return s, err
}

func (s agentKey) PublicKey() ssh.PublicKey { return s.key }

func (s agentKey) Sign(_ io.Reader, data []byte) (sig *ssh.Signature, err error) {
	err = s.do(func(a agent.ExtendedAgent) error {
		sig, err = a.Sign(s.key, data)
		return err
	})
	return sig, err
}

func (s agentKey) do(f func(agent.ExtendedAgent) error) error {
	conn, err := dialAgent(s.ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close()
		}
	}()
	if err := f(agent.NewClient(conn)); err != nil {
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		return err
	}
	return nil
}

func dialAgent(ctx context.Context) (io.ReadWriteCloser, error) {
	sock := os.Getenv("SSH_AUTH_SOCK")
	if runtime.GOOS == "windows" && (sock == "" || strings.HasPrefix(sock, `\\.\pipe\`)) {
		if sock == "" {
			sock = `\\.\pipe\openssh-ssh-agent`
		}
		f, err := os.OpenFile(sock, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("reach the ssh-agent: %w; start it with: Start-Service ssh-agent", err)
		}
		return f, nil
	}
	if sock == "" {
		return nil, errors.New("its private half is sought in the ssh-agent, but SSH_AUTH_SOCK is not set; start one with: eval $(ssh-agent)")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", sock)
	if err != nil {
		return nil, fmt.Errorf("reach the ssh-agent: %w", err)
	}
	return conn, nil
}
