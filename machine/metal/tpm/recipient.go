package tpm

import (
	"fmt"
	"strings"

	"filippo.io/age"
	"github.com/google/go-tpm/tpm2"
)

func recipientTemplate() tpm2.TPMTPublic {
	unique := label("recipient 1")
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgKeyedHash,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme:  tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: unique.Buffer}),
	}
}

// recipient computes the age identity: an HMAC of the TPM is its scalar.
func (t *TPM) recipient() (*age.X25519Identity, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	storage, err := t.storage()
	if err != nil {
		return nil, err
	}
	defer t.flush(storage.handle)
	key, err := t.primary(recipientTemplate())
	if err != nil {
		return nil, fmt.Errorf("make the recipient key: %w", err)
	}
	defer t.flush(key.handle)
	session := tpm2.HMAC(tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptOut), tpm2.Salted(storage.handle, storage.public))
	mac, err := tpm2.Hmac{Handle: key.auth(session), Buffer: tpm2.TPM2BMaxBuffer{Buffer: []byte("holdfast recipient 1: X25519 scalar")}, HashAlg: tpm2.TPMAlgSHA256}.Execute(t.bus)
	if err != nil {
		return nil, fmt.Errorf("compute the recipient key: %w", classify(err))
	}
	if len(mac.OutHMAC.Buffer) != 32 {
		return nil, fmt.Errorf("compute the recipient key: the TPM gave %d bytes", len(mac.OutHMAC.Buffer))
	}
	defer clear(mac.OutHMAC.Buffer)
	return age.ParseX25519Identity(strings.ToUpper(bech32("age-secret-key-", mac.OutHMAC.Buffer)))
}

// bech32 encodes data as BIP 173 says, which is how age spells keys.
func bech32(prefix string, data []byte) string {
	const alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
	var groups []byte // of 5 bits
	bits, held := 0, uint32(0)
	for _, b := range data {
		held = held<<8 | uint32(b)
		for bits += 8; bits >= 5; {
			bits -= 5
			groups = append(groups, byte(held>>bits)&31)
		}
	}
	if bits > 0 {
		groups = append(groups, byte(held<<(5-bits))&31)
	}
	sum := uint32(1)
	mix := func(v byte) {
		top := sum >> 25
		sum = sum&0x1ffffff<<5 ^ uint32(v)
		for i, g := range []uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 == 1 {
				sum ^= g
			}
		}
	}
	for i := range len(prefix) {
		mix(prefix[i] >> 5)
	}
	mix(0)
	for i := range len(prefix) {
		mix(prefix[i] & 31)
	}
	for _, g := range groups {
		mix(g)
	}
	for range 6 {
		mix(0)
	}
	sum ^= 1
	out := []byte(prefix + "1")
	for _, g := range groups {
		out = append(out, alphabet[g])
	}
	for i := range 6 {
		out = append(out, alphabet[sum>>(5*(5-i))&31])
	}
	return string(out)
}
