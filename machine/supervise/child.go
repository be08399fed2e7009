package supervise

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

// Child describes one process to keep running.
type Child struct {
	Name string // unique in the set; names its log file
	Path string // program, absolute
	Args []string
	Env  []string // whole environment, KEY=VALUE; nil: that of this process
	Dir  string   // working directory; empty: /

	After       []string                    // children that must be ready before this one starts
	Ready       func(context.Context) error // asked until it returns nil; nil: ready once started. Not compared by Apply
	ReadyWithin time.Duration               // a child that is not ready by then is restarted; 0: it may take for ever

	Signal syscall.Signal // asks the child to end; default SIGTERM
	Grace  time.Duration  // between Signal and SIGKILL; default 10 s

	Cgroup      string // below Config.Cgroup; empty: none of its own
	OOMScoreAdj int    // for the process, inherited by its children; 0: as this process. Lowering it may need a capability that is not there: then it is logged and skipped
	Revision    string // anything that means "another configuration": a change restarts the child
}

func (c *Child) grace() time.Duration {
	if c.Grace > 0 {
		return c.Grace
	}
	return 10 * time.Second
}

func (c *Child) signal() syscall.Signal {
	if c.Signal != 0 {
		return c.Signal
	}
	return syscall.SIGTERM
}

// Backoff is the pause between an unexpected end and the next start.
type Backoff struct {
	Min   time.Duration // first; default 100 ms
	Max   time.Duration // longest; default 30 s
	Reset time.Duration // a child that ran this long begins anew at Min; default 1 min
}

// CrashLoop says what counts as one.
type CrashLoop struct {
	Exits  int           // unexpected ends; default 5
	Window time.Duration // within; default 5 min
}

// State of a child.
type State int

const (
	Waiting  State = iota // for others to be ready
	Starting              // there is a process, not yet ready
	Running               // ready
	Stopping              // asked to end
	Pausing               // ended, pausing
	Stopped               // ended, not wanted
)

func (s State) String() string {
	return [...]string{"waiting", "starting", "running", "stopping", "pausing", "stopped"}[s]
}

// MarshalText gives status output the words.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Exit is the end of a process, or the failure to start one.
type Exit struct {
	Code     int           `json:"code"`             // -1 when killed by a signal or never started
	Signal   string        `json:"signal,omitempty"` // name of the signal that ended it
	Reason   string        `json:"reason,omitempty"` // why it was ended or could not start
	Expected bool          `json:"expected"`         // it was asked to end
	At       time.Time     `json:"at"`
	Ran      time.Duration `json:"ran"`
	Output   []string      `json:"output,omitempty"` // its last lines
}

func (e Exit) String() string {
	what := fmt.Sprintf("exit code %d", e.Code)
	if e.Signal != "" {
		what = e.Signal
	}
	if e.Reason != "" {
		what = e.Reason
	}
	return fmt.Sprintf("%s after %v", what, e.Ran.Round(time.Millisecond))
}

// Status of a child at a moment.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	PID       int       `json:"pid,omitempty"`
	Since     time.Time `json:"since"` // of the state
	Restarts  int       `json:"restarts"`
	WaitsFor  []string  `json:"waitsFor,omitempty"`
	Next      time.Time `json:"next,omitzero"` // start after the back-off
	Crashes   int       `json:"crashes"`       // unexpected ends within the window
	CrashLoop bool      `json:"crashLoop"`
	LastExit  *Exit     `json:"lastExit,omitempty"`
}
