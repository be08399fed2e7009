package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// label makes the primaries of this program differ from anybody else's of the same TPM.
func label(name string) tpm2.TPM2BECCParameter {
	sum := sha256.Sum256([]byte("holdfast " + name))
	return tpm2.TPM2BECCParameter{Buffer: sum[:]}
}

func identityTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: label("identity 1"), Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)}}),
	}
}

// identity loads the identity key, for as long as it is needed: with a key loaded, the kernel's resource manager makes four commands of each. The caller
// holds t.mu, and flushes.
func (t *TPM) identity() (*loadedKey, error) {
	key, err := t.primary(identityTemplate())
	if err != nil {
		return nil, fmt.Errorf("make the identity key: %w", err)
	}
	return key, nil
}

// Signer is the identity key as a crypto.MessageSigner.
type Signer struct {
	tpm    *TPM
	public *ecdsa.PublicKey
}

func (t *TPM) signer() (*Signer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, err := t.identity()
	if err != nil {
		return nil, err
	}
	t.flush(key.handle)
	point, err := key.public.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("read the identity key: %w", err)
	}
	uncompressed := make([]byte, 65)
	uncompressed[0] = 4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(uncompressed[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(uncompressed[33:])
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
	if err != nil {
		return nil, fmt.Errorf("read the identity key: %w", err)
	}
	return &Signer{t, public}, nil
}

// Public is an *ecdsa.PublicKey on P-256.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// Sign fails with ErrForeignDigest: see the package's comment.
func (s *Signer) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, ErrForeignDigest
}

// generated is what structures begin with that the TPM itself attests to. It gives no ticket for others that do.
const generated = "\xffTCG"

// SignMessage has the TPM hash the message with SHA-256 and sign it; an ASN.1 signature. Messages are short: statements and handshakes.
func (s *Signer) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("sign with the TPM: want SHA-256, got %v", opts)
	}
	s.tpm.mu.Lock()
	defer s.tpm.mu.Unlock()
	digest, ticket, err := s.tpm.hash(message)
	if err != nil {
		return nil, fmt.Errorf("sign with the TPM: hash: %w", classify(err))
	}
	key, err := s.tpm.identity()
	if err != nil {
		return nil, err
	}
	defer s.tpm.flush(key.handle)
	signed, err := tpm2.Sign{KeyHandle: key.auth(tpm2.PasswordAuth(nil)), Digest: digest, Validation: ticket,
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}}.Execute(s.tpm.bus)
	if err != nil {
		return nil, fmt.Errorf("sign with the TPM: %w", classify(err))
	}
	return asn1Signature(signed.Signature)
}

func asn1Signature(s tpm2.TPMTSignature) ([]byte, error) {
	pair, err := s.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("read the signature: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(pair.SignatureR.Buffer), new(big.Int).SetBytes(pair.SignatureS.Buffer)})
}

// maxBuffer is what every TPM takes in one command.
const maxBuffer = 1024

// hash has the TPM hash the message, with its word that the message is none of its own structures.
func (t *TPM) hash(message []byte) (tpm2.TPM2BDigest, tpm2.TPMTTKHashCheck, error) {
	if len(message) <= maxBuffer {
		r, err := tpm2.Hash{Data: tpm2.TPM2BMaxBuffer{Buffer: message}, HashAlg: tpm2.TPMAlgSHA256, Hierarchy: tpm2.TPMRHOwner}.Execute(t.bus)
		if err != nil {
			return tpm2.TPM2BDigest{}, tpm2.TPMTTKHashCheck{}, err
		}
		return r.OutHash, r.Validation, nil
	}
	start, err := tpm2.HashSequenceStart{HashAlg: tpm2.TPMAlgSHA256}.Execute(t.bus)
	if err != nil {
		return tpm2.TPM2BDigest{}, tpm2.TPMTTKHashCheck{}, err
	}
	sequence := tpm2.AuthHandle{Handle: start.SequenceHandle, Auth: tpm2.PasswordAuth(nil)}
	for len(message) > maxBuffer {
		if _, err := (tpm2.SequenceUpdate{SequenceHandle: sequence, Buffer: tpm2.TPM2BMaxBuffer{Buffer: message[:maxBuffer]}}).Execute(t.bus); err != nil {
			t.flush(start.SequenceHandle)
			return tpm2.TPM2BDigest{}, tpm2.TPMTTKHashCheck{}, err
		}
		message = message[maxBuffer:]
	}
	end, err := tpm2.SequenceComplete{SequenceHandle: sequence, Buffer: tpm2.TPM2BMaxBuffer{Buffer: message}, Hierarchy: tpm2.TPMRHOwner}.Execute(t.bus)
	if err != nil {
		t.flush(start.SequenceHandle)
		return tpm2.TPM2BDigest{}, tpm2.TPMTTKHashCheck{}, err
	}
	return end.Result, end.Validation, nil
}

// Quote is the TPM's word for PCR 7, 11, 12 and 13, bound to extra (at most 32 bytes, such as a TLS exporter): the TPMS_ATTEST and the identity key's ASN.1 signature over it.
func (t *TPM) Quote(extra []byte) (attest, signature []byte, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, err := t.identity()
	if err != nil {
		return nil, nil, err
	}
	defer t.flush(key.handle)
	quote, err := tpm2.Quote{SignHandle: key.auth(tpm2.PasswordAuth(nil)), QualifyingData: tpm2.TPM2BData{Buffer: extra},
		InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, PCRSelect: selection()}.Execute(t.bus)
	if err != nil {
		return nil, nil, fmt.Errorf("quote: %w", classify(err))
	}
	signature, err = asn1Signature(quote.Signature)
	return quote.Quoted.Bytes(), signature, err
}
