package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

// begun is a world whose machine 0 of site 1 has taken release 1 and release 2.
func begun(t *testing.T) (*world, *machine) {
	t.Helper()
	w := newWorld(t)
	m := w.machine(1)
	for range 2 {
		w.release("ci")
		m.mustTake(t, w.slice(1))
	}
	return w, m
}

// evil makes bytes that a machine must refuse, in a world that goes its own way from release 2.
type evil func(w *world, m *machine) []byte

// Every attack of TRUST 11 that bytes alone can make; each is followed by a valid release.
func TestRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		want error
		evil evil
	}{
		"unsigned":                      {ErrUnsigned, tagged(func(w *world, p []byte) []byte { return p })},
		"unsigned tail after the armor": {ErrUnsigned, tagged(func(w *world, p []byte) []byte { return append(signed(w, p, "ci"), "Root: evil\n"...) })},
		"two signatures": {ErrUnsigned, tagged(func(w *world, p []byte) []byte {
			return append(signed(w, p, "ci"), must(SignPayload(p, key("ci")))(w.t)...)
		})},
		"forged":                           {ErrSigner, tagged(func(w *world, p []byte) []byte { return append(p, w.last.Signature...) })},
		"wrong signer":                     {ErrSigner, released("stranger", nil)},
		"wrong namespace":                  {ErrSigner, tagged(func(w *world, p []byte) []byte { return append(p, foreign(w.t, p, "session@holdfast.dev")...) })},
		"wrong fleet":                      {ErrFleet, released("ci", func(p *Payload) { p.FleetID = fleet.ID(strings.Repeat("ab", 16)) })},
		"old number":                       {ErrOld, released("ci", func(p *Payload) { p.N = 1 })},
		"same number other digest":         {ErrFork, released("ci", func(p *Payload) { p.N = 2 })},
		"time falls":                       {ErrTime, released("ci", func(p *Payload) { p.Time = day0 })},
		"renamed ref":                      {ErrGrammar, tagged(renamed)},
		"duplicate trailer":                {ErrGrammar, tagged(duplicated)},
		"duplicate trailer in the message": {ErrGrammar, tagged(duplicatedAbove)},
		"trust changed without a version":  {ErrTrustStep, trusting(trustYAML(1, 1, signerLine("ci"), signerLine("thief")), "ci")},
		"trust not as the tag says":        {ErrAltered, released("ci", func(p *Payload) { p.TrustVersion++; p.TrustDigest[0]++ })},
		"signer set that cannot sign":      {ErrTrustStep, trusting(trustYAML(2, 1, signerLine("typo")), "ci")},
		"new key has not signed":           {ErrTrustStep, trusting(trustYAML(2, 1, signerLine("ci"), signerLine("thief")), "ci")},
		"new signer alone":                 {ErrTrustStep, trusting(trustYAML(2, 1, signerLine("thief")), "thief")},
		"below the new threshold":          {ErrTrustStep, trusting(trustYAML(2, 2, signerLine("ci"), signerLine("spare")), "ci")},
		"trust version jumps":              {ErrTrustStep, trusting(trustYAML(3, 1, signerLine("ci")), "ci")},
		"skipped trust step":               {ErrTrustStep, skippedStep},
		"forged trust step":                {ErrTrustStep, forgedStep},
		"altered trust step":               {ErrTrustStep, alteredStep},
		"trust unreadable":                 {ErrContent, unreadableTrust},
		"machines unreadable":              {ErrContent, edited(func(w *world) { w.files[fleetgen.SiteDir(1)+"/machines.yaml"] = []byte("kind: What") })},
		"another site's slice":             {ErrNotMine, func(w *world, m *machine) []byte { w.release("ci"); return w.slice(2).Encode() }},
		"another site's slice under its name": {ErrObjectMissing, func(w *world, m *machine) []byte {
			w.release("ci")
			s := w.slice(2)
			s.SiteDir = fleetgen.SiteDir(1)
			return s.Encode()
		}},
		"site without machines": {ErrNotMine, edited(func(w *world) { delete(w.files, fleetgen.SiteDir(1)+"/machines.yaml") })},
		"no folder of a site":   {ErrContent, sliced(func(w *world, s *Slice) { s.SiteDir = "apps" })},
		"escaping site":         {ErrGrammar, sliced(func(w *world, s *Slice) { s.SiteDir = "../sites/de" })},
		"altered blob":          {ErrAltered, alter(fleetgen.SiteDir(1) + "/site.yaml")},
		"altered trust":         {ErrAltered, alter(trustFile)},
		"altered tree":          {ErrAltered, alter(fleetgen.SiteDir(1))},
		"altered root":          {ErrAltered, alter(".")},
		"object missing":        {ErrObjectMissing, sliced(func(w *world, s *Slice) { delete(s.Objects, w.objects.at(root(w), "apps/base/app.yaml")) })},
		"folder missing":        {ErrObjectMissing, sliced(func(w *world, s *Slice) { delete(s.Objects, w.objects.at(root(w), "rings")) })},
		"all objects missing":   {ErrObjectMissing, sliced(func(w *world, s *Slice) { clear(s.Objects) })},
		"object extra":          {ErrObjectExtra, sliced(func(w *world, s *Slice) { s.Objects.put(KindBlob, []byte("stowaway")) })},
		"object of the release extra": {ErrObjectExtra, sliced(func(w *world, s *Slice) {
			id := w.objects.at(root(w), fleetgen.SiteDir(2)+"/site.yaml")
			s.Objects[id] = w.objects[id]
		})},
		"mixed from two releases": {ErrAltered, mixed},
		"symlink":                 {ErrMode, grafted(fleetgen.SiteDir(1)+"/evil", "120000", func(o Objects) ObjectID { return o.put(KindBlob, []byte("/etc/shadow")) })},
		"submodule":               {ErrMode, grafted(fleetgen.SiteDir(1)+"/evil", "160000", func(o Objects) ObjectID { return ObjectID{1} })},
		"group-writable file":     {ErrMode, grafted(fleetgen.SiteDir(1)+"/evil", "100664", func(o Objects) ObjectID { return o.put(KindBlob, nil) })},
		"symlink in another site": {ErrMode, grafted("evil", "120000", func(o Objects) ObjectID { return o.put(KindBlob, []byte("sites")) })},
		"file named ..":           {ErrName, grafted(fleetgen.SiteDir(1)+"/..", ModeFile, func(o Objects) ObjectID { return o.put(KindBlob, nil) })},
		"file named .GIT":         {ErrName, grafted(fleetgen.SiteDir(1)+"/.GIT", ModeFile, func(o Objects) ObjectID { return o.put(KindBlob, nil) })},
		"file with a backslash":   {ErrName, grafted(fleetgen.SiteDir(1)+"/a\\b", ModeFile, func(o Objects) ObjectID { return o.put(KindBlob, nil) })},
		"duplicate name":          {ErrName, rewritten(func(tree []byte) []byte { return append(bytes.Clone(tree), tree...) })},
		"unsorted names":          {ErrName, rewritten(swapped)},
		"escaping name": {ErrName, rewritten(func(tree []byte) []byte {
			return bytes.Replace(tree, []byte("100644 machines.yaml"), []byte("100644 ../achine.yaml"), 1)
		})},
		"deep tree":               {ErrOversized, grafted(fleetgen.SiteDir(1)+"/deep", ModeFolder, deep)},
		"folder that is a file":   {ErrAltered, grafted(fleetgen.SiteDir(1)+"/evil", ModeFolder, func(o Objects) ObjectID { return o.put(KindBlob, nil) })},
		"oversized":               {ErrOversized, func(w *world, m *machine) []byte { return make([]byte, DefaultLimits().Slice+1) }},
		"oversized tag":           {ErrOversized, sliced(func(w *world, s *Slice) { s.Tag = make([]byte, DefaultLimits().Tag+1) })},
		"oversized object":        {ErrOversized, sliced(func(w *world, s *Slice) { s.Objects.put(KindBlob, make([]byte, DefaultLimits().Object+1)) })},
		"many steps":              {ErrOversized, sliced(func(w *world, s *Slice) { s.Steps = make([]TrustStep, DefaultLimits().Steps+1) })},
		"something after the end": {ErrGrammar, func(w *world, m *machine) []byte { w.release("ci"); return append(w.slice(1).Encode(), 0) }},
		"another format":          {ErrGrammar, func(w *world, m *machine) []byte { return []byte("holdfast-slice 2\n and what it may hold") }},
	} {
		t.Run(name, func(t *testing.T) {
			w, m := begun(t)
			m.refuse(t, w, c.evil(w.clone(), m), c.want)
		})
	}
}

