// Package release makes and judges releases: the signed tag, and the slice of it that one site needs. It is pure over bytes:
// no network, no clock, no files but the signing keys that [LoadSigner] reads for the command line.
//
// In order of use:
//
//   - [Import] turns a folder into SHA-256 Git objects; [Payload] binds their root; [SignTag] makes the tag that stock `git verify-tag` accepts.
//   - [VerifyRelease] is the judgement of the command line and the hub, over the whole tree. [EncodeBundle] carries a release to a hub.
//   - [Cut] takes out what one site needs, [Slice.Encode] and [Compress] bring it on its way.
//   - [DecodeSlice] and [Accept] are the judgement of a machine: against what it remembers ([Anchor]), whom it trusts, and who it is.
//
// It promises that every byte which a machine acts upon was named by a signature that its trust allows, that each value has one spelling
// (what parses encodes to the same bytes), that whatever comes from outside is bounded by [Limits], and that every refusal is one of the errors below.
//
// It leaves out pacing, rendering and approvals by path (rules.yaml): a slice carries signatures of a whole release only.
package release
