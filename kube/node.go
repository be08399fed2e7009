package kube

import (
	"fmt"
	"strconv"
	"strings"
)

type nodeFile struct {
	Kubelet []string   `json:"kubelet"`
	Proxy   []string   `json:"proxy"`
	Healthz string     `json:"healthz"`
	Probe   probeFile  `json:"probe"`
	Memory  memoryFile `json:"memory"`
}

func (s *site) node() {
	s.write("kubelet.yaml", s.kubelet())
	s.write("proxy.yaml", s.proxy())
	s.write("resolv.conf", s.resolvConf())
	s.write("node.json", jsonText(nodeFile{
		Kubelet: []string{
			"--config=" + s.config("kubelet.yaml"),
			"--kubeconfig=" + s.writeKubeconfig("kubelet"),
			"--hostname-override=" + s.self.Name,
			"--node-ip=" + s.self.SiteAddress.String(),
			"--node-labels=" + s.nodeLabels(),
			"--root-dir=" + s.data("kubelet"),
			"--cert-dir=" + s.run("kubelet-pki"),
		},
		Proxy: []string{
			"--config=" + s.config("proxy.yaml"),
			"--hostname-override=" + s.self.Name,
		},
		Healthz: "http://" + loopback(kubeletHealthPort) + "/healthz",
		Probe:   s.probe(s.apiEndpoint()),
		Memory:  s.nodeMemory(),
	}))
}

func (s *site) nodeMemory() memoryFile {
	if s.small() {
		return memoryFile{GCPercent: 25, SettleSeconds: 10, FreeSeconds: freeSeconds}
	}
	return memoryFile{GCPercent: 50, SettleSeconds: settleSeconds, FreeSeconds: 600}
}

func (s *site) nodeLabels() string {
	return strings.Join([]string{
		"holdfast.dev/site=" + s.Site,
		"holdfast.dev/machine=" + string(s.self.ID),
		"holdfast.dev/role=" + s.self.Role,
	}, ",")
}

// kubelet writes the kubelet's configuration.
//
// Eviction: the kubelet counts active file pages as used, so its default of 100
// MiB would evict the one app of a small machine for nothing. Nor does a site
// stay shut for the default of 5 minutes once a full disk has room again.
//
// Swap: a machine with little memory has zram, for its own programs. Pods get
// none (NoSwap), so that a limit of memory is one.
//
// Reserved: what kernel, OS and our own programs need was measured, 380 to 420 MiB
// with a control plane. A small machine swaps a part of it, and its apps get
// what is left.
func (s *site) kubelet() []byte {
	reserved := s.opts.Reserved
	if reserved == 0 {
		reserved = 300 << 20
		if s.controlPlane {
			reserved = 450 << 20
		}
	}
	evict := "100Mi"
	if s.small() {
		evict = "32Mi"
		if s.opts.Reserved == 0 {
			reserved = min(reserved, s.opts.Memory*5/8)
		}
	}
	maxPods := s.Kubernetes.MaxPods
	if maxPods == 0 {
		maxPods = 110
	}
	return fmt.Appendf(nil, `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
port: %d
healthzBindAddress: 127.0.0.1
healthzPort: %d
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %s}
authorization: {mode: Webhook}
tlsCertFile: %s
tlsPrivateKeyFile: %s
containerRuntimeEndpoint: unix://%s
clusterDNS: [%s]
clusterDomain: %s
resolvConf: %s
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
memorySwap: {swapBehavior: NoSwap}
protectKernelDefaults: false
seccompDefault: true
makeIPTablesUtilChains: false
maxPods: %d
podLogsDir: %s
volumePluginDir: %s
containerLogMaxSize: 5Mi
containerLogMaxFiles: 3
serializeImagePulls: false
maxParallelImagePulls: 2
kubeAPIQPS: 100
kubeAPIBurst: 200
systemReserved: {memory: %q}
evictionHard:
  memory.available: %s
  nodefs.available: 5%%
  nodefs.inodesFree: 3%%
  imagefs.available: 5%%
  imagefs.inodesFree: 3%%
evictionPressureTransitionPeriod: 30s
enableProfilingHandler: false
enableDebugFlagsHandler: false
`, s.self.SiteAddress, KubeletPort, kubeletHealthPort, s.ca(CACluster), s.pki("kubelet.crt"), s.pki("kubelet.key"),
		s.run("containerd/containerd.sock"), s.dnsAddress, s.Network.Domain, s.config("resolv.conf"),
		maxPods, s.data("log/pods"), s.data("kubelet/volume-plugins"),
		strconv.FormatInt(reserved, 10), evict)
}

// proxy writes the service proxy's configuration. Upstream's default for
// NodePorts in nftables mode is the node's primary address, which is the site
// address here: they would vanish from the LAN. Conntrack limits are left alone;
// they are the whole host's.
func (s *site) proxy() []byte {
	return fmt.Appendf(nil, `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %s}
detectLocalMode: ClusterCIDR
clusterCIDR: %s
nodePortAddresses: [0.0.0.0/0, "::/0"]
healthzBindAddress: %s
metricsBindAddress: %s
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
`, s.writeKubeconfig("proxy"), s.Network.PodRange, loopback(proxyHealthPort), loopback(proxyMetricsPort))
}

// resolvConf is what pods with dnsPolicy Default get, and what CoreDNS never
// reads: the upstreams, without a way back to CoreDNS.
func (s *site) resolvConf() []byte {
	text := "# written by holdfast: the name servers of the site\n"
	for _, a := range s.upstreams {
		text += "nameserver " + a.String() + "\n"
	}
	return []byte(text)
}