func root(w *world) ObjectID { return w.last.Payload.TreeSHA256 }

// tagged makes a slice whose tag is made from a good payload by hand.
func tagged(make func(w *world, payload []byte) []byte) evil {
	return func(w *world, m *machine) []byte {
		payload := w.payload().Encode()
		good := w.clone()
		good.release("ci")
		s := good.slice(1)
		s.Tag = make(w, payload)
		return s.Encode()
	}
}

func signed(w *world, payload []byte, by string) []byte {
	return append(bytes.Clone(payload), must(SignPayload(payload, key(by)))(w.t)...)
}

func renamed(w *world, p []byte) []byte {
	return signed(w, bytes.Replace(p, []byte("tag release/3\n"), []byte("tag release/4\n"), 1), "ci")
}

func duplicated(w *world, p []byte) []byte {
	return signed(w, bytes.Replace(p, []byte("Urgency: normal\n"), []byte("Urgency: normal\nUrgency: urgent\n"), 1), "ci")
}

func duplicatedAbove(w *world, p []byte) []byte {
	return signed(w, bytes.Replace(p, []byte("The driver"), []byte("root : evil\nThe driver"), 1), "ci")
}

// released is a release by somebody with another payload.
func released(by string, edit func(*Payload)) evil {
	return func(w *world, m *machine) []byte { w.releaseWith(edit, by); return w.slice(1).Encode() }
}

