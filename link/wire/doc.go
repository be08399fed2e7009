// Package wire is what machines, hubs and operators' programs say to each other
// on a link: greeting, introduction, reports, and the status that people read.
//
// Messages are JSON, or the same deflated with a preset dictionary when that is
// shorter ([Encode], [Decode]). The two ends may be years apart: fields that a
// reader does not know are ignored, those it knows are validated, and whatever
// came from outside is bounded in bytes, counts and characters. One rising
// number, [Capability], says what a speaker can do.
//
// It leaves out what is signed by people (release), how bytes travel (link) and
// what the hub keeps of it.
package wire

// Capability of this program. It may change what something costs, never what
// is checked.
//
//	1  2026-11-22  the first: hello, introduction, slice, report, relay, status
const Capability = 1

// Paths on the streams of a control session. Slices, blobs and registry paths
// are their packages' own.
const (
	PathHello  = "/v1/hello"  // machine to hub: POST Hello, answers HelloReply
	PathReport = "/v1/report" // machine to hub: POST Update, answers 204, or 409: send the whole
	PathSlice  = "/v1/slice"  // hub to machine: PUT a slice, answers 204, 409 Have, 422 Refusal
	PathRelay  = "/v1/relay"  // hub to machine: POST, have a relay session open
)

// DictionaryHeader names the slice against which the body of a slice is
// compressed, by DictionaryName; it is absent where the body stands alone. Both
// are short because they are paid for with each change.
const DictionaryHeader = "Dict"

// DictionaryName is a slice's digest, in hex, cut to what tells the few slices
// of a machine apart. It decides nothing: a wrong dictionary yields no slice.
func DictionaryName(digest string) string { return digest[:min(len(digest), 16)] }
