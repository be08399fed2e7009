package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	component "k8s.io/component-base/version"

	"github.com/holdfast-edge/holdfast/kubernetes/dialect"
	"github.com/holdfast-edge/holdfast/kubernetes/store"
)

// heldAt is what a configuration's hold asks of this program.
func heldAt(hold string) (dialect.Dialect, error) {
	return dialect.Of(hold, component.Get().GitVersion, store.Minor())
}

// status is the file by which the caller judges a trial. Package kube of the main
// module reads it.
type status struct {
	Program        string `json:"program"`        // such as "v1.37.2"
	Speaks         string `json:"speaks"`         // minor of Kubernetes that is emulated or its own
	Held           bool   `json:"held"`           // speaks the minor before its own
	Etcd           string `json:"etcd"`           // such as "3.7.3"
	EtcdSpeaks     string `json:"etcdSpeaks"`     // such as "3.6"
	ClusterVersion string `json:"clusterVersion"` // of etcd's log
	StorageVersion string `json:"storageVersion"` // of etcd's database
	Members        int    `json:"members"`        // of etcd's cluster
	Downgrade      bool   `json:"downgrade,omitempty"`
	Ready          bool   `json:"ready"` // the API was ready, and its server has not ended since
}

// teller keeps the status file. Nothing stands there while the part does not run:
// what an earlier run left would be a lie.
type teller struct {
	file string

	mu   sync.Mutex
	last status
}

func newTeller(file string) *teller {
	t := &teller{file: file}
	t.clear()
	return t
}

func (t *teller) clear() {
	if t.file != "" {
		os.Remove(t.file)
	}
}

// follow tells what changes until ctx ends: versions rise soon after a start, or
// when the last member of a site has been lifted.
func (t *teller) follow(ctx context.Context, d dialect.Dialect, m *store.Member) {
	began := time.Now()
	for {
		v := m.Versions()
		t.tell(func(s *status) {
			s.Program, s.Speaks, s.Held = component.Get().GitVersion, d.Speaks(), d.Emulate != ""
			s.Etcd, s.EtcdSpeaks, s.ClusterVersion, s.StorageVersion, s.Members, s.Downgrade = v.Program, v.Speaks, v.Cluster, v.Storage, v.Members, v.Downgrade
		})
		pause := 10 * time.Second
		if time.Since(began) < time.Minute || v.Cluster != v.Storage {
			pause = 200 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return
		case <-m.Done():
			return
		case <-time.After(pause):
		}
	}
}

// tell changes the status and writes it where it differs. That it cannot be
// written is said and no reason to end: the caller sees that nothing is there.
func (t *teller) tell(change func(*status)) {
	if t.file == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.last
	change(&next)
	if next == t.last {
		return
	}
	if err := replace(t.file, next); err != nil {
		fmt.Fprintln(os.Stderr, "kube: status:", err)
		return
	}
	t.last = next
}

// replace writes the file whole. It is on tmpfs and worthless after a reboot, so
// nothing is synced.
func replace(file string, s status) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	part := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".part")
	if err := os.WriteFile(part, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(part, file)
}