func edited(edit func(*world)) evil {
	return func(w *world, m *machine) []byte { edit(w); w.release("ci"); return w.slice(1).Encode() }
}

func trusting(yaml []byte, by ...string) evil {
	return func(w *world, m *machine) []byte {
		w.files[trustFile] = yaml
		w.release(by...)
		return w.slice(1).Encode()
	}
}

func sliced(edit func(w *world, s *Slice)) evil {
	return func(w *world, m *machine) []byte {
		w.release("ci")
		s := w.slice(1)
		edit(w, s)
		return s.Encode()
	}
}

// alter changes one byte of the object at a path, on the wire.
func alter(name string) evil {
	return sliced(func(w *world, s *Slice) {
		id := w.objects.at(root(w), name)
		o := s.Objects[id]
		delete(s.Objects, id)
		data := bytes.Clone(o.Data)
		data[len(data)-1] ^= 1
		s.Objects.put(o.Kind, data)
	})
}

func mixed(w *world, m *machine) []byte {
	old := w.slice(1)
	w.set(fleetgen.SiteDir(1)+"/site.yaml", "City 1", "City One")
	w.release("ci")
	s := w.slice(1)
	s.Objects = old.Objects
	return s.Encode()
}

// grafted signs a tree that no honest tool makes, and sends all of it that leads to the graft.
func grafted(name string, mode Mode, make func(Objects) ObjectID) evil {
	return func(w *world, m *machine) []byte {
		w.release("ci")
		s := w.slice(1)
		clone := w.objects
		was := root(w)
		id := make(clone)
		made := clone.graft(was, name, mode, id)
		return w.resign(s, made)
	}
}

