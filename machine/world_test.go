package machine

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/fleet/fleetgen"
	"github.com/holdfast-edge/holdfast/link"
	"github.com/holdfast-edge/holdfast/link/linktest"
	"github.com/holdfast-edge/holdfast/release"
)

const fleetID = fleet.ID("00112233445566778899aabbccddeeff")

var day0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// sshKey is the key of a person, always the same.
func sshKey(name string) ssh.Signer {
	seed := sha256.Sum256([]byte("key of " + name))
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		panic(err)
	}
	return s
}

func keyLine(name string) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshKey(name).PublicKey())))
}

func quiet() *slog.Logger {
	if os.Getenv("MACHINE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// world is a fleet repo, those who release from it, and its hub key.
type world struct {
	t       testing.TB
	hubKey  *link.Identity
	files   map[string][]byte
	objects release.Objects
	last    *release.Tag
	steps   []release.TrustStep
	further [][]byte // signatures beside the last tag
	seed    release.Seed
	clock   time.Time
}

func newWorld(t testing.TB, sites int) *world {
	w := &world{t: t, hubKey: linktest.NewIdentity(t), files: fleetgen.Files(sites), objects: release.Objects{}, clock: day0}
	w.trust(1, []string{"ops", "eye"}, "ci", "spare")
	w.seed = release.Seed{FleetID: fleetID, Fleet: "shops", Trust: w.files["trust.yaml"], Lowest: 1}
	return w
}

// trust writes a trust.yaml with these operators and release signers; a signer
// written "name until=TIME" has an end.
func (w *world) trust(version int, operators []string, signers ...string) {
	text := fmt.Sprintf("apiVersion: holdfast.dev/v1alpha1\nkind: Trust\nspec:\n  version: %d\n  signers:\n", version)
	for _, s := range signers {
		name, until, limited := strings.Cut(s, " until=")
		if limited {
			until = ", until: " + until
		}
		text += fmt.Sprintf("    - {name: %s, key: %s, roles: [release]%s}\n", name, keyLine(name), until)
	}
	text += "  operators:\n"
	for _, o := range operators {
		text += fmt.Sprintf("    - {name: %s, key: %s, roles: [read, operate]}\n", o, keyLine(o))
	}
	text += fmt.Sprintf("  hubs:\n    - {name: first, pin: %q, role: active}\n", w.hubKey.Pin())
	w.files["trust.yaml"] = []byte(text)
}

// adopt lists machines at site i as its only ones.
func (w *world) adopt(i int, ids ...fleet.MachineID) {
	text := "apiVersion: holdfast.dev/v1alpha1\nkind: Machines\nspec:\n  members:\n"
	for n, id := range ids {
		role := "worker"
		if n == 0 {
			role = "control-plane"
		}
		text += fmt.Sprintf("    - {name: m%d, id: %s, role: %s, siteAddress: 10.213.0.%d, protection: none}\n", n, id, role, 11+n)
	}
	w.files[w.machines(i)] = []byte(text)
}

// bury puts a machine out of site i.
func (w *world) bury(i int, id fleet.MachineID) {
	data, err := fleet.AddTombstone(w.files[w.machines(i)], fleet.Tombstone{ID: id, Verb: "stolen", Since: "2026-03-02"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.files[w.machines(i)] = data
}

func (w *world) machines(i int) string { return fleetgen.SiteDir(i) + "/machines.yaml" }

// city makes a one-line change that concerns site i alone.
func (w *world) city(i int, name string) {
	file := fleetgen.SiteDir(i) + "/site.yaml"
	lines := strings.Split(string(w.files[file]), "\n")
	for n, l := range lines {
		if strings.HasPrefix(l, "    city: ") {
			lines[n] = "    city: " + name
		}
	}
	w.files[file] = []byte(strings.Join(lines, "\n"))
}

// clone is a world that goes another way from here.
func (w *world) clone() *world {
	c := *w
	c.files, c.objects, c.steps = maps.Clone(w.files), maps.Clone(w.objects), slices.Clone(w.steps)
	return &c
}

func (w *world) payload() release.Payload {
	w.t.Helper()
	w.clock = w.clock.Add(time.Hour)
	root, err := release.Import(fleetgen.FS(w.files), w.objects.Add)
	if err != nil {
		w.t.Fatal(err)
	}
	trust, err := fleet.ParseTrust("trust.yaml", w.files["trust.yaml"])
	if err != nil {
		w.t.Fatal(err)
	}
	p := release.Payload{
		Object: strings.Repeat("0123456789", 4), TaggerName: "Ada Lovelace", TaggerEmail: "ada@example.com", TaggerTime: w.clock,
		Message: "Tills print again", FleetID: fleetID, N: 1, Time: w.clock,
		TrustVersion: trust.Version, TrustDigest: sha256.Sum256(w.files["trust.yaml"]), MinMachined: "0.1.0", Urgency: release.Normal, Root: ".", TreeSHA256: root,
	}
	if w.last != nil {
		p.N, p.Previous = w.last.Payload.N+1, w.last.Digest()
	}
	return p
}

// release makes the next release, by ci.
func (w *world) release() *release.Tag { w.t.Helper(); return w.releaseWith(nil, "ci") }

func (w *world) releaseWith(edit func(*release.Payload), by ...string) *release.Tag {
	w.t.Helper()
	p := w.payload()
	if edit != nil {
		edit(&p)
	}
	raw, err := release.SignTag(p, sshKey(by[0]))
	if err != nil {
		w.t.Fatal(err)
	}
	if w.last, err = release.ParseTag(raw); err != nil {
		w.t.Fatal(err)
	}
	w.further = nil
	for _, name := range by[1:] {
		s, err := release.SignPayload(w.last.PayloadBytes, sshKey(name))
		if err != nil {
			w.t.Fatal(err)
		}
		w.further = append(w.further, s)
	}
	if uint64(len(w.steps)) < p.TrustVersion {
		if s, err := release.NewTrustStep(w.objects, raw, w.further...); err == nil {
			w.steps = append(w.steps, s)
		}
	}
	return w.last
}

// slice cuts what site i needs of the last release. It carries no proof of the
// first trust, which nobody has to walk to.
func (w *world) slice(i int) *release.Slice {
	w.t.Helper()
	var steps []release.TrustStep
	if len(w.steps) > 1 {
		steps = w.steps
	}
	s, err := release.Cut(w.objects, w.last.Raw, fleetgen.SiteDir(i), steps...)
	if err != nil {
		w.t.Fatal(err)
	}
	s.Signatures = w.further
	return s
}
