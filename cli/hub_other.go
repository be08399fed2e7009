//go:build !linux

package cli

import (
	"context"
	"log/slog"
)

// keepSibling is of labs, which are on Linux alone.
func (e *env) keepSibling(context.Context, hubOptions, *slog.Logger) {}