func rewritten(edit func(tree []byte) []byte) evil {
	return func(w *world, m *machine) []byte {
		w.release("ci")
		s := w.slice(1)
		dir := fleetgen.SiteDir(1)
		tree := w.objects[w.objects.at(root(w), dir)].Data
		return w.resign(s, w.objects.graft(root(w), dir, ModeFolder, w.objects.put(KindTree, edit(tree))))
	}
}

// resign signs another tree; the slice holds all objects there are, since nothing can be computed from such a tree.
func (w *world) resign(s *Slice, tree ObjectID) []byte {
	p := w.last.Payload
	p.TreeSHA256 = tree
	s.Tag = must(SignTag(p, key("ci")))(w.t)
	s.Objects = w.objects
	return s.Encode()
}

func swapped(tree []byte) []byte {
	entries, err := ParseTree(tree)
	if err != nil {
		panic(err)
	}
	entries[0], entries[1] = entries[1], entries[0]
	return EncodeTree(entries)
}

func deep(o Objects) ObjectID {
	id, mode := o.put(KindBlob, []byte("x")), ModeFile
	for range 40 {
		id, mode = o.put(KindTree, EncodeTree([]Entry{{mode, "d", id}})), ModeFolder
	}
	return id
}

func skippedStep(w *world, m *machine) []byte {
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"))
	w.release("ci")
	w.files[trustFile] = trustYAML(3, 1, signerLine("ci", "person: Charles"))
	w.release("ci")
	w.release("ci")
	s := w.slice(1)
	s.Steps = s.Steps[2:]
	return s.Encode()
}

// forgedStep: a thief writes himself into trust.yaml and signs the step himself.
func forgedStep(w *world, m *machine) []byte {
	w.files[trustFile] = trustYAML(2, 1, signerLine("thief"))
	w.release("thief")
	w.release("thief")
	return w.slice(1).Encode()
}

func alteredStep(w *world, m *machine) []byte {
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"))
	w.release("ci")
	w.release("ci")
	s := w.slice(1)
	s.Steps[len(s.Steps)-1].Trust = trustYAML(2, 1, signerLine("thief"))
	return s.Encode()
}

func unreadableTrust(w *world, m *machine) []byte {
	good := w.files[trustFile]
	p := w.payload()
	w.files[trustFile] = []byte("kind: Trust\nspec: {version: 2}\n")
	p.TreeSHA256, p.TrustVersion, p.TrustDigest = w.root(), 2, sha256.Sum256(w.files[trustFile])
	w.last = must(ParseTag(must(SignTag(p, key("ci")))(w.t)))(w.t)
	s := w.slice(1)
	w.files[trustFile] = good
	return s.Encode()
}

func TestRefuseNothing(t *testing.T) {
	w, m := begun(t)
	m.refuse(t, w, nil, ErrTruncated)
}

func TestRefuseTruncatedAtEveryByte(t *testing.T) {
	w, m := begun(t)
	good := w.clone()
	good.release("ci")
	encoded := good.slice(1).Encode()
	for n := range encoded {
		if _, err := m.take(encoded[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: got %v, want ErrTruncated", n, len(encoded), err)
		}
	}
	m.refuse(t, w, encoded[:len(encoded)-1], ErrTruncated)
}

// The tag alone, cut at every byte, inside a slice that is otherwise whole.
func TestRefuseTruncatedTag(t *testing.T) {
	w, m := begun(t)
	good := w.clone()
	good.release("ci")
	s := good.slice(1)
	for n := range s.Tag {
		cut := *s
		cut.Tag = s.Tag[:n]
		_, err := m.take(cut.Encode())
		if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrUnsigned) && !errors.Is(err, ErrGrammar) {
			t.Fatalf("%d of %d bytes: got %v, want a refusal for its form", n, len(s.Tag), err)
		}
	}
	m.mustTake(t, s)
}

