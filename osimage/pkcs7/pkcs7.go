// Package pkcs7 makes the two kinds of signature that UEFI firmware reads:
// Authenticode over an image and a detached one over a variable.
//
// It promises the same bytes for the same key and input, since it writes no
// signing time and RSA signatures (PKCS #1 v1.5, the only ones that firmware is
// sure to know) are deterministic. It leaves out reading and verifying, other
// digests than SHA-256 and certificate chains.
package pkcs7

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

var (
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidIndirect   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidPEImage    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
	oidSHA256     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidType       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidDigest     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
)

// Detached returns the SignedData, without the ContentInfo around it, over
// content, which is not inside: what stands in a signed EFI variable.
func Detached(content []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	digest := sha256.Sum256(content)
	return signed(sequence(oid(oidData)), nil, digest, key, cert)
}

// Authenticode returns the ContentInfo with the signature of an image that has that digest.
func Authenticode(digest [32]byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	obsolete := tagged(0, true, tagged(2, true, tagged(0, false))) // SpcPeImageData: no flags, an empty file name
	inner := slices.Concat(
		sequence(oid(oidPEImage), sequence([]byte{asn1.TagBitString, 1, 0}, obsolete)),
		sequence(algorithm(oidSHA256), der(digest[:])))
	innerDigest := sha256.Sum256(inner)
	attributes := slices.Concat(
		sequence(oid(oidType), set(oid(oidIndirect))),
		sequence(oid(oidDigest), set(der(innerDigest[:]))))
	toSign := sha256.Sum256(set(attributes))
	data, err := signed(sequence(oid(oidIndirect), tagged(0, true, sequence(inner))), attributes, toSign, key, cert)
	if err != nil {
		return nil, err
	}
	return sequence(oid(oidSignedData), tagged(0, true, data)), nil
}

// signed returns a SignedData with one certificate and one signer.
func signed(content, attributes []byte, digest [32]byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("sign with a %T: firmware is sure to know RSA only", key.Public())
	}
	if !public.Equal(cert.PublicKey) {
		return nil, errors.New("sign: the certificate is of another key")
	}
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	var signedAttributes []byte
	if attributes != nil {
		signedAttributes = tagged(0, true, attributes)
	}
	one := der(big.NewInt(1))
	signer := sequence(one, sequence(cert.RawIssuer, der(cert.SerialNumber)), algorithm(oidSHA256), signedAttributes, algorithm(oidRSA), der(signature))
	return sequence(one, set(algorithm(oidSHA256)), content, tagged(0, true, cert.Raw), set(signer)), nil
}

func algorithm(id asn1.ObjectIdentifier) []byte { return sequence(oid(id), []byte{asn1.TagNull, 0}) }
func oid(id asn1.ObjectIdentifier) []byte       { return der(id) }
func sequence(parts ...[]byte) []byte {
	return element(asn1.ClassUniversal, asn1.TagSequence, true, parts)
}
func set(parts ...[]byte) []byte { return element(asn1.ClassUniversal, asn1.TagSet, true, parts) }
func tagged(tag int, compound bool, parts ...[]byte) []byte {
	return element(asn1.ClassContextSpecific, tag, compound, parts)
}

func element(class, tag int, compound bool, parts [][]byte) []byte {
	return der(asn1.RawValue{Class: class, Tag: tag, IsCompound: compound, Bytes: slices.Concat(parts...)})
}

func der(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err) // of values that this file makes
	}
	return b
}
