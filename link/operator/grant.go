package operator

import (
	"context"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/link"
)

// Roles that a session may hold. Admin may all that Operate may, and Operate all
// that Read may. Signers open sessions too, with their own roles, which imply
// nothing.
const (
	Read    = "read"
	Operate = "operate"
	Admin   = "admin"

	Release   = "release"
	Promote   = "promote"
	Heartbeat = "heartbeat"
)

// implied are the roles that holding one amounts to, itself first.
func implied(role string) []string {
	switch role {
	case Admin:
		return []string{Admin, Operate, Read}
	case Operate:
		return []string{Operate, Read}
	}
	return []string{role}
}

// Grant is an open session: who it is and what it may, as trust says now.
type Grant struct {
	Name        string    // of the key in trust.yaml
	Person      string    // whose it is
	Fingerprint string    // SHA256:… of the SSH key
	Client      link.Pin  // the TLS key that is honoured
	Roles       []string  // wanted, and held
	Ends        time.Time // by the target's clock; for people

	entries []entry
}

// Allows tells whether the session has a role for a site; matches says whether a
// selector of trust.yaml chooses the site (fleet.Site.Matches). A nil matches
// asks for the whole fleet, which scoped keys do not have.
func (g *Grant) Allows(role string, matches func(selector string) bool) bool {
	if !g.Has(role) {
		return false
	}
	return slices.ContainsFunc(g.entries, func(e entry) bool { return e.holds(role) && e.covers(matches) })
}

// Has tells whether the session has a role at all, for whichever sites.
func (g *Grant) Has(role string) bool {
	return slices.ContainsFunc(g.Roles, func(held string) bool { return slices.Contains(implied(held), role) })
}

// entry is one line of trust.yaml: a key, its roles and where they hold.
type entry struct {
	name, person string
	roles, sites []string
	from, until  *time.Time
}

func (e entry) holds(role string) bool {
	return slices.ContainsFunc(e.roles, func(held string) bool { return slices.Contains(implied(held), role) })
}

func (e entry) covers(matches func(string) bool) bool {
	if len(e.sites) == 0 {
		return true
	}
	return matches != nil && slices.ContainsFunc(e.sites, matches)
}

func (e entry) valid(at time.Time) bool {
	return (e.from == nil || !at.Before(*e.from)) && (e.until == nil || !at.After(*e.until))
}

// keyring is a trust by fingerprint.
type keyring map[string][]entry

func newKeyring(t *fleet.Trust) keyring {
	ring := make(keyring)
	add := func(line string, e entry) {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil || !allowed(key) {
			return // who reads trust.yaml has refused it; here it opens nothing
		}
		print := ssh.FingerprintSHA256(key)
		ring[print] = append(ring[print], e)
	}
	for _, o := range t.Operators {
		add(o.Key, entry{o.Name, o.Person, o.Roles, o.Sites, o.From, o.Until})
	}
	for _, s := range t.Signers {
		add(s.Key, entry{s.Name, s.Person, s.Roles, nil, s.From, s.Until})
	}
	return ring
}

type grantKey struct{}

// From is the session of a request that an Authority's Handler passed on.
func From(ctx context.Context) (*Grant, bool) {
	g, ok := ctx.Value(grantKey{}).(*Grant)
	return g, ok
}
