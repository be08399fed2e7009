package preflight

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
)

// QEMULeast is the oldest major version of QEMU that virtual machines run on: 7.2
// computes wrong flags without KVM, on which guests crash at random.
const QEMULeast = 9

// QEMU is the program that virtual machines run in. Firmware is what they begin
// with: code, and variables without keys. Debian's packages are qemu-system-x86,
// ovmf and swtpm.
const (
	QEMU         = "qemu-system-x86_64"
	FirmwareCode = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	FirmwareVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// QEMUVersion asks a QEMU of this computer, such as [QEMU], for its version, such as 10 and 10.0.
func QEMUVersion(ctx context.Context, program string) (major int, text string, err error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return 0, "", fmt.Errorf("ask %s for its version: %w", program, err)
	}
	m := qemuVersion.FindSubmatch(out)
	if m == nil {
		return 0, "", fmt.Errorf("%s does not tell its version: %q", program, out)
	}
	major, err = strconv.Atoi(string(m[1]))
	return major, string(m[1]) + "." + string(m[2]), err
}

const (
	vmPackages = "make setup, or apt-get install qemu-system-x86 ovmf swtpm"
	oldQEMU    = "make setup; by hand on Debian 12: apt-get install -t bookworm-backports qemu-system-x86"
)

// virtual looks at what virtual machines need. Without KVM they are slow, and that is no fault.
func (c *checker) virtual(ctx context.Context) {
	item := Item{Name: "qemu", Found: "not found", Need: fmt.Sprintf("QEMU %d or newer", QEMULeast), Fix: vmPackages}
	if major, text, err := QEMUVersion(ctx, QEMU); err == nil {
		item.OK, item.Found, item.Fix = major >= QEMULeast, "QEMU "+text, oldQEMU
		if !item.OK {
			item.Found += ", in which guests crash at random"
		}
	}
	c.add(item)
	c.tool("swtpm").Fix = vmPackages
	for _, file := range []string{FirmwareCode, FirmwareVars} {
		item := Item{Name: "firmware", OK: true, Found: file, Need: file, Fix: vmPackages}
		if _, err := os.Stat(file); err != nil {
			item.OK, item.Found = false, err.Error()
		}
		c.add(item)
	}
	c.tryUnlessAsleep("tap devices", "/dev/net/tun", "modprobe tun; inside a container run it privileged with /dev/net/tun", []string{"tun"}, func() error {
		f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return f.Close()
	})
	item = Item{Name: "kvm", OK: true, Found: "there; whether guests really run is tried at the first start"}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		item.Found = "not usable, so machines are some ten times slower"
	} else {
		f.Close()
	}
	c.add(item)
}
