package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/lab"
)

// leastMemory is what a machine of a lab has at least: with less, Kubernetes does not stand up.
const leastMemory = 512 << 20

// memory is a flag: bytes as Kubernetes writes them.
type memory int64

func (m *memory) String() string { return fleet.Quantity(*m).String() }
func (m *memory) Type() string   { return "size" }

func (m *memory) Set(text string) error {
	q, err := fleet.ParseQuantity(text)
	if err != nil {
		return err
	}
	if q < leastMemory {
		return fmt.Errorf("%s of memory are too little: a machine needs at least %s", q, fleet.Quantity(leastMemory))
	}
	*m = memory(q)
	return nil
}

// Troubles of boxes are looked for so often; one that stays so long, over two
// more attempts to start the machine, does not go away by waiting.
const (
	troubleEvery    = 300 * time.Millisecond
	troublePatience = 25 * time.Second
)

// boxError is a machine that its box cannot start.
type boxError struct{ machine, why, log string }

func (e *boxError) Error() string {
	return fmt.Sprintf("machine %s cannot be started: %s", e.machine, e.why)
}

// watchBoxes tells what keeps virtual machines from starting, and ends the context
// when it lasts. It watches until stop is called.
func (e *env) watchBoxes(ctx context.Context, l lab.Lab, w *lab.Wanted) (watched context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		since, said := map[string]time.Time{}, map[string]string{}
		for {
			for _, m := range w.Machines {
				why := ""
				if m.Run && m.Virtual() {
					why = l.Trouble(m)
				}
				if why == "" {
					delete(since, m.Key())
					continue
				}
				trouble := &boxError{m.Key(), why, l.Log(m)}
				if said[m.Key()] != why {
					said[m.Key()] = why
					fmt.Fprintf(e.err, "          %v; it is tried again\n", trouble)
				}
				if _, known := since[m.Key()]; !known {
					since[m.Key()] = time.Now()
				}
				if time.Since(since[m.Key()]) > troublePatience {
					cancel(trouble)
				}
			}
			if !wait(ctx, troubleEvery) {
				return
			}
		}
	}()
	return ctx, func() { cancel(nil); <-ended }
}

// boxTrouble is err, or why the context of watchBoxes ended.
func boxTrouble(ctx context.Context, err error) error {
	var trouble *boxError
	if err != nil && errors.As(context.Cause(ctx), &trouble) {
		return hint(trouble, "mend that, then holdfast lab up again; %s has more", trouble.log)
	}
	return err
}
