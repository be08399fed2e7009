// Package tpm is the machine's TPM 2.0: its identity key, the recipient of its secrets, its notes, and what it seals to a measured boot.
//
// It promises:
//
//   - The identity is a restricted P-256 signing primary: the same key whenever the TPM's owner seed is the same, whatever the disks hold. A restricted key
//     signs only digests that the TPM itself made, which is what lets the same key vouch for PCR quotes: nobody can have it sign a made-up quote. So it signs
//     messages and not digests: [Signer] is a [crypto.MessageSigner], which crypto/tls (TLS 1.3) and crypto/x509 of Go 1.26 use; its Sign always fails with
//     [ErrForeignDigest]. Callers outside those two use [crypto.SignMessage].
//   - The recipient is an age X25519 identity computed by an HMAC key of the TPM: it too outlives the disks.
//   - Notes lie in two ordinary NV indexes, written in turn with a sequence number and a checksum: a power cut leaves the old notes or the new. (One index
//     is not enough for two copies: TPMs bound an index to about 2 kB.) Reading needs no command; a write that changes nothing writes nothing.
//   - Sealed secrets come back only in this TPM with PCR 7, 11, 12 and 13 as sealed for.
//   - Nothing here has a password that could be guessed, and all objects are exempt from the dictionary lockout. Secrets that cross the bus do so encrypted
//     for a key of the TPM, which stops who listens, and not who replaces the TPM's answers.
//
// Identity, recipient, notes and sealed secrets hang on the owner hierarchy together: whoever clears the TPM in the firmware gets a new, blank machine,
// and never an old machine without a memory. A program with access to the TPM can delete the notes; TRUST section 12 says what follows.
//
// It leaves out the endorsement key, and any software that stands in for a TPM: that is box.OpenFolder.
package tpm
