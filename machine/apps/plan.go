package apps

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What the engine writes on objects, and where it keeps its books.
const (
	Manager   = "holdfast"        // field manager, one name for ever
	Namespace = "holdfast-system" // of the inventories

	LabelApp     = "holdfast.dev/app"     // which app an object belongs to
	LabelRelease = "holdfast.dev/release" // the release that last changed it

	AnnotationDigest   = "holdfast.dev/digest"   // of the content that was applied
	AnnotationPrune    = "holdfast.dev/prune"    // "keep": never removed by absence
	AnnotationRecreate = "holdfast.dev/recreate" // "true": may be deleted and made anew where an immutable field changes
	AnnotationAdopted  = "holdfast.dev/adopted"  // "true": was there before us, so it is not ours to delete
	annotationHelmKeep = "helm.sh/resource-policy"
)

// Ref names an object.
type Ref struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace,omitempty"`
	Name       string `json:"name"`
}

func (r Ref) String() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + r.Name
	}
	return r.Kind + " " + name
}

func (r Ref) group() string {
	g, _, ok := strings.Cut(r.APIVersion, "/")
	if !ok {
		return ""
	}
	return g
}

// identity is what makes two references the same object: versions of an API are views of one object.
type identity struct{ group, kind, namespace, name string }

func (r Ref) identity() identity { return identity{r.group(), r.Kind, r.Namespace, r.Name} }

func (r Ref) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(r.APIVersion, r.Kind)
}

// Object is one object to be applied.
type Object struct {
	APIVersion, Kind, Namespace, Name string
	JSON                              []byte
}

// Ref is the object's name.
func (o Object) Ref() Ref { return Ref{o.APIVersion, o.Kind, o.Namespace, o.Name} }

// digest is of what the JSON says, not of how it is spelt.
func (o Object) digest() (string, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(o.JSON))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return "", fmt.Errorf("%s: %w", o.Ref(), err)
	}
	canonical, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("%s: %w", o.Ref(), err)
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}

// App is one app as a release wants it.
type App struct {
	Name, Namespace string
	Needs           []string
	Objects         []Object
	Delete          []Ref // removed once, with the data that they hold
}

// Plan is all that a release wants of a site.
type Plan struct {
	Release uint64
	Apps    []App
	Delete  []Ref // what apps that are gone ask to remove; a namespace that is left out is looked up in their inventories

	KeepOld bool // remove nothing: the release is not judged yet
	Repair  bool // apply unchanged objects too, so that what others changed in our fields is put right
	Rescan  bool // make all inventories again from the labels
}

// State says how an app's part of a plan ended.
type State string

const (
	Applied  State = "applied"  // everything is as the plan wants it
	Waiting  State = "waiting"  // for what it needs; nothing was changed
	Failed   State = "failed"   // something was refused; nothing was removed
	Removed  State = "removed"  // not in the plan any more, and gone
	Removing State = "removing" // not in the plan any more; what is left of it is being deleted
	Orphaned State = "orphaned" // not in the plan any more, left in place because of its data
)

// Reason sorts messages for whoever acts on them.
type Reason string

const (
	Conflict  Reason = "conflict"  // somebody else owns the object or a field of it
	Recreate  Reason = "recreate"  // a field that cannot be changed: needs recreate: true
	NoKind    Reason = "no-kind"   // the API server does not serve the kind
	Refused   Reason = "refused"   // the API server said no
	Orphan    Reason = "orphaned"  // left in place
	NeedsWait Reason = "needs"     // a needed app is missing or not ready
	Unreached Reason = "unreached" // the API server, or something it asks, does not answer
)

// Message tells one thing about one object, or about the app when Object is empty.
type Message struct {
	Object Ref    `json:"object"`
	Reason Reason `json:"reason"`
	Text   string `json:"text"`
}

// AppResult counts an app's objects by what happened to them.
type AppResult struct {
	App       string        `json:"app"`
	State     State         `json:"state"`
	Applied   int           `json:"applied"`   // written
	Unchanged int           `json:"unchanged"` // were so already
	Pruned    int           `json:"pruned"`    // removed because the plan has them no more
	Going     int           `json:"going"`     // still being deleted
	Deleted   int           `json:"deleted"`   // removed because a Delete entry says so
	Orphaned  int           `json:"orphaned"`
	Failed    int           `json:"failed"`
	Skipped   int           `json:"skipped"` // not tried, because something before them failed
	Messages  []Message     `json:"messages,omitempty"`
	Took      time.Duration `json:"took"`
}

func (r *AppResult) say(ref Ref, reason Reason, format string, args ...any) {
	r.Messages = append(r.Messages, Message{ref, reason, fmt.Sprintf(format, args...)})
}

// Result is what became of a plan: its apps in order, then apps that are no longer in it.
type Result struct {
	Release uint64      `json:"release"`
	Apps    []AppResult `json:"apps"`
	Writes  int64       `json:"writes"` // requests that can change something, books included
}

// OK says whether every app of the plan was applied.
func (r *Result) OK() bool {
	for _, a := range r.Apps {
		if a.State == Waiting || a.State == Failed {
			return false
		}
	}
	return true
}
