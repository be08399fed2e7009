// Package vmsite is a site on the OS image in a virtual machine, as a test: UEFI,
// Secure Boot, a TPM and 1 GiB of memory; what is in the root; who may enter; power
// cuts and an update, by the same drills that people run; and at the end its disk
// and its TPM in the hands of stock tools, which know nothing of us.
//
//	make test-vmsite                                                     # some 15 minutes without KVM
//	make test-vmsite DRILLS=power,theft,clock,tamper,rollback,update,disk CUTS=20
//	go test -tags vm -count 1 -timeout 90m ./lab/vmsite -v -keep /tmp/shop  # leaves its lab
//
// Its code is all behind the build tag vm, since it needs root, QEMU and the programs
// that it tests. One machine serves all chapters, and nothing is held against the
// clock. It leaves out what machines share with hosted ones, which package site tells.
package vmsite
