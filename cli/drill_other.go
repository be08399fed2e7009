//go:build !linux

package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

func (e *env) drill() *cobra.Command {
	return &cobra.Command{
		Use: "drill NAME [MACHINE]", Short: "prove on a machine of the lab that it survives (Linux only)", GroupID: "run", DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return hint(errors.New("drills are done on a machine of a lab, which needs Linux"), "run it on a Linux machine or in a Linux VM, as root")
		},
	}
}
