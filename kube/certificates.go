package kube

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/holdfast-edge/holdfast/fleet"
)

// APIName is the constant name that clients verify the API server by, whatever
// address they dialled.
const APIName = "kubernetes"

// certificates lists what this machine proves itself with. They carry names and
// site addresses, never those of the LAN.
func (s *site) certificates() []Certificate {
	list := []Certificate{
		{
			Name: "kubelet", CA: CACluster,
			CommonName: "system:node:" + s.self.Name, Organizations: []string{"system:nodes"},
			DNSNames: []string{s.self.Name}, Addresses: []netip.Addr{s.self.SiteAddress},
			Server: true, Client: true,
		},
		{Name: "proxy", CA: CACluster, CommonName: "system:kube-proxy", Client: true},
		{Name: "dns", CA: CACluster, CommonName: dnsUser, Client: true},
	}
	if !s.controlPlane {
		return list
	}
	return append(list,
		Certificate{
			Name: "apiserver", CA: CACluster, CommonName: "kube-apiserver",
			DNSNames:  apiNames(s.Resolved),
			Addresses: []netip.Addr{s.self.SiteAddress, s.Network.APIAddress, s.apiService, netip.MustParseAddr("127.0.0.1")},
			Server:    true,
		},
		Certificate{Name: "apiserver-kubelet", CA: CACluster, CommonName: kubeletClientUser, Client: true},
		Certificate{Name: "front-proxy", CA: CAFrontProxy, CommonName: frontProxyUser, Client: true},
		Certificate{
			Name: "etcd-peer", CA: CAEtcd, CommonName: s.self.Name,
			DNSNames: []string{s.self.Name}, Addresses: []netip.Addr{s.self.SiteAddress},
			Server: true, Client: true,
		},
		Certificate{Name: "controller-manager", CA: CACluster, CommonName: "system:kube-controller-manager", Client: true},
		Certificate{Name: "scheduler", CA: CACluster, CommonName: "system:kube-scheduler", Client: true},
		Certificate{Name: "machined", CA: CACluster, CommonName: MachinedUser(s.self.Name), Client: true},
	)
}

// apiNames are the names that the API server answers to: the cluster's own, and
// those under which the hub's relay passes connections through.
func apiNames(r *fleet.Resolved) []string {
	return []string{
		APIName,
		"kubernetes.default",
		"kubernetes.default.svc",
		"kubernetes.default.svc." + r.Network.Domain,
		"localhost",
		fmt.Sprintf("%s.kube.%s", r.Site, r.FleetID),
	}
}

const (
	frontProxyUser    = "holdfast:front-proxy"
	kubeletClientUser = "holdfast:apiserver-kubelet-client"
	dnsUser           = "holdfast:dns"
)

// kubeconfig names files and holds none: client-go reads certificates anew when
// they change, so renewal restarts nothing.
func (s *site) kubeconfig(certificate string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `apiVersion: v1
kind: Config
clusters:
- name: site
  cluster:
    server: https://%s
    tls-server-name: %s
    certificate-authority: %s
users:
- name: %s
  user:
    client-certificate: %s
    client-key: %s
contexts:
- name: site
  context: {cluster: site, user: %s}
current-context: site
`, s.apiEndpoint(), APIName, s.ca(CACluster), certificate, s.pki(certificate+".crt"), s.pki(certificate+".key"), certificate)
	return b.Bytes()
}

// writeKubeconfig writes NAME.kubeconfig for the certificate of that name.
func (s *site) writeKubeconfig(name string) string {
	file := name + ".kubeconfig"
	s.write(file, s.kubeconfig(name))
	return s.config(file)
}
