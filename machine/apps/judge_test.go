package apps

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

func object(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	data, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		t.Fatal(err)
	}
	return u
}

func TestJudge(t *testing.T) {
	job := "{apiVersion: batch/v1, kind: Job, metadata: {name: j}, "
	claim := "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: c}, "
	deployment := "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, generation: 2}, spec: {replicas: 2}, "
	tests := []struct {
		name, yaml string
		want       Health
	}{
		{"JobNotStarted", job + "}", Progressing},
		{"JobRunning", job + "status: {active: 1, startTime: '2026-01-01T00:00:00Z'}}", Progressing},
		{"JobComplete", job + "status: {succeeded: 1, conditions: [{type: Complete, status: 'True'}]}}", Ready},
		{"JobFailed", job + "status: {failed: 1, conditions: [{type: Failed, status: 'True'}]}}", Sick},
		{"JobSuspended", job + "spec: {suspend: true}}", Ready},
		{"ClaimUnbound", claim + "status: {phase: Pending}}", Ready},
		{"ClaimBound", claim + "status: {phase: Bound}}", Ready},
		{"ClaimLost", claim + "status: {phase: Lost}}", Sick},
		{"DeploymentNotObserved", deployment + "status: {observedGeneration: 1, replicas: 2, readyReplicas: 2, updatedReplicas: 2, availableReplicas: 2}}", Progressing},
		{"DeploymentReady", deployment + "status: {observedGeneration: 2, replicas: 2, readyReplicas: 2, updatedReplicas: 2, availableReplicas: 2, conditions: [{type: Available, status: 'True'}]}}", Ready},
		{"DeploymentStuck", deployment + "status: {observedGeneration: 2, conditions: [{type: Progressing, status: 'False', reason: ProgressDeadlineExceeded}]}}", Sick},
		{"BeingDeleted", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: d, deletionTimestamp: '2026-01-01T00:00:00Z'}}", Progressing},
		{"PodFailed", "{apiVersion: v1, kind: Pod, metadata: {name: p}, status: {phase: Failed}}", Sick},
		{"ServiceClusterIP", "{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {type: ClusterIP}}", Ready},
		{"APIServiceDown", "{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: v1.x}, status: {conditions: [{type: Available, status: 'False'}]}}", Progressing},
		{"APIServiceUp", "{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: v1.x}, status: {conditions: [{type: Available, status: 'True'}]}}", Ready},
		{"CustomResource", "{apiVersion: shop.example/v1, kind: Till, metadata: {name: t}}", Ready},
		{"CustomResourceNotReady", "{apiVersion: shop.example/v1, kind: Till, metadata: {name: t}, status: {conditions: [{type: Ready, status: 'False'}]}}", Progressing},
		{"CustomResourceCalledJob", "{apiVersion: shop.example/v1, kind: Job, metadata: {name: t}}", Ready},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, why := Judge(object(t, tt.yaml)); got != tt.want {
				t.Errorf("got %s (%s), want %s", got, why, tt.want)
			}
		})
	}
}

func TestBoard(t *testing.T) {
	pod := func(name, phase string, generation int64) *unstructured.Unstructured {
		u := object(t, "{apiVersion: v1, kind: Pod, metadata: {namespace: shop, labels: {holdfast.dev/app: pos}}, status: {phase: "+phase+", conditions: [{type: Ready, status: 'True'}]}}")
		u.SetName(name)
		u.SetGeneration(generation)
		return u
	}
	ref := func(name string) Ref { return Ref{"v1", "Pod", "shop", name} }
	b := newBoard()
	b.expect("pos", 3, []Ref{ref("a"), ref("b"), {"v1", "ConfigMap", "shop", "c"}})
	steps := []struct {
		name string
		do   func()
		want []AppStatus
	}{
		{"nothing seen", func() {}, []AppStatus{{"pos", 3, Progressing, ref("a"), "it was not seen yet", 0, 2}}},
		{"one ready", func() { b.see(pod("a", "Running", 1)) }, []AppStatus{{"pos", 3, Progressing, ref("b"), "it was not seen yet", 1, 2}}},
		{"both ready", func() { b.see(pod("b", "Running", 1)) }, []AppStatus{{"pos", 3, Ready, Ref{}, "", 2, 2}}},
		{"same again", func() { b.see(pod("b", "Running", 1)) }, nil},
		{"one fails", func() { b.see(pod("b", "Failed", 2)) }, []AppStatus{{"pos", 3, Sick, ref("b"), "the pod has failed", 1, 2}}},
		{"old news", func() { b.see(pod("b", "Running", 1)) }, nil},
		{"another app's", func() { u := pod("b", "Running", 9); u.SetLabels(nil); b.see(u) }, nil},
		{"deleted", func() { b.gone("pos", ref("b").identity()) }, []AppStatus{{"pos", 3, Missing, ref("b"), "it was deleted", 1, 2}}},
		{"made anew", func() { b.see(pod("b", "Running", 1)) }, []AppStatus{{"pos", 3, Ready, Ref{}, "", 2, 2}}},
		{"not in a list", func() { b.absent("", "Pod", map[identity]bool{ref("b").identity(): true}) }, []AppStatus{{"pos", 3, Missing, ref("a"), "it is not there", 1, 2}}},
		{"not wanted any more", func() { b.expect("pos", 4, []Ref{ref("b")}) }, []AppStatus{{"pos", 4, Ready, Ref{}, "", 1, 1}}},
		{"app gone", func() { b.forget("pos") }, nil},
	}
	for _, s := range steps {
		s.do()
		if diff := cmp.Diff(s.want, b.changes()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, diff)
		}
	}
}
