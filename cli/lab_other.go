//go:build !linux

package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func (e *env) lab() *cobra.Command {
	return &cobra.Command{
		Use: "lab", Short: "virtual sites on this computer (Linux only)", GroupID: "run", DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return hint(errors.New("a lab needs the namespaces of Linux"), "run it on a Linux machine or in a Linux VM, as root")
		},
	}
}
