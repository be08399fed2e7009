package machine

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-edge/holdfast/link"
)

// A machine that waits for its hub dials as soon as its network is another.
func TestRedialsWhenRerouted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rerouted, dials := make(chan struct{}, 1), 0
		m := newMachine(Config{Rerouted: rerouted, Log: quiet()})
		m.keeper = link.NewKeeper(link.KeeperConfig{
			LeastWait: time.Hour, MostWait: time.Hour, Log: quiet(),
			Hubs: func() []link.Hub { return []link.Hub{{Address: "hub:443"}} },
			Dial: func(context.Context, link.DialConfig) (link.Session, error) {
				dials++
				return nil, errors.New("no route to the hub")
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = m.keeper.Run(ctx) }()
		go m.redials(ctx)
		synctest.Wait()
		for want := 2; want < 5; want++ {
			rerouted <- struct{}{}
			synctest.Wait()
			if dials != want {
				t.Errorf("%d dials, want %d", dials, want)
			}
		}
		cancel()
		<-ended
		synctest.Wait()
	})
}
