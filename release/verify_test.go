package release

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

func TestVerifyRelease(t *testing.T) {
	for name, c := range map[string]struct {
		want error
		make func(w *world) *Tag
	}{
		"OK":                  {nil, func(w *world) *Tag { return w.release("ci") }},
		"OK again":            {nil, func(w *world) *Tag { return w.last }},
		"OK later":            {nil, func(w *world) *Tag { w.release("spare"); return w.release("ci") }},
		"OK trust step":       {nil, stepTo(trustYAML(2, 1, signerLine("spare"), signerLine("new")), "ci", "spare", "new")},
		"ErrSigner":           {ErrSigner, func(w *world) *Tag { return w.release("stranger") }},
		"ErrNewSigner":        {ErrTrustStep, stepTo(trustYAML(2, 1, signerLine("spare"), signerLine("new")), "ci", "spare")},
		"ErrNewSet":           {ErrTrustStep, stepTo(trustYAML(2, 1, signerLine("spare")), "ci")},
		"ErrTrustJump":        {ErrTrustStep, stepTo(trustYAML(3, 1, signerLine("ci")), "ci")},
		"ErrTrustSameVersion": {ErrTrustStep, stepTo(trustYAML(1, 1, signerLine("ci")), "ci")},
		"ErrTrustNotInTree":   {ErrAltered, with(func(p *Payload) { p.TrustDigest[0]++ })},
		"ErrOld":              {ErrOld, with(func(p *Payload) { p.N = 1 })},
		"ErrFork":             {ErrFork, with(func(p *Payload) { p.N = 2 })},
		"ErrForkOfPrevious":   {ErrFork, with(func(p *Payload) { p.Previous[0]++ })},
		"ErrTime":             {ErrTime, with(func(p *Payload) { p.Time = day0 })},
		"ErrFleet":            {ErrFleet, with(func(p *Payload) { p.FleetID = fleet.ID("ff" + fleetID[2:]) })},
		"ErrObjectMissing": {ErrObjectMissing, func(w *world) *Tag {
			w.set("fleet.yaml", "shops", "stops")
			w.release("ci")
			delete(w.objects, w.objects.at(root(w), "fleet.yaml"))
			return w.last
		}},
		"ErrFolderMissing": {ErrObjectMissing, func(w *world) *Tag { w.release("ci"); delete(w.objects, w.objects.at(root(w), "apps")); return w.last }},
		"ErrRootMissing":   {ErrObjectMissing, with(func(p *Payload) { p.TreeSHA256[0]++ })},
		"ErrAltered": {ErrAltered, func(w *world) *Tag {
			w.release("ci")
			w.objects[w.objects.at(root(w), "fleet.yaml")] = Object{KindBlob, nil}
			return w.last
		}},
		"ErrNoTrustInTheTree": {ErrContent, func(w *world) *Tag {
			return w.releaseWith(func(p *Payload) { p.TreeSHA256 = w.objects.graft(p.TreeSHA256, trustFile, ModeFile, ObjectID{}) }, "ci")
		}},
		"ErrTrustIsAFolder": {ErrContent, func(w *world) *Tag {
			return w.releaseWith(func(p *Payload) {
				p.TreeSHA256 = w.objects.graft(p.TreeSHA256, trustFile, ModeFolder, w.objects.put(KindTree, nil))
			}, "ci")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.release("ci")
			trust := w.machine(1).trust
			prev := w.release("ci")
			tag := c.make(w)
			got, err := VerifyRelease(w.objects, tag.Raw, trust, prev, w.further...)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if c.want == nil && got.Digest() != tag.Digest() {
				t.Error("another tag came back")
			}
		})
	}
	t.Run("without a predecessor", func(t *testing.T) {
		w := newWorld(t)
		trust := w.machine(1).trust
		w.release("ci")
		w.release("ci")
		if _, err := VerifyRelease(w.objects, w.last.Raw, trust, nil); err != nil {
			t.Error(err)
		}
		if _, err := NewTrustStep(w.objects, w.last.Raw); err != nil {
			t.Error(err)
		}
		w.clock = w.clock.Add(time.Hour)
		w.release("stranger")
		if _, err := NewTrustStep(w.objects, w.last.Raw); !errors.Is(err, ErrSigner) {
			t.Errorf("a step by a stranger: got %v, want ErrSigner", err)
		}
	})
}

func with(edit func(*Payload)) func(*world) *Tag {
	return func(w *world) *Tag { return w.releaseWith(edit, "ci") }
}

func stepTo(yaml []byte, by ...string) func(*world) *Tag {
	return func(w *world) *Tag { w.files[trustFile] = yaml; return w.release(by...) }
}
