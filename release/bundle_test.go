package release

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"testing"
	"testing/iotest"
)

func all(o Objects) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for _, id := range sortedIDs(o) {
			if !yield(o[id], nil) {
				return
			}
		}
	}
}

func encodeBundle(t testing.TB, tag []byte, objects iter.Seq2[Object, error], signatures ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := EncodeBundle(&b, tag, objects, signatures...); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBundle(t *testing.T) {
	w := newWorld(t)
	w.release("ci", "spare")
	encoded := encodeBundle(t, w.last.Raw, all(w.objects), w.further...)
	got := Objects{}
	add := func(id ObjectID, o Object) error { return got.Add(id, o.Kind, o.Data) }
	tag, signatures, err := DecodeBundle(iotest.OneByteReader(bytes.NewReader(encoded)), DefaultLimits(), add)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(tag, w.last.Raw) || len(signatures) != 1 || len(got) != len(w.objects) {
		t.Errorf("got a tag of %d bytes, %d signatures, %d objects", len(tag), len(signatures), len(got))
	}
	if _, err := VerifyRelease(got, tag, w.machine(1).trust, nil, signatures...); err != nil {
		t.Error(err)
	}
	for n := range encoded {
		if _, _, err := DecodeBundle(bytes.NewReader(encoded[:n]), DefaultLimits(), func(ObjectID, Object) error { return nil }); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: got %v, want ErrTruncated", n, len(encoded), err)
		}
	}
}

func TestBundleRefuses(t *testing.T) {
	objects := Objects{}
	objects.put(KindBlob, []byte("a"))
	objects.put(KindBlob, []byte("b"))
	good := encodeBundle(t, []byte("tag"), all(objects))
	stop := errors.New("stop")
	for name, c := range map[string]struct {
		b    []byte
		edit func(*Limits)
		add  error
		want error
	}{
		"ErrFormat":  {[]byte("holdfast-bundle 2\n and more"), nil, nil, ErrGrammar},
		"ErrTail":    {append(bytes.Clone(good), 'x'), nil, nil, ErrGrammar},
		"ErrKind":    {append(bytes.Clone(good[:len(good)-1]), 'c', 0, 0, 0, 0, 'e'), nil, nil, ErrGrammar},
		"ErrObject":  {append(bytes.Clone(good[:len(good)-1]), 'b', 0xff, 0, 0, 0), nil, nil, ErrOversized},
		"ErrObjects": {good, func(l *Limits) { l.BundleObjs = 1 }, nil, ErrOversized},
		"ErrBundle":  {good, func(l *Limits) { l.Bundle = int64(len(good)) - 4 }, nil, ErrOversized},
		"ErrTag":     {good, func(l *Limits) { l.Tag = 2 }, nil, ErrOversized},
		"ErrAdd":     {good, nil, stop, stop},
	} {
		limits := DefaultLimits()
		if c.edit != nil {
			c.edit(&limits)
		}
		if _, _, err := DecodeBundle(bytes.NewReader(c.b), limits, func(ObjectID, Object) error { return c.add }); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	broken := func(yield func(Object, error) bool) {
		_ = yield(Object{KindBlob, []byte("a")}, nil) && yield(Object{}, stop)
	}
	var b bytes.Buffer
	if err := EncodeBundle(&b, nil, broken); !errors.Is(err, stop) {
		t.Errorf("fault of a source: got %v", err)
	}
	if _, _, err := DecodeBundle(&b, DefaultLimits(), func(ObjectID, Object) error { return nil }); !errors.Is(err, ErrTruncated) {
		t.Errorf("what was written until then: got %v, want ErrTruncated", err)
	}
	if err := EncodeBundle(errorWriter{}, nil, all(objects)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("fault of the writer: got %v", err)
	}
}

type errorWriter struct{}

func (errorWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
