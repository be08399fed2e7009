package main

import (
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/machine/metal"
	"github.com/holdfast-edge/holdfast/machine/metal/modules"
)

// other runs what machined is besides its verbs: process 1 of the OS image, and
// what the kernel calls to load a module.
func other() (ran bool, err error) {
	if filepath.Base(os.Args[0]) == "modprobe" {
		os.Exit(modules.Helper(os.Args[1:]))
	}
	if metal.IsMetal() {
		return true, metal.Main()
	}
	return false, nil
}
