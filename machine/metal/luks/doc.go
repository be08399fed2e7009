// Package luks reads and writes LUKS2 volumes: format, open, add and remove key slots and tokens. It computes keys; device-mapper does the encryption.
//
// It promises that cryptsetup opens what it writes, that a power cut at any write leaves a volume that opens as before the change or as after it (both
// copies of the header bear a checksum and a sequence number; key material is on disk before a header names it, and wiped only after no copy does), and
// that a hostile disk costs bounded memory and time: sizes, places, iterations and memory of everything in the header are checked before they are used.
//
// What it writes is aes-xts-plain64 with a key of 512 bits, sectors of 4096 bytes, and slots for random secrets of 32 bytes or more, which need no slow
// derivation: PBKDF2 with 1000 rounds. It also opens slots of cryptsetup with PBKDF2 or Argon2. It leaves out passphrases of people, integrity,
// re-encryption, detached headers, LUKS1, and data that does not reach to the end of its device: ErrFormat.
package luks
