package vm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// QEMULeast is the oldest major version of QEMU that is good enough: 7.2 computes
// wrong flags without KVM, on which guests crash at random.
const QEMULeast = 9

// The programs and firmware that machines are made of, in Debian's packages
// qemu-system-x86, swtpm and ovmf.
const (
	QEMU         = "qemu-system-x86_64"
	SWTPM        = "swtpm"
	FirmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	FirmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

var versionOf = regexp.MustCompile(`version (\d+)\.(\d+)`)

// QEMUVersion asks the QEMU of this computer for its version, such as 10.0.
func QEMUVersion(ctx context.Context) (major int, text string, err error) {
	out, err := exec.CommandContext(ctx, QEMU, "--version").Output()
	if err != nil {
		return 0, "", fmt.Errorf("ask %s for its version: %w", QEMU, err)
	}
	m := versionOf.FindSubmatch(out)
	if m == nil {
		return 0, "", fmt.Errorf("%s does not tell its version: %q", QEMU, out)
	}
	major, err = strconv.Atoi(string(m[1]))
	return major, string(m[1]) + "." + string(m[2]), err
}

// ready tells what this computer lacks for s.
func ready(ctx context.Context, s Spec) error {
	major, text, err := QEMUVersion(ctx)
	if err != nil {
		return err
	}
	var faults []error
	if major < QEMULeast {
		faults = append(faults, fmt.Errorf("QEMU %s is too old: guests crash in it at random; %d or newer is needed", text, QEMULeast))
	}
	if _, err := exec.LookPath(SWTPM); err != nil && s.TPM != "" {
		faults = append(faults, err)
	}
	if s.Kernel == nil {
		for _, file := range []string{FirmwareCode, FirmwareVars} {
			if _, err := os.Stat(file); err != nil {
				faults = append(faults, err)
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("this computer cannot run virtual machines (make setup installs what is needed): %w", errors.Join(faults...))
}

// MAC is an address of a network card made from a name: always the same, and of
// the kind that is set by hand.
func MAC(name string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(name))
	return net.HardwareAddr{0x52, 0x54, 0, sum[0], sum[1], sum[2]}
}
