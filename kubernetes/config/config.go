// Package config is the file format between whoever plans a machine's
// Kubernetes and the kube binary: plain argument lists per component, and the
// few things that have no flag because the component is embedded.
//
// Files are JSON, decoded strictly: an unknown key is an error that names it,
// so that a plan made for another version of the binary is refused and not half
// obeyed. It checks what it can without touching anything, and leaves the
// arguments themselves to the components.
package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// ControlPlane configures etcd and the API server, and, where their arguments
// are given, the controller manager and the scheduler in the same process.
type ControlPlane struct {
	Etcd Etcd `json:"etcd"`
	// APIServer are the arguments of kube-apiserver. --etcd-servers is set by
	// the binary.
	APIServer []string `json:"apiServer"`
	// Bootstrap is a file with a JSON list of objects that the API server puts
	// in place, by server-side apply as itself, before it reports ready. That is
	// how the first rights come into an empty cluster although nobody holds
	// system:masters. Empty means none.
	Bootstrap string `json:"bootstrap,omitempty"`
	// Probe is where /readyz is asked.
	Probe Probe `json:"probe"`
	// ControllerManager and Scheduler are the arguments of both; absent means
	// that they run elsewhere. Either both or none.
	ControllerManager []string `json:"controllerManager,omitempty"`
	Scheduler         []string `json:"scheduler,omitempty"`
	// Hold is the minor of Kubernetes before the program's own, such as "1.36":
	// everything is written so that the programs of that minor can read it, until
	// a start without it. The program's own minor and "" hold nothing.
	Hold   string `json:"hold,omitempty"`
	Memory Memory `json:"memory"`
}

// Controllers configures a process of controller manager and scheduler.
type Controllers struct {
	// Probe is the API server that is waited for first.
	Probe             Probe    `json:"probe"`
	ControllerManager []string `json:"controllerManager"`
	Scheduler         []string `json:"scheduler"`
	// Hold is as in ControlPlane.
	Hold   string `json:"hold,omitempty"`
	Memory Memory `json:"memory"`
}

// Node configures kubelet and service proxy.
type Node struct {
	Kubelet []string `json:"kubelet"`
	Proxy   []string `json:"proxy"`
	// Healthz is kubelet's own health URL; ready means that it answers.
	Healthz string `json:"healthz"`
	// Probe is the API server that the proxy waits for before it first asks: what
	// asks too early backs off for seconds.
	Probe  Probe  `json:"probe"`
	Memory Memory `json:"memory"`
}

// Probe names an API server and the CA that its certificate must chain to.
type Probe struct {
	// Address is host:port.
	Address string `json:"address"`
	// ServerName is the constant name that the certificate must carry.
	ServerName string `json:"serverName"`
	CA         string `json:"ca"`
}

// Memory trades processor time for memory. A start makes much garbage and is
// waited for; the years after are not. GOGC in the environment overrules both
// percentages, which are as GOGC; 0 leaves Go's default.
type Memory struct {
	// StartGCPercent holds from the start until the part settles.
	StartGCPercent int `json:"startGCPercent,omitempty"`
	// GCPercent holds from then on.
	GCPercent int `json:"gcPercent,omitempty"`
	// SettleSeconds, counted from ready, is when that happens. What the start used
	// is then given back to the kernel.
	SettleSeconds int `json:"settleSeconds,omitempty"`
	// FreeSeconds is how often that is repeated. A client that reads the whole
	// OpenAPI document leaves 40 MiB behind that the runtime would keep for long.
	// 0 means never.
	FreeSeconds int `json:"freeSeconds,omitempty"`
}

// Etcd configures the embedded member.
type Etcd struct {
	Name    string `json:"name"`
	DataDir string `json:"dataDir"`
	// PeerURL is both listened on and advertised: https, the site address.
	PeerURL string `json:"peerURL"`
	// PeerCert, PeerKey and PeerCA are files. The CA is etcd's own: with the
	// cluster's, every kubelet would be a peer.
	PeerCert string `json:"peerCert"`
	PeerKey  string `json:"peerKey"`
	PeerCA   string `json:"peerCA"`
	// InitialCluster maps member names to peer URLs. It is read only where the
	// data directory is empty.
	InitialCluster map[string]string `json:"initialCluster"`
	// Join says that an empty directory joins a cluster that exists; false starts
	// a new one.
	Join bool `json:"join,omitempty"`
	// Token keeps two clusters that share addresses apart.
	Token string `json:"token"`
	// HeartbeatMillis and ElectionMillis default to 100 and 1000.
	HeartbeatMillis uint `json:"heartbeatMillis,omitempty"`
	ElectionMillis  uint `json:"electionMillis,omitempty"`
	// QuotaBytes defaults to 512 MiB.
	QuotaBytes int64 `json:"quotaBytes,omitempty"`
	// SnapshotEntries is how many entries of the log there are from one snapshot to
	// the next; 0 is upstream's 10 000.
	SnapshotEntries uint64 `json:"snapshotEntries,omitempty"`
	// CheckAtStart compares this member's data with the others' before it serves.
	CheckAtStart bool `json:"checkAtStart,omitempty"`
	// Speak is the minor of etcd that the member calls itself, such as "3.6": its
	// own or the one before; "" is its own. It follows from ControlPlane.Hold.
	Speak string `json:"-"`
}

