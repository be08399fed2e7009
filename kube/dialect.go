package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
)

// minors are those of Kubernetes.
var minors = regexp.MustCompile(`^1\.[1-9][0-9]{0,2}$`)

// Dialect is what a running control plane speaks, and the versions of its data.
//
// A machine on trial of a new minor is held: its programs are new, and all that
// they write is in the dialect of the minor before. It may be blessed while Held
// says that the hold holds. Once blessed, it is planned without Options.Hold; it
// is done when Lifted says so, and until then the trial's record stands. Neither
// may be concluded from the options of a plan: they are what is wanted, this is
// what is.
type Dialect struct {
	Program        string `json:"program"`        // such as "v1.37.2"
	Speaks         string `json:"speaks"`         // minor of Kubernetes, its own or the one before
	Hold           bool   `json:"held"`           // it speaks the one before
	Etcd           string `json:"etcd"`           // such as "3.7.3"
	EtcdSpeaks     string `json:"etcdSpeaks"`     // minor of etcd, its own or the one before
	ClusterVersion string `json:"clusterVersion"` // of etcd's log, "" while undecided
	StorageVersion string `json:"storageVersion"` // of etcd's database, "" while undecided
	Members        int    `json:"members"`        // of etcd's cluster
	Downgrade      bool   `json:"downgrade"`      // etcd's own downgrade is going on
	Ready          bool   `json:"ready"`          // the API is
}

// ParseDialect reads the content of Plan.DialectFile. The file is there only while
// a control plane runs, but a killed one leaves it behind until the next start: it
// is worth as much as the process that wrote it.
func ParseDialect(data []byte) (Dialect, error) {
	var d Dialect
	r := json.NewDecoder(bytes.NewReader(data))
	r.DisallowUnknownFields()
	if err := r.Decode(&d); err != nil {
		return Dialect{}, fmt.Errorf("read what the control plane speaks: %w", err)
	}
	if d.Program == "" || d.Speaks == "" || d.Etcd == "" || d.EtcdSpeaks == "" {
		return Dialect{}, fmt.Errorf("read what the control plane speaks: %s says neither which program nor which minor", bytes.TrimSpace(data))
	}
	return d, nil
}

// Held is nil where nothing has been written that the programs of minor hold could
// not read.
func (d Dialect) Held(hold string) error {
	switch {
	case d.Speaks != hold:
		return fmt.Errorf("the control plane %s speaks Kubernetes %s, not %s: the programs before could not read its data", d.Program, d.Speaks, hold)
	case d.ClusterVersion != d.EtcdSpeaks || d.StorageVersion != d.EtcdSpeaks:
		return fmt.Errorf("etcd %s speaks %s, but its log is at %q and its database at %q", d.Etcd, d.EtcdSpeaks, d.ClusterVersion, d.StorageVersion)
	}
	return nil
}

// Lifted is nil where the control plane speaks its own minor, its data has followed
// and the API is ready. With several control planes each is lifted by itself: the
// site's data follows when the last one is, and nobody waits for that here.
func (d Dialect) Lifted() error {
	switch {
	case d.Hold:
		return fmt.Errorf("the control plane %s still speaks Kubernetes %s", d.Program, d.Speaks)
	case d.ClusterVersion == "" || d.ClusterVersion != d.StorageVersion:
		return fmt.Errorf("etcd %s has its log at %q and its database at %q: they are not one yet", d.Etcd, d.ClusterVersion, d.StorageVersion)
	case d.Members <= 1 && d.ClusterVersion != d.EtcdSpeaks:
		return fmt.Errorf("etcd %s has its log and its database at %s, both should be %s", d.Etcd, d.ClusterVersion, d.EtcdSpeaks)
	case !d.Ready:
		return fmt.Errorf("the API of %s is not ready", d.Program)
	}
	return nil
}
