package render

import (
	"sort"
	"strings"
)

// stages is the order in which kinds are applied: what others need comes
// first, what can stand in the way of others comes last. A kind that is not
// named is a custom resource, applied after the workloads that serve it.
var stages = [][]string{
	{"CustomResourceDefinition"},
	{"Namespace"},
	{"PriorityClass", "RuntimeClass", "StorageClass", "CSIDriver", "IngressClass", "ResourceQuota", "LimitRange"},
	{"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"},
	{"ConfigMap", "Secret", "NetworkPolicy", "PersistentVolume", "PersistentVolumeClaim"},
	{"Service", "Endpoints", "EndpointSlice"},
	{"Pod", "ReplicationController", "ReplicaSet", "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress"},
	{customResource},
	{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService"},
}

const customResource = "*"

var stageOf = func() map[string]int {
	m := map[string]int{}
	for i, kinds := range stages {
		for j, kind := range kinds {
			m[kind] = i*100 + j
		}
	}
	return m
}()

// stage is the place of an object in the order. Kinds count only with their
// built-in group: somebody else's "Service" is a custom resource.
func stage(apiVersion, kind string) int {
	if n, ok := stageOf[kind]; ok && builtIn(apiVersion) {
		return n
	}
	return stageOf[customResource]
}

// sortObjects puts objects into apply order, the same for the same objects.
func sortObjects(objects []Object) {
	sort.SliceStable(objects, func(i, j int) bool {
		a, b := objects[i], objects[j]
		if x, y := stage(a.APIVersion, a.Kind), stage(b.APIVersion, b.Kind); x != y {
			return x < y
		}
		for _, c := range []int{
			strings.Compare(group(a.APIVersion), group(b.APIVersion)), strings.Compare(a.Kind, b.Kind),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name),
		} {
			if c != 0 {
				return c < 0
			}
		}
		return false
	})
}

func group(apiVersion string) string {
	g, _, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return ""
	}
	return g
}

// builtIn says whether the API server itself serves a group.
func builtIn(apiVersion string) bool {
	g := group(apiVersion)
	return !strings.Contains(g, ".") || strings.HasSuffix(g, ".k8s.io") && builtInGroups[g]
}

var builtInGroups = map[string]bool{
	"admissionregistration.k8s.io": true, "apiextensions.k8s.io": true, "apiregistration.k8s.io": true,
	"authentication.k8s.io": true, "authorization.k8s.io": true, "certificates.k8s.io": true,
	"coordination.k8s.io": true, "discovery.k8s.io": true, "events.k8s.io": true,
	"flowcontrol.apiserver.k8s.io": true, "internal.apiserver.k8s.io": true, "networking.k8s.io": true,
	"node.k8s.io": true, "rbac.authorization.k8s.io": true, "resource.k8s.io": true,
	"scheduling.k8s.io": true, "storage.k8s.io": true, "storagemigration.k8s.io": true,
}

// clusterKinds are the built-in kinds without a namespace.
var clusterKinds = map[string]bool{
	"APIService": true, "CSIDriver": true, "CSINode": true, "CertificateSigningRequest": true,
	"ClusterRole": true, "ClusterRoleBinding": true, "ClusterTrustBundle": true, "ComponentStatus": true,
	"CustomResourceDefinition": true, "DeviceClass": true, "FlowSchema": true, "IPAddress": true,
	"IngressClass": true, "MutatingAdmissionPolicy": true, "MutatingAdmissionPolicyBinding": true,
	"MutatingWebhookConfiguration": true, "Namespace": true, "Node": true, "PersistentVolume": true,
	"PriorityClass": true, "PriorityLevelConfiguration": true, "ResourceSlice": true, "RuntimeClass": true,
	"ServiceCIDR": true, "StorageClass": true, "StorageVersionMigration": true,
	"ValidatingAdmissionPolicy": true, "ValidatingAdmissionPolicyBinding": true,
	"ValidatingWebhookConfiguration": true, "VolumeAttachment": true, "VolumeAttributesClass": true,
}

// scope says whether a kind has a namespace. known is false for custom
// resources whose definition the app does not bring.
func scope(apiVersion, kind string, custom map[string]bool) (namespaced, known bool) {
	if builtIn(apiVersion) {
		return !clusterKinds[kind], true
	}
	namespaced, known = custom[group(apiVersion)+"/"+kind]
	return namespaced, known
}

// customScopes reads the definitions among the objects.
func customScopes(found []manifest) map[string]bool {
	scopes := map[string]bool{}
	for _, m := range found {
		if stringAt(m.object, "kind") == "CustomResourceDefinition" {
			scopes[stringAt(m.object, "spec", "group")+"/"+stringAt(m.object, "spec", "names", "kind")] = stringAt(m.object, "spec", "scope") == "Namespaced"
		}
	}
	return scopes
}
