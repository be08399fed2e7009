package luks

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/xts"
)

var hashes = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New}

func (k kdf) derive(secret []byte, size int) ([]byte, error) {
	switch k.Type {
	case "pbkdf2":
		return pbkdf2.Key(hashes[k.Hash], string(secret), k.Salt, k.Iterations, size)
	case "argon2i":
		return argon2.Key(secret, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(size)), nil
	case "argon2id":
		return argon2.IDKey(secret, k.Salt, uint32(k.Time), uint32(k.Memory), uint8(k.CPUs), uint32(size)), nil
	}
	return nil, fmt.Errorf("%w: derivation %.20q", ErrFormat, k.Type)
}

// matches tells whether key is the one that the digest was made of.
func (d digest) matches(key []byte) bool {
	got, err := pbkdf2.Key(hashes[d.Hash], string(key), d.Salt, d.Iterations, len(d.Digest))
	return err == nil && subtle.ConstantTimeCompare(got, d.Digest) == 1
}

// readSlot gives the key that the secret finds in the slot, right or not.
func readSlot(d io.ReaderAt, k keyslot, secret []byte) ([]byte, error) {
	under, err := k.KDF.derive(secret, k.Area.KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(under)
	b := make([]byte, k.KeySize*stripes)
	if err := readAll(d, b, k.Area.Offset); err != nil {
		return nil, err
	}
	if err := crypt(under, b, false); err != nil {
		return nil, err
	}
	defer clear(b)
	return merge(b, k.KeySize), nil
}

// sealSlot is the content of the slot's area.
func sealSlot(k keyslot, key, secret []byte) ([]byte, error) {
	under, err := k.KDF.derive(secret, k.Area.KeySize)
	if err != nil {
		return nil, err
	}
	defer clear(under)
	b := split(key)
	return b, crypt(under, b, true)
}

// crypt encrypts or decrypts the area of a slot in place.
func crypt(key, b []byte, encrypt bool) error {
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return err
	}
	const sector = 512
	for i := 0; i < len(b); i += sector {
		s := b[i:min(i+sector, len(b))]
		if encrypt {
			c.Encrypt(s, s, uint64(i/sector))
		} else {
			c.Decrypt(s, s, uint64(i/sector))
		}
	}
	return nil
}

// split spreads the key over stripes, so that losing any of them loses it.
func split(key []byte) []byte {
	n := len(key)
	out := make([]byte, n*stripes)
	last := out[n*(stripes-1):]
	rand.Read(out[:n*(stripes-1)])
	sum := make([]byte, n)
	for i := range stripes - 1 {
		subtle.XORBytes(sum, sum, out[i*n:(i+1)*n])
		diffuse(sum)
	}
	subtle.XORBytes(last, sum, key)
	return out
}

func merge(b []byte, n int) []byte {
	sum := make([]byte, n)
	for i := range stripes - 1 {
		subtle.XORBytes(sum, sum, b[i*n:(i+1)*n])
		diffuse(sum)
	}
	subtle.XORBytes(sum, sum, b[(stripes-1)*n:stripes*n])
	return sum
}

func diffuse(b []byte) {
	var block [4 + sha256.Size]byte
	for i := 0; i < len(b); i += sha256.Size {
		part := b[i:min(i+sha256.Size, len(b))]
		binary.BigEndian.PutUint32(block[:], uint32(i/sha256.Size))
		copy(block[4:], part)
		sum := sha256.Sum256(block[:4+len(part)])
		copy(part, sum[:])
	}
}