// Any bit that flips anywhere is noticed.
func TestRefuseFlippedBits(t *testing.T) {
	w, m := begun(t)
	w.release("ci")
	encoded := w.slice(1).Encode()
	for n := range encoded {
		bad := bytes.Clone(encoded)
		bad[n] ^= 1 << (n % 8)
		if _, err := m.judge(bad); err == nil {
			t.Fatalf("bit %d of byte %d flipped: accepted", n%8, n)
		}
	}
	if _, err := m.judge(encoded); err != nil {
		t.Error(err)
	}
}

// judge judges without remembering.
func (m *machine) judge(encoded []byte) (*Accepted, error) {
	copied := *m
	return copied.take(encoded)
}

func TestRefuseExpired(t *testing.T) {
	end := day0.Add(10 * 24 * time.Hour)
	for name, c := range map[string]struct {
		at, floor time.Time
	}{
		"expired":                         {end.Add(time.Second), time.Time{}},
		"not yet":                         {day0.Add(-time.Hour), time.Time{}},
		"expired signer with an old Time": {end.Add(-time.Hour), end.Add(time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.files[trustFile] = trustYAML(1, 1, signerLine("ci"), signerLine("temp", "from: "+day0.Format(time.RFC3339), "until: "+end.Format(time.RFC3339)))
			m := w.machine(1)
			m.anchor.Floor = c.floor
			bad := w.clone()
			bad.releaseWith(func(p *Payload) { p.Time = c.at }, "temp")
			m.refuse(t, w, bad.slice(1).Encode(), ErrExpired)
		})
	}
	t.Run("OK within its dates", func(t *testing.T) {
		w := newWorld(t)
		w.files[trustFile] = trustYAML(1, 1, signerLine("temp", "until: "+end.Format(time.RFC3339)))
		m := w.machine(1)
		w.releaseWith(func(p *Payload) { p.Time = end }, "temp")
		got := m.mustTake(t, w.slice(1))
		if got.Signer.Name != "temp" || !got.Anchor.Floor.Equal(end) {
			t.Errorf("got signer %s, floor %s", got.Signer.Name, got.Anchor.Floor)
		}
		// A heartbeat has come since. The same release still fills a blank disk, the next one by that key does not count.
		m.anchor.Floor = end.Add(time.Hour)
		if got := m.mustTake(t, w.slice(1)); !got.Same {
			t.Error("refill: not seen as the same release")
		}
		w.releaseWith(func(p *Payload) { p.Time = end }, "temp")
		if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, ErrExpired) {
			t.Errorf("got %v, want ErrExpired", err)
		}
	})
}

func TestRefuseRevoked(t *testing.T) {
	w, m := begun(t)
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"))
	w.release("ci")
	m.mustTake(t, w.slice(1))
	bad := w.clone()
	bad.release("spare")
	m.refuse(t, w, bad.slice(1).Encode(), ErrSigner)
}

func TestRefuseTrustThatGoesBack(t *testing.T) {
	w, m := begun(t)
	bad := w.clone()
	bad.release("ci")
	bad.release("ci")
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"))
	w.release("ci")
	m.mustTake(t, w.slice(1))
	m.refuse(t, w, bad.slice(1).Encode(), ErrOld)
}

func TestRefuseWithoutRole(t *testing.T) {
	w, m := begun(t)
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"), strings.Replace(signerLine("spare"), "[release]", "[heartbeat, promote]", 1))
	w.release("ci")
	m.mustTake(t, w.slice(1))
	bad := w.clone()
	bad.release("spare")
	m.refuse(t, w, bad.slice(1).Encode(), ErrSigner)
}

