package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Slice is what one site needs of a release, with the proof: the tag, the steps by which trust came to its version, the folder listings on
// the paths of the site's closure, and the files.
type Slice struct {
	SiteDir    string // such as sites/de/0417-berlin: the sender's word, judged by Accept
	Tag        []byte
	Signatures [][]byte    // further ones over the tag's payload
	Steps      []TrustStep // by rising version; as many as the machine that is furthest behind needs
	Objects    Objects
}

// sliceMagic opens an encoding and bears its version.
const sliceMagic = "holdfast-slice 1\n"

// Cut takes from src, which holds the whole tree, what the site in siteDir needs. Of steps (by rising version) it
// carries all but those above the release's own trust. Further signatures are the caller's to add.
func Cut(src Source, tag []byte, siteDir string, steps ...TrustStep) (*Slice, error) {
	t, err := ParseTag(tag)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("cut %s for %s", TagName(t.Payload.N), siteDir)
	objects, err := Closure(src, t.Payload.TreeSHA256, siteDir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	s := &Slice{SiteDir: siteDir, Tag: t.Raw, Objects: objects}
	for _, step := range steps {
		if step.version() <= t.Payload.TrustVersion {
			s.Steps = append(s.Steps, step)
		}
	}
	if n, limit := len(s.Encode()), DefaultLimits().Slice; n > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes, at most %d", what, ErrOversized, n, limit)
	}
	return s, nil
}

// Closure collects from src the objects that the site in siteDir needs of the tree root, each verified. It is the one computation that makes a
// slice and judges it; by itself it serves whoever wants to know before there is a tag.
func Closure(src Source, root ObjectID, siteDir string) (Objects, error) {
	tree := newTreeFS(src, root)
	if !fs.ValidPath(siteDir) || siteDir == "." {
		return nil, fmt.Errorf("%w: %q is no folder of a site", ErrGrammar, siteDir)
	}
	paths, err := fleet.Closure(tree, siteDir)
	if fault := tree.firstFault(); fault != nil { // before err, which may be its text
		return nil, fault
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContent, err)
	}
	c := collector{src: src, tree: tree, got: Objects{}}
	for _, p := range paths {
		if err := c.path(root, p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	return c.got, nil
}

type collector struct {
	src  Source
	tree *treeFS
	got  Objects
}

// path takes the listings on the way to p, and all that is at p. A name that the listing on the way does not have is proved absent.
func (c *collector) path(root ObjectID, p string) error {
	at := Entry{ModeFolder, ".", root}
	for part := range strings.SplitSeq(p, "/") {
		if at.Mode != ModeFolder {
			return nil
		}
		entries, err := c.folder(at.ID)
		if err != nil {
			return err
		}
		e, ok := lookup(entries, part)
		if !ok {
			return nil
		}
		at = e
	}
	return c.whole(at, strings.Count(p, "/")+1)
}

func (c *collector) whole(e Entry, depth int) error {
	if depth > DefaultLimits().Depth+1 {
		return fmt.Errorf("%w: too many folders below each other", ErrOversized)
	}
	if e.Mode != ModeFolder {
		return c.take(e.ID, KindBlob)
	}
	entries, err := c.folder(e.ID)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.whole(e, depth+1); err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	return nil
}

func (c *collector) folder(id ObjectID) ([]Entry, error) {
	if err := c.take(id, KindTree); err != nil {
		return nil, err
	}
	return c.tree.folder(id)
}

func (c *collector) take(id ObjectID, kind string) error {
	if o, ok := c.got[id]; ok {
		if o.Kind != kind {
			return fmt.Errorf("object %s: %w: it is a %s", id, ErrAltered, o.Kind)
		}
		return nil
	}
	if limit := DefaultLimits().Objects; len(c.got) == limit {
		return fmt.Errorf("%w: more than %d objects", ErrOversized, limit)
	}
	data, err := fetch(c.src, id, kind)
	if err != nil {
		return err
	}
	c.got[id] = Object{kind, data}
	return nil
}

// judgeObjects is the machine's look at a slice: the objects are exactly those that its own computation of the closure wants.
func (s *Slice) judgeObjects(root ObjectID) error {
	want, err := Closure(s.Objects, root, s.SiteDir)
	if err != nil {
		return err
	}
	for id := range s.Objects {
		if _, ok := want[id]; !ok {
			return fmt.Errorf("object %s: %w: %s does not need it", id, ErrObjectExtra, s.SiteDir)
		}
	}
	return nil
}

// stranger finds an object to which no path leads from the root: with a missing one, the sign that bytes were altered.
func (s *Slice) stranger(root ObjectID) (ObjectID, bool) {
	named := map[ObjectID]bool{root: true}
	for next := []ObjectID{root}; len(next) > 0; {
		o := s.Objects[next[0]]
		next = next[1:]
		if o.Kind != KindTree {
			continue
		}
		entries, err := ParseTree(o.Data)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !named[e.ID] {
				named[e.ID] = true
				next = append(next, e.ID)
			}
		}
	}
	for _, id := range sortedIDs(s.Objects) {
		if !named[id] {
			return id, true
		}
	}
	return ObjectID{}, false
}

