package release

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
)

const fleetID = "00112233445566778899aabbccddeeff"

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// key makes the signing key of a person, always the same.
func key(name string) ssh.Signer {
	seed := sha256.Sum256([]byte("key of " + name))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

func keyLine(s ssh.Signer) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(s.PublicKey())))
}

// signerLine is a signer of a trust.yaml; more are further fields, such as "until: 2026-03-02T00:00:00Z".
func signerLine(name string, more ...string) string {
	return fmt.Sprintf("    - {name: %s, key: %s, roles: [release]%s}\n", name, keyLine(key(name)), strings.Join(append([]string{""}, more...), ", "))
}

func trustYAML(version uint64, threshold int, signers ...string) []byte {
	return fmt.Appendf(nil, "apiVersion: holdfast.dev/v1alpha1\nkind: Trust\nspec:\n  version: %d\n  threshold: %d\n  signers:\n%s", version, threshold, strings.Join(signers, ""))
}

// world is a fleet repo and those who release from it.
type world struct {
	t       testing.TB
	files   map[string][]byte
	objects Objects
	last    *Tag
	steps   []TrustStep
	further [][]byte // signatures beside the last tag
	clock   time.Time
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, files: fleetgen.Files(12), objects: Objects{}, clock: day0}
	w.files[trustFile] = trustYAML(1, 1, signerLine("ci"), signerLine("spare"))
	return w
}

// clone is a world that goes another way from here.
func (w *world) clone() *world {
	c := *w
	c.files, c.objects, c.steps = maps.Clone(w.files), maps.Clone(w.objects), slices.Clone(w.steps)
	return &c
}

// root imports the files.
func (w *world) root() ObjectID {
	w.t.Helper()
	id, err := Import(fleetgen.FS(w.files), w.objects.Add)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) payload() Payload {
	w.t.Helper()
	w.clock = w.clock.Add(time.Hour)
	trust, err := fleet.ParseTrust(trustFile, w.files[trustFile])
	if err != nil {
		w.t.Fatal(err)
	}
	p := Payload{
		Object: strings.Repeat("0123456789", 4), TaggerName: "Ada Lovelace", TaggerEmail: "ada@example.com", TaggerTime: w.clock.In(time.FixedZone("", 3600)),
		Message: "Tills print again\n\nThe driver is the old one.", FleetID: fleetID, N: 1, Time: w.clock,
		TrustVersion: trust.Version, TrustDigest: sha256.Sum256(w.files[trustFile]), MinMachined: "0.1.0", Urgency: Normal, Root: ".", TreeSHA256: w.root(),
	}
	if w.last != nil {
		p.N, p.Previous = w.last.Payload.N+1, w.last.Digest()
	}
	return p
}

// release makes the next release, signed by these; the first one's signature is in the tag.
func (w *world) release(by ...string) *Tag { return w.releaseWith(nil, by...) }

func (w *world) releaseWith(edit func(*Payload), by ...string) *Tag {
	w.t.Helper()
	p := w.payload()
	if edit != nil {
		edit(&p)
	}
	raw, err := SignTag(p, key(by[0]))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.last, err = ParseTag(raw); err != nil {
		w.t.Fatal(err)
	}
	w.further = nil
	for _, name := range by[1:] {
		w.further = append(w.further, must(SignPayload(w.last.PayloadBytes, key(name)))(w.t))
	}
	if n := len(w.steps); n == 0 || w.steps[n-1].version() != p.TrustVersion {
		if s, err := NewTrustStep(w.objects, raw, w.further...); err == nil {
			w.steps = append(w.steps, s)
		}
	}
	return w.last
}

// foreign is a good signature of ci, made for something else than a release.
func foreign(t testing.TB, payload []byte, namespace string) []byte {
	t.Helper()
	sig := must(sshsig.Sign(bytes.NewReader(payload), key("ci"), sshsig.HashSHA512, namespace))(t)
	return encodeArmor(sig.Marshal())
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// slice cuts what site i needs of the last release.
func (w *world) slice(i int) *Slice {
	w.t.Helper()
	s, err := Cut(w.objects, w.last.Raw, fleetgen.SiteDir(i), w.steps...)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Signatures = w.further
	return s
}

// set changes a file.
func (w *world) set(name, old, new string) {
	w.t.Helper()
	was := w.files[name]
	if w.files[name] = bytes.Replace(was, []byte(old), []byte(new), 1); bytes.Equal(was, w.files[name]) {
		w.t.Fatalf("%s does not hold %q", name, old)
	}
}

// machine is the memory of machine 0 of a site, without a disk.
type machine struct {
	anchor Anchor
	trust  *fleet.Trust
	self   fleet.MachineID
}

func (w *world) machine(i int) *machine {
	w.t.Helper()
	a, trust, err := Seed{FleetID: fleetID, Fleet: "shops", Trust: w.files[trustFile], Lowest: 1}.Anchor()
	if err != nil {
		w.t.Fatal(err)
	}
	return &machine{a, trust, fleetgen.MachineID(i, 0)}
}

// take is what a machine does with bytes from a hub.
func (m *machine) take(encoded []byte) (*Accepted, error) {
	s, err := DecodeSlice(encoded)
	if err != nil {
		return nil, err
	}
	got, err := Accept(s, m.anchor, m.trust, m.self)
	if err != nil {
		return nil, err
	}
	m.anchor, m.trust = got.Anchor, got.Trust
	return got, nil
}

func (m *machine) mustTake(t testing.TB, s *Slice) *Accepted {
	t.Helper()
	got, err := m.take(s.Encode())
	if err != nil {
		t.Fatalf("a valid release was refused: %v", err)
	}
	return got
}

// refuse checks that the machine refuses, for that reason, that it remembers nothing of it, and that it takes a valid release right after.
func (m *machine) refuse(t testing.TB, valid *world, encoded []byte, want error) {
	t.Helper()
	before := m.anchor
	_, err := m.take(encoded)
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if m.anchor != before {
		t.Errorf("a refusal changed the anchor from %+v to %+v", before, m.anchor)
	}
	valid.set("fleet.yaml", "hub.example.com", "hub2.example.com")
	valid.clock = valid.clock.Add(48 * time.Hour)
	valid.release("ci")
	got := m.mustTake(t, valid.slice(1))
	if got.Anchor.N != valid.last.Payload.N {
		t.Errorf("after the refusal: anchor at %d, want %d", got.Anchor.N, valid.last.Payload.N)
	}
}

// graft replaces the object at name in the tree of root and returns the new root; o.Data nil takes the entry away.
func (o Objects) graft(root ObjectID, name string, mode Mode, id ObjectID) ObjectID {
	entries, err := ParseTree(o[root].Data)
	if err != nil {
		panic(err)
	}
	first, rest, deeper := strings.Cut(name, "/")
	e, _ := lookup(entries, first)
	if deeper {
		mode, id = ModeFolder, o.graft(e.ID, rest, mode, id)
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool { return e.Name == first })
	if id != (ObjectID{}) {
		entries = append(entries, Entry{mode, first, id})
	}
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.sortKey(), b.sortKey()) })
	return o.put(KindTree, EncodeTree(entries))
}

func (o Objects) put(kind string, data []byte) ObjectID {
	id := HashObject(kind, data)
	o[id] = Object{kind, data}
	return id
}

func (o Objects) at(root ObjectID, name string) ObjectID {
	e, err := newTreeFS(o, root).descend(path.Clean(name))
	if err != nil {
		panic(name + ": " + err.Error())
	}
	return e.ID
}
