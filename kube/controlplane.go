package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
)

// The files of the kube binary (its package config documents them). They are
// written here as plain data, since that binary is a module of its own.
type (
	etcdFile struct {
		Name            string            `json:"name"`
		DataDir         string            `json:"dataDir"`
		PeerURL         string            `json:"peerURL"`
		PeerCert        string            `json:"peerCert"`
		PeerKey         string            `json:"peerKey"`
		PeerCA          string            `json:"peerCA"`
		InitialCluster  map[string]string `json:"initialCluster"`
		Join            bool              `json:"join,omitempty"`
		Token           string            `json:"token"`
		HeartbeatMillis uint              `json:"heartbeatMillis,omitempty"`
		ElectionMillis  uint              `json:"electionMillis,omitempty"`
		QuotaBytes      int64             `json:"quotaBytes,omitempty"`
		CheckAtStart    bool              `json:"checkAtStart,omitempty"`
	}
	probeFile struct {
		Address    string `json:"address"`
		ServerName string `json:"serverName"`
		CA         string `json:"ca"`
	}
	memoryFile struct {
		StartGCPercent int `json:"startGCPercent,omitempty"`
		GCPercent      int `json:"gcPercent,omitempty"`
		SettleSeconds  int `json:"settleSeconds,omitempty"`
		FreeSeconds    int `json:"freeSeconds,omitempty"`
	}
	controlPlaneFile struct {
		Etcd              etcdFile   `json:"etcd"`
		APIServer         []string   `json:"apiServer"`
		Bootstrap         string     `json:"bootstrap,omitempty"`
		Probe             probeFile  `json:"probe"`
		ControllerManager []string   `json:"controllerManager,omitempty"`
		Scheduler         []string   `json:"scheduler,omitempty"`
		Hold              string     `json:"hold,omitempty"`
		Memory            memoryFile `json:"memory"`
	}
	controllersFile struct {
		Probe             probeFile  `json:"probe"`
		ControllerManager []string   `json:"controllerManager"`
		Scheduler         []string   `json:"scheduler"`
		Hold              string     `json:"hold,omitempty"`
		Memory            memoryFile `json:"memory"`
	}
)

const (
	etcdQuota = 512 << 20

	// A start makes garbage as no later minute does: collected at 25 % it is a third of
	// the processor's work until the API server is ready, at 100 % a tenth, for 40 MB more.
	startGCPercent   = 100
	tightGCPercent   = 25
	defaultGCPercent = 10
	settleSeconds    = 60
	freeSeconds      = 120

	// smallMemory is where a burst of requests must queue rather than fit,
	// tightMemory where a start may not take more than what comes after it.
	smallMemory = 1 << 30
	tightMemory = 768 << 20
	// controlPlaneLimit is what a control plane of a small machine collects its
	// garbage for, whatever the percentage says: twice its live heap. Nearer to it
	// the collector never rests.
	controlPlaneLimit = "250MiB"
)

// probe says how the API server at address is asked whether it is ready.
func (s *site) probe(address string) probeFile {
	return probeFile{Address: address, ServerName: APIName, CA: s.ca(CACluster)}
}

func (s *site) controlPlaneFiles(bootstrap []Object) error {
	objects, err := bootstrapFile(bootstrap)
	if err != nil {
		return err
	}
	s.write("bootstrap.json", objects)
	s.write("audit.yaml", []byte(auditPolicy))
	s.write("authentication.yaml", []byte(authentication))
	s.write("admission.yaml", []byte(admission))
	probe := s.probe(hostPort(s.self.SiteAddress, APIPort))
	c := controlPlaneFile{
		Etcd:      s.etcd(),
		APIServer: s.apiServer(),
		Bootstrap: s.config("bootstrap.json"),
		Probe:     probe,
		Hold:      s.opts.Hold,
		Memory:    s.memory(),
	}
	manager, scheduler := s.controllerManager(), s.scheduler()
	if s.merged() {
		c.ControllerManager, c.Scheduler = manager, scheduler
	} else {
		s.write("controllers.json", jsonText(controllersFile{probe, manager, scheduler, s.opts.Hold, s.memory()}))
	}
	s.write("control-plane.json", jsonText(c))
	// For people and for machined, whose way to the API it is.
	s.writeKubeconfig("machined")
	return nil
}

