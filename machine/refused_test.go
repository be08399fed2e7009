package machine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/machine/applier"
	"github.com/holdfast-edge/holdfast/machine/faults"
)

// cold is an applier that never comes up.
type cold struct{ Applier }

func (cold) Render(context.Context, []byte) (*applier.Rendering, error) {
	return nil, errors.New("not up yet")
}

// Content of which nothing can be made stands on the console, until there is other.
func TestRefusedContentIsTold(t *testing.T) {
	w := newWorld(t, 2)
	w.release()
	b := newKit(t, w)
	memory := b.open()
	accepted := b.take(memory)
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(Config{Log: quiet()})
		m.memory, m.cluster, m.applier = memory, &cluster{}, cold{}
		m.console = newConsole("", nil)
		m.reporter = newReporter(m.console)
		c := newContent(m)
		run := func(fault error) string {
			t.Helper()
			accepted.ContentErr = fault
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- c.run(ctx) }()
			time.Sleep(time.Second / 2)
			synctest.Wait()
			now, _ := m.faults.Now()
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			var told []string
			for _, f := range now {
				told = append(told, f.String())
			}
			return strings.Join(told, "\n")
		}
		if got := run(errors.New("site.yaml is not there")); !strings.HasPrefix(got, string(faults.ContentRefused)+" ") || !strings.Contains(got, "site.yaml is not there") {
			t.Errorf("told: %q", got)
		}
		if got := run(nil); got != "" {
			t.Errorf("still told: %q", got)
		}
	})
}
