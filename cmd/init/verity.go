package main

import (
	"github.com/holdfast-edge/holdfast/machine/metal/dm"
)

// open puts dm-verity between the root and everything that reads it. A block that
// does not match restarts the machine: the boot counter then decides.
func (b *boot) open() error {
	part := "/dev/" + b.said.Root
	device, err := dm.Verity("holdfast-root", dm.VerityTarget{
		Data: part, Hash: part,
		DataBlocks: b.verity.DataBlocks,
		HashStart:  b.verity.DataBlocks + 1, // after the superblock
		RootHash:   b.verity.RootHash, Salt: b.verity.Salt,
	})
	b.device = device
	return err
}
