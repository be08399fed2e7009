package apps

import (
	"fmt"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Health is a verdict about one object, or about an app: the worst of its objects.
type Health string

const (
	Ready       Health = "ready"       // as it should be, or neither good nor bad
	Progressing Health = "progressing" // on its way, or so it says
	Sick        Health = "sick"        // says that it has failed
	Missing     Health = "missing"     // was applied and is not there
)

// worse orders verdicts.
var worse = map[Health]int{Ready: 0, Progressing: 1, Missing: 2, Sick: 3}

// Judge says how one object is at this instant. It is kstatus, but for what kstatus calls good or bad and is not: a Job is good only when it
// is complete; a suspended Job and an unbound claim say nothing about the app (a claim waits for the pod that uses it, and that pod is judged itself);
// a pod that failed is sick; an APIService is good when it is available. A verdict holds for the instant: steadiness is the caller's to watch.
func Judge(u *unstructured.Unstructured) (Health, string) {
	ref := refOf(u)
	if u.GetDeletionTimestamp() != nil {
		return Progressing, "is being deleted"
	}
	switch {
	case ref.is("Job"):
		if suspended, _, _ := unstructured.NestedBool(u.Object, "spec", "suspend"); suspended {
			return Ready, "suspended"
		}
		if condition(u, "Complete") == "True" {
			return Ready, ""
		}
		if condition(u, "Failed") == "True" {
			return Sick, "the Job has failed"
		}
		return Progressing, "the Job is not complete"
	case ref.is("PersistentVolumeClaim"):
		if phase, _, _ := unstructured.NestedString(u.Object, "status", "phase"); phase == "Lost" {
			return Sick, "the volume of the claim is gone"
		}
		return Ready, ""
	case ref.is("Pod"):
		if phase, _, _ := unstructured.NestedString(u.Object, "status", "phase"); phase == "Failed" {
			return Sick, "the pod has failed"
		}
	case ref.is("APIService"):
		if condition(u, "Available") != "True" {
			return Progressing, "the API is not available"
		}
		return Ready, ""
	}
	r, err := status.Compute(u)
	if err != nil {
		return Progressing, fmt.Sprintf("its status cannot be read: %v", err)
	}
	switch r.Status {
	case status.CurrentStatus:
		return Ready, ""
	case status.FailedStatus:
		return Sick, r.Message
	}
	return Progressing, r.Message
}

// condition is the status of a condition, or "".
func condition(u *unstructured.Unstructured, kind string) string {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range list {
		if m, ok := c.(map[string]any); ok && m["type"] == kind {
			s, _ := m["status"].(string)
			return s
		}
	}
	return ""
}

func refOf(u *unstructured.Unstructured) Ref {
	return Ref{u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName()}
}

// AppStatus is how an app is at this instant.
type AppStatus struct {
	App     string `json:"app"`
	Release uint64 `json:"release"` // that last changed anything of it
	Health  Health `json:"health"`
	Object  Ref    `json:"object"`            // the one that Message is about
	Message string `json:"message,omitempty"` // why it is not ready
	Ready   int    `json:"ready"`             // objects that are, of those that are judged
	Total   int    `json:"total"`
}

// verdict is what is known of one object.
type verdict struct {
	health     Health
	message    string
	generation int64
}

// board keeps the verdicts on all objects that should be there. It does no I/O and keeps no object.
type board struct {
	apps map[string]*boardApp
	last map[string]AppStatus
}

type boardApp struct {
	release  uint64
	order    []Ref
	verdicts map[identity]verdict // missing: not seen yet
}

func newBoard() *board {
	return &board{apps: map[string]*boardApp{}, last: map[string]AppStatus{}}
}

// expect says which objects an app has; verdicts on those it had before are kept.
func (b *board) expect(app string, release uint64, refs []Ref) {
	old := b.apps[app]
	now := &boardApp{release: release, verdicts: map[identity]verdict{}}
	for _, r := range refs {
		if r.inert() {
			continue
		}
		now.order = append(now.order, r)
		if old != nil {
			if v, ok := old.verdicts[r.identity()]; ok {
				now.verdicts[r.identity()] = v
			}
		}
	}
	b.apps[app] = now
}

func (b *board) forget(app string) {
	delete(b.apps, app)
	delete(b.last, app)
}

// see takes an object as it is now. News that are older than what is known are passed over.
func (b *board) see(u *unstructured.Unstructured) {
	app, ok := b.apps[u.GetLabels()[LabelApp]]
	if !ok {
		return
	}
	id := refOf(u).identity()
	if v, ok := app.verdicts[id]; ok && u.GetGeneration() < v.generation && v.health != Missing {
		return
	}
	h, m := Judge(u)
	app.verdicts[id] = verdict{h, m, u.GetGeneration()}
}

// gone takes note that an object is not there.
func (b *board) gone(app string, id identity) {
	if a, ok := b.apps[app]; ok {
		a.verdicts[id] = verdict{health: Missing, message: "it was deleted"}
	}
}

// absent takes note of everything of a kind that a complete list did not show.
func (b *board) absent(group, kind string, seen map[identity]bool) {
	for _, a := range b.apps {
		for _, r := range a.order {
			if r.group() == group && r.Kind == kind && !seen[r.identity()] {
				a.verdicts[r.identity()] = verdict{health: Missing, message: "it is not there"}
			}
		}
	}
}

// unseen says whether an object of a kind is expected of which nothing was heard.
func (b *board) unseen(k kind) bool {
	for _, a := range b.apps {
		for _, r := range a.order {
			if _, ok := a.verdicts[r.identity()]; !ok && r.APIVersion == k.apiVersion && r.Kind == k.kind {
				return true
			}
		}
	}
	return false
}

// status sums an app up.
func (b *board) status(app string) AppStatus {
	a := b.apps[app]
	s := AppStatus{App: app, Release: a.release, Health: Ready, Total: len(a.order)}
	for _, r := range a.order {
		v, ok := a.verdicts[r.identity()]
		if !ok {
			v = verdict{health: Progressing, message: "it was not seen yet"}
		}
		if v.health == Ready {
			s.Ready++
		}
		if worse[v.health] > worse[s.Health] {
			s.Health, s.Object, s.Message = v.health, r, v.message
		}
	}
	return s
}

// changes returns the apps whose status is another than when it was last asked.
func (b *board) changes() []AppStatus {
	var out []AppStatus
	for app := range b.apps {
		if s := b.status(app); s != b.last[app] {
			b.last[app] = s
			out = append(out, s)
		}
	}
	return out
}
