package hub

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/holdfast-edge/holdfast/release"
)

func bundleOf(t testing.TB, tag *release.Tag, further ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := release.EncodeBundle(&b, tag.Raw, none, further...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func FuzzPeekBundle(f *testing.F) {
	w := newWorld(f, 1)
	tag := w.release()
	f.Add(bundleOf(f, tag))
	f.Add(bundleOf(f, tag, []byte("one"), []byte("two")))
	f.Add(bundleOf(f, tag)[:40])
	f.Add([]byte(bundleMagic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), bundleHeadMax)
		tag, further, err := peekBundle(r)
		decoded, signatures, derr := release.DecodeBundle(r, release.DefaultLimits(), func(release.ObjectID, release.Object) error { return nil })
		if derr != nil {
			return
		}
		// What the one who has the last word reads, the peek has read, too.
		if err != nil || !bytes.Equal(tag, decoded) || len(further) != len(signatures) {
			t.Errorf("peeked %q %q %v, decoded %q %q", tag, further, err, decoded, signatures)
		}
	})
}
