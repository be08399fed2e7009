package render

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"

	"github.com/holdfast-edge/holdfast/fleet"
)

// Digests are over canonical JSON behind a line that says what it is, so that
// bytes of one kind never pass for another.
func digest(what string, v any) string {
	h := sha256.New()
	h.Write([]byte("holdfast " + what + "\n"))
	if b, ok := v.([]byte); ok {
		h.Write(b)
	} else {
		h.Write(mustCanonical(v))
	}
	return hex.EncodeToString(h.Sum(nil))
}

// appDigest covers every field of App but itself.
func appDigest(a *App) string {
	head := mustCanonical(map[string]any{
		"name": a.Name, "version": a.Version, "namespace": a.Namespace, "needs": list(a.Needs),
		"critical": a.Critical, "onFailure": a.OnFailure, "deadline": a.Deadline.String(),
		"devices": list(a.Devices), "images": list(a.Images), "delete": refList(a.Delete),
	})
	size := len(head) + 1
	for _, o := range a.Objects {
		size += len(o.JSON) + 1
	}
	body := append(make([]byte, 0, size), head...)
	for _, o := range a.Objects {
		body = append(append(body, '\n'), o.JSON...)
	}
	return digest("app", body)
}

func refList(refs []fleet.ObjectRef) []any {
	out := make([]any, len(refs))
	for i, r := range refs {
		out[i] = map[string]any{"apiVersion": r.APIVersion, "kind": r.Kind, "namespace": r.Namespace, "name": r.Name}
	}
	return out
}

func list[T any](in []T) []any {
	out := make([]any, len(in))
	for i, v := range in {
		out[i] = v
	}
	return out
}

func effect(r *Rendering) Effect {
	e := Effect{Settings: digest("settings", r.Settings), Apps: make(map[string]string, len(r.Apps))}
	for _, a := range r.Apps {
		e.Apps[a.Name] = a.Digest
	}
	e.Digest = digest("effect", map[string]any{"edition": r.Edition, "settings": e.Settings, "apps": e.Apps, "delete": refList(r.Delete)})
	return e
}

// settings are what the machine itself is set to. The names here belong to the
// edition and not to the fleet package: a field that is renamed there keeps
// its name here.
func settings(r *fleet.Resolved) []byte {
	n, k := r.Network, r.Kubernetes
	site := r.Class
	site.Disk = fleet.DiskRule{} // it sets nothing: a machine asks it when it has no disk yet
	machines := map[string]any{} // those that differ from the rest of the site
	for _, m := range r.Machines {
		c := r.ClassOf(m.Name)
		c.Disk = fleet.DiskRule{}
		if !reflect.DeepEqual(c, site) {
			machines[m.Name] = class(c)
		}
	}
	return mustCanonical(map[string]any{
		"os": r.OS,
		"network": map[string]any{
			"siteRange": n.SiteRange, "podRange": n.PodRange, "serviceRange": n.ServiceRange, "apiAddress": n.APIAddress,
			"dns": list(n.DNS), "domain": n.Domain, "mtu": n.MTU, "lanTrusted": n.LANTrusted, "ntp": list(n.NTP),
		},
		"kubernetes": map[string]any{"version": k.Version, "maxPods": k.MaxPods, "diskSlow": k.DiskSlow},
		"machine":    class(r.Class),
		"machines":   machines,
	})
}

func class(m fleet.MachineClass) map[string]any {
	out := map[string]any{
		"architecture": m.Architecture, "dataSize": int64(m.DataSize), "protection": m.Protection,
		"secretsUnprotected": m.SecretsUnprotected, "stateSize": int64(m.StateSize),
	}
	// What came later is there only where somebody says it, so that older fleets keep their effects.
	if m.Proxy != "" {
		out["proxy"] = m.Proxy
	}
	if len(m.Interfaces) > 0 {
		ports := make([]any, len(m.Interfaces))
		for i, p := range m.Interfaces {
			ports[i] = map[string]any{"name": p.Name, "match": p.Match, "dhcp": p.DHCP, "addresses": list(p.Addresses), "gateway": p.Gateway,
				"vlan": map[string]any{"id": p.VLAN.ID, "of": p.VLAN.Of}, "mtu": p.MTU}
		}
		out["interfaces"] = ports
	}
	return out
}
