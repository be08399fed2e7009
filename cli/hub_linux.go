package cli

import (
	"context"
	"log/slog"
	"os"

	"github.com/holdfast-edge/holdfast/internal/flock"
)

// keepSibling keeps the lab's keeper alive, which in turn keeps the hub, and
// hands on the lab's network.
func (e *env) keepSibling(ctx context.Context, o hubOptions, log *slog.Logger) {
	if o.keepLock == "" {
		return
	}
	sibling := flock.Sibling{Lock: o.keepLock, Command: flock.ParseCommand(o.keep), Flag: "--network-fd"}
	if o.networkFD >= 0 {
		sibling.Inherit = os.NewFile(uintptr(o.networkFD), "network")
	}
	go func() {
		if err := sibling.Keep(ctx); err != nil && ctx.Err() == nil {
			log.Error("keep the sibling alive", "lock", o.keepLock, "err", err)
		}
	}()
}