func (s *site) small() bool { return s.opts.Memory > 0 && s.opts.Memory < smallMemory }

func (s *site) tight() bool { return s.opts.Memory > 0 && s.opts.Memory < tightMemory }

func (s *site) memory() memoryFile {
	m := memoryFile{StartGCPercent: startGCPercent, GCPercent: defaultGCPercent, SettleSeconds: settleSeconds, FreeSeconds: freeSeconds}
	if s.small() {
		m.SettleSeconds = 10
	}
	if s.tight() {
		m.StartGCPercent = tightGCPercent
	}
	if s.opts.GCPercent != 0 {
		m.GCPercent = s.opts.GCPercent
	}
	return m
}

func (s *site) etcd() etcdFile {
	url := func(a netip.Addr) string { return "https://" + hostPort(a, PeerPort) }
	members := s.opts.Cluster.Members
	if len(members) == 0 {
		members = map[string]netip.Addr{s.self.Name: s.self.SiteAddress}
	}
	e := etcdFile{
		Name:           s.self.Name,
		DataDir:        s.paths.Etcd,
		PeerURL:        url(s.self.SiteAddress),
		PeerCert:       s.pki("etcd-peer.crt"),
		PeerKey:        s.pki("etcd-peer.key"),
		PeerCA:         s.ca(CAEtcd),
		InitialCluster: map[string]string{},
		Join:           s.opts.Cluster.Join,
		Token:          s.opts.Cluster.Token,
		QuotaBytes:     etcdQuota,
		CheckAtStart:   s.planes > 1,
	}
	for name, a := range members {
		e.InitialCluster[name] = url(a)
	}
	if e.Token == "" {
		e.Token = s.UID
	}
	if s.Kubernetes.DiskSlow {
		e.HeartbeatMillis, e.ElectionMillis = 500, 5000
	}
	return e
}

func (s *site) apiServer() []string {
	inflight, mutating := 400, 200
	if s.small() {
		inflight, mutating = 100, 50
	}
	issuer := "https://kubernetes.default.svc." + s.Network.Domain
	return []string{
		"--bind-address=" + s.self.SiteAddress.String(),
		"--advertise-address=" + s.self.SiteAddress.String(),
		"--secure-port=" + strconv.Itoa(APIPort),
		"--tls-cert-file=" + s.pki("apiserver.crt"),
		"--tls-private-key-file=" + s.pki("apiserver.key"),
		"--service-cluster-ip-range=" + s.Network.ServiceRange.String(),
		// kubernetes.default has one endpoint, the balancer's address, which is
		// among the bootstrap objects: no lease, nothing to expire.
		"--endpoint-reconciler-type=none",
		// Aggregated APIs and webhooks are called at their pods, so that they work
		// while the service proxy does not.
		"--enable-aggregator-routing=true",
		"--allow-privileged=true",

		"--client-ca-file=" + s.ca(CACluster),
		"--authentication-config=" + s.config("authentication.yaml"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--admission-control-config-file=" + s.config("admission.yaml"),
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + s.pki("service-account.pub"),
		"--service-account-signing-key-file=" + s.pki("service-account.key"),
		// Pods' tokens live an hour, as they say, and not a year: else a stolen
		// signing key is honoured for that long after it was replaced.
		"--service-account-extend-token-expiration=false",
		"--encryption-provider-config=" + s.pki("encryption.json"),

		"--kubelet-client-certificate=" + s.pki("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + s.pki("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + s.ca(CACluster),
		"--kubelet-preferred-address-types=InternalIP",

		"--requestheader-client-ca-file=" + s.ca(CAFrontProxy),
		"--requestheader-allowed-names=" + frontProxyUser,
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + s.pki("front-proxy.crt"),
		"--proxy-client-key-file=" + s.pki("front-proxy.key"),

		"--audit-policy-file=" + s.config("audit.yaml"),
		"--audit-log-path=" + s.data("log/audit/audit.log"),
		// Blocking mode would make every request wait for a slow disk.
		"--audit-log-mode=batch",
		"--audit-log-maxsize=10",
		"--audit-log-maxbackup=2",

		fmt.Sprintf("--max-requests-inflight=%d", inflight),
		fmt.Sprintf("--max-mutating-requests-inflight=%d", mutating),
		"--profiling=false",
	}
}

func (s *site) controllerManager() []string {
	kubeconfig := s.writeKubeconfig("controller-manager")
	return append([]string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(managerPort),
		"--service-account-private-key-file=" + s.pki("service-account.key"),
		"--root-ca-file=" + s.ca(CACluster),
		"--cluster-signing-cert-file=" + s.ca(CACluster),
		"--cluster-signing-key-file=" + s.pki(string(CACluster)+"-ca.key"),
		"--use-service-account-credentials=true",
		"--allocate-node-cidrs=true",
		"--cluster-cidr=" + s.Network.PodRange.String(),
		"--service-cluster-ip-range=" + s.Network.ServiceRange.String(),
		// With upstream's 20 requests a second it needs five seconds to make the
		// service accounts of its controllers.
		"--kube-api-qps=300",
		"--kube-api-burst=500",
		"--terminated-pod-gc-threshold=200",
		"--profiling=false",
	}, s.leaderElection()...)
}

func (s *site) scheduler() []string {
	kubeconfig := s.writeKubeconfig("scheduler")
	return append([]string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(schedulerPort),
		"--kube-api-qps=100",
		"--kube-api-burst=200",
		"--profiling=false",
	}, s.leaderElection()...)
}

