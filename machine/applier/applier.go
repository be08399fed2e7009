// Package applier is how machined has a release rendered and brought into the
// site's Kubernetes: by a program of its own, cmd/applier, so that process 1
// links neither a client of Kubernetes nor a template engine.
//
//	applier render   reads a slice, writes the Rendering, ends: what rendering
//	                 needs of memory is gone with it
//	applier run      applies and watches, as long as machined runs; spoken to by
//	                 HTTP on a socket that root alone may open
//
// It promises: what the program writes is bounded; half an answer is none; one
// that is silent for too long is given up, and told (Child.Stuck); one that speaks
// another version is refused by name. A program that dies at any moment costs the
// call that is under way, with an error that is worth a second try; only
// ErrRefused is not.
//
// It leaves out what the program does inside (package serve), keeping it running
// (machine/supervise) and trying again (package machine).
package applier

import (
	"encoding/json"
	"errors"
)

// Version is that of the words that machined and the program exchange. They come
// in one OS image, or from one build; where they do not, nothing is guessed.
const Version = 1

var (
	// ErrRefused: the slice cannot be rendered. It would be refused again.
	ErrRefused = errors.New("refused")
	// ErrVersion: the program is of another build, and does not understand this one.
	ErrVersion = errors.New("the applier speaks another version")
	// ErrSilent: the program did not answer for too long.
	ErrSilent = errors.New("the applier does not answer")
)

// Rendering is what the caller needs to know of what a slice makes of its site.
type Rendering struct {
	Effect string          `json:"effect"` // digest, see render.Effect
	Apps   []App           `json:"apps"`   // in the order of their needs
	Images []Image         `json:"images"` // of all apps
	Plan   json.RawMessage `json:"plan"`   // for Order.Plan, and for nobody else to read
}

// App is an app of a Rendering.
type App struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Critical bool   `json:"critical,omitempty"`
}

// Image is an app image that must be at the site before an object changes.
type Image struct {
	Ref    string `json:"ref"`    // registry/repo:tag
	Digest string `json:"digest"` // sha256:…
}

// API is the way to the site's API server. The files are read anew when
// certificates are renewed.
type API struct {
	URL  string `json:"url"`
	Name string `json:"name"` // in the server's certificate
	CA   string `json:"ca"`   // files
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Order asks for a rendering to be made true.
type Order struct {
	API     API             `json:"api"`
	Release uint64          `json:"release"`
	Plan    json.RawMessage `json:"-"` // follows behind
}

// State says how an app's part of an Order ended; the words are package apps'.
type State string

const (
	Applied  State = "applied"
	Waiting  State = "waiting" // for what it needs; nothing was changed
	Failed   State = "failed"
	Removed  State = "removed"
	Removing State = "removing"
	Orphaned State = "orphaned" // no longer wanted, left in place because of its data
)

// Result is what became of an Order.
type Result struct {
	Apps   []AppResult `json:"apps"`
	Writes int64       `json:"writes"`          // requests that can change something
	Fault  string      `json:"fault,omitempty"` // of the first app that is not applied; "": all are
}

// AppResult is what became of one app.
type AppResult struct {
	Name      string `json:"name"`
	State     State  `json:"state"`
	Applied   int    `json:"applied"`
	Unchanged int    `json:"unchanged"`
	Detail    string `json:"detail,omitempty"`
}

// Health of an app at an instant; the words are package apps'.
type Health string

const (
	Ready       Health = "ready"
	Progressing Health = "progressing"
	Sick        Health = "sick"
	Missing     Health = "missing"
)

// Status is how an app is at an instant.
type Status struct {
	App     string `json:"app"`
	Health  Health `json:"health"`
	Message string `json:"message,omitempty"`
	Ready   int    `json:"ready"` // objects that are, of those that are judged
	Total   int    `json:"total"`
}

// Answer is what `applier render` writes.
type Answer struct {
	Version   int        `json:"version"`
	Refused   string     `json:"refused,omitempty"`
	Rendering *Rendering `json:"rendering,omitempty"`
}

// Event is a line of what `applier run` answers. An empty one only says that the
// program is alive.
type Event struct {
	Status *Status `json:"status,omitempty"`
	Result *Result `json:"result,omitempty"` // the last of an apply
	Fault  string  `json:"fault,omitempty"`  // the last where it went wrong
}

// Paths of `applier run`.
const (
	PathApply = "/1/apply"
	PathWatch = "/1/watch"
)

// MaxAnswer bounds what one rendering may be in bytes.
const MaxAnswer = 64 << 20
