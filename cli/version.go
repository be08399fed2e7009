package cli

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/internal/version"
)

func (e *env) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "print the version",
		GroupID: "run",
		Args:    args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if e.output == "json" {
				return json.NewEncoder(e.out).Encode(map[string]string{
					"version": version.Version, "go": runtime.Version(),
					"os": runtime.GOOS, "architecture": runtime.GOARCH, "apiVersion": fleet.APIVersion})
			}
			_, err := fmt.Fprintf(e.out, "holdfast %s (%s, %s/%s)\n", version.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
