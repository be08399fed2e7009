// Package osimage is what the builder of the OS image and the machine that runs
// it agree on: names and sizes of partitions, files of the ESP, the one argument
// of the kernel's command line that our programs read. It does no input or
// output; the packages below it read and write the formats.
package osimage

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Names of partitions. Those of a stick differ, so that a machine that boots
// from one never takes it for its own disk.
const (
	PartESP       = "holdfast-esp"
	PartRootA     = "holdfast-root-a"
	PartRootB     = "holdfast-root-b"
	PartState     = "holdfast-state"
	PartData      = "holdfast-data"
	PartStickESP  = "holdfast-stick-esp"
	PartStickRoot = "holdfast-stick-root"
)

// Sizes in bytes. A root partition holds the file system and its verity tree.
const (
	Alignment    = 1 << 20
	ESPSize      = 256 << 20
	RootSize     = 448 << 20
	StateSize    = 1 << 30 // unless the profile says otherwise
	DataSizeMin  = 1 << 30
	VerityBlock  = 4096
	VerityHash   = "sha256"
	PublicFolder = "holdfast" // on the ESP: what a machine needs to dial, no secret
)

// BootLoaders are the names by which firmware finds a boot loader on the ESP (UEFI
// 2.10, section 3.5.1.1), by processor.
var BootLoaders = map[string]string{"amd64": "EFI/BOOT/BOOTX64.EFI", "arm64": "EFI/BOOT/BOOTAA64.EFI"}

// BootLoaderCopy is where a machine keeps a second boot loader, for the day on which
// the first one is damaged: where systemd-boot lies by custom, whatever the processor.
const BootLoaderCopy = "EFI/systemd/systemd-boot.efi"

// LoaderFile is where the root has the signed boot loader that was made with it.
const LoaderFile = "/usr/share/holdfast/loader.efi"

// BootFile is where cmd/init says how the machine booted.
const BootFile = "/run/holdfast/boot.json"

// Boot is BootFile.
type Boot struct {
	Disk     string  `json:"disk"` // kernel name, such as vda
	ESP      string  `json:"esp"`  // kernel name; "" when the kernel was started without firmware
	Root     string  `json:"root"`
	Slot     string  `json:"slot"`              // a, b or stick
	Damaged  string  `json:"damaged,omitempty"` // slot whose root is not what was signed; "": none that is known
	RootHash string  `json:"rootHash"`
	Phases   []Phase `json:"phases"`
}

// Phase is a step of the boot with the milliseconds that it took.
type Phase struct {
	Name string `json:"name"`
	MS   int64  `json:"ms"`
}

// Verity names a root file system: all that is needed to open it.
type Verity struct {
	RootHash   [32]byte
	Salt       [32]byte
	DataBlocks uint64 // of VerityBlock bytes; the superblock of the hash area follows
}

const verityArgument = "holdfast.verity="

// Argument is v on the kernel's command line.
func (v Verity) Argument() string {
	return fmt.Sprintf("%s%x:%x:%d", verityArgument, v.RootHash, v.Salt, v.DataBlocks)
}

// ParseVerity finds the argument in a command line.
func ParseVerity(cmdline string) (Verity, error) {
	var v Verity
	found := false
	for field := range strings.FieldsSeq(cmdline) {
		text, ok := strings.CutPrefix(field, verityArgument)
		if !ok {
			continue
		}
		if found {
			return Verity{}, fmt.Errorf("the command line has %s twice", verityArgument)
		}
		found = true
		parts := strings.Split(text, ":")
		if len(parts) != 3 {
			return Verity{}, fmt.Errorf("%s%s: want ROOTHASH:SALT:BLOCKS", verityArgument, text)
		}
		for i, to := range []*[32]byte{&v.RootHash, &v.Salt} {
			b, err := hex.DecodeString(parts[i])
			if err != nil || len(b) != len(to) {
				return Verity{}, fmt.Errorf("%s%s: want 64 hex digits, got %q", verityArgument, text, parts[i])
			}
			copy(to[:], b)
		}
		n, err := strconv.ParseUint(parts[2], 10, 32)
		if err != nil || n == 0 {
			return Verity{}, fmt.Errorf("%s%s: want a number of blocks, got %q", verityArgument, text, parts[2])
		}
		v.DataBlocks = n
	}
	if !found {
		return Verity{}, fmt.Errorf("the command line has no %s", verityArgument)
	}
	return v, nil
}
