package store

import (
	"fmt"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// program is what this etcd is, whatever it says of itself later.
var program = version.Version

// Minor is the minor of the etcd in this program, such as "3.7".
func Minor() string { return version.Cluster(program) }

// speak decides what this etcd says of itself, to its peers and to itself.
//
// etcd raises the version of a cluster, and with it the format of its log and
// database, within a second of the moment when its oldest member is new; an older
// program then refuses the data for ever. The way back that etcd offers, its
// downgrade call, is granted only after the version has risen: whoever is killed
// in between is locked out. So a held member calls itself one of the older minor.
// It is then what a new member in a cluster with old ones is, which every minor
// of etcd supports for as long as one likes, and nothing rises, not even for a
// moment, on any member of the site. etcd reads the variable when it decides;
// nothing of it is written down, so that lifting is a start without.
func speak(minor string) error {
	version.Version = program
	if minor == "" || minor == Minor() {
		return nil
	}
	own, err := parseMinor(Minor())
	if err != nil {
		return err
	}
	held, err := parseMinor(minor)
	if err != nil {
		return err
	}
	if held[0] != own[0] || held[1] != own[1]-1 {
		return fmt.Errorf("etcd %s cannot be held at %s: only at the minor before its own", program, minor)
	}
	version.Version = minor + ".0"
	return nil
}

func parseMinor(s string) (v [2]int, err error) {
	major, minor, ok := strings.Cut(s, ".")
	if ok {
		if v[0], err = strconv.Atoi(major); err == nil {
			v[1], err = strconv.Atoi(minor)
		}
	}
	if !ok || err != nil {
		return v, fmt.Errorf("etcd minor %q is not like 3.6", s)
	}
	return v, nil
}

// Versions are what a member is and what its data is. Cluster decides what may be
// written to the log, Storage is the format of the database; both are empty while
// undecided.
type Versions struct {
	Program   string
	Speaks    string
	Cluster   string
	Storage   string
	Members   int  // of the cluster: Cluster rises when the last of them is lifted
	Downgrade bool // etcd's own downgrade is going on, which this program never asks for
}

// Versions are the member's at this moment.
func (m *Member) Versions() Versions {
	s := m.etcd.Server
	v := Versions{Program: program, Speaks: version.Cluster(version.Version), Members: len(s.Cluster().Members())}
	if c := s.ClusterVersion(); c != nil {
		v.Cluster = version.Cluster(c.String())
	}
	if c := s.StorageVersion(); c != nil {
		v.Storage = version.Cluster(c.String())
	}
	if d := etcdserver.NewServerVersionAdapter(s).GetDowngradeInfo(); d != nil {
		v.Downgrade = d.Enabled
	}
	return v
}
