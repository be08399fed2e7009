package kube

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Ports that the parts of a machine agree on. All but the first three are on
// loopback.
const (
	APIPort     = 6443
	PeerPort    = 2380
	KubeletPort = 10250

	kubeletHealthPort = 10248
	proxyMetricsPort  = 10249
	proxyHealthPort   = 10256
	managerPort       = 10257
	schedulerPort     = 10259
	dnsHealthPort     = 10053
	dnsReadyPort      = 10054
)

// PauseImage holds a pod's namespaces. It is part of the OS, not of a release.
const PauseImage = "holdfast.dev/pause:1"

// RoleControlPlane is fleet.Machine.Role of a machine that runs etcd and the API.
const RoleControlPlane = "control-plane"

// MachinedUser is the Kubernetes user that machined on a machine of the site is.
// Only control planes get a certificate for theirs.
func MachinedUser(machine string) string { return "holdfast:machined:" + machine }

// OperatorUser is the Kubernetes user of a person, by the fingerprint of the key
// in trust.yaml. It is in no group: bindings are rendered from each release, so
// the next release revokes at the next request.
func OperatorUser(fingerprint string) string { return "op:" + fingerprint }

// Paths are the folders of a machine, as its own processes see them.
type Paths struct {
	Bin    string // the programs of bin/system
	Config string // the plan's files; on tmpfs, since they are made anew at each start
	Run    string // sockets and what is worthless after a reboot; tmpfs
	PKI    string // keys and certificates; STATE, no pod can write there
	Etcd   string // etcd's folder; STATE too, so that pods cannot fill it
	Data   string // images, volumes, logs; DATA
}

// DefaultPaths are those of a machine that owns its root.
func DefaultPaths() Paths {
	return Paths{
		Bin:    "/usr/lib/holdfast",
		Config: "/run/holdfast/kube",
		Run:    "/run/holdfast",
		PKI:    "/state/pki",
		Etcd:   "/state/etcd",
		Data:   "/data",
	}
}

// Options are what a plan depends on besides the release.
type Options struct {
	// Trust gives operators their rights; nil gives nobody any.
	Trust *fleet.Trust
	// Time is that of the release. An operator counts if it lies within his dates;
	// the zero time lets all count.
	Time time.Time
	// Hosted is a machine in namespaces of a host that it shares.
	Hosted bool
	// Split keeps controller manager and scheduler out of the API server's process
	// where they would share it: after a crash loop.
	Split bool
	// Registry is machined's registry on loopback, the only one that containerd
	// ever asks.
	Registry netip.AddrPort
	// Upstreams are the name servers that the LAN named, of which the first usable
	// ones are asked; the site's own choice wins.
	Upstreams []netip.Addr
	// PeerInterfaces are tunnels to the other machines of the site.
	PeerInterfaces []string
	// Memory is what the machine may use, in bytes; 0 is unknown, and counts as
	// plenty.
	Memory int64
	// Reserved is memory that others than pods need of what the kubelet sees,
	// in bytes: when hosted, the rest of the host too.
	Reserved int64
	// GCPercent is the collector's target of the control plane; 0 is the default.
	GCPercent int
	// Cluster says how etcd starts; the zero value is a cluster of this one.
	Cluster Cluster
	// Hold is the minor of Kubernetes before the one in Bin, such as "1.36", while
	// that one is on trial: nothing is written that the programs of that minor could
	// not read. "" is no hold, and so is Bin's own minor. To lift it is to plan
	// without it. Dialect judges both.
	Hold string
}

// Cluster is what has been decided about etcd's membership by whoever asked the
// other machines.
type Cluster struct {
	// Token is the cluster's ID; the site's UID by default.
	Token string
	// Members are all by name with their site addresses, this one among them.
	Members map[string]netip.Addr
	// Join says that the cluster exists and has this member in its list.
	Join bool
}