// A blank disk whose seed still names a signer who was revoked: the anchor decides.
func TestBlankDiskWithRevokedFirstSigner(t *testing.T) {
	w, m := begun(t)
	_, seedTrust, err := Seed{FleetID: fleetID, Trust: w.files[trustFile]}.Anchor()
	if err != nil {
		t.Fatal(err)
	}
	w.files[trustFile] = trustYAML(2, 1, signerLine("spare"))
	w.release("ci", "spare")
	m.mustTake(t, w.slice(1))
	for name, held := range map[string]*fleet.Trust{"seed": seedTrust, "nothing": nil} {
		m.trust = held
		bad := w.clone()
		bad.release("ci")
		if _, err := m.take(bad.slice(1).Encode()); !errors.Is(err, ErrSigner) {
			t.Errorf("%s: got %v, want ErrSigner", name, err)
		}
		m.trust = held
		if got := m.mustTake(t, w.slice(1)); !got.Same || got.Trust.Version != 2 {
			t.Errorf("%s: refill: same %v, trust %d", name, got.Same, got.Trust.Version)
		}
	}
	// Meanwhile trust went on: the anchor's own step is where the walk begins.
	w.files[trustFile] = trustYAML(3, 1, signerLine("third"))
	w.release("spare", "third")
	w.release("third")
	m.trust = seedTrust
	if got := m.mustTake(t, w.slice(1)); got.Trust.Version != 3 {
		t.Errorf("trust %d, want 3", got.Trust.Version)
	}
	m.trust, m.anchor.TrustVersion, m.anchor.TrustDigest = nil, 2, Digest{9}
	m.anchor.N--
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, ErrTrustStep) {
		t.Errorf("an anchor that no step meets: got %v, want ErrTrustStep", err)
	}
}

// A machine that slept while trust changed four times walks the steps.
func TestWalk(t *testing.T) {
	w, m := begun(t)
	asleep := *m
	for i, x := range []struct {
		yaml []byte
		by   []string
	}{
		{trustYAML(2, 1, signerLine("ci"), signerLine("spare"), signerLine("new")), []string{"ci", "new"}},
		{trustYAML(3, 2, signerLine("ci"), signerLine("spare"), signerLine("new")), []string{"ci", "new"}},
		{trustYAML(4, 2, signerLine("spare"), signerLine("new")), []string{"new", "ci", "spare"}},
		{trustYAML(5, 1, signerLine("last")), []string{"new", "spare", "last"}},
	} {
		w.files[trustFile] = x.yaml
		w.release(x.by...)
		got := m.mustTake(t, w.slice(1))
		if got.Trust.Version != uint64(i+2) || !bytes.Equal(got.TrustYAML, x.yaml) {
			t.Fatalf("step %d: trust %d", i, got.Trust.Version)
		}
		again := *m
		if again.mustTake(t, w.slice(1)); again.anchor != m.anchor {
			t.Fatalf("step %d: taken again, the anchor is another", i)
		}
	}
	w.release("last")
	got := asleep.mustTake(t, w.slice(1))
	if got.Trust.Version != 5 || got.Anchor.TrustVersion != 5 || got.Anchor.N != w.last.Payload.N {
		t.Errorf("got trust %d, anchor %+v", got.Trust.Version, got.Anchor)
	}
	if _, err := got.Anchor.Trust(got.TrustYAML); err != nil {
		t.Errorf("trust from the disk: %v", err)
	}
	if _, err := got.Anchor.Trust(trustYAML(5, 1, signerLine("ci"))); !errors.Is(err, ErrAltered) {
		t.Errorf("another trust from the disk: got %v, want ErrAltered", err)
	}
}

// Two keys of one person are one person.
func TestThresholdCountsPeople(t *testing.T) {
	w := newWorld(t)
	w.files[trustFile] = trustYAML(1, 2, signerLine("ci", "person: Ada"), signerLine("spare", "person: Ada"), signerLine("third", "person: Charles"))
	m := w.machine(1)
	w.release("ci", "spare")
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, ErrThreshold) {
		t.Errorf("one person with two keys: got %v, want ErrThreshold", err)
	}
	w.release("ci", "spare", "stranger", "third")
	if got := m.mustTake(t, w.slice(1)); len(got.Signers) != 2 {
		t.Errorf("got %d signers, want 2", len(got.Signers))
	}
}

