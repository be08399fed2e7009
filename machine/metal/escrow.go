package metal

import (
	"bytes"
	"crypto"
	"fmt"

	"filippo.io/age"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link/wire"
)

// sealEscrow signs a recovery key as this machine's and encrypts it to people, who
// alone may bring the fleet back. Without any there is no recovery key: nil.
func sealEscrow(key []byte, of fleet.ID, recovery []string, identity crypto.Signer) ([]byte, error) {
	var people []age.Recipient
	for _, r := range recovery {
		p, err := age.ParseX25519Recipient(r)
		if err != nil {
			return nil, fmt.Errorf("recovery recipient of trust.yaml: %w", err)
		}
		people = append(people, p)
	}
	if len(people) == 0 {
		return nil, nil
	}
	text, err := wire.SignEscrow(wire.Escrow{Fleet: of, Key: key}, identity)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, people...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil { // before out is looked at: the text is written here
		return nil, err
	}
	return out.Bytes(), nil
}