// Plan is everything that must stand on a machine for its Kubernetes to run.
type Plan struct {
	Machine      string
	ControlPlane bool
	// Addresses go on the loopback device, before anything is started.
	Addresses []netip.Prefix
	// Sysctls are kernel settings of the machine's network namespace.
	Sysctls map[string]string
	// Folders must exist; Fresh are removed at each boot, before the first start:
	// a corrupt one would stop its owner for ever, and none is worth anything then.
	Folders []Folder
	Fresh   []string
	Files   []File
	// Certificates are wanted before anything is started.
	Certificates []Certificate
	// PacketFilter is an nft script that replaces our one table as a whole.
	PacketFilter string
	// Commands in an order in which each follows those that it needs.
	Commands []Command
	// DialectFile says, while a control plane runs, what it speaks and which
	// versions its data has (ParseDialect); "" on a machine without one.
	DialectFile string
	// Objects are the cluster's own: rights, DNS, the API's address. On a control
	// plane the API server applies them to itself before it is ready; when they
	// change later, machined applies them.
	Objects []Object
}

// A Folder is made with the mode given, its parents with 0755.
type Folder struct {
	Path string
	Mode uint32
}

// A File is written whole. None holds a secret.
type File struct {
	Path    string
	Mode    uint32
	Content []byte
}

// A Command is a program to keep running.
type Command struct {
	Name  string
	Path  string
	Args  []string // without the program's name
	Env   []string // in addition to PATH
	After []string
	// Ready is when those that come after may start; the zero value is at once.
	Ready Ready
	// Grace is how long an ordered stop may take.
	Grace time.Duration
	// OOMScoreAdj is the kernel's preference when memory runs out.
	OOMScoreAdj int
	// Revision changes when a file changes that the program reads only at its start.
	Revision string
}

// Ready is a condition. At most one field is set.
type Ready struct {
	File   string // exists
	Socket string // accepts a connection
	URL    string // answers 200
}

// CA is one of a site's certificate authorities. They have nothing to do with one
// another: what one signs, the others' users refuse.
type CA string

const (
	CACluster    CA = "cluster"     // the API, its users, kubelets
	CAEtcd       CA = "etcd"        // etcd peers: with the cluster's, each kubelet would be one
	CAFrontProxy CA = "front-proxy" // the API server towards aggregated APIs
)

// A Certificate is one that is wanted, at PKI/Name.crt and PKI/Name.key. The CA's
// own certificate is at PKI/<CA>-ca.crt.
type Certificate struct {
	Name          string
	CA            CA
	CommonName    string
	Organizations []string
	DNSNames      []string
	Addresses     []netip.Addr
	Server        bool
	Client        bool
}

