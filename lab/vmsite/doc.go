// Package vmsite is a site on the OS image in a virtual machine, as a test: UEFI,
// Secure Boot and a TPM; who may enter; what is in the root; power cuts, theft and
// wrong clocks, by the same drills that people run. Its code is all behind the build
// tag vm, since it needs root, QEMU and the programs that it tests (make test-vmsite).
// One machine serves all chapters, and nothing is held against the clock. It leaves
// out what machines share with hosted ones, which package site tells.
package vmsite