func TestAcceptMember(t *testing.T) {
	w, m := begun(t)
	got := m.mustTake(t, w.slice(1))
	if !got.Same || got.Evicted || got.Member.Name != "m0" || got.ContentErr != nil || len(got.Machines.Members) != 1 {
		t.Errorf("got same %v evicted %v member %+v content %v", got.Same, got.Evicted, got.Member, got.ContentErr)
	}
	if len(got.Fleet.Sites()) != 1 || got.Fleet.Sites()[0].Dir != got.SiteDir {
		t.Errorf("fleet has the sites %v", got.Fleet.Sites())
	}
	if _, err := fs.ReadFile(got.Tree, fleetgen.SiteDir(1)+"/site.yaml"); err != nil {
		t.Error(err)
	}
	if _, err := fs.ReadFile(got.Tree, fleetgen.SiteDir(2)+"/site.yaml"); !errors.Is(err, ErrObjectMissing) {
		t.Errorf("another site's file: got %v, want ErrObjectMissing", err)
	}
	want := Anchor{FleetID: fleetID, N: 2, Payload: w.last.Digest(), Time: w.last.Payload.Time, TrustVersion: 1, TrustDigest: w.last.Payload.TrustDigest, Floor: w.last.Payload.Time}
	if diff := cmp.Diff(want, got.Anchor); diff != "" {
		t.Errorf("anchor (-want +got):\n%s", diff)
	}
}

// A tombstone takes effect with the slice, and a machine that was buried is not a member again.
func TestAcceptEvicted(t *testing.T) {
	w, m := begun(t)
	name := fleetgen.SiteDir(1) + "/machines.yaml"
	w.files[name] = must(fleet.AddTombstone(w.files[name], fleet.Tombstone{ID: m.self, Verb: "stolen", Since: "2026-03-02"}))(t)
	w.release("ci")
	got := m.mustTake(t, w.slice(1))
	if !got.Evicted || got.Tombstone.Verb != "stolen" || got.Member.ID != "" {
		t.Errorf("got evicted %v, tombstone %+v, member %+v", got.Evicted, got.Tombstone, got.Member)
	}
}

// The trust half stands although the content half cannot be read: evicted by a release whose content fails stays evicted.
func TestContentFailsTrustStands(t *testing.T) {
	w, m := begun(t)
	w.files[fleetgen.SiteDir(1)+"/site.yaml"] = append(w.files[fleetgen.SiteDir(1)+"/site.yaml"], "  fieldOfTheFuture: 1\n"...)
	w.files[trustFile] = trustYAML(2, 1, signerLine("ci"))
	w.release("ci")
	got := m.mustTake(t, w.slice(1))
	var faults fleet.Faults
	if !errors.As(got.ContentErr, &faults) || got.Anchor.TrustVersion != 2 || got.Member.Name != "m0" {
		t.Errorf("got content error %v, anchor %+v, member %+v", got.ContentErr, got.Anchor, got.Member)
	}
}

func TestContentOfAnotherFleet(t *testing.T) {
	w, m := begun(t)
	w.set("fleet.yaml", fleetID, strings.Repeat("ab", 16))
	w.release("ci")
	if got := m.mustTake(t, w.slice(1)); !errors.Is(got.ContentErr, ErrContent) {
		t.Errorf("got %v, want ErrContent", got.ContentErr)
	}
}

func TestSeed(t *testing.T) {
	w := newWorld(t)
	m := w.machine(1)
	var err error
	if m.anchor, m.trust, err = (Seed{FleetID: fleetID, Trust: w.files[trustFile], Lowest: 2}).Anchor(); err != nil {
		t.Fatal(err)
	}
	w.release("ci")
	if _, err := m.take(w.slice(1).Encode()); !errors.Is(err, ErrOld) {
		t.Errorf("below the seed's lowest: got %v, want ErrOld", err)
	}
	w.release("ci")
	m.mustTake(t, w.slice(1))
	for name, s := range map[string]Seed{"no fleet": {Trust: w.files[trustFile]}, "no trust": {FleetID: fleetID}} {
		if _, _, err := s.Anchor(); err == nil {
			t.Errorf("%s: got nil", name)
		}
	}
}
