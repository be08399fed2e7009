package kube

import (
	"encoding/json"
	"fmt"
	"strings"
)

// disabledPlugins are parts of containerd that nothing here uses, each of which
// costs start time, memory or a warning at every start.
var disabledPlugins = []string{
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.snapshotter.v1.native",
	"io.containerd.differ.v1.erofs",
	"io.containerd.nri.v1.nri",
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.internal.v1.tracing",
}

// containerd writes the runtime's configuration.
//
// sync_fs and image_pull_with_sync_fs: containerd syncs its own records but not
// the layers that it unpacks. After a power cut such an image is there, complete
// by its records, with empty files in it, and pulling it again mends nothing.
//
// The default mirror is machined's registry, with no way past it: a tag is what
// the release says, a blob what is on the site, and imagePullPolicy Always works
// without a network.
func (s *site) containerd() {
	oomScore := "false"
	if s.opts.Hosted {
		oomScore = "true" // the right to lower a score may be missing in namespaces
	}
	s.write("containerd.toml", fmt.Appendf(nil, `version = 3
root = %q
state = %q
oom_score = 0
disabled_plugins = [%s]

[grpc]
  address = %q

[ttrpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  image_pull_with_sync_fs = true
  discard_unpacked_layers = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %q

[plugins."io.containerd.service.v1.diff-service"]
  default = ["walking"]
  sync_fs = true

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = %s
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      runtime_path = %q
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = %q
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
    conf_template = %q
`,
		s.data("containerd"), s.run("containerd"), quoted(disabledPlugins),
		s.run("containerd/containerd.sock"), s.run("containerd/containerd.sock.ttrpc"),
		PauseImage, s.config("registries"), oomScore,
		s.bin("containerd-shim-runc-v2"), s.bin("runc"),
		s.bin("cni"), s.run("cni/net.d"), s.config("cni.conflist.template")))

	registry := "http://" + s.opts.Registry.String()
	s.write("registries/_default/hosts.toml", fmt.Appendf(nil, `server = %q

[host.%q]
  capabilities = ["pull", "resolve"]
`, registry, registry))
	s.write("cni.conflist.template", s.cni())
}

func quoted(list []string) string {
	q := make([]string, len(list))
	for i, v := range list {
		q[i] = fmt.Sprintf("%q", v)
	}
	return strings.Join(q, ", ")
}

// cni is the network of pods: each joined to the machine by a pair of interfaces
// of its own, so that traffic between two pods of a machine is routed, and
// filtered, like any other. Addresses are given out from tmpfs: after a power cut
// none is held by a pod that no longer is. Masquerading is the packet filter's.
func (s *site) cni() []byte {
	type m = map[string]any
	ptp := m{
		"type": "ptp",
		"ipam": m{
			"type":    "host-local",
			"dataDir": s.run("cni/networks"),
			"ranges":  [][]m{{{"subnet": "{{.PodCIDR}}"}}},
			"routes":  []m{{"dst": "0.0.0.0/0"}},
		},
	}
	if s.Network.MTU > 0 {
		ptp["mtu"] = s.Network.MTU
	}
	conf := m{
		"cniVersion": "1.0.0",
		"name":       "holdfast",
		"plugins": []m{
			ptp,
			{"type": "portmap", "capabilities": m{"portMappings": true}, "backend": "nftables", "snat": true},
		},
	}
	return jsonText(conf)
}

// jsonText is readable JSON; it panics only on what no plan holds.
func jsonText(v any) []byte {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic(fmt.Sprintf("kube: write JSON: %v", err))
	}
	return append(data, '\n')
}
