package apps

import (
	"fmt"
	"slices"
	"strings"
)

// candidate is an object that the books have and the plan has not, with the facts that decide about it. The rim gathers them, decide does no I/O.
type candidate struct {
	entry
	Live        bool              // there is such an object
	Going       bool              // it is being deleted
	Owner       string            // its label LabelApp
	Annotations map[string]string //

	Wanted       bool     // the plan has it, in whatever app
	Ran          bool     // a Job that has started
	DeletesClaim bool     // a StatefulSet that takes its claims with it
	Claims       []string // claims that would go with it: in it (a namespace), or owned by it through others
	Foreign      []string // what else is in a namespace
	Unknown      string   // why the facts above may be incomplete
}

// fate is what becomes of a candidate.
type fate int

const (
	forget fate = iota // nothing to do: gone, wanted again, or somebody else's now
	remove
	orphan // stays, and is reported
)

// protected namespaces are never removed by absence.
var protected = []string{"default", "kube-system", "kube-public", "kube-node-lease", Namespace}

// decide is the rule on data. app is the app whose books have the candidate; claims are the app's claims when the whole app is gone from the plan.
func decide(c candidate, app string, claims []string) (fate, string) {
	switch {
	case !c.Live, c.Wanted:
		return forget, ""
	case c.Owner != app && c.Owner != "":
		return forget, "" // another app has it now
	case c.Going:
		return remove, "" // stays in the books until it is gone
	case len(claims) > 0:
		return orphan, fmt.Sprintf("its app is not in the release any more but has claims: %s", some(claims))
	case c.Owner == "" && c.Pending:
		return forget, "" // somebody else's, which kept ours from being made
	case c.Owner == "":
		return orphan, "its label " + LabelApp + " was taken away: it is somebody else's now"
	case c.Annotations[AnnotationAdopted] == "true":
		return orphan, "it was there before the app"
	case c.Annotations[AnnotationPrune] == "keep", c.Annotations[annotationHelmKeep] == "keep":
		return orphan, "it is marked to be kept"
	case c.is("PersistentVolumeClaim", "PersistentVolume"):
		return orphan, "it holds data"
	case c.is("CustomResourceDefinition"):
		return orphan, "definitions stay, since all objects of the kind would go with them"
	case c.is("Job") && c.Ran:
		return orphan, "a Job that has run stays"
	case c.is("StatefulSet") && c.DeletesClaim:
		return orphan, "it would take its claims with it (persistentVolumeClaimRetentionPolicy)"
	case c.is("Namespace") && slices.Contains(protected, c.Name):
		return orphan, "it is one of Kubernetes' own"
	case len(c.Claims) > 0:
		return orphan, "claims would go with it: " + some(c.Claims)
	case len(c.Foreign) > 0:
		return orphan, "there are other things in it: " + some(c.Foreign)
	case c.Unknown != "":
		return orphan, "what would go with it is not known: " + c.Unknown
	}
	return remove, ""
}

// some lists a few of many.
func some(names []string) string {
	slices.Sort(names)
	if len(names) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:5], ", "), len(names)-5)
	}
	return strings.Join(names, ", ")
}

// content is one object in a namespace that might be removed.
type content struct {
	Ref
	Owned bool // has an owner, which is looked at itself
	Going bool
}

// isForeign says whether something stands against removing the namespace that it is in. What Kubernetes puts into every namespace does not, nor
// what is on its way out. What the app itself left there does: namespaces are looked at last, so it was kept for a reason.
func isForeign(c content) bool {
	switch {
	case c.Owned, c.Going:
		return false
	case c.is("Event", "Endpoints", "EndpointSlice"), c.group() == "metrics.k8s.io":
		return false
	case c.is("ServiceAccount") && c.Name == "default", c.is("ConfigMap") && c.Name == "kube-root-ca.crt":
		return false
	}
	return true
}

// isClaimOf says whether a claim's name is one that a StatefulSet gave from one of its templates.
func isClaimOf(claim, set string, templates []string) bool {
	for _, t := range templates {
		ordinal, ok := strings.CutPrefix(claim, t+"-"+set+"-")
		if ok && ordinal != "" && strings.Trim(ordinal, "0123456789") == "" {
			return true
		}
	}
	return false
}