// Heartbeat is the interval between a leader's signs of life.
func (e Etcd) Heartbeat() time.Duration {
	if e.HeartbeatMillis == 0 {
		return 100 * time.Millisecond
	}
	return time.Duration(e.HeartbeatMillis) * time.Millisecond
}

// Election is how long a member waits for a leader's sign.
func (e Etcd) Election() time.Duration {
	if e.ElectionMillis == 0 {
		return time.Second
	}
	return time.Duration(e.ElectionMillis) * time.Millisecond
}

// Quota is the size at which etcd refuses to grow.
func (e Etcd) Quota() int64 {
	if e.QuotaBytes == 0 {
		return 512 << 20
	}
	return e.QuotaBytes
}

// LoadControlPlane reads and checks a control plane's file.
func LoadControlPlane(path string) (*ControlPlane, error) {
	c := new(ControlPlane)
	return c, load(path, c)
}

// LoadControllers reads and checks a controllers file.
func LoadControllers(path string) (*Controllers, error) {
	c := new(Controllers)
	return c, load(path, c)
}

// LoadNode reads and checks a node's file.
func LoadNode(path string) (*Node, error) {
	c := new(Node)
	return c, load(path, c)
}

type checked interface{ check() error }

func load(path string, into checked) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := decode(data, into); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}

func decode(data []byte, into checked) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something stands after the document")
	}
	return into.check()
}

func (c *ControlPlane) check() error {
	return errors.Join(
		c.Etcd.check(),
		c.Probe.check(),
		some("apiServer", c.APIServer),
		noFlag("apiServer", c.APIServer, "--etcd-servers"),
		noFlag("apiServer", c.APIServer, "--emulated-version"),
		noFlag("controllerManager", c.ControllerManager, "--emulated-version"),
		both(c.ControllerManager, c.Scheduler),
		minor("hold", c.Hold),
	)
}

func (c *Controllers) check() error {
	return errors.Join(
		c.Probe.check(),
		some("controllerManager", c.ControllerManager),
		noFlag("controllerManager", c.ControllerManager, "--emulated-version"),
		some("scheduler", c.Scheduler),
		minor("hold", c.Hold),
	)
}

func (c *Node) check() error {
	return errors.Join(
		c.Probe.check(),
		some("kubelet", c.Kubelet),
		some("proxy", c.Proxy),
		given("healthz", c.Healthz),
	)
}

func (p Probe) check() error {
	return errors.Join(given("probe.address", p.Address), given("probe.ca", p.CA))
}

func (e Etcd) check() error {
	err := errors.Join(
		given("etcd.name", e.Name),
		given("etcd.dataDir", e.DataDir),
		given("etcd.peerCert", e.PeerCert),
		given("etcd.peerKey", e.PeerKey),
		given("etcd.peerCA", e.PeerCA),
		given("etcd.token", e.Token),
	)
	if !strings.HasPrefix(e.PeerURL, "https://") {
		err = errors.Join(err, fmt.Errorf("etcd.peerURL: %q is not an https URL", e.PeerURL))
	}
	if got, ok := e.InitialCluster[e.Name]; !ok || got != e.PeerURL {
		err = errors.Join(err, fmt.Errorf("etcd.initialCluster: member %q is missing or has another URL than etcd.peerURL", e.Name))
	}
	if 5*e.Heartbeat() > e.Election() {
		err = errors.Join(err, fmt.Errorf("etcd.electionMillis: %v is less than five heartbeats of %v", e.Election(), e.Heartbeat()))
	}
	return err
}

func given(field, value string) error {
	if value == "" {
		return fmt.Errorf("%s: missing", field)
	}
	return nil
}

func some(field string, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s: no arguments", field)
	}
	return nil
}

func noFlag(field string, args []string, flag string) error {
	for _, a := range args {
		if a == flag || strings.HasPrefix(a, flag+"=") {
			return fmt.Errorf("%s: %s is set by this program", field, flag)
		}
	}
	return nil
}

var minors = regexp.MustCompile(`^1\.[1-9][0-9]{0,2}$`)

func minor(field, value string) error {
	if value != "" && !minors.MatchString(value) {
		return fmt.Errorf("%s: %q is no minor of Kubernetes such as 1.36", field, value)
	}
	return nil
}

func both(a, b []string) error {
	if (len(a) == 0) != (len(b) == 0) {
		return errors.New("controllerManager, scheduler: one without the other")
	}
	return nil
}
