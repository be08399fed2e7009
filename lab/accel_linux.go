package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-edge/holdfast/lab/vm"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/uki"
)

// accelFile keeps what a probe of KVM found until the host boots again.
const accelFile = "/run/holdfast/kvm.json"

// Accel is how guests with the OS image in a folder of parts run best here, and
// why it is not KVM.
func Accel(ctx context.Context, parts string) (vm.Accel, string, error) {
	kernel, err := kernelOf(filepath.Join(parts, build.PartUKI))
	if err != nil {
		return "", "", fmt.Errorf("take the kernel out of the OS image in %s: %w", parts, err)
	}
	defer os.Remove(kernel)
	return vm.BestAccel(ctx, kernel, accelFile)
}

// kernelOf writes the kernel of a UKI to a file of its own.
func kernelOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	image, err := uki.Open(f)
	if err != nil {
		return "", err
	}
	section, _, err := image.Section(".linux")
	if err != nil {
		return "", err
	}
	out, err := os.CreateTemp("", "holdfast-kernel-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, section)
	if closed := out.Close(); err == nil {
		err = closed
	}
	if err != nil {
		os.Remove(out.Name())
		return "", err
	}
	return out.Name(), nil
}
