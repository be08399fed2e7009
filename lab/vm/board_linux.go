package vm

import "github.com/holdfast-edge/holdfast/internal/preflight"

// board is what differs between processors.
type board struct {
	qemu       string
	code, vars string   // firmware, and its variables without keys
	machine    string   // options of QEMU's machine, without those for firmware
	cpu        string   // under TCG
	secure     []string // further arguments of a start with firmware
	tpm        string   // the device
	screen     []string
}

// boards are the processors that machines may have, by Go's names.
var boards = map[string]board{
	"amd64": {
		qemu: preflight.QEMU, code: preflight.FirmwareCode, vars: preflight.FirmwareVars,
		machine: "q35,smm=on,vmport=off,hpet=off",
		cpu:     "max,la57=off", // 5-level page tables cost half of the speed in TCG
		secure:  []string{"-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"},
		tpm:     "tpm-crb", screen: []string{"-vga", "std"},
	},
	"arm64": {
		qemu: "qemu-system-aarch64", code: "/usr/share/AAVMF/AAVMF_CODE.fd", vars: "/usr/share/AAVMF/AAVMF_VARS.fd",
		machine: "virt",
		cpu:     "neoverse-n1", // no pointer authentication, which is slow in TCG; no page-table isolation, as on a cortex-a72
		tpm:     "tpm-tis-device", screen: []string{"-device", "ramfb"},
	},
}