func sortedIDs(o Objects) []ObjectID {
	return slices.SortedFunc(maps.Keys(o), func(a, b ObjectID) int { return bytes.Compare(a[:], b[:]) })
}

// Encode writes the slice in its one spelling:
//
//	"holdfast-slice 1\n", folder of the site, tag, list of signatures,
//	number of steps, and of each: tag, list of signatures, listing of the top folder, trust.yaml,
//	number of objects, and of each, by rising id: the letter t or b, its bytes
//
// Ids are not written: whoever reads computes them, so no byte that stands for another is in it.
func (s *Slice) Encode() []byte {
	b := putBytes([]byte(sliceMagic), []byte(s.SiteDir))
	b = putBytes(b, s.Tag)
	b = putList(b, s.Signatures)
	b = putNumber(b, len(s.Steps))
	for _, step := range s.Steps {
		b = putList(putBytes(b, step.Tag), step.Signatures)
		b = putBytes(putBytes(b, step.Tree), step.Trust)
	}
	b = putNumber(b, len(s.Objects))
	for _, id := range sortedIDs(s.Objects) {
		o := s.Objects[id]
		b = putBytes(append(b, kindLetter(o.Kind)), o.Data)
	}
	return b
}

func putList(b []byte, list [][]byte) []byte {
	b = putNumber(b, len(list))
	for _, x := range list {
		b = putBytes(b, x)
	}
	return b
}

// Digest is that of the encoding; a machine names by it the slice that it holds.
func (s *Slice) Digest() Digest { return sha256.Sum256(s.Encode()) }

// DecodeSlice reads what Encode writes, and nothing else. It judges no signature.
func DecodeSlice(b []byte) (*Slice, error) {
	s, err := decodeSlice(b, DefaultLimits())
	if err != nil {
		return nil, fmt.Errorf("read slice: %w", err)
	}
	return s, nil
}

func decodeSlice(b []byte, limits Limits) (*Slice, error) {
	if len(b) > limits.Slice {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrOversized, len(b), limits.Slice)
	}
	if rest, ok := bytes.CutPrefix(b, []byte(sliceMagic)); ok {
		b = rest
	} else if bytes.HasPrefix([]byte(sliceMagic), b) {
		return nil, fmt.Errorf("%w: within the first line", ErrTruncated)
	} else {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrGrammar, sliceMagic)
	}
	r := &reader{b: b}
	s := &Slice{Objects: Objects{}}
	s.SiteDir = string(r.bytes("site", limits.Depth*(limits.Name+1)))
	s.Tag = r.bytes("tag", limits.Tag)
	s.Signatures = r.list("signatures", limits.Signatures, limits.Signature)
	for range r.number("steps", limits.Steps) {
		if r.err != nil {
			break
		}
		s.Steps = append(s.Steps, TrustStep{
			Tag: r.bytes("tag of a step", limits.Tag), Signatures: r.list("signatures of a step", limits.Signatures, limits.Signature),
			Tree: r.bytes("folder of a step", limits.Object), Trust: r.bytes("trust of a step", limits.Trust),
		})
	}
	r.objects(s.Objects, limits)
	switch {
	case r.err != nil:
		return nil, r.err
	case len(r.b) > 0:
		return nil, fmt.Errorf("%w: %d bytes follow its end", ErrGrammar, len(r.b))
	case !fs.ValidPath(s.SiteDir) || path.Clean(s.SiteDir) == ".":
		return nil, fmt.Errorf("%w: %q is no folder of a site", ErrGrammar, s.SiteDir)
	}
	return s, nil
}

func (r *reader) objects(into Objects, limits Limits) {
	var last ObjectID
	for i := range r.number("objects", limits.Objects) {
		c := r.letter("an object")
		data := r.bytes("an object", limits.Object)
		if r.err != nil {
			return
		}
		kind, err := letterKind(c)
		if err != nil {
			r.err = err
			return
		}
		id := HashObject(kind, data)
		if i > 0 && bytes.Compare(last[:], id[:]) >= 0 {
			r.err = fmt.Errorf("%w: object %s does not come after %s", ErrGrammar, id, last)
			return
		}
		last = id
		into[id] = Object{kind, data}
	}
}
