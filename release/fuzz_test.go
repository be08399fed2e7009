package release

import (
	"bytes"
	"io/fs"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

func FuzzParseTag(f *testing.F) {
	w := newWorld(f)
	f.Add(w.release("ci").Raw)
	w.releaseWith(func(p *Payload) { p.Destroys, p.Urgency, p.Root = []string{"a", "b"}, Urgent, "infra/fleet" }, "spare")
	f.Add(w.last.Raw)
	f.Add(w.last.PayloadBytes)
	f.Add(append(bytes.Clone(w.last.Raw), "tail\n"...))
	trust := &fleet.Trust{Version: 1, Signers: []fleet.Signer{{Name: "ci", Key: keyLine(key("ci")), Roles: []string{"release"}}, {Name: "spare", Key: keyLine(key("spare")), Roles: []string{"release"}}}}
	signed := map[string]bool{string(w.last.PayloadBytes): true, string(must(ParseTag(w.steps[0].Tag))(f).PayloadBytes): true}
	f.Fuzz(func(t *testing.T, raw []byte) {
		tag, err := ParseTag(raw)
		if err != nil {
			return
		}
		if got := append(tag.Payload.Encode(), tag.Signature...); !bytes.Equal(got, raw) {
			t.Errorf("encodes to\n%q\nand was\n%q", got, raw)
		}
		if tag.Payload.N == 0 || tag.Payload.TrustVersion == 0 || !fs.ValidPath(tag.Payload.Root) {
			t.Errorf("accepted: %+v", tag.Payload)
		}
		if _, err := tag.VerifySignature(trust, time.Time{}); err == nil && !signed[string(tag.PayloadBytes)] {
			t.Errorf("verifies: %q", raw)
		}
	})
}

func FuzzDecodeSlice(f *testing.F) {
	w := newWorld(f)
	w.release("ci", "spare")
	f.Add(w.slice(1).Encode())
	small := &Slice{SiteDir: "sites/a", Tag: []byte("tag"), Signatures: [][]byte{{1}, nil}, Steps: []TrustStep{{Tag: []byte("t"), Tree: []byte("r"), Trust: []byte("y")}}, Objects: Objects{}}
	small.Objects.put(KindBlob, []byte("a"))
	small.Objects.put(KindTree, nil)
	f.Add(small.Encode())
	f.Add([]byte(sliceMagic))
	m := w.machine(1)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSlice(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Encode(), b) {
			t.Error("what was read encodes to other bytes")
		}
		for id, o := range s.Objects {
			if o.ID() != id {
				t.Errorf("object %s is %s", id, o.ID())
			}
		}
		if _, err := m.judge(b); err == nil && !bytes.Equal(s.Tag, w.last.Raw) {
			t.Error("a machine takes a tag that nobody signed")
		}
	})
}

func FuzzParseTree(f *testing.F) {
	o := Objects{}
	must(Import(files("a/b", "a-b", "a.b", "c"), o.Add))(f)
	for _, x := range o {
		f.Add(x.Data)
	}
	f.Add(EncodeTree([]Entry{{ModeExec, "x", ObjectID{1}}, {"120000", "y", ObjectID{2}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := ParseTree(b)
		if err != nil {
			return
		}
		if !bytes.Equal(EncodeTree(entries), b) {
			t.Error("what was read encodes to other bytes")
		}
		seen := map[string]bool{}
		for _, e := range entries {
			if !fs.ValidPath(e.Name) || e.Name == "." || seen[e.Name] {
				t.Errorf("the name %q was accepted", e.Name)
			}
			seen[e.Name] = true
			if got, ok := lookup(entries, e.Name); !ok || got != e {
				t.Errorf("%q is not found again", e.Name)
			}
		}
	})
}

func FuzzDecompress(f *testing.F) {
	dictionary := noise(2000)
	for _, d := range [][]byte{nil, dictionary} {
		f.Add(Compress([]byte("hello"), d), d != nil)
		f.Add(Compress(noise(1500), d), d != nil)
	}
	f.Add(Compress(make([]byte, 1<<20), nil), false)
	f.Fuzz(func(t *testing.T, b []byte, with bool) {
		const limit = 4096
		var d []byte
		if with {
			d = dictionary
		}
		plain, err := Decompress(b, d, limit)
		if err != nil {
			return
		}
		if len(plain) > limit {
			t.Errorf("%d bytes, at most %d", len(plain), limit)
		}
		if len(plain) == 0 {
			return
		}
		if again, err := Decompress(Compress(plain, d), d, limit); err != nil || !bytes.Equal(again, plain) {
			t.Errorf("packed again: %v", err)
		}
	})
}

func FuzzDecodeBundle(f *testing.F) {
	w := newWorld(f)
	w.release("ci", "spare")
	f.Add(encodeBundle(f, w.last.Raw, all(w.objects), w.further...))
	f.Add(encodeBundle(f, []byte("t"), all(Objects{ObjectID{}: {KindTree, nil}})))
	f.Add([]byte(bundleMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []Object
		tag, signatures, err := DecodeBundle(bytes.NewReader(b), DefaultLimits(), func(id ObjectID, o Object) error {
			if o.ID() != id {
				t.Errorf("object %s is %s", id, o.ID())
			}
			got = append(got, o)
			return nil
		})
		if err != nil {
			return
		}
		again := encodeBundle(t, tag, func(yield func(Object, error) bool) {
			for _, o := range got {
				if !yield(o, nil) {
					return
				}
			}
		}, signatures...)
		if !bytes.Equal(again, b) {
			t.Error("what was read encodes to other bytes")
		}
	})
}
