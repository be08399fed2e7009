// Package store is etcd inside the control plane's process: one member, without
// a client port, whose clients are function calls.
//
// It promises that the member speaks to peers by mutual TLS only, that a stop
// hands leadership on first, and that the two failures which a restart cannot
// mend are told apart from all others: damaged data ([ExitDamaged]) and data
// written by a newer etcd ([ExitNewer]). A member that is told to speak the minor
// before its own writes nothing that the older program could not read, from its
// first entry on. It leaves membership, snapshots and
// the decision what to do about damage to the machine.
package store

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unsafe"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/holdfast-edge/holdfast/kubernetes/config"
)

// Endpoint is the name that clients of the embedded member carry where others
// carry a URL. It is never dialled.
const Endpoint = "http://etcd.embedded:0"

// walSegment is what etcd preallocates per log file, and it keeps two: 128 MB
// by upstream's default, most of a small machine's STATE.
const walSegment = 16 << 20

// Member is a running etcd member.
type Member struct {
	etcd *embed.Etcd
}

// Start starts the member and waits until it serves, or ctx ends. Damage ends
// the process, by way of exit: etcd's own code offers no way to return from it.
// The caller passes os.Exit.
func Start(ctx context.Context, c config.Etcd, exit func(code int)) (m *Member, err error) {
	wal.SegmentSizeBytes = walSegment
	if err := speak(c.Speak); err != nil {
		return nil, err
	}
	cfg, err := embedded(c, exit)
	if err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			failure{exit}.judge(fmt.Sprint("panic while starting: ", r))
			panic(r)
		}
	}()
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		if code := verdict(err.Error()); code != ExitFailed {
			failure{exit}.judge(err.Error())
		}
		return nil, fmt.Errorf("start etcd on %s: %w", c.DataDir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return &Member{etcd: e}, nil
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("etcd on %s: %w", c.DataDir, err)
	case <-ctx.Done():
		e.Close()
		return nil, fmt.Errorf("waiting for etcd on %s: %w", c.DataDir, context.Cause(ctx))
	}
}

// Done is closed when the member has stopped, whoever stopped it.
func (m *Member) Done() <-chan struct{} { return m.etcd.Server.StopNotify() }

// Close stops the member: leadership goes to another member where there is one,
// then the log is synced and closed.
func (m *Member) Close() { m.etcd.Close() }

// Client returns a new client whose calls are calls of functions. It is the
// caller's to close.
func (m *Member) Client() (*clientv3.Client, error) { return newClient(m.etcd.Server) }

func embedded(c config.Etcd, exit func(int)) (*embed.Config, error) {
	peer, err := url.Parse(c.PeerURL)
	if err != nil {
		return nil, fmt.Errorf("peer URL of etcd: %w", err)
	}
	cfg := embed.NewConfig()
	cfg.Name = c.Name
	cfg.Dir = c.DataDir
	cfg.ListenPeerUrls = []url.URL{*peer}
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	cfg.ListenClientUrls = nil
	cfg.AdvertiseClientUrls = nil
	cfg.PeerTLSInfo = transport.TLSInfo{
		CertFile:       c.PeerCert,
		KeyFile:        c.PeerKey,
		TrustedCAFile:  c.PeerCA,
		ClientCertAuth: true,
	}
	cfg.TlsMinVersion = "TLS1.3"
	cfg.InitialCluster = initialCluster(c.InitialCluster)
	cfg.InitialClusterToken = c.Token
	cfg.ClusterState = embed.ClusterStateFlagNew
	if c.Join {
		cfg.ClusterState = embed.ClusterStateFlagExisting
	}
	cfg.TickMs = uint(c.Heartbeat() / time.Millisecond)
	cfg.ElectionMs = uint(c.Election() / time.Millisecond)
	cfg.QuotaBackendBytes = c.Quota()
	if c.SnapshotEntries > 0 {
		cfg.SnapshotCount = c.SnapshotEntries
	}
	// The API server asks for progress where it needs it, and compacts.
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "0"
	if c.CheckAtStart {
		gate := cfg.ServerFeatureGate.(interface{ Set(string) error })
		if err := gate.Set(string(features.InitialCorruptCheck) + "=true"); err != nil {
			return nil, fmt.Errorf("switch on etcd's check at start: %w", err)
		}
	}
	// Two learners at once: from one control plane to three without a stop at
	// two voters, where either one's loss stops the site.
	cfg.MaxLearners = 2
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger(os.Stderr, failure{exit}))
	return cfg, nil
}

func initialCluster(members map[string]string) string {
	list := make([]string, 0, len(members))
	for name, u := range members {
		list = append(list, name+"="+u)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// newClient is v3client.New with the endpoint list filled.
//
// clientv3 keeps that list in an unexported field which only a dialled client
// can set, yet the API server's feature checker (watch progress, hence lists
// from its cache), size metrics and compactor walk it, and do nothing, silently,
// where it is empty. So it is set here, and checked: where a newer etcd has moved
// it, this fails loudly instead.
func newClient(s *etcdserver.EtcdServer) (*clientv3.Client, error) {
	c := v3client.New(s)
	f := reflect.ValueOf(c).Elem().FieldByName("endpoints")
	if !f.IsValid() || f.Type() != reflect.TypeFor[[]string]() {
		return nil, fmt.Errorf("clientv3.Client has no field endpoints []string any more: this etcd needs another way to name the embedded member")
	}
	*(*[]string)(unsafe.Pointer(f.UnsafeAddr())) = []string{Endpoint}
	if got := c.Endpoints(); !slices.Equal(got, []string{Endpoint}) {
		return nil, fmt.Errorf("endpoints of the embedded etcd client are %q, want %q", got, Endpoint)
	}
	return c, nil
}
