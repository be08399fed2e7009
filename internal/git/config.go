package git

import (
	"context"
	"fmt"
)

// SetConfig writes one setting of this repository alone.
func (r *Repo) SetConfig(ctx context.Context, key, value string) error {
	if _, err := r.run(ctx, nil, "config", "--local", key, value); err != nil {
		return fmt.Errorf("write Git setting %s: %w", key, err)
	}
	return nil
}
