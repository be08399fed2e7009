package machine

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-edge/holdfast/machine/update"
	"github.com/holdfast-edge/holdfast/release"
)

// An OS that a newer release no longer wants is not begun by what still runs.
func TestWhatRunsBeginsNoOSOnceSuperseded(t *testing.T) {
	numbered := func(n uint64) *taken {
		return &taken{Accepted: &release.Accepted{Tag: &release.Tag{Payload: release.Payload{N: n}}}}
	}
	m := &Machine{memory: &memory{accepted: numbered(3), applied: numbered(2)}, os: &osUpdate{}} // which would fail, were it asked
	c := &content{Machine: m}
	if err := c.catchUp(t.Context()); err != nil {
		t.Errorf("nothing runs: %v", err)
	}
	c.running = &rendered{taken: m.memory.applied}
	if err := c.catchUp(t.Context()); err != nil {
		t.Errorf("release 3 was accepted, and 2 runs: %v", err)
	}
	ctx, cancel := c.superseded(t.Context(), c.running.taken, false)
	defer cancel()
	<-ctx.Done()
	if err := cause(ctx, errors.New("cut off")); !errors.Is(err, errSuperseded) {
		t.Errorf("what was cut off by a newer release ended with %v", err)
	}
	if err := cause(ctx, fmt.Errorf("begun: %w", update.ErrRebooting)); !errors.Is(err, update.ErrRebooting) {
		t.Errorf("a machine that reboots is told %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := cause(ended, context.Canceled); !errors.Is(err, context.Canceled) {
		t.Errorf("the end of all is told as %v", err)
	}
}
