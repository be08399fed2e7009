//go:build vm

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/holdfast-edge/holdfast/fleet"
	"github.com/holdfast-edge/holdfast/lab/world"
	"github.com/holdfast-edge/holdfast/osimage/audit"
	"github.com/holdfast-edge/holdfast/osimage/build"
	"github.com/holdfast-edge/holdfast/osimage/secureboot"
	"github.com/holdfast-edge/holdfast/osimage/uki"
)

// For another processor than this computer's, with all of its programs (make os ARCH=arm64):
// go test -tags vm -v -run TestOS ./lab/vm -architecture arm64 -firmware
var (
	architecture = flag.String("architecture", runtime.GOARCH, "processor of the machine that TestOS boots")
	firmware     = flag.Bool("firmware", false, "TestOS boots by UEFI, which enrols the keys of Secure Boot, and not the kernel alone")
)

// osImage builds an OS image from the programs in bin, for a fleet that nobody has.
func osImage(t *testing.T) (folder, raw string) {
	t.Helper()
	folders := osImages(t, "0.0.1")
	return folders[0], folders[0] + ".raw"
}

// osImages builds versions of the OS of one fleet: folders of parts, each with its
// raw disk and its stick beside it.
func osImages(t *testing.T, versions ...string) (folders []string) {
	t.Helper()
	return osImagesFor(t, fleet.DiskRule{}, versions...)
}

// osImagesFor is osImages of a class with a rule for disks.
func osImagesFor(t *testing.T, rule fleet.DiskRule, versions ...string) (folders []string) {
	t.Helper()
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	holdfast := func(args ...string) []byte {
		cmd := exec.Command(filepath.Join(bin, "holdfast"), args...)
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home)
		var words bytes.Buffer
		cmd.Stderr = &words
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("holdfast %v: %v\n%s", args, err, &words)
		}
		return out
	}
	repo := filepath.Join(home, "nobody")
	holdfast("init", repo)
	keys, err := secureboot.Generate("nobody")
	if err != nil {
		t.Fatal(err)
	}
	enrol, err := keys.Enrolment()
	if err != nil {
		t.Fatal(err)
	}
	programs := bin
	if *architecture != runtime.GOARCH {
		programs = filepath.Join(bin, *architecture)
	}
	seed := holdfast("--fleet", repo, "seed")
	for _, version := range versions {
		result, err := build.Build(t.Context(), build.Options{
			Profile: build.Profile{Architecture: *architecture, Disk: rule},
			Version: version, Built: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), Seed: seed,
			Programs: build.Programs{Machined: filepath.Join(programs, "machined"), Init: filepath.Join(programs, "init"), System: filepath.Join(programs, "system")},
			Keys:     build.Keys{Signer: keys.DB.Key, Certificate: keys.DB.Cert, Enrol: enrol},
			Output:   filepath.Join(home, "out"),
		})
		if err != nil {
			t.Fatal(err)
		}
		folders = append(folders, strings.TrimSuffix(result.Disk, ".raw"))
	}
	return folders
}

// direct takes the kernel out of a UKI, to be started without firmware.
func direct(t *testing.T, file string) *Kernel {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	u, err := uki.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k := &Kernel{File: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd")}
	for section, to := range map[string]string{".linux": k.File, ".initrd": k.Initrd} {
		r, _, err := u.Section(section)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if k.Arguments, err = u.Cmdline(); err != nil {
		t.Fatal(err)
	}
	return k
}

// TestOS looks at the root of an OS image, boots it without a hub, asks it for
// every port from the LAN, and presses its power button.
func TestOS(t *testing.T) {
	folder, raw := osImage(t)
	t.Run("root", func(t *testing.T) { lookAtRoot(t, filepath.Join(folder, "root.img")) })

	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	w, err := world.New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	router, address := netip.MustParsePrefix("10.7.0.1/24"), netip.MustParsePrefix("10.7.0.11/24")
	if err := w.AddLAN("cafe", router); err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	defer served.Wait()
	dhcp, stop := context.WithCancel(ctx)
	defer stop()
	served.Go(func() {
		w.ServeDHCP(dhcp, "cafe", slog.New(slog.DiscardHandler), func(string) (world.Lease, bool) {
			return world.Lease{Address: address, Router: router.Addr()}, true
		})
	})
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk0.raw")
	if err := Copy(disk, raw, 8<<30); err != nil {
		t.Fatal(err)
	}
	tap, err := w.Tap("cafe")
	if err != nil {
		t.Fatal(err)
	}
	s := Spec{Dir: dir, Name: "cafe", Architecture: *architecture, Memory: 1 << 30, Disks: []Disk{{File: disk}}, TPM: filepath.Join(dir, "tpm"), Tap: tap}
	if !*firmware {
		s.Kernel = direct(t, filepath.Join(folder, "uki.efi"))
	}
	v, err := Start(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	defer v.PowerCut(0)
	defer func() {
		if t.Failed() {
			t.Logf("console:\n%s", v.Console())
		}
	}()
	for _, text := range []string{"boot: disks", "boot: machined runs", "code      ", "address   " + address.Addr().String()} {
		if err := v.WaitConsole(ctx, text); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range regexp.MustCompile(`holdfast: (?:init|boot): .*`).FindAllString(v.Console(), -1) {
		t.Log(line)
	}
	if open, want := openPorts(ctx, w, address.Addr()), []int{7443}; !slices.Equal(open, want) {
		t.Errorf("strangers on the LAN find ports %v, want %v: the machine API", open, want)
	}
	if err := v.PressButton(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.WaitConsole(ctx, "down: now"); err != nil {
		t.Fatal(err)
	}
	if text := v.Console(); strings.Contains(text, "neither unmounted") || strings.Contains(text, "Kernel panic") {
		t.Error("it did not go down in order")
	}
	if err := v.Wait(); err != nil {
		t.Errorf("switched off by its button: %v", err)
	}
}

// lookAtRoot looks at what is on the disk: nothing that gives rights, nothing that
// interprets, nothing to execute that nobody asked for.
func lookAtRoot(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	r, err := audit.Root(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range r.Faults {
		t.Error(fault)
	}
	var listed struct {
		Load []string `json:"load"`
	}
	matches, err := fs.Glob(root, "usr/lib/modules/*/modules.json")
	if err != nil || len(matches) != 1 {
		t.Fatalf("index of modules: %v, %v", matches, err)
	}
	data, err := fs.ReadFile(root, matches[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &listed); err != nil || len(listed.Load) == 0 {
		t.Errorf("index of modules: %v, %d to load", err, len(listed.Load))
	}
}

// openPorts are all TCP ports that take a connection from the LAN.
func openPorts(ctx context.Context, w *world.World, at netip.Addr) []int {
	var mu sync.Mutex
	var open []int
	var group sync.WaitGroup
	ports := make(chan int)
	for range 64 {
		group.Go(func() {
			for p := range ports {
				dial, cancel := context.WithTimeout(ctx, 10*time.Second)
				c, err := world.DialIn(dial, w.File(), "tcp", netip.AddrPortFrom(at, uint16(p)).String())
				cancel()
				if err == nil {
					c.Close()
					mu.Lock()
					open = append(open, p)
					mu.Unlock()
				}
			}
		})
	}
	for p := 1; p < 1<<16; p++ {
		ports <- p
	}
	close(ports)
	group.Wait()
	slices.Sort(open)
	return open
}
