package update

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/machine/slots"
)

// Target is an OS version that a release describes, for this machine.
type Target struct {
	Version    string
	Digest     string // of the artefact's manifest
	Size       int64  // of the whole
	Kubernetes string
}

var (
	// ErrRefused: this effect was tried with this OS, and sent back.
	ErrRefused = errors.New("refused before; holdfast retry tries it again")
	// ErrNoWay: no chain of versions leads from what runs to what is wanted.
	ErrNoWay = errors.New("the OS that is wanted cannot follow the one that runs")
)

// Wanted says what to install next, to come to a release's OS version from the one
// that runs; ok is false where that one is it. all are the documents of os/ that
// the release has, by version. ErrNoWay, ErrFloor and ErrRefused say why not.
func (u *Updater) Wanted(version, effect, architecture string, all map[string]fleet.OSSpec) (t Target, ok bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if version == "" || version == u.Running.Version {
		return Target{}, false, nil
	}
	next, err := Route(u.Running.Version, u.Running.Kubernetes, version, all)
	if err != nil {
		return Target{}, false, err
	}
	spec := all[next]
	image, has := spec.Images[architecture]
	if !has {
		return Target{}, false, fmt.Errorf("OS %s has no image for %s: %w", next, architecture, ErrNoWay)
	}
	if err := u.note.allows(next); err != nil {
		return Target{}, false, err
	}
	if r := u.refusal(effect, next); r != nil {
		return Target{}, false, fmt.Errorf("OS %s: %w: %s", next, ErrRefused, r.Reason)
	}
	return Target{Version: next, Digest: image.Digest, Size: image.Size, Kubernetes: spec.Kubernetes}, true, nil
}

func (u *Updater) refusal(effect, version string) *Refusal {
	if r := u.refused; r != nil && r.Effect == effect && r.Version == version {
		return r
	}
	return nil
}

// Route is the next stone on the shortest way from a version that runs to the one
// that is wanted; of equally short ways the one over the newest versions. A
// version follows another if its document says so, or says nothing, and if its
// Kubernetes minor is the same or the next one: never one before, never two on.
func Route(running, minor, wanted string, all map[string]fleet.OSSpec) (string, error) {
	if _, ok := all[wanted]; !ok {
		return "", fmt.Errorf("the release has no os/%s.yaml: %w", wanted, ErrNoWay)
	}
	// Backwards from what is wanted, in rings of equal length.
	reached := map[string]bool{wanted: true}
	for ring := []string{wanted}; len(ring) > 0; {
		slices.SortFunc(ring, func(a, b string) int { return slots.CompareVersions(b, a) })
		for _, v := range ring {
			if follows(v, all[v], running, minor) {
				return v, nil
			}
		}
		var before []string
		for _, v := range ring {
			for other, spec := range all {
				if !reached[other] && follows(v, all[v], other, spec.Kubernetes) {
					reached[other] = true
					before = append(before, other)
				}
			}
		}
		ring = before
	}
	return "", fmt.Errorf("from OS %s (Kubernetes %s) to %s (Kubernetes %s), by way of %d documents in os/: %w",
		running, minor, wanted, all[wanted].Kubernetes, len(all), ErrNoWay)
}

func follows(version string, spec fleet.OSSpec, before, minor string) bool {
	if len(spec.Follows) > 0 && !slices.Contains(spec.Follows, before) {
		return false
	}
	from, ok1 := minorOf(minor)
	to, ok2 := minorOf(spec.Kubernetes)
	return version != before && ok1 && ok2 && (to == from || to == from+1)
}

func minorOf(s string) (int, bool) {
	digits, ok := strings.CutPrefix(s, "1.")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil
}
