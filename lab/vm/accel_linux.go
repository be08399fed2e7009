package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/holdfast-edge/holdfast/internal/durable"
	"github.com/holdfast-edge/holdfast/internal/preflight"
)

// Accel is how the guest's processor is made.
type Accel string

// The accelerators.
const (
	TCG Accel = "tcg" // translated: everywhere, some 10 times slower
	KVM Accel = "kvm"
)

// probeTime is enough for a kernel to come to its end under KVM, and too little without.
const probeTime = 20 * time.Second

// verdict is what a probe found, kept until the host boots again.
type verdict struct {
	Boot string `json:"boot"`
	QEMU string `json:"qemu"`
	Why  string `json:"why,omitempty"` // KVM is no use; "": it works
}

// BestAccel is KVM where a probe shows that a guest really runs in it, else TCG
// with the reason: a device that is there says little inside of virtual machines.
// The kernel in the file is started without a root file system, and has to come to
// the panic for want of one. The verdict is kept in a file until the host boots again.
func BestAccel(ctx context.Context, kernel, keep string) (Accel, string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, err.Error(), nil
	}
	f.Close()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", err
	}
	_, version, err := preflight.QEMUVersion(ctx, boards[runtime.GOARCH].qemu)
	if err != nil {
		return "", "", err
	}
	now := verdict{Boot: strings.TrimSpace(string(boot)), QEMU: version}
	var v verdict
	if err := durable.ReadJSON(keep, &v); err != nil || v.Boot != now.Boot || v.QEMU != now.QEMU {
		v = now
		if err := probe(ctx, kernel); ctx.Err() != nil {
			return "", "", ctx.Err()
		} else if err != nil {
			v.Why = err.Error()
		}
		if err := errors.Join(durable.MkdirAll(filepath.Dir(keep), 0o755), durable.WriteJSON(keep, v, 0o644)); err != nil {
			return "", "", err
		}
	}
	if v.Why != "" {
		return TCG, v.Why, nil
	}
	return KVM, "", nil
}

// probe is nil when a guest ran in KVM from its kernel's first line to its last.
func probe(ctx context.Context, kernel string) error {
	dir, err := os.MkdirTemp("", "holdfast-kvm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	fail := func(err error) error { return fmt.Errorf("a guest does not run in KVM here: %w", err) }
	v, err := Start(ctx, Spec{Dir: dir, Name: "kvm-probe", Memory: 512 << 20, Accel: KVM, Log: slog.New(slog.DiscardHandler),
		Kernel: &Kernel{File: kernel, Arguments: "console=ttyS0 panic=0"}})
	if err != nil {
		return fail(err)
	}
	err = v.WaitConsole(ctx, "Unable to mount root fs")
	words := v.lastWords()
	v.kill()
	<-v.done
	if err != nil {
		return fail(cmp.Or(words, err))
	}
	return nil
}
