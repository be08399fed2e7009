package uki

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-edge/holdfast/osimage/pkcs7"
)

// Digest is the Authenticode SHA-256 of a PE image, signed or not.
func Digest(image []byte) ([32]byte, error) {
	l, err := parse(bytes.NewReader(image))
	if err != nil {
		return [32]byte{}, err
	}
	size := int64(len(image))
	if l.certSize != 0 {
		if l.certAt+l.certSize != size {
			return [32]byte{}, fmt.Errorf("certificate table at byte %d with %d bytes: want it at the end, %d", l.certAt, l.certSize, size)
		}
		size = l.certAt
	}
	if l.headers > size {
		return [32]byte{}, fmt.Errorf("headers of %d bytes in an image of %d", l.headers, size)
	}
	h := sha256.New()
	h.Write(image[:l.opt+optChecksum])
	h.Write(image[l.opt+optChecksum+4 : l.opt+optCertificate])
	h.Write(image[l.opt+optCertificate+8 : l.headers])
	rows := slices.Clone(l.rows)
	slices.SortStableFunc(rows, func(a, b row) int { return int(int64(a.RawAt) - int64(b.RawAt)) })
	at := l.headers
	for _, r := range rows {
		if r.RawSize == 0 {
			continue
		}
		from, to := int64(r.RawAt), int64(r.RawAt)+int64(r.RawSize)
		if from != at || to > size {
			return [32]byte{}, fmt.Errorf("section %s is at bytes %d to %d: want it to begin at %d, and to end before %d", r.name(), from, to, at, size)
		}
		h.Write(image[from:to])
		at = to
	}
	h.Write(image[at:size])
	if pad := -size & 7; pad > 0 { // signing pads with zeros, which are hashed
		h.Write(make([]byte, pad))
	}
	return [32]byte(h.Sum(nil)), nil
}

// Intact tells whether an image is the one that its signature was made for, as far
// as that can be told without its key: whether the digest stands in the signature.
// An image without a signature has none to be measured by.
func Intact(image []byte) bool {
	l, err := parse(bytes.NewReader(image))
	if err != nil {
		return false
	}
	if l.certSize == 0 {
		return true
	}
	sum, err := Digest(image)
	return err == nil && bytes.Contains(image[l.certAt:], sum[:])
}

// Sign returns the image with an Authenticode signature by key, an RSA key of
// whatever crypto.Signer. An image that is signed already is refused.
func Sign(image []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	l, err := parse(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	if l.certSize != 0 || l.certAt != 0 {
		return nil, errors.New("the image is signed already")
	}
	digest, err := Digest(image)
	if err != nil {
		return nil, err
	}
	signature, err := pkcs7.Authenticode(digest, key, cert)
	if err != nil {
		return nil, err
	}
	out := pad(slices.Clone(image), 8)
	certificate := le.AppendUint32(nil, uint32(8+len(signature)))
	certificate = le.AppendUint16(certificate, 0x0200) // WIN_CERT_REVISION_2_0
	certificate = le.AppendUint16(certificate, 0x0002) // WIN_CERT_TYPE_PKCS_SIGNED_DATA
	certificate = pad(append(certificate, signature...), 8)
	le.PutUint32(out[l.opt+optCertificate:], uint32(len(out)))
	le.PutUint32(out[l.opt+optCertificate+4:], uint32(len(certificate)))
	return append(out, certificate...), nil
}
