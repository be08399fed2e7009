package cli

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
)

// hubKeyFile is where a hub key lies in the fleet repo, encrypted.
func hubKeyFile(which string) string { return "hub/" + which + ".key.age" }

func (e *env) hubKey() *cobra.Command {
	var recovery, which, out string
	cmd := &cobra.Command{
		Use:   "key",
		Short: "take a hub's private key out of the fleet repo",
		Long: `Key opens hub/active.key.age, or the spare one, with the recovery key, and prints the
private key for holdfast hub serve. Without --recovery it looks where holdfast init
put the recovery key.`,
		Example: "  holdfast hub key --recovery /media/stick/recovery.age -O hub.key",
		Args:    args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := e.openHubKey(c.Context(), recovery, which)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err := e.out.Write(key)
				return err
			}
			return writeSecret(out, key)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&recovery, "recovery", "", "file of the recovery key")
	flags.StringVar(&which, "which", "active", "active or spare")
	flags.StringVarP(&out, "out", "O", "", "file to write, which must not be there; default: standard output")
	cmd.RegisterFlagCompletionFunc("which", cobra.FixedCompletions([]string{"active", "spare"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// writeSecret writes a file that only its owner reads, and never over another.
func writeSecret(file string, data []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return hint(fmt.Errorf("%s is there already, and keys are never written over", file), "name another file, or remove that one")
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// openHubKey decrypts a hub key of the fleet repo at hand; "" for recovery is where
// init put it.
func (e *env) openHubKey(ctx context.Context, recovery, which string) ([]byte, error) {
	if which != "active" && which != "spare" {
		return nil, &Error{Err: fmt.Errorf("no hub key %q", which), Hint: "--which active or spare", Code: CodeUsage}
	}
	dir, err := e.fleetDir()
	if err != nil {
		return nil, err
	}
	identities, err := e.recoveryKey(ctx, recovery)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "trust.yaml"))
	if err != nil {
		return nil, err
	}
	trust, err := fleet.ParseTrust("trust.yaml", data)
	if err != nil {
		return nil, coded(CodeFaults, err)
	}
	return decryptHubKey(dir, which, identities, trust)
}

// recoveryKey reads the fleet's recovery key; "" is where init put it.
func (e *env) recoveryKey(ctx context.Context, recovery string) ([]age.Identity, error) {
	if recovery == "" {
		if r, err := e.repo(ctx); err == nil {
			if recovery, err = r.Config(ctx, recoverySetting); err != nil {
				return nil, err
			}
		}
	}
	if recovery == "" {
		return nil, &Error{Err: errors.New("no recovery key is named, and this clone knows of none"), Hint: "name it with --recovery FILE: the file recovery.age that holdfast init made", Code: CodeUsage}
	}
	file, err := os.Open(recovery)
	if err != nil {
		return nil, hint(fmt.Errorf("open the recovery key: %w", err), "bring the file recovery.age from where you keep it, and name it with --recovery")
	}
	defer file.Close()
	identities, err := age.ParseIdentities(file)
	if err != nil {
		return nil, hint(fmt.Errorf("read the recovery key %s: %w", recovery, err), "it is the file with a line AGE-SECRET-KEY-1…")
	}
	return identities, nil
}

// decryptHubKey opens a hub key and sees that trust.yaml pins it.
func decryptHubKey(dir, which string, identities []age.Identity, trust *fleet.Trust) ([]byte, error) {
	name := hubKeyFile(which)
	sealed, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(fmt.Errorf("the fleet repo has no %s", name), "hub keys are made by holdfast init; a new one is a key file that trust.yaml pins")
	}
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), identities...)
	if err != nil {
		return nil, hint(coded(CodeRefused, fmt.Errorf("open %s: %w", name, err)), "trust.yaml lists below spec.recovery whose key opens it")
	}
	key, err := io.ReadAll(plain)
	if err != nil {
		return nil, coded(CodeRefused, fmt.Errorf("open %s: %w", name, err))
	}
	pin, err := pinOf(key)
	if err != nil {
		return nil, coded(CodeRefused, fmt.Errorf("%s: %w", name, err))
	}
	if !slices.ContainsFunc(trust.Hubs, func(h fleet.HubKey) bool { return h.Pin == pin.String() }) {
		return nil, hint(coded(CodeRefused, fmt.Errorf("%s holds the key %s, which trust.yaml does not pin", name, pin)), "no machine would believe it; see which of the two changed: git log -- trust.yaml hub")
	}
	return key, nil
}

// pinOf is the pin of a private key in PEM.
func pinOf(data []byte) (link.Pin, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return link.Pin{}, errors.New("it holds no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return link.Pin{}, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return link.Pin{}, errors.New("it holds no signing key")
	}
	identity, err := link.NewIdentity(signer)
	if err != nil {
		return link.Pin{}, err
	}
	return identity.Pin(), nil
}
