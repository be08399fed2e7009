package apps

import (
	"slices"
	"strings"
)

// stages is the order in which kinds are applied; what is removed goes the other way round. What others need comes first, what can stand in
// the way of others last. A kind that is not named is a custom resource: after the workloads that serve it, and gone before them.
var stages = [][]string{
	{"CustomResourceDefinition"},
	{"Namespace"},
	{"PriorityClass", "RuntimeClass", "StorageClass", "CSIDriver", "IngressClass", "ResourceQuota", "LimitRange"},
	{"ServiceAccount", "ClusterRole", "Role"},
	{"ClusterRoleBinding", "RoleBinding"},
	{"ConfigMap", "Secret", "NetworkPolicy", "PersistentVolume", "PersistentVolumeClaim"},
	{"Service", "Endpoints", "EndpointSlice"},
	{"Pod", "ReplicationController", "ReplicaSet", "Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress"},
	{customResource},
	{"ValidatingAdmissionPolicy", "MutatingAdmissionPolicy"},
	{"ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicyBinding", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "APIService"},
}

const customResource = "*"

// inert kinds are what they are as soon as they are there: nothing of them is watched.
var inert = map[string]bool{
	"Namespace": true, "PriorityClass": true, "RuntimeClass": true, "StorageClass": true, "CSIDriver": true, "IngressClass": true, "ResourceQuota": true,
	"LimitRange": true, "ServiceAccount": true, "ClusterRole": true, "Role": true, "ClusterRoleBinding": true, "RoleBinding": true, "ConfigMap": true,
	"Secret": true, "NetworkPolicy": true, "PersistentVolume": true, "Endpoints": true, "EndpointSlice": true, "CronJob": true, "Ingress": true,
	"ValidatingAdmissionPolicy": true, "ValidatingAdmissionPolicyBinding": true, "MutatingAdmissionPolicy": true, "MutatingAdmissionPolicyBinding": true,
	"ValidatingWebhookConfiguration": true, "MutatingWebhookConfiguration": true,
}

// builtIn says whether a group is Kubernetes' own: somebody else's "Service" is a custom resource.
func builtIn(group string) bool {
	if !strings.Contains(group, ".") {
		return true
	}
	return slices.Contains([]string{
		"admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "coordination.k8s.io", "discovery.k8s.io",
		"networking.k8s.io", "node.k8s.io", "rbac.authorization.k8s.io", "scheduling.k8s.io", "storage.k8s.io", "resource.k8s.io",
		"flowcontrol.apiserver.k8s.io", "certificates.k8s.io", "events.k8s.io",
	}, group)
}

// is says whether a reference is one of Kubernetes' own kinds.
func (r Ref) is(kinds ...string) bool { return builtIn(r.group()) && slices.Contains(kinds, r.Kind) }

func (r Ref) inert() bool { return builtIn(r.group()) && inert[r.Kind] }

// stage is the reference's place in stages.
func (r Ref) stage() int {
	custom := 0
	for i, kinds := range stages {
		if r.is(kinds...) {
			return i
		}
		if kinds[0] == customResource {
			custom = i
		}
	}
	return custom
}

// inStages splits a list by stage, first stage first, the given order kept within each.
func inStages[T any](list []T, ref func(T) Ref) [][]T {
	out := make([][]T, len(stages))
	for _, v := range list {
		s := ref(v).stage()
		out[s] = append(out[s], v)
	}
	return slices.DeleteFunc(out, func(s []T) bool { return len(s) == 0 })
}
