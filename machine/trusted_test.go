package machine

import (
	"slices"
	"testing"

	"github.com/holdfast-edge/holdfast/fleet"
)

// TestTellsWhomTheTrustNames: who owns the box hears the recovery recipients of
// the trust that holds; not while the disk is shut, and not of a trust that is lost.
func TestTellsWhomTheTrustNames(t *testing.T) {
	var told [][]string
	m := newMachine(Config{Trusted: func(recovery []string) { told = append(told, recovery) }, Log: quiet()})
	m.memory = &memory{}
	m.tellTrust()
	m.memory.trust = &fleet.Trust{Recovery: []string{"one"}}
	m.limits = &Limits{}
	m.tellTrust()
	if m.limits = nil; len(told) != 0 {
		t.Errorf("told %q", told)
	}
	m.tellTrust()
	if len(told) != 1 || !slices.Equal(told[0], []string{"one"}) {
		t.Errorf("told %q, want one", told)
	}
}
