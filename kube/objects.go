package kube

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
)

// An Object is a Kubernetes object; its JSON has sorted keys and no spare space.
type Object struct {
	APIVersion, Kind, Namespace, Name string
	JSON                              []byte
}

type fields = map[string]any

const partOf = "app.kubernetes.io/managed-by"

// object completes body with what every object has.
func object(apiVersion, kind, namespace, name string, body fields) (Object, error) {
	meta := fields{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	if m, ok := body["metadata"].(fields); ok {
		for k, v := range m {
			meta[k] = v
		}
	}
	labels, _ := meta["labels"].(fields)
	if labels == nil {
		labels = fields{}
	}
	labels[partOf] = "holdfast"
	meta["labels"] = labels
	body["apiVersion"], body["kind"], body["metadata"] = apiVersion, kind, meta
	data, err := json.Marshal(body)
	if err != nil {
		return Object{}, fmt.Errorf("write %s %s: %w", kind, name, err)
	}
	return Object{apiVersion, kind, namespace, name, data}, nil
}

// list gathers objects and the first failure to write one.
type list struct {
	objects []Object
	err     error
}

func (l *list) add(apiVersion, kind, namespace, name string, body fields) {
	o, err := object(apiVersion, kind, namespace, name, body)
	if l.err == nil {
		l.err = err
	}
	l.objects = append(l.objects, o)
}

const (
	rbac      = "rbac.authorization.k8s.io/v1"
	discovery = "discovery.k8s.io/v1"
)

func (l *list) bind(name, role string, users ...string) {
	subjects := make([]fields, len(users))
	for i, u := range users {
		subjects[i] = fields{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": u}
	}
	l.add(rbac, "ClusterRoleBinding", "", name, fields{
		"roleRef":  fields{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": subjects,
	})
}

func (l *list) role(name string, rules ...fields) {
	l.add(rbac, "ClusterRole", "", name, fields{"rules": rules})
}

func rule(group, resources, verbs string) fields {
	return fields{"apiGroups": []string{group}, "resources": strings.Fields(resources), "verbs": strings.Fields(verbs)}
}

// objects are the same on every machine of the site: only the release decides.
func (s *site) objects() ([]Object, error) {
	l := new(list)
	s.machinedRights(l)
	if err := s.operatorRights(l); err != nil {
		return nil, err
	}
	s.apiEndpoints(l)
	s.dnsService(l)
	if l.err != nil {
		return nil, l.err
	}
	return l.objects, nil
}

func (s *site) machinedRights(l *list) {
	var users []string
	for _, m := range s.Machines {
		if m.Role == RoleControlPlane {
			users = append(users, MachinedUser(m.Name))
		}
	}
	l.bind("holdfast:machined", "cluster-admin", users...)
	l.bind("holdfast:apiserver-kubelet-client", "system:kubelet-api-admin", kubeletClientUser)
	l.role("holdfast:dns",
		rule("", "services pods namespaces", "list watch"),
		rule("discovery.k8s.io", "endpointslices", "list watch"),
	)
	l.bind("holdfast:dns", "holdfast:dns", dnsUser)
}

// The roles of operators.
//
// read sees all but secrets. operate does what a person on call does to what is
// there: restart by deletion, evict, scale, cordon, look into logs, forward a
// port. It writes no pod template, no role and no secret, impersonates nobody and
// runs nothing inside a pod, since each of these is, in some namespace, a way to
// become admin. admin is all.
var operatorRoles = []struct {
	role     string
	bindings []string // ClusterRoles
}{
	{"read", []string{"view", "holdfast:read"}},
	{"operate", []string{"view", "holdfast:read", "holdfast:operate"}},
	{"admin", []string{"cluster-admin"}},
}

func (s *site) operatorRights(l *list) error {
	l.role("holdfast:read",
		rule("", "nodes persistentvolumes namespaces events componentstatuses", "get list watch"),
		rule("storage.k8s.io", "*", "get list watch"),
		rule("apiextensions.k8s.io", "customresourcedefinitions", "get list watch"),
		rule("apiregistration.k8s.io", "apiservices", "get list watch"),
		rule("metrics.k8s.io", "*", "get list watch"),
		rule("scheduling.k8s.io", "priorityclasses", "get list watch"),
		rule("coordination.k8s.io", "leases", "get list watch"),
	)
	l.role("holdfast:operate",
		rule("", "pods", "delete deletecollection"),
		rule("", "pods/eviction pods/portforward", "create"),
		rule("", "pods/log", "get"),
		rule("", "nodes", "patch update"),
		rule("apps", "deployments/scale statefulsets/scale replicasets/scale", "get update patch"),
		rule("batch", "jobs", "delete deletecollection"),
	)
	users := map[string][]string{}
	if s.opts.Trust != nil {
		for _, o := range s.opts.Trust.Operators {
			if !s.counts(o) {
				continue
			}
			fingerprint, err := fleet.Fingerprint(o.Key)
			if err != nil {
				return fmt.Errorf("operator %s: %w", o.Name, err)
			}
			for _, r := range o.Roles {
				users[r] = append(users[r], OperatorUser(fingerprint))
			}
		}
	}
	// Empty bindings are written too: server-side apply then takes away whom an
	// earlier release had named.
	for _, r := range operatorRoles {
		for _, role := range r.bindings {
			name := "holdfast:operators:" + r.role + ":" + strings.TrimPrefix(role, "holdfast:")
			u := users[r.role]
			slices.Sort(u)
			l.bind(name, role, slices.Compact(u)...)
		}
	}
	return nil
}

// counts tells whether an operator has rights at this site at the release's time.
func (s *site) counts(o fleet.Operator) bool {
	if t := s.opts.Time; !t.IsZero() && (o.From != nil && t.Before(*o.From) || o.Until != nil && t.After(*o.Until)) {
		return false
	}
	if len(o.Sites) == 0 {
		return true
	}
	here := &fleet.Site{Name: s.Site, Dir: s.Dir, Labels: s.Labels}
	return slices.ContainsFunc(o.Sites, here.Matches)
}

// apiEndpoints gives kubernetes.default its one endpoint, the balancer of
// whichever machine the pod is on. Endpoints are written beside the slice, for
// those who still read them; the label keeps them from being mirrored into a
// second slice.
func (s *site) apiEndpoints(l *list) {
	address := s.Network.APIAddress.String()
	port := []fields{{"name": "https", "port": APIPort, "protocol": "TCP"}}
	l.add("v1", "Endpoints", "default", "kubernetes", fields{
		"metadata": fields{"labels": fields{"endpointslice.kubernetes.io/skip-mirror": "true"}},
		"subsets":  []fields{{"addresses": []fields{{"ip": address}}, "ports": port}},
	})
	l.add(discovery, "EndpointSlice", "default", "kubernetes", fields{
		"metadata":    fields{"labels": fields{"kubernetes.io/service-name": "kubernetes"}},
		"addressType": "IPv4",
		"endpoints":   []fields{{"addresses": []string{address}, "conditions": fields{"ready": true}}},
		"ports":       port,
	})
}

// dnsService is kube-dns without pods: each machine's CoreDNS is an endpoint, and
// a pod's questions go to the one on its own machine while that one answers.
func (s *site) dnsService(l *list) {
	servicePorts := []fields{
		{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
		{"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
	}
	l.add("v1", "Service", "kube-system", "kube-dns", fields{
		"metadata": fields{"labels": fields{"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}},
		"spec": fields{
			"clusterIP":           s.dnsAddress.String(),
			"clusterIPs":          []string{s.dnsAddress.String()},
			"ports":               servicePorts,
			"trafficDistribution": "PreferSameNode",
			"type":                "ClusterIP",
		},
	})
	for _, m := range s.Machines {
		l.add(discovery, "EndpointSlice", "kube-system", "kube-dns-"+m.Name, fields{
			"metadata":    fields{"labels": fields{"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "holdfast.dev"}},
			"addressType": "IPv4",
			"endpoints": []fields{{
				"addresses":  []string{m.SiteAddress.String()},
				"nodeName":   m.Name,
				"conditions": fields{"ready": true},
				"hints":      fields{"forNodes": []fields{{"name": m.Name}}},
			}},
			"ports": []fields{
				{"name": "dns", "port": 53, "protocol": "UDP"},
				{"name": "dns-tcp", "port": 53, "protocol": "TCP"},
			},
		})
	}
}
