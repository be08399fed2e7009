package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"

	"github.com/holdfast-edge/holdfast/internal/preflight"
)

// SWTPM is the program that is a machine's TPM.
const SWTPM = "swtpm"

// ready tells what this computer lacks for s.
func ready(ctx context.Context, s Spec) error {
	b := boards[s.Architecture]
	major, text, err := preflight.QEMUVersion(ctx, b.qemu)
	if err != nil {
		return err
	}
	var faults []error
	if major < preflight.QEMULeast {
		faults = append(faults, fmt.Errorf("QEMU %s is too old: guests crash in it at random; %d or newer is needed", text, preflight.QEMULeast))
	}
	if _, err := exec.LookPath(SWTPM); err != nil && s.TPM != "" {
		faults = append(faults, err)
	}
	if s.Kernel == nil {
		for _, file := range []string{b.code, b.vars} {
			if _, err := os.Stat(file); err != nil {
				faults = append(faults, err)
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("this computer cannot run virtual machines (make setup installs what is needed, build/setup arm64 what is for that processor): %w", errors.Join(faults...))
}

// MAC is an address of a network card made from a name: always the same, and of
// the kind that is set by hand.
func MAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return net.HardwareAddr{0x52, 0x54, 0, sum[0], sum[1], sum[2]}
}