// leaderElection is off where nobody could be the other candidate: on, it costs
// 86 000 writes a day and 15 s after a crash, until the dead one's lease ends.
func (s *site) leaderElection() []string {
	if s.planes == 1 {
		return []string{"--leader-elect=false"}
	}
	return []string{
		"--leader-elect=true",
		"--leader-elect-lease-duration=8s",
		"--leader-elect-renew-deadline=5s",
		"--leader-elect-retry-period=2s",
	}
}

// bootstrapFile is the list that kube control-plane applies.
func bootstrapFile(objects []Object) ([]byte, error) {
	list := make([]json.RawMessage, len(objects))
	for i, o := range objects {
		list[i] = o.JSON
	}
	data, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("write bootstrap objects: %w", err)
	}
	return append(data, '\n'), nil
}

const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
# Nobody is anonymous but on the paths that say whether the server is well.
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /version
`

const admission = `apiVersion: apiserver.config.k8s.io/v1
kind: AdmissionConfiguration
plugins:
- name: PodSecurity
  configuration:
    apiVersion: pod-security.admission.config.k8s.io/v1
    kind: PodSecurityConfiguration
    # A namespace's own labels win.
    defaults:
      enforce: baseline
      enforce-version: latest
      warn: baseline
      warn-version: latest
    exemptions:
      namespaces: [kube-system]
`

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
# Who did what to which object, never what was in it. The cluster's own parts
# watching and renewing are left out: on a small disk they are most of the bytes.
- level: None
  users: [system:apiserver, system:kube-controller-manager, system:kube-scheduler, system:kube-proxy, holdfast:dns]
  verbs: [get, list, watch]
- level: None
  userGroups: [system:nodes, system:serviceaccounts:kube-system]
  verbs: [get, list, watch]
- level: None
  resources:
  - group: coordination.k8s.io
    resources: [leases]
- level: None
  userGroups: [system:nodes]
  verbs: [update, patch]
  resources:
  - group: ""
    resources: [nodes/status, pods/status]
- level: None
  resources:
  - group: ""
    resources: [events]
  - group: events.k8s.io
    resources: [events]
- level: None
  nonResourceURLs: [/livez*, /readyz*, /healthz*, /version, /openapi/*]
- level: Metadata
`
