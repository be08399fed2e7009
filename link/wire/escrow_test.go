package wire

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
)

const escrowFleet = fleet.ID("00112233445566778899aabbccddeeff")

func TestEscrow(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := bytes.Repeat([]byte{7}, 32)
	text, err := SignEscrow(Escrow{Fleet: escrowFleet, Key: key}, p256)
	if err != nil {
		t.Fatal(err)
	}
	other, err := SignEscrow(Escrow{Fleet: escrowFleet, Key: bytes.Repeat([]byte{8}, 32)}, ed)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ParseEscrow(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&Escrow{Fleet: escrowFleet, Machine: fleet.MachineIDOf(e.SPKI), SPKI: e.SPKI, Key: key}, e); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if e, err := ParseEscrow(other); err != nil || e.Key[0] != 8 {
		t.Errorf("by ed25519: %v", err)
	}
	line := func(text []byte, n int) string { return strings.Split(string(text), "\n")[n] }
	for name, forged := range map[string]string{
		"empty":                  "",
		"no signature":           strings.Join(strings.Split(string(text), "\n")[:5], "\n") + "\n",
		"another fleet":          strings.Replace(string(text), "0011", "1100", 1),
		"another machine's name": strings.Replace(string(text), line(text, 2), line(other, 2), 1),
		"another key":            strings.Replace(string(text), line(text, 4), line(other, 4), 1),
		"another signature":      strings.Replace(string(text), line(text, 5), line(other, 5), 1),
		"a line more":            string(text) + "Key: AAAA\n",
		"no end":                 strings.TrimSuffix(string(text), "\n"),
		"an introduction":        strings.Replace(string(text), escrowHead, introductionHead, 1),
		"a short key":            strings.Replace(string(text), line(text, 4), "Key: "+base64.StdEncoding.EncodeToString([]byte("short")), 1),
		"oversized":              string(text) + strings.Repeat("x", MaxEscrow),
	} {
		if _, err := ParseEscrow([]byte(forged)); !errors.Is(err, ErrEscrow) {
			t.Errorf("%s: got %v, want ErrEscrow", name, err)
		}
	}
	for name, bad := range map[string]Escrow{"no fleet": {Key: key}, "no key": {Fleet: escrowFleet}, "a long key": {Fleet: escrowFleet, Key: make([]byte, 300)}} {
		if _, err := SignEscrow(bad, p256); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// What parses is the one spelling of what it says.
func FuzzEscrow(f *testing.F) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	text, err := SignEscrow(Escrow{Fleet: escrowFleet, Key: make([]byte, 32)}, ed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(escrowHead))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEscrow(data)
		if err != nil {
			return
		}
		if statement, err := e.statement(); err != nil || !bytes.HasPrefix(data, statement) {
			t.Errorf("%q says %q, %v", data, statement, err)
		}
	})
}

// restricted is a key as a TPM has it: it hashes by itself.
type restricted struct{ *ecdsa.PrivateKey }

func (restricted) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("this key signs no digest that it did not make")
}

func (r restricted) SignMessage(random io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	sum := sha256.Sum256(message)
	return r.PrivateKey.Sign(random, sum[:], opts)
}

func TestRestrictedKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := SignEscrow(Escrow{Fleet: escrowFleet, Key: make([]byte, 32)}, restricted{key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseEscrow(text); err != nil {
		t.Error(err)
	}
	said, err := SignIntroduction(Introduction{Fleet: escrowFleet, Protection: "tpm"}, restricted{key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseIntroduction(said); err != nil {
		t.Error(err)
	}
}