// New plans machine self of the resolved site.
func New(r *fleet.Resolved, self fleet.Machine, p Paths, o Options) (*Plan, error) {
	s, err := newSite(r, self, p, o)
	if err != nil {
		return nil, fmt.Errorf("plan Kubernetes of machine %s at site %s: %w", self.Name, r.Site, err)
	}
	plan := &Plan{
		Machine:      self.Name,
		ControlPlane: s.controlPlane,
		Addresses:    s.addresses(),
		Sysctls:      s.sysctls(),
		Certificates: s.certificates(),
		PacketFilter: s.packetFilter(),
		Fresh:        s.fresh(),
		Folders:      s.folders(),
	}
	if plan.Objects, err = s.objects(); err != nil {
		return nil, err
	}
	s.containerd()
	s.node()
	s.dns()
	if s.controlPlane {
		if err := s.controlPlaneFiles(plan.Objects); err != nil {
			return nil, err
		}
		plan.DialectFile = s.dialectFile()
	}
	plan.Files = s.files
	slices.SortFunc(plan.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	plan.Commands = s.commands(plan.Files)
	return plan, nil
}

// site is the input with what follows from it at once, and the files so far.
type site struct {
	*fleet.Resolved
	self         fleet.Machine
	paths        Paths
	opts         Options
	controlPlane bool
	planes       int // control planes of the site
	dnsAddress   netip.Addr
	apiService   netip.Addr
	upstreams    []netip.Addr
	files        []File
}

func newSite(r *fleet.Resolved, self fleet.Machine, p Paths, o Options) (*site, error) {
	s := &site{Resolved: r, self: self, paths: p, opts: o, controlPlane: self.Role == RoleControlPlane}
	listed := false
	for _, m := range r.Machines {
		if m.Role == RoleControlPlane {
			s.planes++
		}
		listed = listed || m.Name == self.Name && m.SiteAddress == self.SiteAddress
	}
	n := r.Network
	switch {
	case !listed:
		return nil, fmt.Errorf("the release does not list it with address %v", self.SiteAddress)
	case s.planes == 0:
		return nil, fmt.Errorf("no machine of the site is a control plane")
	case !n.SiteRange.Contains(self.SiteAddress) || !n.SiteRange.Contains(n.APIAddress):
		return nil, fmt.Errorf("its address %v or the API's %v is not in the site range %v", self.SiteAddress, n.APIAddress, n.SiteRange)
	case self.SiteAddress == n.APIAddress:
		return nil, fmt.Errorf("its address %v is the API's", self.SiteAddress)
	case !o.Registry.IsValid():
		return nil, fmt.Errorf("no registry on loopback given")
	case o.Hold != "" && !minors.MatchString(o.Hold):
		return nil, fmt.Errorf("held at %q, which is no minor of Kubernetes such as 1.36", o.Hold)
	}
	s.apiService = nth(n.ServiceRange, 1)
	s.dnsAddress = nth(n.ServiceRange, 10)
	s.upstreams = n.DNS
	if len(s.upstreams) == 0 {
		s.upstreams = s.usable(o.Upstreams)
	}
	return s, nil
}

// mostUpstreams is how many name servers a pod's resolv.conf may name.
const mostUpstreams = 3

// usable are those name servers of list that CoreDNS may ask: anybody on the LAN
// can answer DHCP, and CoreDNS ends for good when it finds that it asks itself, or
// that there are too many.
func (s *site) usable(list []netip.Addr) []netip.Addr {
	n := s.Network
	var keep []netip.Addr
	for _, a := range list {
		a = a.Unmap()
		inside := n.SiteRange.Contains(a) || n.PodRange.Contains(a) || n.ServiceRange.Contains(a)
		if a.IsGlobalUnicast() && !inside && !slices.Contains(keep, a) && len(keep) < mostUpstreams {
			keep = append(keep, a)
		}
	}
	return keep
}

// nth is address i of a range; Kubernetes gives the first to the API and our DNS
// takes the tenth, as everywhere.
func nth(p netip.Prefix, i int) netip.Addr {
	a := p.Masked().Addr()
	for range i {
		a = a.Next()
	}
	return a
}

func (s *site) addresses() []netip.Prefix {
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	return []netip.Prefix{host(s.self.SiteAddress), host(s.Network.APIAddress)}
}

// apiEndpoint is the API server that this machine's own parts use.
func (s *site) apiEndpoint() string {
	if s.controlPlane {
		return hostPort(s.self.SiteAddress, APIPort)
	}
	return hostPort(s.Network.APIAddress, APIPort)
}

func (s *site) merged() bool { return s.planes == 1 && !s.opts.Split }

func (s *site) pki(name string) string    { return path.Join(s.paths.PKI, name) }
func (s *site) ca(ca CA) string           { return s.pki(string(ca) + "-ca.crt") }
func (s *site) config(name string) string { return path.Join(s.paths.Config, name) }
func (s *site) run(name string) string    { return path.Join(s.paths.Run, name) }
func (s *site) data(name string) string   { return path.Join(s.paths.Data, name) }
func (s *site) bin(name string) string    { return path.Join(s.paths.Bin, name) }

func (s *site) dialectFile() string { return s.run("control-plane.status") }

func (s *site) write(name string, content []byte) {
	s.files = append(s.files, File{Path: s.config(name), Mode: 0o644, Content: content})
}

func hostPort(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func loopback(port uint16) string { return hostPort(netip.MustParseAddr("127.0.0.1"), port) }

func (s *site) fresh() []string {
	return []string{
		s.data("kubelet/cpu_manager_state"),
		s.data("kubelet/memory_manager_state"),
		s.data("kubelet/dra_manager_state"),
		s.data("kubelet/allocated_pods_state"),
		s.data("kubelet/actuated_pods_state"),
	}
}

func (s *site) folders() []Folder {
	list := []Folder{
		{s.paths.Config, 0o755},
		{s.paths.Run, 0o755},
		{s.run("cni"), 0o755},
		{s.data("containerd"), 0o711},
		{s.data("kubelet"), 0o700},
		{s.data("log/pods"), 0o755},
		{s.data("log/containers"), 0o755},
	}
	if s.controlPlane {
		list = append(list, Folder{s.paths.Etcd, 0o700}, Folder{s.data("log/audit"), 0o700})
	}
	return list
}

// commands are in the order in which they may start; machined's supervisor keeps
// it by After.
func (s *site) commands(files []File) []Command {
	kube := s.bin("kube")
	part := func(name, file string, after ...string) Command {
		ready := s.run(name + ".ready")
		return Command{
			Name:     name,
			Path:     kube,
			Args:     []string{name, "--config", s.config(file), "--ready-file", ready},
			After:    after,
			Ready:    Ready{File: ready},
			Grace:    45 * time.Second,
			Revision: revision(files, s.config(file)),
		}
	}
	list := []Command{{
		Name:        "containerd",
		Path:        s.bin("containerd"),
		Args:        []string{"--config", s.config("containerd.toml")},
		Ready:       Ready{Socket: s.run("containerd/containerd.sock")},
		Env:         []string{"GOGC=50"},
		Grace:       10 * time.Second,
		OOMScoreAdj: -900,
		Revision:    revision(files, s.config("containerd.toml"), s.config("cni.conflist.template")),
	}}
	if s.controlPlane {
		c := part("control-plane", "control-plane.json")
		c.OOMScoreAdj = -900
		c.Args = append(c.Args, "--status-file", s.dialectFile())
		if s.small() {
			c.Env = []string{"GOMEMLIMIT=" + controlPlaneLimit}
		}
		c.Revision = revision(files, s.config("control-plane.json"), s.config("audit.yaml"), s.config("admission.yaml"), s.config("authentication.yaml"))
		list = append(list, c)
		if !s.merged() {
			list = append(list, part("controllers", "controllers.json", "control-plane"))
		}
	}
	// The node does not wait for the control plane: its first steps need none, and
	// the two together are up about three seconds earlier.
	node := part("node", "node.json", "containerd")
	node.OOMScoreAdj = -900
	node.Revision = revision(files, s.config("node.json"), s.config("kubelet.yaml")) // resolv.conf is read for each pod
	dns := Command{
		Name:     "coredns",
		Path:     s.bin("coredns"),
		Args:     []string{"-conf", s.config("Corefile")},
		Env:      []string{"GOGC=50"},
		Ready:    Ready{URL: "http://" + loopback(dnsReadyPort) + "/ready"},
		Grace:    5 * time.Second,
		Revision: revision(files, s.config("Corefile")),
	}
	if s.controlPlane {
		dns.After = []string{"control-plane"}
	}
	return append(list, node, dns)
}

// revision is a digest over the named files.
func revision(files []File, names ...string) string {
	h := sha256.New()
	for _, f := range files {
		if slices.Contains(names, f.Path) {
			h.Write([]byte(f.Path + " " + strconv.Itoa(len(f.Content)) + "\n"))
			h.Write(f.Content)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
