package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Digest is the value of a PCR, or of a policy.
type Digest [32]byte

// PCRs are the measurements that secrets are sealed to, of the SHA-256 bank: 7 is Secure Boot's state and keys, 11 the unified kernel image, 12 and 13 what
// the stub was given beside it (command lines, credentials, extensions), which is nothing.
type PCRs struct{ PCR7, PCR11, PCR12, PCR13 Digest }

// Expect are the PCRs of a boot with nothing beside the unified kernel image.
func Expect(pcr7, pcr11 Digest) PCRs { return PCRs{PCR7: pcr7, PCR11: pcr11} }

var sealedPCRs = []uint{7, 11, 12, 13}

func selection() tpm2.TPMLPCRSelection {
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(sealedPCRs...)}}}
}

// Policy is the digest of the policy that lets these PCRs open a secret. It is computed here, so it can be known of a boot that has not been.
func (p PCRs) Policy() Digest {
	values := sha256.New()
	for _, v := range []Digest{p.PCR7, p.PCR11, p.PCR12, p.PCR13} {
		values.Write(v[:])
	}
	policy := sha256.New()
	policy.Write(make([]byte, 32))
	policy.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyPCR)))
	policy.Write(tpm2.Marshal(selection()))
	policy.Write(values.Sum(nil))
	return Digest(policy.Sum(nil))
}

// ReadPCRs are the measurements of this boot.
func (t *TPM) ReadPCRs() (PCRs, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.readPCRs()
}

func (t *TPM) readPCRs() (p PCRs, err error) {
	read, err := tpm2.PCRRead{PCRSelectionIn: selection()}.Execute(t.bus)
	if err != nil {
		return p, fmt.Errorf("read PCRs: %w", classify(err))
	}
	to := []*Digest{&p.PCR7, &p.PCR11, &p.PCR12, &p.PCR13}
	if len(read.PCRValues.Digests) != len(to) {
		return p, fmt.Errorf("read PCRs: the TPM gave %d of %d values; switch its SHA-256 bank on in the firmware's settings", len(read.PCRValues.Digests), len(to))
	}
	for i, d := range read.PCRValues.Digests {
		if len(d.Buffer) != len(to[i]) {
			return p, fmt.Errorf("read PCRs: PCR %d has %d bytes", sealedPCRs[i], len(d.Buffer))
		}
		*to[i] = Digest(d.Buffer)
	}
	return p, nil
}

// MaxSecret is what can be sealed, in bytes.
const MaxSecret = 128

// Seal seals the secret to the given measurements, of this boot or of another.
func (t *TPM) Seal(secret []byte, to PCRs) ([]byte, error) {
	if len(secret) == 0 || len(secret) > MaxSecret {
		return nil, fmt.Errorf("seal: %d bytes, want 1 to %d", len(secret), MaxSecret)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	storage, err := t.storage()
	if err != nil {
		return nil, err
	}
	defer t.flush(storage.handle)
	policy := to.Policy()
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(storage.handle, storage.public))
	made, err := tpm2.Create{
		ParentHandle: storage.auth(session),
		InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret})}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true},
			AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy[:]}}),
	}.Execute(t.bus)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", classify(err))
	}
	public, private := tpm2.Marshal(made.OutPublic), tpm2.Marshal(made.OutPrivate)
	blob := binary.BigEndian.AppendUint16([]byte(sealedMagic), uint16(len(public)))
	return append(append(blob, public...), private...), nil
}

// A blob is sealedMagic, the length of the public half in 2 bytes, the public half, the private half.
const sealedMagic = "HFS1"

const maxBlob = 1024

func parseBlob(blob []byte) (*tpm2.TPM2BPublic, *tpm2.TPM2BPrivate, *tpm2.TPMTPublic, error) {
	fail := func(why any) (*tpm2.TPM2BPublic, *tpm2.TPM2BPrivate, *tpm2.TPMTPublic, error) {
		return nil, nil, nil, fmt.Errorf("%w: %v", ErrBlob, why)
	}
	rest, ok := bytes.CutPrefix(blob, []byte(sealedMagic))
	if !ok || len(rest) < 2 || len(blob) > maxBlob {
		return fail("no head, or too long")
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; n > len(rest) {
		return fail("cut short")
	}
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](rest[:n])
	if err != nil {
		return fail(err)
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](rest[n:])
	if err != nil {
		return fail(err)
	}
	contents, err := public.Contents()
	if err != nil {
		return fail(err)
	}
	if contents.Type != tpm2.TPMAlgKeyedHash || len(contents.AuthPolicy.Buffer) != len(Digest{}) || contents.ObjectAttributes.UserWithAuth {
		return fail("the object is of another kind")
	}
	return public, private, contents, nil
}

// BlobPolicy is the policy that a blob says it opens by. Nothing signs what a disk says: it explains a failure, and finds the blob to try.
func BlobPolicy(blob []byte) (Digest, error) {
	_, _, public, err := parseBlob(blob)
	if err != nil {
		return Digest{}, err
	}
	return Digest(public.AuthPolicy.Buffer), nil
}

// Unseal opens a sealed secret. ErrOtherTPM, ErrMeasurements, ErrGone and ErrBlob tell why not.
func (t *TPM) Unseal(blob []byte) ([]byte, error) {
	public, private, _, err := parseBlob(blob)
	if err != nil {
		return nil, fmt.Errorf("unseal: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	storage, err := t.storage()
	if err != nil {
		return nil, err
	}
	defer t.flush(storage.handle)
	loaded, err := tpm2.Load{ParentHandle: storage.auth(tpm2.PasswordAuth(nil)), InPrivate: *private, InPublic: *public}.Execute(t.bus)
	if err != nil {
		return nil, fmt.Errorf("unseal: load: %w", classify(err))
	}
	defer t.flush(loaded.ObjectHandle)
	// Any PCR that is extended in between, also one that the policy does not name, ends the session: the kernel measures each module that it loads into PCR 10.
	for try := 1; ; try++ {
		secret, err := t.unsealLoaded(storage, loaded)
		if errors.Is(err, tpm2.TPMRCPCRChanged) && try < unsealTries {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("unseal: %w", classify(err))
		}
		return secret, nil
	}
}

// unsealTries bounds how often a session that a measurement ended is begun anew.
const unsealTries = 100

func (t *TPM) unsealLoaded(storage *loadedKey, loaded *tpm2.LoadResponse) ([]byte, error) {
	session, done, err := tpm2.PolicySession(t.bus, tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(storage.handle, storage.public))
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := (tpm2.PolicyPCR{PolicySession: session.Handle(), Pcrs: selection()}).Execute(t.bus); err != nil {
		return nil, err
	}
	opened, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session}}.Execute(t.bus)
	if err != nil {
		return nil, err
	}
	return opened.OutData.Buffer, nil
}
